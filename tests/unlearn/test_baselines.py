"""The simple methods: losses on a case worked out by hand, schedules."""

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
from qunlearn.unlearn.loop import scheduled
from qunlearn.unlearn.neggrad_plus import GradDiff, NegGradPlus
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
