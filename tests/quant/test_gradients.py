"""Gradients of fake quantization: equal to finite differences of a smooth surrogate; differentiable twice."""

from __future__ import annotations

import pytest
import torch

from qunlearn.quant.fake import FakeQuantize


def surrogate(x: torch.Tensor, s: torch.Tensor, offset: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    """What the straight-through rule differentiates: the rounding error of x / s is held at ``offset``."""
    return ((x / s).clamp(lo, hi) + offset) * s


@pytest.mark.parametrize(("lo", "hi"), [(-127, 127), (-7, 7), (-1, 1)])
def test_gradients_per_channel_against_finite_differences(lo: int, hi: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 30, generator=generator, requires_grad=True)
    scale = torch.tensor([0.5, 0.8, 1.1, 2.0]).reshape(4, 1) / hi
    weight = torch.randn(4, 30, generator=generator)
    q = FakeQuantize(scale_shape=(4, 1), lo=lo, hi=hi, bits=8)
    q.set_grid(scale)
    (q.quantize(x) * weight).sum().backward()
    x64, s64 = x.detach().double(), q.scale.detach().double()
    clamped = (x64 / s64).clamp(lo, hi)
    offset = clamped.round() - clamped

    def loss(dx: torch.Tensor, ds: torch.Tensor) -> torch.Tensor:
        return surrogate(x64 + dx, s64 + ds, offset, lo, hi) * weight

    step, zero = 1e-7, torch.zeros(1, dtype=torch.float64)
    by_x = (loss(zero + step, zero) - loss(zero - step, zero)) / (2 * step)
    by_s = ((loss(zero, zero + step) - loss(zero, zero - step)) / (2 * step)).sum(1, keepdim=True)
    assert x.grad is not None
    assert q.scale.grad is not None
    assert torch.allclose(x.grad.double(), by_x, atol=1e-5)
    assert torch.allclose(q.scale.grad.double() * (30 * hi) ** 0.5, by_s, rtol=1e-4, atol=1e-4)


def test_a_zero_point_shifts_the_range() -> None:
    q = FakeQuantize(scale_shape=(), lo=-128, hi=127, bits=8, zero_point=100)
    q.set_grid(torch.tensor(0.1))
    x = torch.tensor([-22.9, -22.7, 0.04, 2.6, 2.8], requires_grad=True)
    assert q.codes(x).tolist() == [-128, -127, 100, 126, 127]
    q.quantize(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_a_hessian_vector_product_of_a_quantized_loss() -> None:
    q = FakeQuantize(scale_shape=(), lo=-127, hi=127, bits=8)
    q.set_grid(torch.tensor(0.05))
    x = torch.randn(20, generator=torch.Generator().manual_seed(1), requires_grad=True)
    v = torch.randn(20, generator=torch.Generator().manual_seed(2))
    value = q.quantize(x)
    (g,) = torch.autograd.grad(value.pow(3).sum(), x, create_graph=True)
    (hv,) = torch.autograd.grad((g * v).sum(), x)
    assert torch.allclose(hv, 6 * value.detach() * v, atol=1e-6)


def test_second_derivatives_reach_the_scale() -> None:
    q = FakeQuantize(scale_shape=(), lo=-7, hi=7, bits=4)
    q.set_grid(torch.tensor(0.3))
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(3), requires_grad=True)
    (g,) = torch.autograd.grad(q.quantize(x).pow(2).sum(), x, create_graph=True)
    (by_scale,) = torch.autograd.grad(g.sum(), q.scale)
    v = x.detach() / 0.3
    inside = (v >= -7) & (v <= 7)
    slope = torch.where(inside, v.round() - v, v.round().clamp(-7, 7))
    want = (2 * slope * inside).sum() / (50 * 7) ** 0.5
    assert float(by_scale) == pytest.approx(float(want), rel=1e-3)
