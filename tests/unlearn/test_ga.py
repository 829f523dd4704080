"""Gradient ascent: the loss on the forget set rises, no retain sample is read, the loss of a method is its minus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.ga import GA

Trained = Callable[..., QuantModel]


def loss_of(task: Classification, model: QuantModel, samples: Samples) -> float:
    z = task.predict(model, samples).astype(np.float64)
    z -= z.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), samples.targets()]).mean())


def test_the_forget_loss_rises(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    result = GA(epochs=3, lr=1e-3, batch_size=32)(model, splits, task, request_kind="random")
    assert loss_of(task, result.model, splits.forget) > loss_of(task, model, splits.forget) + 0.01
    first = result.trace[0]
    assert first["loss"] == pytest.approx(-first["L_f"])
    batches = sum(row["epoch"] == 1 for row in result.trace)
    assert 0 <= len(splits.forget) - 32 * batches + 32 < 64  # a pass over the forget set and nothing else
    assert result.passes == pytest.approx(3 * len(splits.forget) / len(splits.retain), rel=0.1)
