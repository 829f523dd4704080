"""The two-sided verdict rule, in one place.

pass: the interval of delta = value - reference lies inside [-tol, +tol]. fail: it lies wholly outside; the side follows
from its sign and from the metric's direction. inconclusive: anything else, or a gate of the audit is not met.
Utility and parity are judged before, in :mod:`qunlearn.audit.base`.

One gate is ours: where the untouched model itself lies within ``tol`` of the reference, an audit cannot tell forgetting
from doing nothing, so that it may fail but never pass (``I-NO-SIGNAL``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qunlearn.audit.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a verifier's ``run`` returns.

    ``value`` on the unlearned model (None where a gate left nothing to estimate); ``before`` the same number on the
    model before; ``reference`` and ``delta`` (value - reference, by one joint interval) where there is a reference;
    ``gates`` reasons that rule out a pass and a fail; ``metrics`` glossary key to set to column to plain data; ``n``
    samples per set; ``seeds`` beside the audit's own; ``tables`` what only this audit reports; ``timings``
    seconds beside the audit's own.
    """

    value: Estimate | None
    n: Mapping[str, int]
    metrics: Mapping[str, Any]
    before: float | None = None
    reference: Estimate | None = None
    delta: Estimate | None = None
    gates: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    per_class: Any = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """``verdict`` (pass, fail, inconclusive), ``side`` (under, over, utility, parity, none), ``reasons`` (codes)."""

    verdict: str
    side: str = "none"
    reasons: tuple[str, ...] = ()


PASS = Judgement(verdict="pass")


def inconclusive(*reasons: str) -> Judgement:
    """An inconclusive judgement with its reasons."""
    return Judgement(verdict="inconclusive", reasons=reasons)


def fail(side: str, *reasons: str) -> Judgement:
    """A failure on one side with its reasons."""
    return Judgement(verdict="fail", side=side, reasons=reasons)


def two_sided(m: Measurement, *, tol: float, higher_side: str) -> Judgement:
    """The rule above. ``higher_side`` is the failure side of values above the reference: ``under`` or ``over``.

    Without ``delta`` the judgement is ``I-NO-REFERENCE``.
    """
    if m.gates:
        return inconclusive(*m.gates)
    if m.value is None or m.delta is None or m.reference is None:
        return inconclusive("I-NO-REFERENCE")
    lower_side = "over" if higher_side == "under" else "under"
    for outside, side in ((m.delta.lo > tol, higher_side), (m.delta.hi < -tol, lower_side)):
        if outside:
            return fail(side, "F-UNDER" if side == "under" else "F-OVER")
    if m.delta.lo < -tol or m.delta.hi > tol:
        return inconclusive("I-INTERVAL")
    if m.before is not None and abs(m.before - m.reference.value) <= tol:
        return inconclusive("I-NO-SIGNAL")
    return PASS
