"""Toy M (scikit-learn digits, MLP 64-128-128-10) and a tiny convolutional network, trained once a session."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.quant import QuantModel, QuantSpec, Recipe, prepare, train
from qunlearn.tasks import Batch, Classification
from qunlearn.unlearn.context import Context, Data
from qunlearn.unlearn.sgd import Epochs


class TinyCNN(nn.Module):
    """Two convolutions with BatchNorm, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        out: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return out


def mlp() -> nn.Module:
    """64-128-128-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def digits(n_train: int = 1200) -> Dataset:
    """Digits as stored samples 0..16, six made-up groups, parts in a fixed shuffle."""
    raw = load_digits()
    order = np.random.default_rng(7).permutation(len(raw.target))
    part = np.full(len(order), "heldout", dtype="<U7")
    part[:n_train] = "train"
    part[n_train + 400 :] = "test"
    return Dataset(
        name="digits",
        x=raw.images[order].astype(np.uint8)[:, None],
        y=raw.target[order].astype(np.int64),
        ids=np.array([f"d{i}" for i in range(len(order))]),
        part=part,
        group=np.array([f"g{i % 6}" for i in range(len(order))]),
        class_names=tuple(str(i) for i in range(10)),
        preprocess=Preprocess((0.3,), (0.35,), 16.0),
    )


@pytest.fixture(scope="session")
def task() -> Classification:
    return Classification()


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return digits()


@pytest.fixture(scope="session")
def splits(dataset: Dataset) -> Splits:
    return make_splits(dataset, Request.parse("random=10%"), seed=0)


Trained = Callable[..., QuantModel]


def fit(kind: str, bits: str, samples: Samples, *, seed: int, epochs: int, grid: str = "free") -> QuantModel:
    """Train one network from nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = mlp() if kind == "mlp" else TinyCNN()
    model = prepare(net, QuantSpec.parse(bits, grid=grid), torch.from_numpy(samples.inputs(np.arange(64))))
    return train(model, Classification(), samples, Recipe(epochs=epochs, lr=0.05), seed=seed)


@pytest.fixture(scope="session")
def trained(dataset: Dataset) -> Trained:
    """``trained(kind, bits, seed, epochs, grid)``, kind mlp or cnn; the cached network must not be changed."""
    cache: dict[tuple[str, str, int, int, str], QuantModel] = {}

    def make(kind: str = "cnn", bits: str = "w8a8", seed: int = 0, epochs: int = 12, grid: str = "free") -> QuantModel:
        key = (kind, bits, seed, epochs, grid)
        if key not in cache:
            cache[key] = fit(kind, bits, dataset.samples("train"), seed=seed, epochs=epochs, grid=grid)
        return cache[key]

    return make


@pytest.fixture(scope="session")
def retrained() -> Callable[[Splits, int], QuantModel]:
    """``retrained(splits, seed)``: an MLP, W8A8, that never saw the forget set."""
    return lambda own, seed: fit("mlp", "w8a8", own.retain, seed=seed, epochs=12)


class Rows:
    """Samples whose input is their logit vector, float64."""

    num_classes = 3

    def __init__(self, rows: list[tuple[list[float], int]]) -> None:
        self.x = torch.tensor([z for z, _ in rows], dtype=torch.float64)
        self.y = torch.tensor([y for _, y in rows])

    def __len__(self) -> int:
        return len(self.y)

    def targets(self, idx: Any = None) -> Any:
        return self.y.numpy() if idx is None else self.y.numpy()[idx]


class RowTask(Classification):
    """Logits are the input times the model's one weight."""

    def batch(self, samples: Any, index: Any) -> Batch:
        rows = torch.as_tensor(index)
        return Batch(x=samples.x[rows], y=samples.y[rows], index=rows)


class Same(nn.Module):
    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((1,), w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


class ByHand:
    """Two forget and two retain samples of three classes, small enough to compute every loss by hand."""

    forget = (([2.0, 0.0, 0.0], 0), ([0.0, 1.0, 0.0], 1))
    retain = (([0.0, 0.0, 3.0], 2), ([1.0, 1.0, 0.0], 0))

    @staticmethod
    def p(z: list[float], t: float = 1.0) -> list[float]:
        e = [math.exp(v / t) for v in z]
        return [v / sum(e) for v in e]

    @classmethod
    def ce(cls, z: list[float], y: int) -> float:
        return -math.log(cls.p(z)[y])

    @classmethod
    def mean_ce(cls, rows: Any) -> float:
        return sum(cls.ce(z, y) for z, y in rows) / len(rows)

    @classmethod
    def kl(cls, teacher: list[float], student: list[float], t: float) -> float:
        p, q = cls.p(teacher, t), cls.p(student, t)
        return t * t * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    def context(self, *, w: float = 1.0, before: float = 1.0) -> Context:
        """Model with weight ``w``, original with weight ``before``."""
        rows = {"forget": Rows(list(self.forget)), "retain": Rows(list(self.retain))}
        return Context(
            model=cast(QuantModel, Same(w)), before=cast(QuantModel, Same(before)),
            data=Data(stop=cast(Any, None), **cast(Any, rows)), task=RowTask(),
            request_kind="random", card=None, seed=0, identity="",
        )  # fmt: skip

    def loss(self, method: Epochs, *, epoch: int = 0, i: int = 0, **models: float) -> tuple[float, dict[str, Any]]:
        """What the method minimises in one step."""
        value, row = method.plan(self.context(**models)).loss(epoch, i)
        return float(value.detach()), row


@pytest.fixture(scope="session")
def by_hand() -> ByHand:
    return ByHand()
