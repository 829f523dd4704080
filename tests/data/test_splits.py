"""Splits: disjoint by position and content, seeded, and what class and group requests take out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.partition import assign_parts, stratified_part
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, divide_heldout, make_splits, training_samples
from qunlearn.errors import ConfigError, DataError

Make = Callable[..., Dataset]
FIVE = ("forget", "retain", "heldout_stop", "heldout_audit", "test")


def twins(toy: Dataset, make: Make, *pairs: tuple[int, int]) -> Dataset:
    """The toy set in which sample b has the content and label of sample a, for every pair (a, b)."""
    x, y = toy.x.copy(), toy.y.copy()
    for a, b in pairs:
        x[b], y[b] = x[a], y[a]
    return make(x=x, y=y)


@pytest.mark.parametrize("text", ["class=bee", "group=cleo", "random=20%", "ids=s000,s031,s059"])
def test_splits_never_overlap_and_lose_nothing(toy: Dataset, text: str) -> None:
    splits = make_splits(toy, Request.parse(text), seed=4)
    views = [samples for _, samples in splits.roles()]
    for a, b in combinations(views, 2):
        assert not set(a.ids) & set(b.ids)
        assert not set(a.content_hashes()) & set(b.content_hashes())
    assert sum(map(len, views)) == len(toy)
    assert set(toy.part[splits.forget.index]) == set(toy.part[splits.retain.index]) == {"train"}
    assert set(toy.part[splits.heldout.index]) == {"heldout"}
    assert set(toy.part[splits.test.index]) == {"test"}
    assert splits.request_kind == text.split("=")[0]
    assert splits.dataset is toy


@pytest.mark.parametrize(("text", "each"), [("class=bee", 20), ("group=cleo", 15)])
def test_the_forgotten_kind_leaves_heldout_and_test(toy: Dataset, text: str, each: int) -> None:
    splits = make_splits(toy, Request.parse(text), seed=4)
    assert toy.group is not None
    kind = np.asarray(toy.y == 1 if text == "class=bee" else toy.group == "cleo")
    for name in ("retain", "heldout_stop", "heldout_audit", "test"):
        assert not kind[getattr(splits, name).index].any()
    for samples, part in ((splits.forget, "train"), (splits.forget_heldout, "heldout"), (splits.forget_test, "test")):
        assert samples is not None
        assert kind[samples.index].all()
        assert set(toy.part[samples.index]) == {part}
        assert len(samples) == each
    assert splits.counts()["forget.test"] == each


@pytest.mark.parametrize("text", ["random=20%", "ids=s000,s031"])
def test_other_requests_leave_heldout_and_test_whole(toy: Dataset, text: str) -> None:
    splits = make_splits(toy, Request.parse(text), seed=4)
    assert splits.forget_test is None
    assert splits.forget_heldout is None
    assert (len(splits.heldout), len(splits.test)) == (60, 60)
    assert repr(splits).startswith("Splits(forget=")


def test_heldout_is_halved_by_seed_whatever_is_asked_for(toy: Dataset) -> None:
    stop, audit = divide_heldout(toy, 7)
    assert len(stop) == len(audit) == 30
    assert toy.group is not None
    for half in (stop, audit):
        cells = list(zip(toy.y[half], toy.group[half], strict=True))
        assert all(2 <= cells.count(cell) <= 3 for cell in set(cells))
        assert len(set(cells)) == 12
    for text in ("ids=s003", "class=ant"):
        splits = make_splits(toy, Request.parse(text), seed=7)
        assert set(splits.heldout_stop.index) <= set(stop)
        assert set(splits.heldout_audit.index) <= set(audit)
    assert any(set(divide_heldout(toy, s)[0]) != set(stop) for s in range(3))


def test_stop_and_audit_share_no_content(toy: Dataset, make: Make) -> None:
    data = twins(toy, make, (60, 80), (60, 100), (61, 119), (70, 90))
    for seed in range(8):
        stop, audit = divide_heldout(data, seed)
        assert not {data.hashes[i] for i in stop} & {data.hashes[i] for i in audit}


@pytest.mark.parametrize(
    ("pair", "text", "match"),
    [
        ((0, 30), "ids=s000", r"forget and retain share samples: s030 \(1 in all\)"),
        ((0, 70), "ids=s000", r"forget and heldout\.(stop|audit) share samples: s070"),
        ((0, 130), "ids=s000", r"forget and test share samples: s130"),
        ((5, 130), "ids=s000", r"retain and test share samples: s130"),
        ((70, 130), "ids=s000", r"heldout\.(stop|audit) and test share samples: s130"),
        ((0, 130), "group=ann", r"forget and (test|forget\.test) share samples: s130"),
    ],
)
def test_twins_across_splits_are_errors(toy: Dataset, make: Make, pair: tuple[int, int], text: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        make_splits(twins(toy, make, pair), Request.parse(text), seed=0)
    assert "equal content" in caught.value.remedy


def test_twins_within_a_split_are_allowed(toy: Dataset, make: Make) -> None:
    data = twins(toy, make, (0, 1), (20, 21), (130, 131))
    assert len(make_splits(data, Request.parse("ids=s000,s001"), seed=0).forget) == 2


def test_empty_splits_are_named(toy: Dataset, make: Make) -> None:
    with pytest.raises(DataError, match="retain is empty"):
        make_splits(toy, Request("ids", tuple(toy.ids[:60])), seed=0)
    part = toy.part.copy()
    part[part != "train"] = "train"
    with pytest.raises(DataError, match=r"heldout\.stop is empty; heldout\.audit is empty; test is empty"):
        make_splits(make(part=part), Request.parse("ids=s000"), seed=0)


def test_splits_made_by_hand_are_checked(toy: Dataset, make: Make) -> None:
    parts: dict[str, Any] = {name: Samples(toy, np.arange(5 * i, 5 * i + 5)) for i, name in enumerate(FIVE)}
    assert len(Splits(**parts).heldout) == 10
    with pytest.raises(DataError, match=r"retain and test share samples: s005, s006 \(2 in all\)"):
        Splits(**{**parts, "test": Samples(toy, np.array([5, 6, 30]))})
    with pytest.raises(DataError, match="different data sets"):
        Splits(**{**parts, "test": Samples(make(), np.array([30]))})


def test_digests_do_not_depend_on_the_order_of_samples(toy: Dataset, make: Make) -> None:
    order = np.random.default_rng(1).permutation(len(toy))
    assert toy.group is not None
    moved = make(x=toy.x[order], y=toy.y[order], part=toy.part[order], group=toy.group[order], ids=toy.ids[order])
    digests = set()
    for text in ("class=bee", "group=ann", "ids=s000,s040"):
        request = Request.parse(text)
        first, second = make_splits(toy, request, seed=3), make_splits(moved, request, seed=3)
        assert first.digest() == second.digest()
        assert {role: s.digest() for role, s in first.roles()} == {role: s.digest() for role, s in second.roles()}
        digests.add(first.digest())
    assert len(digests) == 3


def test_digests_depend_on_who_is_in_which_split(toy: Dataset) -> None:
    parts: dict[str, Any] = {name: Samples(toy, np.arange(5 * i, 5 * i + 5)) for i, name in enumerate(FIVE)}
    other = {**parts, "test": Samples(toy, np.arange(40, 45))}
    swapped = {**parts, "heldout_stop": parts["heldout_audit"], "heldout_audit": parts["heldout_stop"]}
    assert len({Splits(**p).digest() for p in (parts, other, swapped)}) == 3


def test_training_samples(toy: Dataset) -> None:
    np.testing.assert_array_equal(training_samples(toy).index, toy.where("train"))
    request = Request.parse("random=30%")
    rest = training_samples(toy, request, seed=6)
    np.testing.assert_array_equal(rest.index, make_splits(toy, request, seed=6).retain.index)


def test_training_samples_refuse_twins_and_nothing(toy: Dataset, make: Make) -> None:
    with pytest.raises(DataError, match=r"equal excluded ones in content: s030 \(1 in all\)"):
        training_samples(twins(toy, make, (0, 30)), Request.parse("ids=s000"))
    with pytest.raises(DataError, match=r"class ant, bee, cat \(3 in all\) leaves no training sample"):
        training_samples(toy, Request("class", ("ant", "bee", "cat")))


@pytest.mark.parametrize("seed", [-1, 0.5, True, "1"])
def test_wrong_seeds(toy: Dataset, seed: int) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        make_splits(toy, Request.parse("random=10%"), seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab")), min_size=1, max_size=60),
    fraction=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32),
)
def test_a_stratified_part_has_the_wanted_size(cells: list[tuple[int, str]], fraction: float, seed: int) -> None:
    hashes = [f"{i:04x}" for i in range(len(cells))]
    mask = stratified_part(hashes, cells, fraction, seed=seed, purpose="t")
    assert abs(int(mask.sum()) - fraction * len(cells)) <= 0.5 + 1e-9
    for cell in set(cells):
        rows = [i for i, c in enumerate(cells) if c == cell]
        assert abs(int(mask[rows].sum()) - fraction * len(rows)) <= 1.0 + 1e-9
    turned = stratified_part(hashes[::-1], cells[::-1], fraction, seed=seed, purpose="t")
    np.testing.assert_array_equal(turned[::-1], mask)


def test_a_given_division_is_kept_and_completed() -> None:
    hashes = [f"{i:04x}" for i in range(100)]
    y = np.arange(100) % 5
    given_part = np.where(np.arange(100) < 30, "test", "train")
    part = assign_parts(hashes, y, None, seed=0, given=given_part)
    assert (part[:30] == "test").all()
    assert (part == "heldout").sum() == 14
    assert set(part[30:]) == {"train", "heldout"}
    assert {p: int((assign_parts(hashes, y, None, seed=0) == p).sum()) for p in ("train", "heldout", "test")} == {
        "train": 64,
        "heldout": 16,
        "test": 20,
    }


def test_words_of_a_division_are_never_cut() -> None:
    words = np.array(["train"] * 8 + ["heldouts", "test"])
    assert "heldouts" in assign_parts([str(i) for i in range(10)], np.zeros(10, np.int64), None, seed=0, given=words)
