"""L1-sparse: schedule and penalty by hand; what it shrinks and what not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.l1_sparse import L1Sparse

Trained = Callable[..., QuantModel]


def test_schedule_by_hand() -> None:
    m = L1Sparse(alpha=1e-3, epochs=10)
    assert [m.penalty(e) for e in (0, 5, 9)] == pytest.approx([1e-3, 5e-4, 1e-4], abs=1e-12)
    m = L1Sparse(alpha=1e-3, epochs=10, plain_epochs=4)
    assert [m.penalty(e) for e in (0, 3, 5, 6, 9)] == pytest.approx([1e-3, 5e-4, 1e-3 / 6, 0, 0], abs=1e-12)


def test_penalty_covers_weights_only(trained: Trained, splits: Splits, task: Classification) -> None:
    """One step without momentum and decay, from fine-tuning's: weights move by lr alpha sign(w), nothing else does."""
    args: dict[str, Any] = {"epochs": 1, "batch_size": 2048, "lr": 1e-3, "weight_decay": 0.0, "bn": "frozen"}
    model = trained("cnn")
    plain = FT(**args)(model, splits, task, request_kind="random").model
    sparse = L1Sparse(alpha=0.5, **args)(model, splits, task, request_kind="random").model
    seen = 0
    for (name, p), a, b in zip(model.named_parameters(), plain.parameters(), sparse.parameters(), strict=True):
        if p.ndim > 1 and not name.endswith(".scale"):
            torch.testing.assert_close(b - a, -1e-3 * 0.5 * p.sign(), rtol=1e-3, atol=1e-6)
            seen += 1
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert seen == 3


def test_trace_has_the_penalty(trained: Trained, splits: Splits, task: Classification) -> None:
    result = L1Sparse(alpha=1e-2, epochs=3, lr=0.05)(trained("cnn"), splits, task, request_kind="random")
    assert next(row["alpha"] for row in result.trace if row["epoch"] == 2) == pytest.approx(1e-2 * 2 / 3)
    assert result.trace[-1]["l1"] < result.trace[0]["l1"]


def test_all_epochs_plain_is_refused(trained: Trained, splits: Splits, task: Classification) -> None:
    with pytest.raises(ConfigError, match="plain_epochs"):
        L1Sparse(epochs=2, plain_epochs=2)(trained("cnn"), splits, task, request_kind="random")
