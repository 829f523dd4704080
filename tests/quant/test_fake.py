"""Fake quantization: the artefact's rounding rule forwards, straight-through and LSQ gradients backwards."""

from __future__ import annotations

import numpy as np
import torch

from qunlearn.quant.fake import MIN_SCALE, FakeQuantize
from qunlearn.quant.spec import QuantSpec


def quantizer(scale: float, *, lo: int = -128, hi: int = 127, zero: int = 0) -> FakeQuantize:
    q = FakeQuantize(scale_shape=(), lo=lo, hi=hi, bits=8, zero_point=zero)
    q.set_grid(torch.tensor(scale))
    return q


def test_forward_is_the_written_rule() -> None:
    q = quantizer(0.037, zero=-5)
    x = torch.randn(100_000) * 6
    s = np.float32(0.037)
    codes = np.clip(np.rint(x.numpy() / s) - 5, -128, 127)
    assert np.array_equal(q.codes(x).numpy(), codes)
    assert np.array_equal(q.quantize(x).detach().numpy(), ((codes + 5).astype(np.float32) * s))


def test_half_way_points_round_to_even() -> None:
    q = quantizer(1.0)
    assert q.codes(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


def test_straight_through_gradient() -> None:
    q = quantizer(0.1, lo=-128, hi=-113, zero=-128)
    x = torch.tensor([-0.3, 0.0, 0.72, 1.5, 1.7], requires_grad=True)
    q.quantize(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_scale_gradient_is_lsq() -> None:
    q = quantizer(0.1, lo=-4, hi=3)
    x = torch.tensor([0.12, 0.26, 9.0, -9.0])
    q.quantize(x).sum().backward()
    n, hi = 4 / 4, 3  # x.numel() / x.shape[0], largest code
    inside = (1 - 1.2) + (3 - 2.6)
    want = (inside + 3 - 4) / (n * hi) ** 0.5
    assert q.scale.grad is not None
    assert abs(float(q.scale.grad) - want) < 1e-5


def test_double_backward() -> None:
    q = quantizer(0.1)
    x = torch.randn(50, requires_grad=True)
    (g,) = torch.autograd.grad(q.quantize(x).pow(2).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    assert torch.allclose(h, torch.full_like(h, 2.0)), "straight through: d2/dx2 of y^2 with dy/dx = 1"


def test_scale_has_a_floor() -> None:
    q = quantizer(0.0)
    assert q.scale.item() == MIN_SCALE


def test_disabled_passes_values() -> None:
    q = quantizer(0.5)
    q.enabled = False
    x = torch.randn(9)
    assert torch.equal(q(x)[0], x)


def test_ranges_of_the_spec() -> None:
    assert QuantSpec().weight_qmax(edge=False) == 127
    assert QuantSpec(weight_range="7bit").weight_qmax(edge=False) == 63
    assert QuantSpec.parse("W4A4").weight_qmax(edge=False) == 7
    assert QuantSpec.parse("w2a2").weight_qmax(edge=False) == 1
    assert QuantSpec.parse("w2a2").weight_qmax(edge=True) == 127
