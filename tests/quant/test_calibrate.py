"""Calibration: ranges are means of batch extremes of the float network; nothing else moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qunlearn import quant
from qunlearn.errors import DivergedError
from qunlearn.quant.calibrate import weight_scale
from qunlearn.quant.fake import MIN_SCALE


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 1, 4, 4, generator=generator) * k for k in (1, 3)]


def test_ranges_by_hand() -> None:
    float_net = net()
    model = quant.prepare(float_net, quant.QuantSpec(), batches()[0], calibration=batches())
    float_net.eval()
    with torch.no_grad():
        lo = sum(float(x.amin()) for x in batches()) / 2
        hi = sum(float(x.amax()) for x in batches()) / 2
        top = sum(float(float_net[:3](x).amax()) for x in batches()) / 2
    q = model.quantizer_of("input")
    assert q.scale.item() == pytest.approx((hi - lo) / 255, rel=1e-6)
    assert int(q.zero_point) == round(-128 - lo / q.scale.item())
    relu = model.quantizer_of("0")
    assert relu.scale.item() == pytest.approx(top / 255, rel=1e-6)
    assert int(relu.zero_point) == -128


def test_zero_is_always_a_code() -> None:
    model = quant.prepare(net(), quant.QuantSpec(), 5 + batches()[0].abs())
    q = model.quantizer_of("input")
    assert int(q.zero_point) == -128
    assert q.quantize(torch.zeros(1, 1)).item() == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_only_grids_move(training: bool) -> None:
    model = quant.prepare(net(), quant.QuantSpec(), batches()[0]).train(training)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    quant.calibrate(model, [7 * x for x in batches()])
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert all(n.endswith((".scale", ".zero_point")) for n in moved)
    assert model.training is training
    assert all(q.enabled for _, q in model.quantizers())


def test_weight_scales() -> None:
    rows = torch.tensor([[1.0, -2.54], [0.0, 0.0], [0.5, 0.1]])
    assert weight_scale(rows, 127, 8).tolist() == pytest.approx([0.02, 0.5 / 127, 0.5 / 127])
    assert weight_scale(rows, 7, 4)[0].item() == pytest.approx(2 * 1.77 / 7**0.5)
    assert weight_scale(torch.zeros(2, 3), 127, 8).tolist() == pytest.approx([1 / 127] * 2)


def test_a_constant_zero_network_keeps_usable_grids() -> None:
    zero = net()
    for p in zero.parameters():
        nn.init.zeros_(p)
    model = quant.prepare(zero, quant.QuantSpec(), torch.zeros(2, 1, 4, 4))
    assert all(bool((q.scale >= MIN_SCALE).all()) for _, q in model.quantizers())
    assert not model(torch.zeros(2, 1, 4, 4)).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(value: float) -> None:
    model = quant.prepare(net(), quant.QuantSpec(), batches()[0])
    with pytest.raises(DivergedError, match="before input_quant are not finite"):
        quant.calibrate(model, [torch.full((2, 1, 4, 4), value)])
    assert all(q.enabled for _, q in model.quantizers())
