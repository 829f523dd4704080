"""Small real data (scikit-learn digits) and a small prepared network, trained once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qunlearn import models, quant, tasks
from qunlearn.data import sources
from qunlearn.data.dataset import Samples


@pytest.fixture(scope="session")
def digits() -> Samples:
    return sources.load("digits").samples("train").take(np.arange(400))


@pytest.fixture(scope="session")
def example(digits: Samples) -> torch.Tensor:
    return torch.from_numpy(digits.inputs(np.arange(64)))


@pytest.fixture(scope="session")
def task() -> tasks.Task:
    return tasks.get("classification")


@pytest.fixture(scope="session")
def _trained(digits: Samples, example: torch.Tensor, task: tasks.Task) -> dict[str, quant.QuantModel]:
    out = {}
    for bits in ("w8a8", "w4a4"):
        net = models.build("resnet8@8", in_shape=(1, 8, 8), num_classes=10, seed=0)
        model = quant.prepare(net, quant.QuantSpec.parse(bits), example)
        out[bits] = quant.train(model, task, digits, quant.Recipe(epochs=4, float_share=0.5), seed=0)
    return out


@pytest.fixture
def trained(_trained: dict[str, quant.QuantModel]) -> quant.QuantModel:
    return copy.deepcopy(_trained["w8a8"])


@pytest.fixture(params=["w8a8", "w4a4"])
def either(_trained: dict[str, quant.QuantModel], request: pytest.FixtureRequest) -> quant.QuantModel:
    return copy.deepcopy(_trained[request.param])


class Tiny(nn.Module):
    """Convolution, BatchNorm, ReLU, pool, head: every kind of step in one line each."""

    def __init__(self, classes: int = 10, *, channels: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(channels * 16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))
        return out


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return Tiny()
