"""What the pages say of the audits, and what the acceptance lists ask of them, held against the committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qunlearn.audit.result import worst
from qunlearn.cli.assess import SUITES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROWS: list[dict[str, Any]] = json.loads((RESULTS / "audits.json").read_text())
STRICT: list[dict[str, Any]] = [r for r in ROWS if r["audit"] in SUITES["strict"]]
ATTACKS = ("loss", "lira", "rmia", "u_lira")
KINDS = ("torch-fq", "onnx-all", "c-host")
SEEDS = range(5)
FAKES = ("no_unlearning", "continued", "fake_other", "fake_relabel", "clean", "random", "released_code", "collapsed")
"""Networks that did not do what a crafted request asks for."""


def of(audit: str, model: str, request: str | None = None, kind: str = "onnx-all") -> list[str]:
    """The verdicts of one audit on one network, every request (or one) and seed."""
    return [
        r["verdict"] for r in ROWS
        if (r["audit"], r["model"], r["kind"]) == (audit, model, kind) and request in (None, r["request"])
    ]  # fmt: skip


def suite(name: str, model: str, kind: str) -> list[str]:
    """The verdict of a suite on one network: one a request and seed."""
    cells = {(r["request"], r["seed"]) for r in STRICT if r["model"] == model}
    return [
        worst([r["verdict"] for r in STRICT if (r["request"], r["seed"], r["model"], r["kind"]) == (*cell, model, kind)
               and r["audit"] in SUITES[name]])
        for cell in sorted(cells)
    ]  # fmt: skip


def test_audits_of_the_strict_suite_and_attacks_were_read_from_every_artefact_over_five_seeds() -> None:
    found = {(r["audit"], r["kind"], r["seed"]) for r in ROWS if r["audit"] != "eve"}
    assert found == {(a, k, s) for a in (*SUITES["strict"], *ATTACKS) for k in KINDS for s in SEEDS}
    models = {"retrained", "original", "half", "collapsed", "flipped", "head only"}
    assert {r["model"] for r in STRICT} == models
    arms = {(r["model"], r["kind"], r["seed"]) for r in ROWS if r["audit"] == "eve"}
    assert arms == {(m, k, s) for m in (*FAKES, "crafted") for k in KINDS for s in SEEDS}


def test_network_file_and_c_agree_as_the_page_says() -> None:
    page = " ".join((ROOT / "docs" / "audits.md").read_text().split())
    rows = json.loads((RESULTS / "agreement.json").read_text())["rows"]
    cells = [r for r in rows if "large" not in r]
    alike = [len({r["kinds"][k]["verdict"] for k in KINDS}) == 1 for r in cells]
    assert {r["place"] for r in cells} == {"kws", "cifar10", "cifar10_memorised"}
    assert sum(alike) >= 0.95 * len(cells) >= 0.95 * 180
    strict = {(r["place"], r["request"]) for r in cells if r["audit"] in ("recovery", "relearn", "quant_recovery")}
    assert strict == {("kws", "group=lucas"), ("cifar10", "class=3")}
    assert "were read for one speaker and one class (`--suite strict --only group=lucas class=3`)" in page

    gated = [r for r in cells if r["kinds"]["onnx-all"]["side"] == "utility"]
    others = [r for r in cells if r not in gated]
    undecided = [r for r in others if {v["verdict"] for v in r["kinds"].values()} == {"inconclusive"}]
    assert "half of the cells were decided by the utility gate, and half of the others are inconclusive" in page
    assert 0.4 < len(gated) / len(cells) < 0.6
    assert 0.4 < len(undecided) / len(others) < 0.6

    assert (
        "`accuracy`, `mia` and `cka` pass the retrained network on all three artefacts and fail the untouched" in page
    )
    own = {(r["model"], r["audit"]): r["kinds"] for r in cells if r["place"] == "cifar10_memorised"}
    for audit in ("accuracy", "mia", "cka"):
        assert all(v["verdict"] == "pass" for v in own["retrained", audit].values())
        assert all(v["side"] == "under" for v in own["original, moved", audit].values())
    large = [r["large"] for r in rows if "large" in r and r["place"] == "cifar10_memorised"]
    assert all(v["verdict"] == "inconclusive" for v in own["retrained", "smi"].values())
    assert [v["verdict"] for v in large].count("inconclusive") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_fakes_never_pass_and_strict_catches_the_last_layer(kind: str) -> None:
    for model in ("collapsed", "flipped"):
        for name in ("standard", "strict"):
            assert "pass" not in suite(name, model, kind), (model, name)
    found = suite("strict", "head only", kind)
    assert len(found) == len(SEEDS)
    assert set(found) == {"fail"}


def test_network_file_and_c_agree_on_networks_of_known_truth() -> None:
    by: dict[tuple[Any, ...], set[str]] = {}
    for r in ROWS:
        by.setdefault((r["request"], r["seed"], r["model"], r["audit"]), set()).add(r["verdict"])
    assert all(len(v) == 1 for v in by.values()), "docs/audits.md: one verdict in all cells"


def doubted(verdict: str) -> list[set[str]]:
    """Why ``eve`` did not pass the crafted network, by seed: without reasons' details."""
    rows = [
        r for r in ROWS if (r["audit"], r["model"], r["kind"], r["verdict"]) == ("eve", "crafted", "onnx-all", verdict)
    ]
    return [{c.split(":")[0] for c in r["reasons"]} for r in rows]


CLAIMS: dict[str, Callable[[], bool]] = {
    "passed no fake and no network that took other steps": lambda: not any(
        "pass" in of("eve", m, kind=k) for m in FAKES for k in KINDS
    ),
    "in two seeds that lost too much kept accuracy, in three 60 calibration trials were too few or met a false "
    "positive": lambda: (
        doubted("fail") == [{"F-UTILITY-RETAIN"}] * 2
        and sorted(map(sorted, doubted("inconclusive"))) == [["I-EVE-FALSE-POSITIVES"]] * 2 + [["I-EVE-WEAK"]]
    ),
    "(`loss`, `lira`, `rmia`, `u_lira`) passed no network, the retrained one included": lambda: not any(
        r["verdict"] == "pass" for r in ROWS if r["audit"] in ATTACKS
    ),
    "Neither suite passed a collapsed, mislabelled or last-layer-only network. But neither passed a *retrained* one "
    "either": lambda: not any(
        "pass" in suite(s, m, "onnx-all")
        for s in ("standard", "strict") for m in ("collapsed", "flipped", "head only", "retrained")
    ),
    "`smi` was inconclusive on all that kept their usefulness": lambda: (
        {r["verdict"] for r in ROWS if r["audit"] == "smi" and r["side"] != "utility"} == {"inconclusive"}
    ),
    "`accuracy` and `mia` together did pass mislabelled and last-layer-only networks": lambda: all(
        any(a == m == "pass" for a, m in zip(of("accuracy", n), of("mia", n), strict=True))
        for n in ("flipped", "head only")
    ),
    "`relearn` failed every last-layer-only network": lambda: set(of("relearn", "head only")) == {"fail"},
    "Nothing in the suites failed the mislabelled writer": lambda: not any(
        "fail" in of(a, "flipped", "group=turned") for a in SUITES["strict"]
    ),
    "`cka` failed one retrained network and passed networks that forgot half": lambda: (
        of("cka", "retrained").count("fail") == 1 and of("cka", "half").count("pass") > 1
    ),
}  # fmt: skip


def test_what_the_pages_say_of_networks_of_known_truth() -> None:
    page = " ".join((ROOT / "docs" / "audits.md").read_text().split())
    for sentence, holds in CLAIMS.items():
        assert sentence in page, f"docs/audits.md no longer says: {sentence}"
        assert holds(), sentence


def failed(audit: str, model: str) -> int:
    """In how many seeds an audit failed a network of the writer's request as remembering."""
    return len({
        r["seed"] for r in ROWS
        if (r["audit"], r["model"], r["kind"], r["side"]) == (audit, model, "onnx-all", "under")
        and r["request"] == "group=turned"
    })  # fmt: skip


def test_what_the_page_of_the_attacks_says_of_networks_of_known_truth() -> None:
    """No pass; mostly no power; how often each failed whom; nothing said of a whole class but for lost utility."""
    page = " ".join((ROOT / "docs" / "attacks.md").read_text().split())
    rows = [r for r in ROWS if r["audit"] in ATTACKS]
    assert "no attack passed any network, the retrained one included" in page
    assert not any(r["verdict"] == "pass" for r in rows)
    counts = [failed(a, "original") for a in ATTACKS]
    assert counts == [failed(a, "half") for a in ATTACKS]
    assert "failed the original and the half-forgotten writer in {}, {} and {} of 5 seeds each".format(*counts) in page
    assert counts[3] == 0
    assert f"`u_lira` failed neither, but the mislabelled writer in {failed('u_lira', 'flipped')}." in page
    assert [failed(a, "flipped") for a in ATTACKS[:3]] == [0, 0, 0]
    on_file = [r for r in rows if r["kind"] == "onnx-all" and r["side"] != "utility"]
    powerless = [
        any(c.startswith("I-ATTACK-NO-POWER") for c in r["reasons"]) for r in on_file if "group" in r["request"]
    ]
    assert sum(powerless) > len(powerless) / 2
    assert all(r["reasons"] == ["I-SMI-CLASSES"] for r in on_file if r["request"] == "class=3")


def test_what_smi_costs_beside_four_shadow_models() -> None:
    """At most a fiftieth of RMIA; the loss and RMIA within .25 of the retrained network's share, or gated."""
    ratios = []
    for seed in json.loads((RESULTS / "smi.json").read_text())["seeds"]:
        for rows in seed["side_by_side"].values():
            seconds = {row[0]: float(row[6]) + float(row[7]) for row in rows}
            trained = {row[0]: (float(row[6]), row[8]) for row in rows}
            assert trained["smi"] == (0.0, "0")
            assert trained["rmia"][1] == "4"
            ratios.append(seconds["rmia"] / seconds["smi"])
        for row in seed["side_by_side"]["retrained"]:
            if row[0] in ("loss", "rmia") and row[4] == "met":
                assert abs(float(row[1]) - float(row[3])) <= 0.25
    assert min(ratios) >= 50
    page = " ".join((ROOT / "docs" / "attacks.md").read_text().split())
    said = re.search(r"SMI cost 1/(\d+) to 1/(\d+) of RMIA", page)
    assert said is not None
    assert (int(said[1]), int(said[2])) == (round(min(ratios)), round(max(ratios)))


def test_every_bar_of_the_erasure_check_was_reached() -> None:
    text = (RESULTS / "eve.md").read_text()
    table = text[text.index("| acceptance | measured |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 7
    assert all(line.endswith("| yes |") for line in table), table
    found = json.loads((RESULTS / "eve.json").read_text())
    assert found["seeds"] == found["main"]["trials"] == 8
    assert found["main"]["arms"]["eve"]["flips"] >= 7
    assert found["artefacts"]["alike"] == found["artefacts"]["compared"] == 3 * 8


def test_smi_passes_a_trained_network_where_membership_shows() -> None:
    """docs/smi.md: read from the logits the retrained network passes and the original fails, on every artefact."""
    found = json.loads((RESULTS / "smi_patterns.json").read_text())["seeds"]
    rows = [r for f in found for r in f["rows"] if r["audit"] == "smi"]
    assert {r["kind"] for r in rows} == set(KINDS)
    for r in rows:
        if r["model"] not in ("original", "retrained"):
            assert r["verdict"] == "fail", r
        elif r["phi"] == "logits":
            assert (r["verdict"], r["side"]) == (("pass", "none") if r["model"] == "retrained" else ("fail", "under"))
            assert abs(r["value"] - (r["model"] == "retrained")) <= 0.2
