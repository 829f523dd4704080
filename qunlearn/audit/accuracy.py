"""Accuracy on every set against the retrained model; the headline is forget accuracy.

Metrics and sets: artefact audit specification (glossary) and the evaluation protocol of the baselines. What is our own:
the margin ``tol`` = 0.10, the ten points that the project speaks of for a forgotten class or group, where the
untouched model lies 20 to 100 points above the retrained one. For random requests that distance is the
generalisation gap, often below ten points; the audit then cannot pass (``I-NO-SIGNAL``) until ``tol`` is set below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qunlearn.audit import intervals, scores
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import available, need
from qunlearn.audit.verdict import Measurement
from qunlearn.data.dataset import Samples

_SHOWN = ("forget", "retain", "heldout", "test", "forget_heldout", "forget_test")
_GAP = ("forget", "retain", "test")


@dataclass(frozen=True, kw_only=True)
class Accuracy(Audit):
    """Forget accuracy against the retrained model's, with all other sets beside it."""

    name: ClassVar[str] = "accuracy"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "forget_accuracy"
    headline: ClassVar[bool] = True
    higher_side: ClassVar[str] = "under"
    sets: ClassVar[tuple[str, ...]] = _SHOWN
    direction: ClassVar[str] = (
        "The retrained model's forget accuracy is the target; above it the forget set is remembered (under-forgotten), "
        "below it too much was forgotten (over-forgotten)."
    )
    cannot: ClassVar[str] = (
        "Answers alone: a network whose last layer hides what its features still know, or that gives wrong labels on "
        "purpose, can reach the retrained model's value."
    )

    def run(self, ctx: AuditContext) -> Measurement:
        """Accuracies of before, after and reference on every set that holds samples, and the differences."""
        columns = ctx.predictors()
        sets = available(ctx.splits, _SHOWN)
        metrics = {f"{name}_accuracy": {name: accuracy_row(columns, samples)} for name, samples in sets.items()}
        if ctx.reference is not None:
            gaps = {
                column: float(np.mean([abs(_rate(p, sets[s]) - _rate(ctx.reference, sets[s])) for s in _GAP]))
                for column, p in columns.items()
                if column != "reference"
            }
            metrics["gap_to_retrain"] = {"forget, retain, test": gaps}
        forget = need(ctx.splits, "forget")
        hits = {column: _hits(p, forget) for column, p in columns.items()}
        return Measurement(
            value=intervals.share(hits["after"]),
            before=float(hits["before"].mean()),
            reference=intervals.share(hits["reference"]) if ctx.reference is not None else None,
            delta=(intervals.share_difference(hits["after"], hits["reference"]) if ctx.reference is not None else None),
            n={name: len(samples) for name, samples in sets.items()},
            metrics=metrics,
            per_class=per_class(columns, sets),
        )


def _hits(predictor: Predictor, samples: Samples) -> Any:
    return scores.correct(predictor.on(samples), samples.targets())


def _rate(predictor: Predictor, samples: Samples) -> float:
    return float(_hits(predictor, samples).mean())


def accuracy_row(columns: Any, samples: Samples) -> dict[str, Any]:
    """before, after, reference with intervals, and ``delta`` (after - reference, paired) where there is a reference."""
    hits = {name: _hits(p, samples) for name, p in columns.items()}
    estimates: dict[str, intervals.Estimate | None] = {name: intervals.share(h) for name, h in hits.items()}
    if "reference" in hits:
        estimates["delta"] = intervals.share_difference(hits["after"], hits["reference"])
    return intervals.row(**estimates)


def per_class(columns: Any, sets: Any) -> dict[str, Any]:
    """Accuracy per class of the forget and the held-out set: set to class name to column (plain shares) and ``n``."""
    out: dict[str, Any] = {}
    for name in ("forget", "heldout"):
        samples = sets[name]
        y = samples.targets()
        hits = {column: _hits(p, samples) for column, p in columns.items()}
        out[name] = {
            samples.dataset.class_names[int(c)]: {
                "n": int((y == c).sum()),
                **{column: float(h[y == c].mean()) for column, h in hits.items()},
            }
            for c in np.unique(y)
        }
    return out
