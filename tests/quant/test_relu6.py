"""ReLU6 clips at 6 in the float phase, under any learned scale, and as it ships."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qunlearn import quant
from qunlearn.quant.layers import act_quantizer, quant_relu
from qunlearn_export.oracle import Oracle


@pytest.mark.parametrize("scale", [0.01, 6 / 255, 0.04])
@pytest.mark.parametrize(("ceiling", "top"), [(6.0, 6.0), (None, np.inf)])
def test_both_phases(scale: float, ceiling: float | None, top: float) -> None:
    layer, x = quant_relu(bits=8, ceiling=ceiling), torch.tensor([-3.0, -0.2, 0.0, 2.0, 5.9, 6.1, 20.0])
    q = act_quantizer(layer)
    q.set_grid(torch.tensor(scale))
    want = x.clamp(0, top)
    grid = float(q.scale.detach())
    expected = (want / grid).round().clamp(0, 255) * grid
    assert torch.allclose(layer(x), expected, atol=1e-6)
    q.enabled = False
    assert torch.equal(layer(x), want)


def test_no_gradient_above_the_ceiling() -> None:
    layer, x = quant_relu(bits=8, ceiling=6.0), torch.tensor([-1.0, 3.0, 7.0], requires_grad=True)
    act_quantizer(layer).set_grid(torch.tensor(0.04))
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_the_shipped_network_clips_alike_when_the_range_ends_above_six(bits: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU6(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU6()),
            *(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        )
        with torch.no_grad():
            net[0].weight.mul_(8)
        x = 3 * torch.randn(16, 1, 6, 6)
    model = quant.prepare(net, quant.QuantSpec.parse(bits), x).eval()
    for name, q in model.quantizers():
        if name.startswith(
            tuple(s.act for s in model.steps if s.act and hasattr(model.get_submodule(s.act), "ceiling"))
        ):
            q.set_grid(q.scale.detach() * 1.3)
    graph = quant.lower(model)
    clipped = [layer for layer in graph.layers if getattr(layer, "clip", None) is not None]
    assert clipped
    oracle, column = Oracle(graph), quant.TorchColumn(model)
    codes = oracle.run_all(x.numpy())
    for layer in graph.layers:
        found = column.run_layer(layer.name, *(codes[n] for n in layer.inputs)).astype(int)
        assert np.abs(found - codes[layer.output].astype(int)).max() <= 1, layer.name
    first = graph.layers[0]
    assert int(codes[first.output].max()) < (127 if bits == "w8a8" else 15 - 128), "values above six occur and are cut"
