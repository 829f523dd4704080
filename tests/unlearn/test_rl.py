"""Random labels: the loss by hand, which labels are drawn and how often, and what they do to a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.labels import random_labels
from qunlearn.unlearn.rl import RL

Trained = Callable[..., QuantModel]


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


def test_a_class_is_forgotten_and_the_others_are_kept(trained: Trained, dataset: Dataset, task: Classification) -> None:
    model = trained("cnn")
    splits = make_splits(dataset, Request.parse("class=3"), seed=0)
    result = RL(epochs=5, batch_size=64, lr=0.02)(model, splits, task, request_kind="class")

    def right(m: QuantModel) -> list[float]:
        return [float((task.predict(m, s).argmax(1) == s.targets()).mean()) for s in (splits.forget, splits.retain)]

    before, after = right(model), right(result.model)
    assert after[0] < before[0] - 0.2
    assert after[1] > before[1] - 0.05
