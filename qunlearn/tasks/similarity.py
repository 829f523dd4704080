"""Linear CKA: how alike two sets of features of the same samples are (Kornblith et al. 2019; Song et al. 2012)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ConfigError

ESTIMATORS = ("debiased", "batch_biased")
BATCH = 512
SMALLEST = 1e-12
WIDE = 1024

Float = NDArray[np.float64]


def _hsic(k: Float, m: Float, rows: Float) -> Float:
    """HSIC_1 [h] of two Gram matrices [n, n] on the samples that each column of ``rows`` [n, h] marks by ones."""
    size = rows.sum(0)
    joint = k * m
    np.fill_diagonal(joint, 0.0)
    cross = (rows * (joint @ rows)).sum(0)
    in_k, in_m = (rows * (g @ rows - np.diag(g)[:, None]) for g in (k, m))
    chain = (in_k * in_m).sum(0)
    both = in_k.sum(0) * in_m.sum(0)
    out: Float = (cross + both / ((size - 1) * (size - 2)) - 2 / (size - 2) * chain) / (size * (size - 3))
    return out


def _ratio(kl: float, kk: float, ll: float) -> float:
    product = kk * ll
    return kl / math.sqrt(product) if kk > 0 and ll > 0 and math.sqrt(product) > SMALLEST else math.nan


def gram(x: NDArray[np.floating]) -> Float:
    """Linear Gram matrix float64 [n, n] of centred features [n, ...]: what :func:`cka_of` takes.

    Features of more than 1024 dimensions are multiplied in float32 (a relative error of about 1e-6), all others in
    float64.
    """
    f = np.asarray(x).reshape(len(x), -1)
    f = f.astype(np.float64 if f.shape[1] <= WIDE else np.float32)
    f -= f.mean(0)  # no change in exact arithmetic; keeps the matrix well conditioned
    out: Float = (f @ f.T).astype(np.float64)
    return out


def cka_of(k: Float, m: Float, *, estimator: str = "debiased") -> float:
    """CKA of two matrices of :func:`gram` of the same samples; NaN where undefined."""
    return float(cka_on(k, m, np.ones((len(k), 1)), estimator=estimator)[0])


def cka_on(k: Float, m: Float, rows: Float, *, estimator: str = "debiased") -> Float:
    """CKA [h] on the samples that each column of ``rows`` [n, h] marks by ones, all at once; NaN where undefined."""
    if estimator == "debiased":
        parts = zip(_hsic(k, m, rows), _hsic(k, k, rows), _hsic(m, m, rows), strict=True)
        return np.array([_ratio(float(a), float(b), float(c)) for a, b, c in parts])
    return np.array([_batched(k, m, np.flatnonzero(r)) for r in rows.T])


def _batched(k: Float, m: Float, rows: NDArray[np.int64]) -> float:
    """The plain estimator, averaged over batches of 512 samples: centred Gram matrices, diagonals kept."""
    values = []
    for start in range(0, len(rows), BATCH):
        block = rows[start : start + BATCH]
        if len(block) > 3:
            a, b = (_centred(g[np.ix_(block, block)]) for g in (k, m))
            values.append(_ratio(float((a * b).sum()), float((a * a).sum()), float((b * b).sum())))
    return float(np.mean(values))


def _centred(g: Float) -> Float:
    out: Float = g - g.mean(0) - g.mean(1)[:, None] + g.mean()
    return out


def cka(x: NDArray[np.floating], y: NDArray[np.floating], *, estimator: str = "debiased") -> float:
    """CKA of features [n, d1] and [n, d2] of the same n >= 4 samples; NaN where features are constant (undefined).

    ``debiased`` (default) is near 0 for independent features; ``batch_biased`` is the plain estimator, averaged over
    batches of 512, kept for comparison: on independent Gaussian features it reads d / (n + d). Features with more
    dimensions than one axis are flattened; arithmetic is float64 (see :func:`gram`).
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(f"estimator {estimator!r} is unknown.", remedy=f"Use one of {', '.join(ESTIMATORS)}.")
    if len(x) != len(y) or len(x) < 4:
        raise ConfigError(
            f"features of {len(x)} and {len(y)} samples cannot be compared.",
            remedy="Give both feature sets for the same samples, at least 4.",
        )
    return cka_of(gram(x), gram(y), estimator=estimator)
