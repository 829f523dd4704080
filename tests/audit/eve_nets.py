"""Networks that crafting is tested on: a small convolutional one with BatchNorm, trained once a width and seed."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from qunlearn import quant, tasks
from qunlearn.data.arrays import from_arrays
from qunlearn.data.dataset import Samples
from qunlearn.data.splits import training_samples


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm, one linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.c2, self.b2 = nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.r1, self.r2 = nn.ReLU(), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.r1(self.b1(self.c1(x)))
        x = self.r2(self.b2(self.c2(x)))
        out: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return out


@cache
def conv(bits: str, seed: int) -> tuple[quant.QuantModel, Samples]:
    """(network, held-out samples) on five noisy 8x8 patterns."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, 600)
    x = (rng.normal(0, 1, (5, 1, 8, 8))[y] + rng.normal(0, 1, (600, 1, 8, 8))).astype(np.float32)
    data = from_arrays("patterns", {"x": x, "y": y}, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = quant.prepare(ConvNet(), quant.QuantSpec.parse(bits), torch.from_numpy(x[:64]))
    recipe = quant.Recipe(epochs=8, batch_size=32)
    quant.train(model, tasks.get("classification"), training_samples(data), recipe, seed=seed)
    return model, data.samples("heldout")
