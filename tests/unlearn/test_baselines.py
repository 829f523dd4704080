"""The simple methods: losses on a case worked out by hand, schedules, labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Batch, Classification
from qunlearn.unlearn.context import Context, Data
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.ga import GA
from qunlearn.unlearn.loop import scheduled
from qunlearn.unlearn.neggrad_plus import GradDiff, NegGradPlus
from qunlearn.unlearn.rl import RL, random_labels
from qunlearn.unlearn.sgd import EpochSGD

Trained = Callable[..., QuantModel]

FORGET = [([2.0, 0.0, 0.0], 0), ([0.0, 1.0, 0.0], 1)]
RETAIN = [([0.0, 0.0, 3.0], 2), ([1.0, 1.0, 0.0], 0)]


def ce(z: list[float], y: int) -> float:
    return math.log(sum(math.exp(v) for v in z)) - z[y]


L_F = (ce(*FORGET[0]) + ce(*FORGET[1])) / 2
L_R = (ce(*RETAIN[0]) + ce(*RETAIN[1])) / 2


class Rows:
    """Two samples whose input is their logit vector."""

    num_classes = 3

    def __init__(self, rows: list[tuple[list[float], int]]) -> None:
        self.x = torch.tensor([z for z, _ in rows], dtype=torch.float64)
        self.y = torch.tensor([y for _, y in rows])

    def __len__(self) -> int:
        return len(self.y)

    def targets(self, idx: Any = None) -> Any:
        return self.y.numpy() if idx is None else self.y.numpy()[idx]


class RowTask(Classification):
    """Logits are the input."""

    def batch(self, samples: Any, index: Any) -> Batch:
        rows = torch.as_tensor(index)
        return Batch(x=samples.x[rows], y=samples.y[rows], index=rows)


class Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def _loss(method: EpochSGD) -> tuple[float, dict[str, Any]]:
    model = cast(QuantModel, Same())
    rows = {"forget": Rows(FORGET), "retain": Rows(RETAIN)}
    ctx = Context(
        model=model, before=model, data=Data(stop=cast(Any, None), **cast(Any, rows)), task=RowTask(),
        request_kind="random", card=None, seed=0, identity="",
    )  # fmt: skip
    _, _, loss = method.plan(ctx)
    value, row = loss(0)
    return float(value.detach()), row


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (FT(batch_size=2), L_R),
        (GA(batch_size=2), -L_F),
        (NegGradPlus(batch_size=2, beta=0.9), 0.9 * L_R - 0.1 * L_F),
        (NegGradPlus(batch_size=2), 0.95 * L_R - 0.05 * L_F),
        (GradDiff(batch_size=2), L_R - L_F),
        (GradDiff(batch_size=2, retain_weight=2.0, forget_weight=0.5), 2 * L_R - 0.5 * L_F),
    ],
)
def test_losses_by_hand(method: EpochSGD, expected: float) -> None:
    value, row = _loss(method)
    assert value == pytest.approx(expected, abs=1e-8)
    if "L_f" in row:
        assert row["L_f"] == pytest.approx(L_F, abs=1e-8)
    if "L_r" in row:
        assert row["L_r"] == pytest.approx(L_R, abs=1e-8)


@pytest.mark.parametrize("mix", ["concat", "paired"])
def test_random_label_loss_by_hand(mix: str) -> None:
    value, _ = _loss(RL(batch_size=4, mix=mix))
    wrong = [ce(FORGET[0][0], a) + ce(FORGET[1][0], b) for a in (1, 2) for b in (0, 2)]
    totals = [(w + 2 * L_R) / 4 if mix == "concat" else w / 2 + L_R for w in wrong]
    assert min(abs(value - t) for t in totals) < 1e-8


def test_random_labels_are_never_the_true_ones_unless_allowed() -> None:
    y = np.arange(10_000) % 10
    labels = random_labels(y, 10, np.random.default_rng(0))
    assert not (labels == y).any()
    assert set(labels.tolist()) == set(range(10))
    for c in range(10):
        counts = np.bincount(labels[y == c], minlength=10)
        assert counts[c] == 0
        assert counts[np.arange(10) != c].min() > 70
    loose = random_labels(y, 10, np.random.default_rng(0), exclude_true=False)
    assert 0.08 < (loose == y).mean() < 0.12


def test_labels_allowed_to_be_true_are_named_in_the_result(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    result = RL(epochs=1, exclude_true=False)(trained("cnn"), splits, task, request_kind="random")
    assert result.fields["exclude_true"] is False


def test_fresh_labels_change_every_epoch(trained: Trained, splits: Splits, task: Classification) -> None:
    args: dict[str, Any] = {"request_kind": "random", "seed": 0}
    first = [RL(epochs=2, fresh=f)(trained("cnn"), splits, task, **args) for f in (True, False)]
    assert first[0].digests["model_after"] != first[1].digests["model_after"]
    same = [row["loss"] for row in first[0].trace if row["epoch"] == 1]
    assert same == [row["loss"] for row in first[1].trace if row["epoch"] == 1]


def test_cosine_schedule() -> None:
    values = [scheduled(0.1, "cosine", t, 100) for t in range(1, 101)]
    assert values[0] == 0.1
    assert values[50] == pytest.approx(0.05)
    assert 0 < values[-1] < 1e-4
    assert scheduled(0.1, "constant", 77, 100) == 0.1


def test_optimizer_equals_torch_by_hand(trained: Trained, splits: Splits, task: Classification, tmp_path: Path) -> None:
    """One FT step: theta - lr (g + wd theta), BatchNorm frozen."""
    import copy

    model = trained("cnn")
    m = FT(epochs=1, batch_size=2048, bn="frozen", lr=0.02)
    after = m(model, splits, task, request_kind="random").model
    ref = copy.deepcopy(model)
    batch = task.batch(splits.retain, np.arange(len(splits.retain)))
    task.loss(ref(batch.x), batch).backward()
    for (name, p), q in zip(ref.named_parameters(), after.parameters(), strict=True):
        if p.grad is None or name.endswith(".scale"):
            continue
        torch.testing.assert_close(q, p - 0.02 * (p.grad + 5e-4 * p), rtol=1e-5, atol=1e-6)
