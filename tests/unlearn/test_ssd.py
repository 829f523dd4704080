"""SSD: factors by hand, importance against a loop over samples, independence of the batch size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.context import Context, Data
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.l1_sparse import L1Sparse
from qunlearn.unlearn.ssd import SSD, dampening

Trained = Callable[..., QuantModel]


def context(model: QuantModel, splits: Splits, task: Classification) -> Context:
    own = copy.deepcopy(model)
    for name, p in own.named_parameters():
        p.requires_grad_(not name.endswith(".scale"))
    return Context(
        model=own, before=model, data=Data(forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop),
        task=task, request_kind="random", card=None, seed=0, identity="",
    )  # fmt: skip


def test_factors_by_hand() -> None:
    """Selected and dampened, selected but limited by 1, not selected, I_F = 0, I_D = 0."""
    own = torch.tensor([4.0, 4.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    everything = torch.tensor([1.0, 1.9, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert dampening(own, everything, 2.0, 1.0).tolist() == pytest.approx([0.25, 1.9 / 4, 1, 1, 0], abs=1e-12)
    assert dampening(own, everything, 2.0, 3.0).tolist() == pytest.approx([0.75, 1, 1, 1, 0], abs=1e-12)
    assert dampening(own, everything, 10.0, 1.0).tolist() == [1, 1, 1, 1, 0]


def importances(m: SSD, ctx: Context, n: int) -> dict[str, Any]:
    return m.importances(ctx, [(ctx.data.forget, np.arange(n))])


def test_sample_importance_is_the_mean_of_squared_gradients_whatever_the_batch_size(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    ctx = context(trained("cnn"), splits, task)
    small, large = (importances(SSD(batch_size=b), ctx, 40) for b in (32, 256))
    plain = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in ctx.trainable().items()}
    for i in range(40):
        ctx.model.zero_grad()
        batch = task.batch(splits.forget, np.array([i]))
        task.loss(ctx.model.eval()(batch.x), batch).backward()  # type: ignore[no-untyped-call]
        for name, p in ctx.trainable().items():
            if p.grad is not None:
                plain[name] += p.grad.double() ** 2 / 40
    for name, value in plain.items():
        torch.testing.assert_close(small[name], value, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(large[name], value, rtol=1e-5, atol=1e-12)


def test_batch_importance_depends_on_the_batch_size(trained: Trained, splits: Splits, task: Classification) -> None:
    ctx = context(trained("cnn"), splits, task)
    small, large = (importances(SSD(importance="batch", batch_size=b), ctx, 64) for b in (8, 64))
    assert float(small["fc.weight"].sum() / large["fc.weight"].sum()) > 1.2


def test_dampened_network_is_the_old_one_times_the_factors(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    model = trained("cnn")
    m = SSD(alpha=2.0, importance="batch", batch_size=16)
    result = m(model, splits, task, request_kind="random")
    ctx = context(model, splits, task)
    own = importances(m, ctx, len(splits.forget))
    whole = m.importances(
        ctx, [(splits.forget, np.arange(len(splits.forget))), (splits.retain, np.arange(len(splits.retain)))]
    )
    new = dict(result.model.named_parameters())
    for name, p in ctx.trainable().items():
        torch.testing.assert_close(new[name].detach(), p.detach() * dampening(own[name], whole[name], 2.0, 1.0).float())
    assert 0 < result.trace[0]["share"] < 1
    assert len(result.trace) == 1


def test_a_part_of_the_training_set_can_stand_for_it(trained: Trained, splits: Splits, task: Classification) -> None:
    n, m = len(splits.forget), len(splits.retain)
    result = SSD(alpha=2.0, importance="batch", samples=100)(trained("cnn"), splits, task, request_kind="random")
    assert result.passes == pytest.approx((n + 100) / m, abs=1e-9)


@pytest.mark.parametrize(
    "method", [SSD(alpha=1e-3, lam=1e-6), L1Sparse(alpha=1.0, lr=0.1, epochs=2, batch_size=64, momentum=0.0)]
)
def test_t12_dead_channels_stand_in_the_result(
    trained: Trained, splits: Splits, task: Classification, method: Unlearner
) -> None:
    """Pruning methods empty whole channels: D4 names them, D8 says that they died now."""
    result = method(trained("cnn"), splits, task, request_kind="random")
    found = {f["code"] for f in result.degenerate}
    assert {"D4", "D8"} <= found
    assert not any(
        f["code"] == "D8" for f in FT(epochs=1)(trained("cnn"), splits, task, request_kind="random").degenerate
    )
