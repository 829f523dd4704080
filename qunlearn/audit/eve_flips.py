"""When an answer counts as flipped: argmax, margins in steps of the logits' grid, the bound that parity has proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import scores
from qunlearn.audit.predictor_base import Predictor

QUARTER = 0.25
"""Logits on a grid are compared to a quarter of a step, so that float32 rounding decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Readings of n samples. ``right``: answered rightly before. ``resolved``: margins of at least m on both sides.

    ``flip``: right before, wrong after, resolved. ``strict``: flipped to the wanted class. ``before`` and ``lead`` =
    logit of the true class less the best other, before and after; ``after`` = top logit less that of the true class (0
    where it still wins); all in steps of the grid, or in logits where there is none.
    """

    right: NDArray[np.bool_]
    resolved: NDArray[np.bool_]
    flip: NDArray[np.bool_]
    strict: NDArray[np.bool_]
    before: NDArray[np.float64]
    lead: NDArray[np.float64]
    after: NDArray[np.float64]

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a sample, plain data."""
        return [
            {
                "right_before": bool(self.right[i]),
                "resolved": bool(self.resolved[i]),
                "flip": bool(self.flip[i]),
                "strict": bool(self.strict[i]),
                "margin_before": float(self.before[i]),
                "lead_after": float(self.lead[i]),
                "margin_after": float(self.after[i]),
            }
            for i in range(len(self.flip))
        ]


def step_of(predictor: Predictor) -> float:
    """One output step in logits; 0 where the logits lie on no known grid."""
    from qunlearn.audit.predictor_files import FilePredictor

    if isinstance(predictor, FilePredictor):
        return float(predictor.graph.activations[predictor.graph.output].scale)
    known = getattr(predictor, "step", None)
    if known is not None:
        return float(known)
    if predictor.kind.startswith("torch") and hasattr(predictor, "model"):
        from qunlearn.quant.model import QuantModel

        if isinstance(predictor.model, QuantModel):
            return float(predictor.model.quantizer_of(predictor.model.steps[-1].name).scale.detach())
    return 0.0


def parity_bound(parity: Any, kind: str) -> int:
    """Largest difference of final codes between ``kind`` and the integer oracle in a parity report; 0 without one."""
    name = "c-host vs oracle" if kind.startswith("c-") else f"{kind} vs oracle"
    rows = getattr(parity, "logits", ())
    return max((int(r.max_abs) for r in rows if r.pair == name), default=0)


def read(
    before: NDArray[Any],
    after: NDArray[Any],
    y: NDArray[Any],
    *,
    step: float,
    least: int,
    wanted: NDArray[Any] | None = None,
) -> Flips:
    """Compare logits [n, C] before and after for true labels ``y`` [n] and wanted classes ``wanted`` [n].

    ``step`` in logits (0: no grid, any positive margin resolves), ``least`` = m in steps. Ties go to the lowest index;
    values that are not finite are never resolved.
    """
    z0, z1 = (np.asarray(z, np.float64) for z in (before, after))
    labels = np.asarray(y, np.int64)
    at = np.arange(len(labels))
    right, wrong = scores.correct(z0, labels), ~scores.correct(z1, labels)
    unit = step if step > 0 else 1.0

    def lead(z: NDArray[np.float64]) -> NDArray[np.float64]:
        others = z.copy()
        others[at, labels] = -np.inf
        out: NDArray[np.float64] = (z[at, labels] - others.max(axis=1)) / unit
        return out

    finite = np.isfinite(z0).all(axis=1) & np.isfinite(z1).all(axis=1)
    with np.errstate(invalid="ignore"):
        ahead, later = lead(z0), lead(z1)
        enough = least - QUARTER if step > 0 else np.finfo(np.float64).tiny
        resolved = finite & (ahead >= enough) & (np.abs(later) >= enough)
    flip = right & wrong & resolved
    target = np.full(len(labels), -1) if wanted is None else np.asarray(wanted, np.int64)
    return Flips(
        right=right,
        resolved=resolved,
        flip=flip,
        strict=flip & (scores.predicted(z1) == target),
        before=np.where(finite, ahead, 0.0),
        lead=np.where(finite, later, 0.0),
        after=np.where(finite, np.maximum(0.0, -later), 0.0),
    )
