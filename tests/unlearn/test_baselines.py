"""The simple methods: losses on a case worked out by hand, schedules, labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.ga import GA
from qunlearn.unlearn.labels import random_labels
from qunlearn.unlearn.loop import scheduled
from qunlearn.unlearn.neggrad_plus import GradDiff, NegGradPlus
from qunlearn.unlearn.rl import RL
from qunlearn.unlearn.sgd import EpochSGD

Trained = Callable[..., QuantModel]


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        (FT(batch_size=2), (1, 0)),
        (GA(batch_size=2), (0, -1)),
        (NegGradPlus(batch_size=2, beta=0.9), (0.9, -0.1)),
        (NegGradPlus(batch_size=2), (0.95, -0.05)),
        (GradDiff(batch_size=2), (1, -1)),
        (GradDiff(batch_size=2, retain_weight=2.0, forget_weight=0.5), (2, -0.5)),
    ],
)
def test_losses_by_hand(by_hand: Any, method: EpochSGD, weights: tuple[float, float]) -> None:
    l_r, l_f = by_hand.mean_ce(by_hand.retain), by_hand.mean_ce(by_hand.forget)
    value, row = by_hand.loss(method)
    assert value == pytest.approx(weights[0] * l_r + weights[1] * l_f, abs=1e-8)
    if "L_f" in row:
        assert row["L_f"] == pytest.approx(l_f, abs=1e-8)
    if "L_r" in row:
        assert row["L_r"] == pytest.approx(l_r, abs=1e-8)


@pytest.mark.parametrize("mix", ["concat", "paired"])
def test_random_label_loss_by_hand(by_hand: Any, mix: str) -> None:
    value, _ = by_hand.loss(RL(batch_size=4, mix=mix))
    first, second = (z for z, _ in by_hand.forget)
    l_r = by_hand.mean_ce(by_hand.retain)
    wrong = [by_hand.ce(first, a) + by_hand.ce(second, b) for a in (1, 2) for b in (0, 2)]
    totals = [(w + 2 * l_r) / 4 if mix == "concat" else w / 2 + l_r for w in wrong]
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
