"""Intervals of differences between an unlearned and a retrained model under an attack: resampling, never of width 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.intervals import Estimate

LEVEL = 0.95


def widest_of_none(n: int) -> float:
    """Clopper-Pearson's upper bound at 95 % for 0 of ``n``."""
    return float(1 - (1 - LEVEL) ** (1 / n))


def percentile(value: float, draws: NDArray[np.float64], *, rows: int, method: str) -> Estimate:
    """``value`` with the 95 % percentile interval of ``draws``; if nothing varies, +- the bound for 0 of ``rows``."""
    lo, hi = (float(v) for v in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    lo, hi = min(lo, value), max(hi, value)
    if hi - lo < 1e-12:
        lo, hi, method = lo - widest_of_none(rows), hi + widest_of_none(rows), f"{method}, width by clopper-pearson"
    return Estimate(value=value, lo=lo, hi=hi, level=LEVEL, method=method, n=rows)


def statistic(curves: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Largest value, or mean (``area``), over the last axis."""
    out: NDArray[np.float64] = curves.max(-1) if kind == "max" else curves.mean(-1)
    return out


def curves(
    ours: NDArray[np.bool_], theirs: NDArray[np.bool_] | None, *, kind: str, resamples: int, seed: int
) -> tuple[Estimate, Estimate | None, Estimate | None]:
    """(value, reference, difference) of right answers [seeds, steps, targets] of one model and of the retrained one.

    The statistic is taken over the steps of every seed's mean over targets, then averaged over seeds. Hierarchical
    bootstrap: seeds first, then targets, the same for both models.
    """
    seeds, _, targets = ours.shape
    rng = np.random.default_rng([seed, 71])
    sets = [a.astype(np.float64) for a in (ours, theirs) if a is not None]
    points = [float(statistic(a.mean(2), kind).mean()) for a in sets]
    draws = np.empty((resamples, len(sets)))
    for i in range(resamples):
        s, weights = rng.integers(0, seeds, seeds), np.bincount(rng.integers(0, targets, targets), minlength=targets)
        for j, a in enumerate(sets):
            draws[i, j] = statistic(a[s] @ weights / targets, kind).mean()
    method = "hierarchical bootstrap"
    found = [percentile(p, draws[:, j], rows=seeds * targets, method=method) for j, p in enumerate(points)]
    if len(found) == 1:
        return found[0], None, None
    delta = percentile(points[0] - points[1], draws[:, 0] - draws[:, 1], rows=seeds * targets, method=method)
    return found[0], found[1], delta


def mean(values: NDArray[np.float64], *, resamples: int, seed: int) -> Estimate:
    """Mean of paired differences [n] by a bootstrap over rows."""
    rng = np.random.default_rng([seed, 72])
    n = len(values)
    draws = values[rng.integers(0, n, (resamples, n))].mean(1)
    return percentile(float(values.mean()), draws, rows=n, method="paired bootstrap")
