"""Exact binomial statistics of small counts: Clopper-Pearson bounds and the paired sign test. Standard library only."""

from __future__ import annotations

import math

from qunlearn.errors import ConfigError

_STEPS = 100
"""Halvings of the bisection: far below the spacing of float64."""


def at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p)."""
    if k <= 0:
        return 1.0
    if p <= 0 or k > n:
        return 0.0
    if p >= 1:
        return 1.0
    log_p, log_q = math.log(p), math.log1p(-p)
    terms = (
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q)
        for i in range(k, n + 1)
    )
    return min(1.0, math.fsum(terms))


def lower(k: int, n: int, alpha: float = 0.05) -> float:
    """One-sided lower Clopper-Pearson bound of k successes in n: the p with P(X >= k) = alpha; 0 for k = 0."""
    _check(k, n, alpha)
    if k == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        mid = (low + high) / 2
        low, high = (mid, high) if at_least(k, n, mid) < alpha else (low, mid)
    return low


def upper(k: int, n: int, alpha: float = 0.05) -> float:
    """One-sided upper Clopper-Pearson bound: 1 minus the lower bound of the failures; 1 for k = n."""
    _check(k, n, alpha)
    return 1.0 - lower(n - k, n, alpha)


def sign_test(wins: int, losses: int) -> float:
    """One-sided exact paired sign test: P(at least ``wins`` of the discordant pairs) if both sides were alike."""
    if wins < 0 or losses < 0:
        raise ConfigError("a sign test of negative counts.", remedy="Give counts of discordant pairs.")
    return at_least(wins, wins + losses, 0.5)


def _check(k: int, n: int, alpha: float) -> None:
    if not (0 <= k <= n and n >= 1 and 0 < alpha < 1):
        raise ConfigError(f"{k} of {n} at level {alpha} has no bound.", remedy="Give 0 <= k <= n and 0 < alpha < 1.")
