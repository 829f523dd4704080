"""Kernel sums against the dense formula, their memory, permutations and resamples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from qunlearn.audit.kernels_mmd import (
    gram_times,
    median_gamma,
    per_class,
    permuted,
    product,
    resampled,
    squared_distances,
)
from qunlearn.errors import ConfigError


def dense(a: np.ndarray, b: np.ndarray, gamma: float) -> np.ndarray:
    return np.asarray(np.exp(-gamma * ((a[:, None, :] - b[None, :, :]) ** 2).sum(2)))


@pytest.mark.parametrize("chunk", [1, 7, 90])
def test_gram_times_equals_the_dense_formula(chunk: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 5)), rng.standard_normal((41, 5))
    w, v = rng.standard_normal((90, 300)), rng.standard_normal((41, 3))
    k = dense(x, x, 0.3)
    assert np.abs(gram_times(x, 0.3, w, chunk=chunk, zero_diagonal=False) - k @ w).max() <= 1e-10
    np.fill_diagonal(k, 0)
    assert np.abs(gram_times(x, 0.3, w, chunk=chunk) - k @ w).max() <= 1e-10
    assert np.abs(gram_times(x, 0.3, v, others=y, chunk=chunk) - dense(x, y, 0.3) @ v).max() <= 1e-10


def test_a_large_set_is_summed_in_float64_over_float32_distances() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4100, 3)), rng.standard_normal((4100, 2))
    some = slice(0, 4100, 500)
    k = dense(x[some], x, 0.3)
    k[np.arange(len(k)), np.arange(0, 4100, 500)] = 0
    found = gram_times(x, 0.3, w)
    assert found.dtype == np.float64
    assert np.abs(found[some] - k @ w).max() < 1e-3


def test_chunk_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk"):
        gram_times(np.zeros((2, 1)), 1.0, np.ones((2, 1)), chunk=0)


def test_memory_is_that_of_some_rows() -> None:
    n, q, chunk = 3000, 600, 512
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((n, 16)), rng.standard_normal((n, q))
    tracemalloc.start()
    gram_times(x, 0.1, w, chunk=chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * (chunk * n + n * q) * 8
    assert peak < n * n * 8


def brute_within(k: np.ndarray, w: np.ndarray, y: np.ndarray) -> float:
    """2.4 of the specification, with loops."""
    total = 0.0
    for i in range(len(w)):
        for j in range(len(w)):
            if y[i] != y[j]:
                total += w[i] * w[j] * k[i, j]
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        weight = w[rows].sum()
        h = w[rows] / weight
        pairs = sum(h[a] * h[b] * k[rows[a], rows[b]] for a in range(len(h)) for b in range(len(h)) if a != b)
        total += weight**2 * pairs / (1 - (h**2).sum())
    return total


def test_within_is_the_blockwise_u_statistic() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((24, 3)), rng.integers(0, 3, 24)
    w = rng.random((24, 4))
    w /= w.sum(0)
    found = product(x, y, 0.4, w, chunk=5).within()
    want = [brute_within(dense(x, x, 0.4), w[:, c], y) for c in range(4)]
    assert np.abs(found - want).max() < 1e-12


def test_distinct_leaves_pairs_of_a_point_with_itself_out() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20, 3)), np.arange(20) % 2
    w, v = rng.random(20), rng.random(20)
    k = dense(x, x, 0.4)
    want = 0.0
    for c in (0, 1):
        for d in (0, 1):
            block = [(i, j) for i in np.flatnonzero(y == c) for j in np.flatnonzero(y == d)]
            pairs = sum(v[i] * w[j] * k[i, j] for i, j in block if i != j)
            own = y == c
            shared = (v[own] * w[own]).sum() / (v[own].sum() * w[own].sum()) if c == d else 0.0
            want += pairs / (1 - shared)
    found = product(x, y, 0.4, w[:, None]).distinct(v[:, None])
    assert found[0] == pytest.approx(want, abs=1e-12)


def test_permutations_keep_class_counts_and_differ() -> None:
    y = np.array([0] * 12 + [1] * 8 + [0] * 6 + [1] * 14)
    s = permuted(y, 20, 300, np.random.default_rng(0))
    assert set(np.unique(s)) == {0.0, 1.0}
    assert (per_class(s, y) == np.array([[12], [8]])).all()
    assert len(np.unique(s, axis=1).T) > 290
    share = s.mean(1)
    assert np.abs(share[y == 0] - 12 / 18).max() < 0.12
    assert np.abs(share[y == 1] - 8 / 22).max() < 0.12


def test_resamples_keep_class_counts() -> None:
    y = np.array([0] * 5 + [2] * 9)
    counts = resampled(y, 50, np.random.default_rng(0))
    assert (counts[y == 0].sum(0) == 5).all()
    assert (counts[y == 2].sum(0) == 9).all()
    assert counts.std() > 0.5


def test_median_gamma_leaves_zero_distances_out_and_the_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 4))
    one = median_gamma(x, np.random.default_rng(3))
    other = median_gamma(x[rng.permutation(700)], np.random.default_rng(3))
    assert one == pytest.approx(other, rel=1e-9)
    d2 = squared_distances(x, x)[np.triu_indices(700, 1)]
    assert one == pytest.approx(1 / np.median(d2), rel=0.1)
    mostly = np.zeros((100, 1))
    mostly[:10, 0] = 2.0
    assert median_gamma(mostly, np.random.default_rng(0)) == pytest.approx(0.25)
    assert np.isnan(median_gamma(np.ones((30, 2)), np.random.default_rng(0)))
    assert np.isnan(median_gamma(np.ones((30, 0)), np.random.default_rng(0)))
