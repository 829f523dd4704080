"""Classification: losses and metrics against values worked out by hand; prediction leaves the network as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from qunlearn import tasks
from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.errors import ConfigError
from qunlearn.tasks import TASKS, Batch, Classification


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = np.random.default_rng(0)
    dataset = Dataset(
        name="small",
        x=rng.integers(0, 256, (11, 1, 2, 3)).astype(np.uint8),
        y=np.arange(11, dtype=np.int64) % 3,
        ids=np.array([f"s{i}" for i in range(11)]),
        group=None,
        part=np.array(["train"] * 7 + ["heldout"] * 2 + ["test"] * 2),
        class_names=("a", "b", "c"),
        preprocess=Preprocess((0.5,), (0.25,)),
    )
    return Samples(dataset, np.arange(10, 0, -1))


def batch_of(y: list[int]) -> Batch:
    return Batch(x=torch.zeros(len(y), 1), y=torch.tensor(y), index=torch.arange(len(y)))


class Net(nn.Module):
    """A linear network with dropout and BatchNorm, whose modes matter."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dropout(self.norm(self.linear(x.flatten(1))))
        return out


def test_registry() -> None:
    assert "classification" in TASKS
    assert isinstance(tasks.get("classification"), Classification)
    with pytest.raises(ConfigError, match="unknown task") as caught:
        tasks.get("clasification")
    assert "'classification'" in caught.value.remedy


def test_batch(samples: Samples) -> None:
    task = tasks.get("classification")
    for index in (np.array([0, 4, 2]), torch.tensor([0, 4, 2])):
        batch = task.batch(samples, index)
        assert len(batch) == 3
        assert (batch.x.dtype, batch.y.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert batch.index.tolist() == [0, 4, 2]
        assert batch.y.tolist() == [samples.dataset.y[i] for i in (10, 6, 8)]
        want = (samples.dataset.x[[10, 6, 8]].astype(np.float64) / 255 - 0.5) / 0.25
        assert np.allclose(batch.x.numpy(), want, atol=1e-6)


def test_loss_by_hand() -> None:
    task = tasks.get("classification")
    logits = torch.tensor([[0.0, math.log(2.0), math.log(3.0)], [0.0, 0.0, 0.0]])
    want = [math.log(6) - math.log(2), math.log(3)]
    assert task.loss(logits, batch_of([1, 0]), reduction="none").tolist() == pytest.approx(want)
    assert float(task.loss(logits, batch_of([1, 0]))) == pytest.approx(sum(want) / 2)


def test_loss_has_the_softmax_gradient() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), math.log(3.0)]], requires_grad=True)
    tasks.get("classification").loss(logits, batch_of([2])).backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6 - 1], abs=1e-6)


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), math.log(3.0)], [5.0, 5.0, 0.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    found = tasks.get("classification").metrics(logits, batch_of([1, 0, 2, 0]))
    p = [2 / 6, 1 / (2 + math.exp(-5)), 1 / 3, 1 / (1 + 2 * math.exp(-9))]
    assert found["accuracy"] == 2 / 4, "the lowest index wins a tie"
    assert found["confidence"] == pytest.approx(sum(p) / 4)
    assert found["loss"] == pytest.approx(-sum(math.log(v) for v in p) / 4)


def test_metrics_of_extreme_logits_are_finite() -> None:
    found = tasks.get("classification").metrics(torch.tensor([[1e4, -1e4]]), batch_of([1]))
    assert found == {"accuracy": 0.0, "confidence": 0.0, "loss": 2e4}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [1, 4, 256])
def test_predict(samples: Samples, training: bool, size: int) -> None:
    task, model = tasks.get("classification"), Net()
    model.train(training)
    model.norm.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    out = task.predict(model, samples, batch_size=size)
    assert (out.shape, out.dtype) == ((10, 3), np.float32)
    assert [model.training, model.dropout.training, model.norm.training] == [training, training, False]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "BatchNorm statistics stay"
    model.eval()
    want = model(torch.from_numpy(samples.inputs())).detach().numpy()
    assert np.allclose(out, want, atol=1e-6)


class Broken(Net):
    """A network whose forward pass fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")


def test_predict_restores_the_mode_after_an_error(samples: Samples) -> None:
    model = Broken().train()
    with pytest.raises(RuntimeError, match="no"):
        tasks.get("classification").predict(model, samples)
    assert model.training
