"""The two entropy losses against closed forms, finite differences and the published table of norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qunlearn.errors import ConfigError
from qunlearn.unlearn.entropy import entropy_loss, normalized_entropy

C = 10


def _logits(seed: int = 0, n: int = 5, c: int = C) -> Tensor:
    return 3 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _one_certain(confidence: float, c: int = C) -> Tensor:
    """Logits [1, c] whose softmax is ``confidence`` at class 0 and equal elsewhere."""
    p = torch.full((1, c), (1 - confidence) / (c - 1), dtype=torch.float64)
    p[0, 0] = confidence
    return p.log()


def _gradient(z: Tensor, kind: str) -> Tensor:
    z = z.clone().requires_grad_(True)
    entropy_loss(z, kind=kind).backward()
    assert z.grad is not None
    return z.grad


@pytest.mark.parametrize("kind", ["e1", "e2"])
def test_gradients_equal_finite_differences_and_closed_forms(kind: str) -> None:
    z = _logits()
    g = _gradient(z, kind)
    p = z.softmax(1)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    closed = p * (p.log() + entropy) if kind == "e1" else p - 1 / C
    torch.testing.assert_close(g, closed / len(z), rtol=0, atol=1e-12)
    h = 1e-6
    for i in range(z.numel()):
        step = torch.zeros_like(z).reshape(-1)
        step[i] = h
        step = step.reshape(z.shape)
        d = (entropy_loss(z + step, kind=kind) - entropy_loss(z - step, kind=kind)) / (2 * h)
        assert abs(float(d) - float(g.reshape(-1)[i])) < 1e-6


@pytest.mark.parametrize(
    ("confidence", "e1", "e2", "wrong"),
    [
        (0.9, 0.417, 0.843, 1.34),
        (0.99, 0.071, 0.938, 1.41),
        (0.999, 0.0096, 0.948, 1.41),
        (0.9999, 0.0012, 0.949, 1.41),
    ],
)
def test_norms_of_the_logit_gradient(confidence: float, e1: float, e2: float, wrong: float) -> None:
    z = _one_certain(confidence)
    assert float(_gradient(z, "e1").norm()) == pytest.approx(e1, abs=5e-4 if e1 > 0.05 else 5e-5)
    assert float(_gradient(z, "e2").norm()) == pytest.approx(e2, abs=6e-4)
    p = z.softmax(1)[0]
    onehot = torch.zeros(C, dtype=torch.float64)
    onehot[3] = 1
    assert float((p - onehot).norm()) == pytest.approx(wrong, abs=6e-3)


def test_limit_of_certainty() -> None:
    z = torch.zeros(1, C, dtype=torch.float64)
    z[0, 0] = 500
    assert float(_gradient(z, "e1").norm()) < 1e-12
    assert float(_gradient(z, "e2").norm()) == pytest.approx(math.sqrt(1 - 1 / C), abs=1e-12)


def test_both_forms_are_divergences_from_uniform() -> None:
    z = _logits(1)
    p = z.softmax(1)
    u = torch.full_like(p, 1 / C)
    kl_pu = (p * (p / u).log()).sum(1).mean()
    kl_up = (u * (u / p).log()).sum(1).mean()
    assert abs(float(entropy_loss(z, kind="e1") - (kl_pu - math.log(C)))) < 1e-10
    assert abs(float(entropy_loss(z, kind="e2") - (kl_up + math.log(C)))) < 1e-10


@pytest.mark.parametrize("kind", ["e1", "e2"])
def test_huge_logits_stay_finite(kind: str) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], requires_grad=True)
    loss = entropy_loss(z, kind=kind)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())


def test_uniform_output_is_the_optimum_of_both() -> None:
    z = torch.zeros(2, C, dtype=torch.float64)
    assert float(entropy_loss(z, kind="e1")) == pytest.approx(-math.log(C))
    assert float(entropy_loss(z, kind="e2")) == pytest.approx(math.log(C))
    assert float(normalized_entropy(z)) == pytest.approx(1.0)
    for kind in ("e1", "e2"):
        assert float(_gradient(z, kind).norm()) < 1e-12


@pytest.mark.parametrize("kind", ["e1", "e2"])
def test_t13_padding_does_not_count(kind: str) -> None:
    a, b = _logits(2, 3, 7), _logits(3, 2, 7)
    padded = torch.zeros(2, 3, 7, dtype=torch.float64)
    padded[0], padded[1, :2], padded[1, 2] = a, b, 99.0
    padded[1, 2, 0] = -99.0
    mask = torch.tensor([[True, True, True], [True, True, False]])
    plain = entropy_loss(torch.cat([a, b]), kind=kind)
    assert float(entropy_loss(padded, kind=kind, mask=mask)) == pytest.approx(float(plain), abs=1e-12)
    assert float(entropy_loss(padded, kind=kind)) != pytest.approx(float(plain), abs=1e-3)


def test_weight_zero_removes_a_sample_and_keeps_the_divisor() -> None:
    z = _logits(4, 2)
    alone = entropy_loss(z[:1], kind="e2")
    assert float(entropy_loss(z, kind="e2", weight=torch.tensor([1.0, 0.0]))) == pytest.approx(float(alone) / 2)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="e1, e2"):
        entropy_loss(_logits(), kind="e3")
    with pytest.raises(ConfigError, match="shape"):
        entropy_loss(_logits(), mask=torch.ones(3))
