"""Fine-tuning: the loss on the retain set falls, and no forget sample is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.ft import FT

Trained = Callable[..., QuantModel]


def test_the_retain_loss_falls_whatever_is_forgotten(trained: Trained, splits: Splits, task: Classification) -> None:
    """From a network that is not trained to its end; half of the forget set gives the same bits."""
    model = trained("cnn", epochs=2)
    result = FT(epochs=2, lr=0.02, batch_size=64)(model, splits, task, request_kind="random")
    rows = [r["L_r"] for r in result.trace]
    few = len(rows) // 4
    assert np.mean(rows[-few:]) < np.mean(rows[:few])
    assert result.passes == pytest.approx(2, abs=0.05)
    other = dataclasses.replace(splits, forget=splits.forget.take(np.arange(len(splits.forget) // 2)))
    again = FT(epochs=2, lr=0.02, batch_size=64)(model, other, task, request_kind="random")
    assert again.digests["codes_after"] == result.digests["codes_after"]
