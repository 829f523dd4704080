"""Inner products of long vectors: one pass, float64, aliases counted once."""

from __future__ import annotations

import pytest
import torch

from qunlearn.unlearn.orthogonal import dot, gram


@pytest.mark.parametrize("n", [0, 1, 100, 101, 1000])
def test_all_inner_products_match_float64(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qunlearn.unlearn.orthogonal.PIECE", 100)
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(0))
    vectors = [a, b, a, a.clone(), b]
    want = torch.stack(vectors).double() @ torch.stack(vectors).double().T
    assert torch.allclose(torch.tensor(gram(vectors), dtype=torch.float64).reshape(5, 5), want, rtol=1e-12)
    assert dot(a, b) == pytest.approx(float(want[0, 1]), rel=1e-12)


def test_a_huge_square_does_not_overflow_and_a_broken_entry_shows() -> None:
    assert dot(torch.tensor([1e30]), torch.tensor([1e30])) == pytest.approx(1e60, rel=1e-6)
    assert dot(torch.tensor([float("nan"), 1.0]), torch.ones(2)) != 0
    assert gram([torch.tensor([float("inf"), 1.0])])[0][0] == float("inf")


def test_matrices_are_flattened() -> None:
    a = torch.arange(6.0).reshape(2, 3)
    assert dot(a, a.T.contiguous().T) == 55.0
