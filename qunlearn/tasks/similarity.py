"""Linear CKA: how alike two sets of features of the same samples are (Kornblith et al. 2019; Song et al. 2012)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ConfigError

ESTIMATORS = ("debiased", "batch_biased")
BATCH = 512
SMALLEST = 1e-12
WIDE = 4096


def _unbiased(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """HSIC_1 of two Gram matrices with zero diagonals."""
    n = len(k)
    ones_k, ones_m = k.sum(0), m.sum(0)
    cross = float((k * m).sum()) - 2 / (n - 2) * float(ones_k @ ones_m)
    return (cross + float(ones_k.sum() * ones_m.sum()) / ((n - 1) * (n - 2))) / (n * (n - 3))


def _ratio(kl: float, kk: float, ll: float) -> float:
    product = kk * ll
    return kl / math.sqrt(product) if kk > 0 and ll > 0 and math.sqrt(product) > SMALLEST else math.nan


def gram(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Linear Gram matrix float64 [n, n] of centred features [n, ...], diagonal zeroed: what :func:`cka_of` takes.

    Features of more than 4096 dimensions are multiplied in float32.
    """
    f = np.asarray(x).reshape(len(x), -1)
    f = f.astype(np.float64 if f.shape[1] <= WIDE else np.float32)
    f = f - f.mean(0)  # no change in exact arithmetic; keeps the matrix well conditioned
    g: NDArray[np.float64] = (f @ f.T).astype(np.float64)
    np.fill_diagonal(g, 0.0)
    return g


def cka_of(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """Debiased CKA of two matrices of :func:`gram`, or of the same rows and columns of both; NaN where undefined."""
    return _ratio(_unbiased(k, m), _unbiased(k, k), _unbiased(m, m))


def _biased(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    cross = float(((x.T @ y) ** 2).sum())
    return _ratio(cross, float(((x.T @ x) ** 2).sum()), float(((y.T @ y) ** 2).sum()))


def cka(x: NDArray[np.floating], y: NDArray[np.floating], *, estimator: str = "debiased") -> float:
    """CKA of features [n, d1] and [n, d2] of the same n >= 4 samples; NaN where features are constant (undefined).

    ``debiased`` (default) is near 0 for independent features; ``batch_biased`` is the plain estimator, averaged over
    batches of 512, kept for comparison: on independent Gaussian features it reads d / (n + d). Features with more
    dimensions than one axis are flattened; arithmetic is float64.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(f"estimator {estimator!r} is unknown.", remedy=f"Use one of {', '.join(ESTIMATORS)}.")
    if len(x) != len(y) or len(x) < 4:
        raise ConfigError(
            f"features of {len(x)} and {len(y)} samples cannot be compared.",
            remedy="Give both feature sets for the same samples, at least 4.",
        )
    if estimator == "debiased":
        return cka_of(gram(x), gram(y))
    a, b = (np.asarray(f, dtype=np.float64).reshape(len(f), -1) for f in (x, y))
    values = [_biased(a[i : i + BATCH], b[i : i + BATCH]) for i in range(0, len(a), BATCH) if len(a[i : i + BATCH]) > 3]
    return float(np.mean(values))
