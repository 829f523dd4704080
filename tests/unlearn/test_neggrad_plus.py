"""NegGrad+ and gradient difference: forget loss up and retain loss held, as the weights say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.neggrad_plus import GradDiff, NegGradPlus

Trained = Callable[..., QuantModel]


def test_a_smaller_beta_forgets_more(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    ends = []
    for beta in (0.999, 0.9):
        result = NegGradPlus(beta=beta, epochs=3, lr=5e-3, batch_size=64)(model, splits, task, request_kind="random")
        first = result.trace[0]
        assert first["loss"] == pytest.approx(beta * first["L_r"] - (1 - beta) * first["L_f"], abs=1e-6)
        ends.append(np.mean([r["L_f"] for r in result.trace[-5:]]))
    assert ends[1] > ends[0]


def test_gradient_difference_without_retain_weight_loses_more(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    model = trained("cnn")
    kept, lost = (
        np.mean(
            [
                r["L_r"]
                for r in GradDiff(retain_weight=w, epochs=1, lr=5e-3, batch_size=64)(
                    model, splits, task, request_kind="random"
                ).trace[-5:]
            ]
        )
        for w in (1.0, 0.0)
    )
    assert lost > kept


def test_beta_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="beta"):
        NegGradPlus(beta=0.3).validate()
