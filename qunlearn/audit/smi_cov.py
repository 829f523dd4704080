"""The covariance form of statistical membership inference ("Algorithm 1"), kept for fidelity; it decides nothing.

Source: arXiv 2602.01150, v2, as publicly described; the exact solver is our own. On simple mixtures it is biased, and
where both covariances are equal p and 1 - p fit alike (``two_minima``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qunlearn.audit.kernels_mmd import Float

WIDE, PROJECTED = 2048, 512


@dataclass(frozen=True, kw_only=True)
class CovEstimate:
    """``pi`` in 0..1; whether f has ``two_minima``; ``reference_range``: quantiles over resamples of u alone, no
    confidence interval; ``joint``: with the
    mean too; ``projected``: features were projected to 512 dimensions."""

    pi: float
    two_minima: bool
    reference_range: tuple[float, float]
    joint: float
    projected: bool


def covariance(x: Float) -> Float:
    """Unbiased covariance [d, d] of [n, d]; zeros for one sample."""
    out: Float = np.atleast_2d(np.cov(x, rowvar=False)) if len(x) > 1 else np.zeros((x.shape[1], x.shape[1]))
    return out


def coefficients(s_m: Float, s_n: Float, s_u: Float, d: Float) -> Float:
    """Coefficients of f(p) = |S_u - p S_n - (1-p) S_m - p (1-p) d d^T|_F^2 from p^0 to p^4."""
    outer = np.outer(d, d)
    a, g = s_u - s_m, s_n - s_m + outer
    ag, ad, gd = float((a * g).sum()), float((a * outer).sum()), float((g * outer).sum())
    return np.array([float((a * a).sum()), -2 * ag, float((g * g).sum()) + 2 * ad, -2 * gd, float((outer**2).sum())])


def solve(c: Float) -> tuple[float, bool]:
    """(the p in [0, 1] with least f, whether f has more than one local minimum there), exact by the roots of f'."""
    slope = c[1:] * np.arange(1, 5)
    trimmed = np.trim_zeros(slope, "b")
    roots = np.roots(trimmed[::-1]) if len(trimmed) > 1 else np.empty(0)
    real = roots[np.abs(roots.imag) < 1e-9].real
    inner = np.unique(real[(real > 0) & (real < 1)])
    candidates = np.unique(np.concatenate([[0.0, 1.0], inner]))
    values = np.polyval(c[::-1], candidates)
    lower = np.concatenate([[np.inf], values[:-1]])
    upper = np.concatenate([values[1:], [np.inf]])
    return float(candidates[int(values.argmin())]), int(((values < lower) & (values < upper)).sum()) > 1


def estimate(m: Float, n: Float, u: Float, *, seed: int, bootstrap: int = 200, level: float = 0.9) -> CovEstimate:
    """Both estimates from features float64 [., d] of members, non-members and forget set."""
    projected = m.shape[1] > WIDE
    if projected:
        rng = np.random.default_rng([seed, 31])
        matrix = rng.standard_normal((m.shape[1], PROJECTED)) / np.sqrt(PROJECTED)
        m, n, u = m @ matrix, n @ matrix, u @ matrix
    s_m, s_n, d = covariance(m), covariance(n), n.mean(0) - m.mean(0)
    c = coefficients(s_m, s_n, covariance(u), d)
    pi, two = solve(c)
    rng = np.random.default_rng([seed, 32])
    drawn, means = [], []
    for _ in range(bootstrap):
        rows = rng.integers(0, len(u), len(u))
        drawn.append(coefficients(s_m, s_n, covariance(u[rows]), d))
        means.append(u[rows].mean(0))
    low, high = np.quantile([solve(k)[0] for k in drawn], [(1 - level) / 2, (1 + level) / 2])
    joint = _joint(c, drawn, np.stack([u.mean(0), *means]) - m.mean(0), 0.5 * (s_m + s_n), d)
    return CovEstimate(
        pi=pi, two_minima=two, reference_range=(float(low), float(high)), joint=joint, projected=projected
    )


def _joint(c: Float, drawn: list[Float], away: Float, mean: Float, d: Float) -> float:
    """Least f(p)/s_f + |S^-1/2 (mu_u - mu_m - p d)|^2 / s_g on a grid of 0.001, s by resamples of u at p = 1/2.

    ``away`` [1 + B, d]: mu_u - mu_m of the sample and of its resamples.
    """
    ridge = 1e-6 * np.trace(mean) / len(mean)
    root = np.linalg.cholesky(mean + (ridge or 1.0) * np.eye(len(mean)))
    shift = np.linalg.solve(root, d)
    whitened = np.linalg.solve(root, away.T).T
    f = [float(np.polyval(k[::-1], 0.5)) for k in drawn]
    g = ((whitened[1:] - 0.5 * shift) ** 2).sum(1)
    s_f, s_g = float(np.var(f)) or 1.0, float(np.var(g)) or 1.0
    p = np.linspace(0, 1, 1001)
    total = np.polyval(c[::-1], p) / s_f + ((whitened[0][:, None] - shift[:, None] * p) ** 2).sum(0) / s_g
    return float(p[int(total.argmin())])
