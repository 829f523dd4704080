"""SCRUB: both phases by hand, their order, and that the network that is trained is the one that is returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.quant.state import state_digest
from qunlearn.tasks import Classification
from qunlearn.unlearn import scrub, teacher
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.scrub import SCRUB
from qunlearn.unlearn.teacher import Teacher, distillation

Trained = Callable[..., QuantModel]


def test_distillation_by_hand(by_hand: Any) -> None:
    """Summed over classes, averaged over the batch; an average over classes too would be C times too small."""
    teacher, student = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [[1.0, 1.0, 0.0], [3.0, 0.0, 0.5]]
    for t in (1.0, 4.0):
        value = distillation(torch.tensor(teacher).double(), torch.tensor(student).double(), t)
        expected = sum(by_hand.kl(a, b, t) for a, b in zip(teacher, student, strict=True)) / 2
        assert float(value) == pytest.approx(expected, abs=1e-10)
        assert float(value) != pytest.approx(expected / 3, abs=1e-3)


def test_both_phases_by_hand(by_hand: Any) -> None:
    m = SCRUB(batch_size=2, forget_batch_size=2, alpha=0.7, gamma=0.9, temperature=4.0)
    value, row = by_hand.loss(m, i=0, w=0.5, before=1.0)
    away = sum(by_hand.kl(z, [0.5 * v for v in z], 4.0) for z, _ in by_hand.forget) / 2
    assert row["phase"] == "max"
    assert value == pytest.approx(-away, abs=1e-8)

    value, row = by_hand.loss(m, i=1, w=0.5, before=1.0)
    near = sum(by_hand.kl(z, [0.5 * v for v in z], 4.0) for z, _ in by_hand.retain) / 2
    ce = sum(by_hand.ce([0.5 * v for v in z], y) for z, y in by_hand.retain) / 2
    assert row["phase"] == "min"
    assert value == pytest.approx(0.9 * ce + 0.7 * near, abs=1e-8)


def test_order_of_phases(trained: Trained, splits: Splits, task: Classification) -> None:
    m = SCRUB(epochs=3, max_epochs=2, batch_size=512, forget_batch_size=64)
    result = m(trained("cnn"), splits, task, request_kind="random")
    phases = [(row["epoch"], row["phase"]) for row in result.trace]
    one = [(e, "max") for e in (1, 1)], [(e, "min") for e in (1, 1, 1)]
    assert phases == [*one[0], *one[1], *[(2, p) for p in ("max", "max", "min", "min", "min")], *[(3, "min")] * 3]
    assert result.digests["model_after"] != result.digests["model_before"]


def test_teacher_stays_as_it_was(
    trained: Trained, splits: Splits, task: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training mode (bn=train is the default here) a teacher's statistics would drift, and its answers with them."""
    made: list[tuple[Teacher, str]] = []

    def watched(ctx: Context) -> Teacher:
        made.append((teacher.original(ctx), state_digest(ctx.before)))
        return made[-1][0]

    monkeypatch.setattr(scrub, "original", watched)
    m = SCRUB(epochs=1, batch_size=128, lr=1e-3)
    result = m(trained("cnn"), splits, task, request_kind="random")
    ((own, before),) = made
    assert state_digest(own.model) == before != result.digests["model_after"]
    assert not any(module.training for module in own.model.modules())
