"""The full parity table of three trained networks, three seeds each: verdict, digests, ties, additions and pools.

On the exact grid every difference of the table is 0.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qunlearn import models, quant, tasks
from qunlearn.data import sources
from qunlearn.data.dataset import Samples
from qunlearn.models.blocks import conv_bn
from qunlearn.quant.detie import detie
from qunlearn_export import reader, writer
from qunlearn_export.parity import parity
from qunlearn_export.ties import reading_share, ties

POOLS = ("Add", "AveragePool", "GlobalAveragePool", "MaxPool")


class TinyCNN(nn.Module):
    """Five convolutions (one depthwise, one 1x1), max pool, residual addition, average pool, linear head."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(channels, 16, 3), conv_bn(16, 16, 3, groups=16)
        self.conv3, self.conv4 = conv_bn(16, 32, 1), conv_bn(32, 32, 3)
        self.conv5 = conv_bn(32, 32, 3, act=None)
        self.pool, self.relu, self.gap = nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.pool(self.conv1(x))))
        x = self.relu(x + self.conv5(self.conv4(x)))
        out: Tensor = self.fc(self.gap(x).flatten(1))
        return out


CASES = {"tiny": ("digits", 600, 4), "resnet8": ("digits", 600, 4), "dscnn": ("kws", 400, 3)}
"""Data set, training samples, epochs (half of them quantization-aware)."""


@lru_cache(maxsize=1)
def trained(name: str, seed: int, grid: str) -> tuple[quant.QuantModel, Samples]:
    source, n, epochs = CASES[name]
    data = sources.load(source)
    rows = np.sort(np.random.default_rng(seed).permutation(data.where("train"))[:n])
    samples = Samples(data, rows)
    torch.manual_seed(seed)
    if name == "tiny":
        net: nn.Module = TinyCNN(data.in_shape[0], data.num_classes)
    else:
        net = models.build(name, in_shape=data.in_shape, num_classes=data.num_classes, seed=seed)
    model = quant.prepare(net, quant.QuantSpec(grid=grid), torch.from_numpy(samples.inputs(np.arange(32))))
    recipe = quant.Recipe(epochs=epochs, batch_size=32, float_share=0.5)
    return quant.train(model, tasks.get("classification"), samples, recipe, seed=seed), data.samples("test")


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["free", "exact"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(CASES))
def test_full_table(name: str, seed: int, grid: str, tmp_path: Path) -> None:
    model, test = trained(name, seed, grid)
    graph, file = quant.lower(model), tmp_path / "a.onnx"
    writer.export(graph, file)
    x = test.inputs(np.arange(64))
    report = parity(graph, file, x, torch_column=quant.TorchColumn(model))
    assert report.verdict == "pass", report.reasons
    assert quant.codes_digest(model) == graph.codes_digest() == reader.read(file).codes_digest() == report.codes_digest
    assert [t for t in ties(graph) if t.share] == []
    assert [layer.name for layer in graph.layers if reading_share(layer, graph)] == []
    assert detie(model) == 0, "training has left nothing to move"
    pooled = [r for r in report.layers if r.mode == "forced" and r.op in POOLS]
    assert {r.pair for r in pooled} == {"onnx-off vs oracle", "onnx-all vs onnx-off", "torch-fq vs oracle"}
    moved = [r for r in pooled if r.pair.startswith("onnx") and r.max_abs]
    if grid == "exact":
        assert [r for r in (*report.layers, *report.logits) if "onnx-raw" not in r.pair and r.max_abs] == []
    else:  # the float mean of many values has rounding errors of its own, which no scale avoids
        assert [r for r in moved if r.op != "GlobalAveragePool" or r.max_abs > 1 or r.share > 1e-3] == []


def test_the_tiny_network_is_the_written_one() -> None:
    net = quant.prepare(TinyCNN(1, 10), quant.QuantSpec(), torch.randn(4, 1, 8, 8))
    kinds = [s.kind for s in net.steps]
    assert kinds.count("conv") == 5
    assert {"maxpool", "add", "gap", "flatten", "linear"} <= set(kinds)
