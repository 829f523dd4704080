"""Utility floor and collapse checks against the same artefact kind before unlearning. Judged before any pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qunlearn.audit import intervals, scores
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import need
from qunlearn.data.splits import Splits

FLOOR = 0.03
HELDOUT = "heldout_all"
CLASS_FACTOR, CLASS_SLACK = 1.5, 0.05
ENTROPY_FACTOR, ENTROPY_SLACK = 0.5, 0.05
"""Half of the entropy before, and never less than this share of log C: near zero entropy a relative band alone would
fail a freshly retrained model by the noise of its seed [our choice]."""

_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Utility:
    """``reasons`` are the floors and checks that failed; ``metrics`` glossary key to set to column to plain data."""

    reasons: tuple[str, ...]
    metrics: Mapping[str, Any]


def measure(before: Predictor, after: Predictor, splits: Splits, *, floor: float) -> Utility:
    """Accuracy drop on retain and held-out, share of the most predicted class, mean entropy on held-out.

    Logits must be finite (checked before). ``floor`` in 0..1 is the largest drop that is still allowed.
    """
    reasons: list[str] = []
    drops: dict[str, Any] = {}
    for name, code in (("retain", "F-UTILITY-RETAIN"), (HELDOUT, "F-UTILITY-HELDOUT")):
        samples = need(splits, name)
        y = samples.targets()
        drop = intervals.share_difference(
            scores.correct(before.on(samples), y), scores.correct(after.on(samples), y), level=intervals.LEVEL
        )
        drops[name] = intervals.row(after=drop)
        if drop.value > floor + _ROUNDING:
            reasons.append(code)
    samples = need(splits, HELDOUT)
    old, new = before.on(samples), after.on(samples)
    classes = new.shape[1]
    counts = np.bincount(scores.predicted(new), minlength=classes)
    top = int(counts.argmax())
    was, now = scores.predicted(old) == top, scores.predicted(new) == top
    if now.mean() > CLASS_FACTOR * was.mean() + CLASS_SLACK + _ROUNDING:
        reasons.append("F-COLLAPSE-CLASS")
    h_old, h_new = intervals.mean(scores.entropy(old)), intervals.mean(scores.entropy(new))
    band = max(ENTROPY_FACTOR * h_old.value, ENTROPY_SLACK * float(np.log(classes)))
    if abs(h_new.value - h_old.value) > band + _ROUNDING:
        reasons.append("F-COLLAPSE-ENTROPY")
    return Utility(
        reasons=tuple(reasons),
        metrics={
            "utility_drop": drops,
            "top_class_share": {HELDOUT: intervals.row(before=intervals.share(was), after=intervals.share(now))},
            "entropy": {HELDOUT: intervals.row(before=h_old, after=h_new)},
        },
    )
