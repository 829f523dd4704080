"""What counts as a flip: the argmax, margins in output steps, ties, values that are not finite."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import eve_flips

BEFORE = np.array([[9.0, 3.0, 0.0]])


def one(
    after: Any, *, before: Any = BEFORE, step: float = 0.5, least: int = 1, y: int = 0, wanted: int = 1
) -> dict[str, Any]:
    found = eve_flips.read(
        np.array(before, np.float32), np.array([after], np.float32), np.array([y]), step=step, least=least,
        wanted=np.array([wanted]),
    )  # fmt: skip
    return found.rows()[0]


def test_a_flip_and_a_strict_flip() -> None:
    row = one([1.0, 4.0, 0.0])
    assert (row["flip"], row["strict"], row["margin_before"], row["margin_after"]) == (True, True, 12.0, 6.0)
    row = one([1.0, 0.0, 4.0])
    assert (row["flip"], row["strict"]) == (True, False)
    assert row["lead_after"] == -6.0
    row = one([8.0, 4.0, 0.0])
    assert (row["flip"], row["resolved"], row["margin_after"], row["lead_after"]) == (False, True, 0.0, 8.0)


def test_a_margin_below_the_bound_on_either_side_is_unresolved_and_never_a_flip() -> None:
    assert one([1.0, 2.0, 0.0], least=2)["flip"]
    after = one([1.0, 1.5, 0.0], least=2)
    assert (after["flip"], after["resolved"]) == (False, False)
    before = one([1.0, 4.0, 0.0], before=[[3.5, 3.0, 0.0]], least=2)
    assert (before["flip"], before["resolved"], before["right_before"]) == (False, False, True)
    kept = one([2.0, 1.5, 0.0], least=2)
    assert (kept["flip"], kept["resolved"]) == (False, False)


def test_ties_go_to_the_lowest_index_and_are_unresolved() -> None:
    assert one([4.0, 4.0, 0.0])["resolved"] is False
    row = one([4.0, 4.0, 0.0], before=[[3.0, 9.0, 0.0]], y=1, wanted=0)
    assert (row["flip"], row["resolved"]) == (False, False)


def test_without_a_grid_any_positive_margin_resolves() -> None:
    assert one([1.0, 1.0001, 0.0], step=0.0, least=5)["flip"]
    assert not one([1.0, 1.0, 0.0], step=0.0)["resolved"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_unresolved(bad: float) -> None:
    row = one([1.0, bad, 0.0])
    assert (row["flip"], row["resolved"]) == (False, False)


def test_a_target_that_was_wrong_before_never_flips() -> None:
    row = one([1.0, 4.0, 0.0], before=[[1.0, 4.0, 0.0]])
    assert (row["right_before"], row["flip"]) == (False, False)


def test_the_bound_is_the_one_proven_for_the_kind() -> None:
    pairs = {"onnx-all vs oracle": 2, "onnx-off vs oracle": 3, "c-host vs oracle": 0, "onnx-all vs onnx-off": 9}
    report = SimpleNamespace(logits=[SimpleNamespace(pair=p, max_abs=v) for p, v in pairs.items()])
    assert [eve_flips.parity_bound(report, k) for k in ("onnx-all", "onnx-off", "c-host", "c-target")] == [2, 3, 0, 0]
    assert eve_flips.parity_bound(None, "onnx-all") == 0
