"""Intervals against published numbers, brute force and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from qunlearn.audit import intervals
from qunlearn.errors import DataError, InvariantError


def test_wilson_equals_the_textbook_value() -> None:
    # 15 of 148 at 95 %: (0.0624, 0.1605), Newcombe 1998, table I.
    e = intervals.share(np.arange(148) < 15, level=0.95)
    assert e.value == pytest.approx(15 / 148)
    assert (e.lo, e.hi) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))


@pytest.mark.parametrize("hits", [0, 12])
def test_an_extreme_share_still_has_width(hits: int) -> None:
    e = intervals.share(np.arange(12) < hits)
    assert e.hi - e.lo > 0.1
    assert e.lo <= e.value <= e.hi


def test_paired_difference_by_hand() -> None:
    a = np.array([1, 1, 1, 0, 0, 1, 0, 1], bool)
    b = np.array([1, 0, 0, 0, 1, 1, 0, 0], bool)
    e = intervals.share_difference(a, b, level=0.95)
    p10, p01 = 4 / 10, 2 / 10
    half = 1.959963985 * np.sqrt((p10 + p01 - (p10 - p01) ** 2) / 10)
    assert e.value == pytest.approx(2 / 8)
    assert e.lo == pytest.approx(p10 - p01 - half)
    assert e.hi == pytest.approx(p10 - p01 + half)


def test_equal_readings_give_a_zero_difference_with_width() -> None:
    hits = np.arange(50) < 40
    e = intervals.share_difference(hits, hits)
    assert e.value == 0
    assert e.lo < 0 < e.hi


def test_paired_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        a = rng.random(120) < 0.75
        b = np.where(rng.random(120) < 0.2, rng.random(120) < 0.4, a)
        truth = 0.75 - (0.8 * 0.75 + 0.2 * 0.4)
        e = intervals.share_difference(a, b)
        inside += e.lo <= truth <= e.hi
    assert 0.86 <= inside / 400 <= 0.96


def test_auc_equals_brute_force_with_ties() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(1, 8, 55).astype(float)
    brute = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert intervals.auc(a, b).value == pytest.approx(brute)
    assert intervals.auc(b, a).value == pytest.approx(1 - brute)


def test_widening_adds_in_quadrature_and_respects_the_bounds() -> None:
    e = intervals.Estimate(value=0.5, lo=0.47, hi=0.53, level=0.9, method="x", n=9)
    sd = 0.04 / intervals.z_of(0.9)
    wide = e.widened(sd, "more", ceiling=0.545)
    assert wide.lo == pytest.approx(0.45)
    assert wide.hi == pytest.approx(0.545)
    assert wide.method == "x + more"


def test_empty_and_unpaired_inputs_are_refused() -> None:
    with pytest.raises(DataError):
        intervals.share(np.array([], bool))
    with pytest.raises(DataError):
        intervals.mean(np.array([]))
    with pytest.raises(DataError):
        intervals.auc(np.array([]), np.ones(2))
    with pytest.raises(InvariantError):
        intervals.share_difference(np.ones(3), np.ones(4))
    with pytest.raises(InvariantError):
        intervals.Estimate(value=float("nan"), lo=0, hi=1, level=0.9, method="x", n=1)
