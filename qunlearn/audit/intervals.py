"""Estimates with intervals, in closed form: no resampling noise, and never of width zero on a small sample.

Sources: Wilson 1927 (one proportion); Bonett and Price 2012, adjusted Wald interval for a difference of paired
proportions. Level: 0.90, so that 'the interval of delta lies inside the margin' is the two one-sided tests of
equivalence at 5 % each [our choice].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import DataError, InvariantError

LEVEL = 0.90


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval ``lo..hi`` (two-sided, at ``level``), the interval's ``method`` and sample count."""

    value: float
    lo: float
    hi: float
    level: float
    method: str
    n: int

    def __post_init__(self) -> None:
        numbers = (self.value, self.lo, self.hi, self.level)
        if not all(math.isfinite(v) for v in numbers) or self.lo > self.hi or not self.method or self.n < 1:
            raise InvariantError(
                f"malformed estimate {numbers}, n = {self.n}.", remedy="Report this as a defect of the audit."
            )

    def interval(self) -> dict[str, Any]:
        """The ``interval`` mapping of a result: lo, hi, level, method."""
        return {"lo": self.lo, "hi": self.hi, "level": self.level, "method": self.method}

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {"value": self.value, "n": self.n, **self.interval()}

    def widened(self, sd: float, note: str, *, floor: float = -math.inf, ceiling: float = math.inf) -> Estimate:
        """The same value with a second, independent source of variation of standard deviation ``sd``.

        Each half-width h becomes sqrt(h^2 + (z sd)^2); the result is cut to ``floor..ceiling``.
        """
        extra = z_of(self.level) * sd
        return replace(
            self,
            lo=max(floor, self.value - math.hypot(self.value - self.lo, extra)),
            hi=min(ceiling, self.value + math.hypot(self.hi - self.value, extra)),
            method=f"{self.method} + {note}",
        )


def z_of(level: float) -> float:
    """Two-sided quantile of the normal distribution for ``level`` in (0, 1)."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def _boolean(hits: NDArray[Any]) -> NDArray[np.bool_]:
    a = np.asarray(hits)
    if a.ndim != 1 or a.size == 0:
        raise DataError(
            f"an estimate needs a non-empty vector, not shape {a.shape}.", remedy="Check that no set is empty."
        )
    return a.astype(np.bool_)


def share(hits: NDArray[Any], *, level: float = LEVEL) -> Estimate:
    """Share of true entries of ``hits`` [n] with its Wilson interval, in 0..1."""
    a = _boolean(hits)
    n, p, z = a.size, float(a.mean()), z_of(level)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(
        value=p,
        lo=min(p, max(0.0, centre - half)),
        hi=max(p, min(1.0, centre + half)),
        level=level,
        method="wilson",
        n=n,
    )


def share_difference(a: NDArray[Any], b: NDArray[Any], *, level: float = LEVEL) -> Estimate:
    """mean(a) - mean(b) for two readings of the **same** samples, both bool [n]; interval of Bonett and Price.

    With n10 and n01 the discordant counts, p10 = (n10 + 1) / (n + 2), p01 alike, the interval is
    p10 - p01 +- z sqrt((p10 + p01 - (p10 - p01)^2) / (n + 2)), cut to -1..1 and stretched to hold the plain value.
    """
    x, y = _boolean(a), _boolean(b)
    if x.size != y.size:
        raise InvariantError(
            f"paired readings of {x.size} and {y.size} samples.", remedy="Report this as a defect of the audit."
        )
    n = x.size
    value = float((int(x.sum()) - int(y.sum())) / n)
    p10, p01 = (int((x & ~y).sum()) + 1) / (n + 2), (int((~x & y).sum()) + 1) / (n + 2)
    centre = p10 - p01
    half = z_of(level) * math.sqrt((p10 + p01 - centre * centre) / (n + 2))
    lo, hi = max(-1.0, centre - half), min(1.0, centre + half)
    return Estimate(value=value, lo=min(value, lo), hi=max(value, hi), level=level, method="bonett-price", n=n)


def mean(values: NDArray[Any], *, level: float = LEVEL) -> Estimate:
    """Mean of ``values`` [n] with the normal interval mean +- z s / sqrt(n); n = 1 gives an interval of width zero."""
    a = np.asarray(values, dtype=np.float64)
    if a.ndim != 1 or a.size == 0:
        raise DataError(f"a mean needs a non-empty vector, not shape {a.shape}.", remedy="Check that no set is empty.")
    m = float(a.mean())
    half = z_of(level) * float(a.std(ddof=1)) / math.sqrt(a.size) if a.size > 1 else 0.0
    return Estimate(value=m, lo=m - half, hi=m + half, level=level, method="normal", n=int(a.size))


def auc(a: NDArray[Any], b: NDArray[Any], *, level: float = LEVEL) -> Estimate:
    """P(score of a > score of b) + half of the ties, scores [n_a] and [n_b]; interval of Hanley and McNeil 1982.

    ``n`` is the smaller of the two counts.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.size == 0 or y.size == 0:
        raise DataError("an AUC needs samples on both sides.", remedy="Check that no set is empty.")
    ordered = np.sort(y)
    below, upto = np.searchsorted(ordered, x, "left"), np.searchsorted(ordered, x, "right")
    value = float((below + upto).sum() / (2.0 * x.size * y.size))
    q1, q2 = value / (2 - value), 2 * value * value / (1 + value)
    variance = value * (1 - value) + (x.size - 1) * (q1 - value**2) + (y.size - 1) * (q2 - value**2)
    half = z_of(level) * math.sqrt(max(0.0, variance) / (x.size * y.size))
    return Estimate(
        value=value,
        lo=max(0.0, value - half),
        hi=min(1.0, value + half),
        level=level,
        method="hanley-mcneil",
        n=int(min(x.size, y.size)),
    )


def row(**estimates: Estimate | None) -> dict[str, Any]:
    """One table row: column name to plain data; a missing estimate is ``None``."""
    return {name: None if e is None else e.to_json() for name, e in estimates.items()}
