"""Exact bounds and tests of small counts: the closed forms that the verdict quotes, and scipy beside them."""

from __future__ import annotations

import pytest
from scipy.stats import beta, binom

from qunlearn.audit import eve_stats
from qunlearn.errors import ConfigError


@pytest.mark.parametrize(("k", "n", "bound"), [(0, 8, 0.312), (0, 24, 0.117), (0, 59, 0.0495), (1, 93, 0.05)])
def test_upper_bounds_are_those_quoted(k: int, n: int, bound: float) -> None:
    assert eve_stats.upper(k, n) == pytest.approx(bound, abs=5e-4)
    assert k or eve_stats.upper(k, n) == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-12)


@pytest.mark.parametrize(("wins", "p"), [(8, 0.0039), (6, 0.0156), (4, 0.0625)])
def test_sign_test_values_are_those_quoted(wins: int, p: float) -> None:
    assert eve_stats.sign_test(wins, 0) == pytest.approx(p, abs=5e-5)
    assert eve_stats.sign_test(wins, 0) == pytest.approx(0.5**wins, abs=1e-12)


@pytest.mark.parametrize("n", [1, 8, 60, 500])
def test_bounds_agree_with_the_beta_quantiles(n: int) -> None:
    for k in {0, 1, n // 3, n - 1, n}:
        low = 0.0 if k == 0 else beta.ppf(0.05, k, n - k + 1)
        high = 1.0 if k == n else beta.ppf(0.95, k + 1, n - k)
        assert eve_stats.lower(k, n) == pytest.approx(low, abs=1e-9)
        assert eve_stats.upper(k, n) == pytest.approx(high, abs=1e-9)
        assert eve_stats.at_least(k, n, 0.3) == pytest.approx(binom.sf(k - 1, n, 0.3), abs=1e-12)


def test_ties_of_the_sign_test_prove_nothing_and_losses_count() -> None:
    assert eve_stats.sign_test(0, 0) == 1.0
    assert eve_stats.sign_test(7, 1) == pytest.approx(9 / 256)
    assert eve_stats.sign_test(0, 5) == 1.0


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.05), (6, 5, 0.05), (0, 0, 0.05), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_counts_are_refused(k: int, n: int, alpha: float) -> None:
    with pytest.raises(ConfigError, match="no bound"):
        eve_stats.lower(k, n, alpha)
    with pytest.raises(ConfigError):
        eve_stats.sign_test(-1, 0)
