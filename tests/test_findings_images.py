"""What README and docs say of CIFAR-10, held against the committed cells."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import pytest
from grid_part import RESULTS, ROOT, Part, words

from qunlearn.bench.scene import ORIGINAL, RETRAINED, SECOND_RETRAINED
from qunlearn.bench.store import Store
from qunlearn.unlearn import METHODS

ENTROPY = "entropy on the forget set, off by"
UNSURE = "F-COLLAPSE-ENTROPY"


class Images(NamedTuple):
    """One forgotten class, and 10 % at random."""

    one: Part
    random: Part


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(Part("cifar10", "class"), Part("cifar10", "random"))


def marked(part: Part, method: str, mark: str) -> bool:
    return mark in part.rows[method]["marks"]


def lost(part: Part, method: str) -> float:
    """Retain accuracy that the method costs."""
    return float(part.rows[ORIGINAL]["retain_accuracy"][0] - part.rows[method]["retain_accuracy"][0])


def useful(part: Part, method: str) -> bool:
    """A configuration of the draw kept utility on the tuning seed."""
    return part.gate[method]["kept"] is not None


def forgot(part: Part, method: str) -> bool:
    return part.fa(method) < 0.03 and not marked(part, method, "utility") and lost(part, method) < 0.03


def near(part: Part, method: str) -> bool:
    """Within the noise floor: no further than a second retrained network, give or take its spread."""
    mean, spread = part.rows[SECOND_RETRAINED]["gap"]
    return bool(part.gap(method) <= mean + spread)


def moved(part: Part, method: str) -> float:
    """Share of the way from the original's features to the retrained network's."""
    target = part.rows[RETRAINED]["cka"]
    return float((1 - part.rows[method]["cka"]) / (1 - target))


def order(part: Part, key: str) -> list[str]:
    return sorted(part.ranked, key=lambda m: part.rows[m][key], reverse=True)


def unsure(part: Part, method: str) -> float:
    cells = [c for c in part.cells if c["method"] == method]
    return statistics.fmean(UNSURE in c["utility"] for c in cells)


CLAIMS: dict[tuple[str, str], Callable[[Images], bool]] = {
    ("findings", "OEU forgets the class and keeps utility, with a gap of about a point: it stands eighth"): lambda i: (
        forgot(i.one, "oeu") and 0.005 < i.one.gap("oeu") < 0.015 and i.one.ranked.index("oeu") == 7
    ),
    ("findings", "NegGrad+, SalUn and Q-MUL come as near as a second retrained network does"): lambda i: (
        all(near(i.one, m) for m in ("neggrad_plus", "salun", "qmul"))
    ),
    ("findings", "FT and L1-sparse forget it too"): lambda i: all(forgot(i.one, m) for m in ("ft", "l1_sparse")),
    ("findings", "less sure than the retrained one is, on the forgotten class more than any other method"): lambda i: (
        i.one.rows["oeu"]["entropy"] > i.one.rows[RETRAINED]["entropy"]
        and i.one.standing[ENTROPY]["place"] == len(METHODS)
    ),
    ("findings", "its answers lie further from the retrained network's than FT's"): lambda i: all(
        i.one.rows["oeu"][k] > i.one.rows["ft"][k] for k in ("kl_forget", "kl_test")
    ),
    ("findings", "RL, SalUn and OEU move the features most of the way"): lambda i: all(
        moved(i.one, m) > 0.55 for m in ("rl", "salun", "oeu")
    ),
    ("findings", "FT, L1-sparse and EC leave them near the original's"): lambda i: all(
        moved(i.one, m) < 0.35 for m in ("ft", "l1_sparse", "ec")
    ),
    ("findings", "GA, GradDiff, SSD and SCRUB lose the network: none of their configurations kept utility"): lambda i: (
        all(lost(i.one, m) > 0.2 and not useful(i.one, m) for m in ("ga", "graddiff", "ssd", "scrub"))
    ),
    ("findings", "Doing nothing is about as near to the retrained network as a second retrained one"): lambda i: (
        i.random.gap(ORIGINAL) < 2 * i.random.gap(SECOND_RETRAINED)
    ),
    ("findings", "GA, GradDiff, SCRUB and boundary shrink lose accuracy by tens of points"): lambda i: all(
        lost(i.random, m) > 0.15 for m in ("ga", "graddiff", "scrub", "boundary_shrink")
    ),
    ("findings", "EC does in some seeds"): lambda i: (
        min(i.random.of("ec", "retain_accuracy")) < 0.65 and max(i.random.of("ec", "retain_accuracy")) > 0.72
    ),
    ("findings", "SalUn has the smallest gap, at or below the noise floor"): lambda i: (
        i.random.ranked[0] == "salun" and near(i.random, "salun")
    ),
    ("findings", "its files, OEU's and those of Bad Teacher fail the utility gate, since they are unsure"): lambda i: (
        all(marked(i.random, m, "utility") and unsure(i.random, m) > 0.5 for m in ("salun", "oeu", "bad_teacher"))
    ),
    ("findings", "EC as tuned goes a quarter of the way, at the retain accuracy of the retrained network"): lambda i: (
        0.2 < moved(i.one, "ec") < 0.3
        and abs(i.one.rows["ec"]["retain_accuracy"][0] - i.one.rows[RETRAINED]["retain_accuracy"][0]) < 0.005
    ),
    ("findings", "FT changes nine codes in ten where a class is forgotten"): lambda i: (
        0.87 < i.one.rows["ft"]["codes_changed"] < 0.93
    ),
    ("findings", "change most codes, SCRUB and RL, are one of the worst and one of the best"): lambda i: (
        set(order(i.one, "codes_changed")[:2]) == {"scrub", "rl"}
        and set(i.one.ranked[-2:]) == {"scrub", "ga"} and i.one.ranked.index("rl") < 4
    ),
    ("findings", "OEU loses about half of its update"): lambda i: all(
        0.4 < p.rows["oeu"]["lost_to_rounding"] < 0.6 for p in i
    ),
    ("bad_teacher", "it forgot two thirds of what the network knew of a class and kept accuracy"): lambda i: (
        0.5 < 1 - i.one.fa("bad_teacher") / i.one.fa(ORIGINAL) < 0.8 and lost(i.one, "bad_teacher") < 0.03
    ),
    ("bad_teacher", "on 10 % at random no configuration kept utility"): lambda i: not useful(i.random, "bad_teacher"),
    ("boundary_shrink", "it lost accuracy by ten points and more in both requests"): lambda i: all(
        lost(p, "boundary_shrink") > 0.1 and not useful(p, "boundary_shrink") for p in i
    ),
    ("ec", "it forgot a class and kept accuracy, while the features stayed near the original's"): lambda i: (
        forgot(i.one, "ec") and moved(i.one, "ec") < 0.35
    ),
    ("ec", "some seeds lost the network"): lambda i: min(i.random.of("ec", "retain_accuracy")) < 0.65,
    ("ft", "it forgot a class altogether"): lambda i: i.one.fa("ft") < 0.01 and forgot(i.one, "ft"),
    ("ft", "On 10 % at random it had no effect"): lambda i: marked(i.random, "ft", "no effect"),
    ("ga", "no configuration kept utility, and the reported ones lost the network"): lambda i: all(
        not useful(p, "ga") and lost(p, "ga") > 0.2 for p in i
    ),
    ("neggrad_plus", "nearest to the retrained network of all methods where a class was forgotten"): lambda i: (
        i.one.ranked[0] == "neggrad_plus" and forgot(i.one, "neggrad_plus")
    ),
    ("neggrad_plus", "GradDiff lost the network"): lambda i: all(lost(p, "graddiff") > 0.15 for p in i),
    ("l1_sparse", "a class was forgotten, 10 % at random were not, and no channel died"): lambda i: (
        forgot(i.one, "l1_sparse")
        and marked(i.random, "l1_sparse", "no effect")
        and not any(p.rows["l1_sparse"]["dead"] for p in i)
    ),
    ("oeu", "it forgets a class and keeps utility, but stands eighth"): lambda i: (
        forgot(i.one, "oeu") and i.one.ranked.index("oeu") == 7
    ),
    ("oeu", "on 10 % at random its files fail the utility gate for that reason"): lambda i: (
        marked(i.random, "oeu", "utility") and unsure(i.random, "oeu") > 0.5
    ),
    ("qmul", "as near to retraining as a second retrained network, and kept accuracy"): lambda i: (
        near(i.one, "qmul") and forgot(i.one, "qmul")
    ),
    ("qmul", "at the most changed codes but SCRUB's and RL's"): lambda i: (
        order(i.one, "codes_changed").index("qmul") == 2
        and set(order(i.one, "codes_changed")[:2]) == {"scrub", "rl"}
    ),
    ("rl", "with features nearest to the retrained network's"): lambda i: (
        min(i.one.ranked, key=lambda m: abs(i.one.rows[m]["cka"] - i.one.rows[RETRAINED]["cka"])) == "rl"
        and forgot(i.one, "rl")
    ),
    ("rl", "on 10 % at random it had no effect"): lambda i: marked(i.random, "rl", "no effect"),
    ("salun", "it forgot a class as near to retraining as a second retrained network"): lambda i: (
        forgot(i.one, "salun") and near(i.one, "salun")
    ),
    ("salun", "on 10 % at random it has the smallest gap, in files that fail the utility gate"): lambda i: (
        i.random.ranked[0] == "salun" and marked(i.random, "salun", "utility")
    ),
    ("scrub", "the network was lost in both requests"): lambda i: all(lost(p, "scrub") > 0.4 for p in i),
    ("ssd", "the class took the network with it; on 10 % at random hardly a code changed"): lambda i: (
        lost(i.one, "ssd") > 0.4 and i.random.rows["ssd"]["codes_changed"] < 0.02
    ),
}  # fmt: skip
"""(page, its words) to whether the cells of CIFAR-10 say so too."""


@pytest.mark.parametrize(("page", "claim"), list(CLAIMS), ids=lambda v: v[:40])
def test_the_cells_say_what_the_pages_say(page: str, claim: str, images: Images) -> None:
    assert claim in words(page), "reworded: word the claim here alike"
    assert CLAIMS[page, claim](images), "no longer so: reword the page"


def test_readme_on_images(images: Images) -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "it stands eighth of fourteen, and to train on without the class is enough" in text
    assert len(images.one.ranked) == 14
    assert images.one.ranked.index("oeu") == 7
    assert forgot(images.one, "ft")
    assert "doing nothing is as near to retraining as most methods" in text
    assert "At W4A4 (one seed) and on Fashion-MNIST it does not lead either" in text
    parts = [Part(name, kind) for name in ("cifar10_w4a4", "fashion_mnist") for kind in ("class", "random")]
    assert all(part.ranked[0] != "oeu" for part in parts)
    nearer = [m for m in images.random.ranked if images.random.gap(m) < images.random.gap(ORIGINAL)]
    assert len(nearer) <= len(images.random.ranked) / 2


def test_every_method_page_speaks_of_images() -> None:
    pages = {cls.__module__.rsplit(".", 1)[-1] for cls in METHODS.values()}
    assert pages <= {page for page, _ in CLAIMS}


def test_the_grid_is_complete() -> None:
    cells = [c for c in Store(RESULTS / "cifar10") if not c["tuning"]]
    assert len(cells) == 2 * 3 * (len(METHODS) + 3)


LOST = ("ga", "graddiff", "ssd", "scrub")


def about(part: Part, method: str) -> bool:
    """Within a quarter of a point of the second retrained network's gap; one seed shows no spread."""
    return bool(part.gap(method) <= part.gap(SECOND_RETRAINED) + 0.0025)


NARROW: dict[str, Callable[[Images, Images], bool]] = {
    "SalUn, Q-MUL, RL, EC and NegGrad+ come about as near as a second retrained network": lambda n, _: (
        {m for m in METHODS if about(n.one, m)} == {"salun", "qmul", "rl", "ec", "neggrad_plus"}
    ),
    "FT and L1-sparse forget it too, OEU stands eighth again, further off than at W8A8": lambda n, w: (
        all(forgot(n.one, m) for m in ("ft", "l1_sparse"))
        and n.one.ranked.index("oeu") == 7
        and n.one.gap("oeu") > w.one.gap("oeu")
    ),
    "and the four that lost the network lose it again": lambda n, _: (
        all(lost(n.one, m) > 0.2 and not useful(n.one, m) for m in LOST)
    ),
    "FT changes a sixth of the codes where it changed nine in ten": lambda n, w: (
        0.15 < n.one.rows["ft"]["codes_changed"] < 0.18 and 0.87 < w.one.rows["ft"]["codes_changed"] < 0.93
    ),
    "OEU and EC less than a twentieth": lambda n, _: all(n.one.rows[m]["codes_changed"] < 0.05 for m in ("oeu", "ec")),
    "OEU loses nearly all of its update to rounding; the class is forgotten all the same": lambda n, _: (
        n.one.rows["oeu"]["lost_to_rounding"] > 0.95 and n.one.fa("oeu") < 0.05 and n.one.fa(ORIGINAL) > 0.5
    ),
    "the attack's figure alone moves by ten points and more between networks of the same accuracy": lambda n, _: (
        abs(n.random.rows["ec"]["mia"][0] - n.random.rows[ORIGINAL]["mia"][0]) > 0.1
        and all(
            abs(n.random.rows["ec"][k][0] - n.random.rows[ORIGINAL][k][0]) < 0.005
            for k in ("forget_accuracy", "retain_accuracy", "test_accuracy")
        )
    ),
    "the methods that lose accuracy by tens of points are those of W8A8, but for EC": lambda n, w: (
        {m for m in METHODS if lost(n.random, m) > 0.15}
        == {m for m in METHODS if lost(w.random, m) > 0.15}
        == {"ga", "graddiff", "scrub", "boundary_shrink"}
        and abs(lost(n.random, "ec")) < 0.01
    ),
}  # fmt: skip
"""Words of the findings on W4A4 to whether its cells, beside those of W8A8, say so too."""


@pytest.mark.parametrize("claim", list(NARROW), ids=lambda v: v[:40])
def test_the_cells_of_four_bits_say_what_the_page_says(claim: str, images: Images) -> None:
    assert claim in words("findings"), "reworded: word the claim here alike"
    assert NARROW[claim](Images(Part("cifar10_w4a4", "class"), Part("cifar10_w4a4", "random")), images)


def test_four_bits_are_one_seed_and_complete() -> None:
    cells = [c for c in Store(RESULTS / "cifar10_w4a4") if not c["tuning"]]
    assert len(cells) == 2 * (len(METHODS) + 3)
    assert {c["seed"] for c in cells} == {0}
    table = words("findings").split("generated:standing-cifar10_w4a4:begin")[1].split("generated:standing-")[0]
    assert "**" not in table


FASHION: dict[str, Callable[[Images], bool]] = {
    "Where a class is forgotten RL comes as near as a second retrained network, nobody else does": lambda f: (
        [m for m in METHODS if near(f.one, m)] == ["rl"]
    ),
    "OEU stands sixth: it keeps accuracy and forgets most of the class, not all of it": lambda f: (
        f.one.ranked.index("oeu") == 5 and lost(f.one, "oeu") < 0.01 and 0.1 < f.one.fa("oeu") < 0.25
    ),
    "SalUn forgets all of it, but in one seed the attack takes the whole class for training data": lambda f: (
        max(f.one.of("salun")) < 0.005 and sorted(round(v) for v in f.one.of("salun", "mia")) == [0, 1, 1]
    ),
    "NegGrad+ loses much of the network in one seed": lambda f: (
        sum(v < 0.7 for v in f.one.of("neggrad_plus", "retain_accuracy")) == 1
        and sum(v > 0.8 for v in f.one.of("neggrad_plus", "retain_accuracy")) == 2
    ),
    "boundary shrink and the four that lost it on CIFAR-10 in all": lambda f: all(
        max(f.one.of(m, "retain_accuracy")) < 0.6 for m in ("boundary_shrink", *LOST)
    ),
    "doing nothing is again less than two noise floors away": lambda f: (
        f.random.gap(ORIGINAL) < 2 * f.random.gap(SECOND_RETRAINED)
    ),
    "RL, NegGrad+ and FT are within the floor, OEU and SalUn lose four points of accuracy": lambda f: (
        {m for m in METHODS if near(f.random, m)} == {"rl", "neggrad_plus", "ft"}
        and all(0.035 < lost(f.random, m) < 0.045 for m in ("oeu", "salun"))
        and all(marked(f.random, m, "utility") and not useful(f.random, m) for m in ("oeu", "salun"))
    ),
    "four points of accuracy and are unsure of everybody": lambda f: all(
        unsure(f.random, m) > 0.5 for m in ("oeu", "salun")
    ),
}  # fmt: skip
"""Words of the findings on Fashion-MNIST to whether its cells say so too."""


@pytest.mark.parametrize("claim", list(FASHION), ids=lambda v: v[:40])
def test_the_cells_of_fashion_mnist_say_what_the_page_says(claim: str) -> None:
    fashion = Images(Part("fashion_mnist", "class"), Part("fashion_mnist", "random"))
    assert claim in words("findings"), "reworded: word the claim here alike"
    assert FASHION[claim](fashion)
    assert len(fashion.one.cells) == len(fashion.random.cells) == 3 * (len(METHODS) + 3)
