"""Boundary shrink: labels against a plain computation, inputs inside the grid, failed attacks counted."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.boundary_shrink import BoundaryShrink
from qunlearn.unlearn.context import Context, Data

Trained = Callable[..., QuantModel]


def context(model: QuantModel, splits: Splits, task: Classification) -> Context:
    return Context(
        model=copy.deepcopy(model), before=model,
        data=Data(forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop),
        task=task, request_kind="random", card=None, seed=0, identity="",
    )  # fmt: skip


def test_labels_against_a_plain_computation(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    m = BoundaryShrink(step=0.1, batch_size=50)
    labels, kept = m.neighbours(context(model, splits, task))
    grid = model.quantizer_of("input")
    z, s = int(grid.zero_point), float(grid.scale.detach())
    lo, hi = (-128 - z) * s, (127 - z) * s
    failed = 0
    for i in range(len(splits.forget)):
        batch = task.batch(splits.forget, np.array([i]))
        x = batch.x.clone().requires_grad_()
        F.cross_entropy(model(x), batch.y).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        moved = torch.clamp(x.detach() + 0.1 * (hi - lo) * torch.sign(x.grad), lo, hi)
        order = model(moved).detach()[0].argsort(descending=True, stable=True).tolist()
        y = int(batch.y)
        failed += order[0] == y
        assert labels[i] == next(c for c in order if c != y)
    assert kept == failed
    assert not (labels == splits.forget.targets()).any()


def test_failed_attacks_are_counted_and_take_the_runner_up(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    model = trained("cnn")
    labels, kept = BoundaryShrink(step=1e-6).neighbours(context(model, splits, task))
    logits = task.predict(model, splits.forget)
    right = logits.argmax(1) == splits.forget.targets()
    assert kept == int(right.sum()) > 0
    assert not (labels == splits.forget.targets()).any()
    result = BoundaryShrink(epochs=1, batch_size=64, step=1e-6)(model, splits, task, request_kind="random")
    assert result.fields["attack_failed"] == kept


def test_forget_accuracy_falls_on_a_class(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    result = BoundaryShrink(epochs=10, batch_size=32, lr=1e-2)(model, splits, task, request_kind="random")
    own = [(task.predict(m, splits.forget).argmax(1) == splits.forget.targets()).mean() for m in (model, result.model)]
    assert own[1] <= own[0] - 0.2
