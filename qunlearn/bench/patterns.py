"""A toy whose network must memorise: noisy images with mostly random labels, and a small convolutional network.

More training samples than its signal can explain, and many dimensions of noise: a trained network is sure of what it
has seen and of little else, so that members can be told from non-members. As many samples as are asked for.
As entry points: ``--data qunlearn.bench.patterns:data --model qunlearn.bench.patterns:network``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qunlearn import quant
from qunlearn.data.dataset import Dataset, Preprocess

SIDE, CLASSES = 28, 5
TRAIN, HELDOUT, TEST = 2000, 4000, 400
RANDOM = 0.8
"""Share of the samples whose label is drawn at random."""
RECIPE = quant.Recipe(epochs=20, batch_size=64, lr=0.02, weight_decay=0.0)


def data(seed: int = 0, *, train: int = TRAIN, heldout: int = HELDOUT) -> Dataset:
    """Images [n, 1, 28, 28] float32: a pattern a class, noise of the same size; ``RANDOM`` of all labels random."""
    rng = np.random.default_rng([seed, *b"patterns"])
    n = train + heldout + TEST
    shown = rng.integers(0, CLASSES, n)
    x = rng.normal(0, 1, (CLASSES, 1, SIDE, SIDE))[shown] + rng.normal(0, 1, (n, 1, SIDE, SIDE))
    y = np.where(rng.random(n) < RANDOM, rng.integers(0, CLASSES, n), shown)
    return Dataset(
        name="patterns",
        x=x.astype(np.float32),
        y=y.astype(np.int64),
        ids=np.array([f"p{i:05d}" for i in range(n)]),
        part=np.repeat(["train", "heldout", "test"], [train, heldout, TEST]),
        class_names=tuple("abcde"),
        preprocess=Preprocess(divisor=1.0),
    )


class PatternNet(nn.Module):
    """Two convolutions with BatchNorm, two linear layers."""

    def __init__(self, side: int, num_classes: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.r1, self.r2, self.r3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.hidden, self.head = nn.Linear(16 * ((side + 1) // 2) ** 2, 64), nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.r1(self.b1(self.c1(x)))
        x = self.r2(self.b2(self.c2(x)))
        out: Tensor = self.head(self.r3(self.hidden(torch.flatten(x, 1))))
        return out


def network(*, in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The network, untrained."""
    return PatternNet(in_shape[1], num_classes)
