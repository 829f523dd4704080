"""The reference networks after a short training, on real images where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from qunlearn import models, quant, tasks
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.errors import DataError
from qunlearn.quant import QuantModel


def trained(
    name: str,
    dataset: Dataset,
    bits: str,
    *,
    samples: int | None = None,
    epochs: int = 2,
    lr: float = 0.05,
    grid: str = "free",
) -> QuantModel:
    """A network after a short training, the second half of its epochs quantization-aware."""
    train = dataset.where("train")
    if samples is not None:
        train = np.sort(np.random.default_rng(0).permutation(train)[:samples])
    net = models.build(name, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=0)
    model = quant.prepare(
        net, quant.QuantSpec.parse(bits, grid=grid), torch.from_numpy(Samples(dataset, train[:16]).inputs())
    )
    recipe = quant.Recipe(epochs=epochs, batch_size=32, lr=lr, float_share=0.5)
    return quant.train(model, tasks.get("classification"), Samples(dataset, train), recipe, seed=0)


def real_samples(dataset: Dataset, n: int) -> Samples:
    """``n`` samples, of the test part as far as it goes."""
    order = np.concatenate([dataset.where(part) for part in ("test", "heldout", "train")])
    return Samples(dataset, np.sort(order[:n]))


def images() -> Dataset:
    """CIFAR-10 from its folder or cache, else Fashion-MNIST, else skipped with the reasons."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    folders = [Path(p) for p in (os.environ.get("QUNLEARN_DATA"), shared) if p and Path(p).is_dir()] or [None]
    reasons = []
    for source in ("cifar10", "fashion_mnist"):
        for folder in folders:
            try:
                return sources.load(source, data_dir=folder)
            except DataError as err:
                reasons.append(str(err))
    pytest.skip("no images: " + " ".join(reasons))
