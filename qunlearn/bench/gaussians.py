"""A toy whose networks train in a second: Gaussian classes on a line of features, and a network with one hidden layer.

As entry points: ``--data qunlearn.bench.gaussians:data --model qunlearn.bench.gaussians:network``.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from qunlearn import quant, tasks
from qunlearn.bench.recipes import build_model
from qunlearn.data.dataset import Dataset, Preprocess
from qunlearn.data.splits import training_samples

FEATURES, HIDDEN, CLASSES, SAMPLES = 32, 64, 5, 1500
SPREAD = 0.5
"""Standard deviation of a class centre's coordinates; that of a sample around its centre is 1."""
RECIPE = quant.Recipe(epochs=20, batch_size=64, lr=0.05)


def data(seed: int = 0, *, samples: int = SAMPLES) -> Dataset:
    """``samples`` points [n, 32, 1, 1] float32 of five classes; two thirds training, a quarter held out, rest test."""
    rng = np.random.default_rng([seed, *b"gaussians"])
    centres = rng.normal(0, SPREAD, (CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, samples)
    x = (centres[y] + rng.normal(0, 1, (samples, FEATURES))).astype(np.float32)
    part = np.full(samples, "test", dtype="<U7")
    part[: samples * 2 // 3] = "train"
    part[samples * 2 // 3 : samples * 11 // 12] = "heldout"
    return Dataset(
        name="gaussians",
        x=x[:, :, None, None],
        y=y.astype(np.int64),
        ids=np.array([f"g{i:04d}" for i in range(samples)]),
        part=part,
        class_names=tuple("abcde"),
        preprocess=Preprocess(divisor=1.0),
    )


def network(*, in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """32-64-5 with one ReLU."""
    inputs = int(np.prod(in_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes))


def trained(dataset: Dataset, *, seed: int, recipe: quant.Recipe = RECIPE) -> quant.QuantModel:
    """The network, quantized (w8a8) and trained on the training part."""
    model = build_model("qunlearn.bench.gaussians:network", dataset, quant.QuantSpec(), seed=seed)
    return quant.train(model, tasks.get("classification"), training_samples(dataset), recipe, seed=seed)
