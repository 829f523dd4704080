"""CKA: identity, invariances, independence, constants; against a plain computation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qunlearn.errors import ConfigError
from qunlearn.tasks.similarity import cka


def gaussian(n: int, d: int, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((n, d))


def slow(x: NDArray[Any], y: NDArray[Any]) -> float:
    """The unbiased HSIC of Song et al. (2012) with explicit sums over distinct indices (n small)."""

    def hsic(a: NDArray[Any], b: NDArray[Any]) -> float:
        n = len(a)
        r = range(n)
        pair = sum(a[i, j] * b[i, j] for i in r for j in r if i != j) / (n * (n - 1))
        chain = sum(a[i, j] * b[i, k] for i in r for j in r for k in r if len({i, j, k}) == 3)
        four = sum(a[i, j] * b[k, m] for i in r for j in r for k in r for m in r if len({i, j, k, m}) == 4)
        return pair - 2 * chain / (n * (n - 1) * (n - 2)) + four / (n * (n - 1) * (n - 2) * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def test_against_explicit_sums() -> None:
    x, y = gaussian(9, 3, 0), gaussian(9, 5, 1)
    y[:, :3] += x
    assert cka(x, y) == pytest.approx(slow(x, y), abs=1e-10)


def test_identity_and_invariances() -> None:
    x = gaussian(80, 12, 2)
    rotation, _ = np.linalg.qr(gaussian(12, 12, 3))
    assert cka(x, x) == pytest.approx(1, abs=1e-10)
    y = gaussian(80, 7, 4) + x[:, :7]
    for other in (x @ rotation, 3.7 * x, x + 100.0):
        assert cka(other, y) == pytest.approx(cka(x, y), abs=1e-10)
    assert cka(x, y) == pytest.approx(cka(y, x), abs=1e-12)
    assert cka(x.reshape(80, 3, 2, 2), y) == cka(x, y)


@pytest.mark.parametrize(("n", "d", "biased"), [(32, 512, 0.945), (128, 512, 0.805), (512, 512, 0.5)])
def test_independent_features(n: int, d: int, biased: float) -> None:
    """The plain estimator reads d / (n + d), the debiased one nearly 0."""
    values = [(gaussian(n, d, 10 + s), gaussian(n, d, 100 + s)) for s in range(3)]
    plain = [cka(x, y, estimator="batch_biased") for x, y in values]
    assert np.mean(plain) == pytest.approx(biased, abs=0.02)
    debiased = [cka(x, y) for x, y in values]
    assert abs(np.mean(debiased)) < 0.023
    assert max(map(abs, debiased)) < (0.05 if n == d else 0.1)


def test_constant_features_are_undefined() -> None:
    assert math.isnan(cka(np.ones((60, 4)), gaussian(60, 4, 0)))
    assert math.isnan(cka(np.zeros((60, 4)), np.zeros((60, 4))))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="estimator"):
        cka(gaussian(8, 2, 0), gaussian(8, 2, 1), estimator="fancy")
    with pytest.raises(ConfigError, match="8 and 9"):
        cka(gaussian(8, 2, 0), gaussian(9, 2, 1))
