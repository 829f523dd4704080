"""The two-sided rule, row by row."""

from __future__ import annotations

import pytest

from qunlearn.audit.intervals import Estimate
from qunlearn.audit.verdict import Measurement, two_sided


def est(value: float, lo: float, hi: float) -> Estimate:
    return Estimate(value=value, lo=lo, hi=hi, level=0.9, method="test", n=100)


def measured(lo: float, hi: float, **kw: object) -> Measurement:
    mid = (lo + hi) / 2
    fields = {"before": 1.0, "reference": est(0.6, 0.5, 0.7), "delta": est(mid, lo, hi), **kw}
    return Measurement(value=est(0.6 + mid, 0, 1), n={"forget": 100}, metrics={}, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lo", "hi", "higher", "verdict", "side", "reasons"),
    [
        (-0.05, 0.05, "under", "pass", "none", ()),
        (-0.10, 0.10, "under", "pass", "none", ()),
        (0.11, 0.20, "under", "fail", "under", ("F-UNDER",)),
        (0.11, 0.20, "over", "fail", "over", ("F-OVER",)),
        (-0.30, -0.11, "under", "fail", "over", ("F-OVER",)),
        (-0.30, -0.11, "over", "fail", "under", ("F-UNDER",)),
        (-0.05, 0.12, "under", "inconclusive", "none", ("I-INTERVAL",)),
        (-0.30, 0.30, "over", "inconclusive", "none", ("I-INTERVAL",)),
        (0.10, 0.20, "under", "inconclusive", "none", ("I-INTERVAL",)),
    ],
)
def test_rule(lo: float, hi: float, higher: str, verdict: str, side: str, reasons: tuple[str, ...]) -> None:
    got = two_sided(measured(lo, hi), tol=0.10, higher_side=higher)
    assert (got.verdict, got.side, got.reasons) == (verdict, side, reasons)


def test_an_untouched_model_inside_the_margin_rules_out_a_pass_but_not_a_failure() -> None:
    near = measured(-0.05, 0.05, before=0.65)
    assert two_sided(near, tol=0.10, higher_side="under").reasons == ("I-NO-SIGNAL",)
    assert two_sided(near, tol=0.049, higher_side="under").reasons == ("I-INTERVAL",)
    far = measured(-0.3, -0.2, before=0.65)
    assert two_sided(far, tol=0.10, higher_side="under").side == "over"


def test_gates_come_first_and_a_missing_reference_never_passes() -> None:
    gated = measured(0.2, 0.3, gates=("I-MIA-DEGENERATE",))
    assert two_sided(gated, tol=0.1, higher_side="under").reasons == ("I-MIA-DEGENERATE",)
    alone = measured(-0.01, 0.01, reference=None, delta=None)
    assert two_sided(alone, tol=0.1, higher_side="under").reasons == ("I-NO-REFERENCE",)
