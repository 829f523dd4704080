"""The fast fake quantizer against a slow form made of plain operations, one after another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn import models
from qunlearn.quant import QuantModel, QuantSpec, Recipe, prepare
from qunlearn.quant.calibrate import calibrate
from qunlearn.quant.fake import NO_CLIP, FakeQuantize, _ends
from qunlearn.quant.model import WEIGHTED, clamp_scales, scale_parameter_names

RELU = (0.0, math.inf)
RELU6 = (0.0, 6.0)


class SlowFakeQuantize(torch.autograd.Function):
    """q = clamp(rint(x / s), lo, hi), y = q s; straight through for x, LSQ for s.

    Results have the strides of ``x``: what follows must add its sums in the same order as after the fast form.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lo: int, hi: int, grad_scale: float) -> Tensor:
        v = torch.empty_like(x).copy_(x / scale)
        q = v.round().clamp_(lo, hi)
        ctx.save_for_backward(v, q)
        ctx.bounds = (lo, hi, grad_scale)
        ctx.scale_shape = scale.shape
        return torch.empty_like(x).copy_(q * scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        v, q = ctx.saved_tensors
        lo, hi, grad_scale = ctx.bounds
        inside = (v >= lo) & (v <= hi)
        grad_x = torch.empty_like(v).copy_(g * inside) if ctx.needs_input_grad[0] else None
        grad_s = None
        if ctx.needs_input_grad[1]:
            d = g * torch.where(inside, q - v, q)
            grad_s = d.sum_to_size(ctx.scale_shape) * grad_scale
        return grad_x, grad_s, None, None, None


def slow(q: FakeQuantize, x: Tensor, *, clip: tuple[float, float] = NO_CLIP) -> Tensor:
    """As ``FakeQuantize.quantize``."""
    if clip[1] < math.inf:
        x = x.clamp(max=clip[1])
    if clip[0] == 0:
        x = torch.relu(x)
    z = int(q.zero_point)
    n = x.numel() / max(1, q.scale.numel()) if q.scale.numel() > 1 else x.numel() / x.shape[0]
    grad_scale = 1.0 / (n * max(1, q.hi - z)) ** 0.5
    out: Tensor = SlowFakeQuantize.apply(x, q.scale, q.lo - z, q.hi - z, grad_scale)  # type: ignore[no-untyped-call]
    return out


def awkward(scale: float, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
    """Values at and next to every rounding tie and both ends, zeros, tiny, huge and random ones."""
    t = np.float32 if dtype == torch.float32 else np.float64
    grid = (np.arange(lo - 3, hi + 4, 0.5) * scale).astype(t)
    near = [grid]
    up = down = grid
    for _ in range(3):
        up, down = np.nextafter(up, t(np.inf)), np.nextafter(down, t(-np.inf))
        near += [up, down]
    extra = np.array([0.0, -0.0, 1e-45, -1e-45, 1e30, -1e30, np.inf, -np.inf, 6.0], t)
    noise = np.random.default_rng(0).normal(0, 2 * max(-lo, hi) * scale, 5000).astype(t)
    values = np.concatenate([*near, extra, noise])
    return torch.from_numpy(values[: len(values) // 8 * 8].reshape(8, -1))


GRIDS = [(-128, 127, 0), (-128, 127, 100), (-128, 127, 127), (-128, 127, -128), (-128, -113, -128), (-7, 7, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [NO_CLIP, RELU, RELU6])
@pytest.mark.parametrize(("lo", "hi", "zero"), GRIDS)
def test_one_scale_forward_and_gradients(
    lo: int, hi: int, zero: int, clip: tuple[float, float], dtype: torch.dtype
) -> None:
    for scale in (0.037, 2.0**-5, 1 / 3, 0.0234375, 7.3e-5, 2.0**-24, 11.7, 3e7):
        q = FakeQuantize(scale_shape=(), lo=lo, hi=hi, bits=8, zero_point=zero).to(dtype)
        q.set_grid(torch.tensor(scale))
        x = awkward(float(q.scale.detach()), lo - zero, hi - zero, dtype)
        g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results = []
        for form in (q.quantize, lambda t, clip, q=q: slow(q, t, clip=clip)):
            leaf = x.clone().requires_grad_()
            y = form(leaf, clip=clip)
            finite = leaf.isfinite()
            by_x, by_s = torch.autograd.grad(y, (leaf, q.scale), torch.where(finite, g, 0.0))
            results.append((y.detach(), by_x, by_s))
        (y, by_x, by_s), (y0, by_x0, by_s0) = results
        assert torch.equal(y, y0)
        assert torch.equal(by_x, by_x0)
        assert by_s.shape == by_s0.shape
        largest = float((y0.abs().clamp(max=3e38) * g.abs()).nan_to_num().sum())
        assert abs(float(by_s - by_s0)) <= 1e-5 * abs(float(by_s0)) + 1e-6 * largest / float(q.scale.detach()) / len(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 1), (6, 1, 1, 1), (1, 1)])
@pytest.mark.parametrize("hi", [127, 7, 1])
def test_a_scale_per_channel_forward_and_gradients(hi: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape[0], *([5, 3, 3][: max(1, len(shape) - 1)]), generator=generator).to(dtype)
    q = FakeQuantize(scale_shape=shape, lo=-hi, hi=hi, bits=8).to(dtype)
    q.set_grid(x.abs().flatten(1).amax(1) / hi * torch.linspace(0.7, 1.0, shape[0]))
    g = torch.randn(x.shape, generator=generator).to(dtype)
    results = []
    for form in (q.quantize, lambda t: slow(q, t)):
        leaf = x.clone().requires_grad_()
        y = form(leaf)
        results.append((y.detach(), *torch.autograd.grad(y, (leaf, q.scale), g)))
    (y, by_x, by_s), (y0, by_x0, by_s0) = results
    assert torch.equal(y, y0)
    assert torch.equal(by_x, by_x0)
    assert torch.allclose(by_s, by_s0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.037, 1 / 3, 1.0, 5.0, 1e-4, 2.0**-24, 1e6, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_range_are_exact(scale: float, dtype: torch.dtype) -> None:
    s = torch.tensor(scale, dtype=dtype)
    for lo, hi in ((0, 255), (-255, 0), (-128, 127), (-7, 7)):
        below, above = (torch.tensor(e, dtype=dtype) for e in _ends(float(s), lo, hi, dtype))
        inward = [torch.nextafter(below, s.new_tensor(math.inf)), torch.nextafter(above, s.new_tensor(-math.inf))]
        assert bool(below / s < lo)
        assert bool(above / s > hi)
        assert bool(inward[0] / s >= lo)
        assert bool(inward[1] / s <= hi)


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf, 0.0])
def test_a_broken_scale_has_no_ends(scale: float) -> None:
    assert _ends(scale, -8, 7, torch.float32) == (-math.inf, math.inf)


def test_pieces_and_memory_formats_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qunlearn.quant.fake.PIECE", 100)
    q = FakeQuantize(scale_shape=(), lo=-128, hi=127, bits=8, zero_point=-20)
    q.set_grid(torch.tensor(0.02))
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(4, 6, 5, 7, generator=generator)
    wide = torch.randn(4, 6, 5, 14, generator=generator)
    g = torch.randn(base.shape, generator=generator)
    forms = {
        "contiguous": base,
        "channels last": base.contiguous(memory_format=torch.channels_last),
        "sliced": wide[..., ::2],
        "expanded": base[:, :1].expand(4, 6, 5, 7),
        "transposed": base.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2),
    }
    for name, x in forms.items():
        for gradient in (g, g.contiguous(memory_format=torch.channels_last), g[:, :1].expand_as(g)):
            leaf = x.detach().requires_grad_()
            y, y0 = q.quantize(leaf, clip=RELU), slow(q, leaf, clip=RELU)
            assert torch.equal(y, y0), name
            got = torch.autograd.grad(y, (leaf, q.scale), gradient)
            want = torch.autograd.grad(y0, (leaf, q.scale), gradient)
            assert torch.equal(got[0], want[0]), name
            assert torch.allclose(got[1], want[1], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("shape", [(), (4, 1)])
@pytest.mark.parametrize("clip", [NO_CLIP, RELU, RELU6])
def test_the_second_derivative_against_finite_differences(shape: tuple[int, ...], clip: tuple[float, float]) -> None:
    q = FakeQuantize(scale_shape=shape, lo=-7, hi=7, bits=4).double()
    q.set_grid(torch.tensor([0.31, 0.4, 0.52, 0.7]) if shape else torch.tensor(0.4))
    x = (torch.rand(4, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 0.5) * 12
    x.requires_grad_()
    q.scale.requires_grad_(False)
    g = torch.randn(4, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: q.quantize(t, clip=clip), (x,), (g,))
    q.scale.requires_grad_(True)

    def gradients(v: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(q.quantize(x, clip=clip), (x, q.scale), v, create_graph=True)

    assert torch.autograd.gradcheck(gradients, (g,))
    y, y0 = q.quantize(x, clip=clip), slow(q, x, clip=clip)
    for value in (y, y0):
        by = torch.autograd.grad(value.pow(3).sum(), (x, q.scale), create_graph=True)
        second = torch.autograd.grad(sum((b.pow(2).sum() for b in by), torch.zeros(())), (x, q.scale))
        if value is y:
            first = second
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def _settled(model: QuantModel, x: Tensor) -> QuantModel:
    """Running statistics and grids that fit the data: in a fresh network every value would be cut."""
    model.set_enabled(False)
    model.train()
    with torch.no_grad():
        for _ in range(40):
            model(x)
    calibrate(model, [x])
    return model


def _steps(model: QuantModel, x: Tensor, y: Tensor, count: int) -> None:
    model.train()
    scales = scale_parameter_names(model)
    grid = [p for n, p in model.named_parameters() if n in scales]
    rest = [p for n, p in model.named_parameters() if n not in scales]
    recipe = Recipe()
    groups = [{"params": rest}, {"params": grid, "lr": 0.02 * recipe.scale_lr}]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=recipe.momentum, nesterov=True)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clamp_scales(model)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize(("name", "in_shape"), [("dscnn@8", (1, 25, 16)), ("resnet8", (3, 12, 12))])
def test_codes_after_training_steps_are_those_of_the_slow_form(
    name: str, in_shape: tuple[int, int, int], bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(6)
    x, y = torch.randn(24, *in_shape, generator=generator), torch.randint(0, 5, (24,), generator=generator)
    networks = []
    for fast in (True, False):
        model = prepare(models.build(name, in_shape=in_shape, num_classes=5, seed=0), QuantSpec.parse(bits), x)
        with monkeypatch.context() as patch:
            if not fast:
                patch.setattr(FakeQuantize, "quantize", lambda self, t, *, clip=NO_CLIP: slow(self, t, clip=clip))
            _steps(_settled(model, x), x, y, 4)
        networks.append(model)
    total = differ = 0
    for step in networks[0].steps:
        if step.kind in WEIGHTED:
            a, b = (
                m.weight_quantizer_of(step).codes(_weight(m.get_submodule(str(step.module)))).int() for m in networks
            )
            assert int((a - b).abs().max()) <= 1
            total += a.numel()
            differ += int((a != b).sum())
    assert differ <= total / 1000, "more than rounding ties"
    for (name_a, a), b in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5), name_a


def _weight(module: nn.Module) -> Tensor:
    out: Any = module.weight
    return out.detach()
