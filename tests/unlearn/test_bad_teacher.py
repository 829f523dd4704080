"""Bad Teacher: the loss by hand; a teacher that knows nothing but is no constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.quant.state import state_digest
from qunlearn.tasks import Classification
from qunlearn.unlearn import bad_teacher, teacher
from qunlearn.unlearn.bad_teacher import BadTeacher
from qunlearn.unlearn.context import Context, Data

Trained = Callable[..., QuantModel]
BAD = [0.3, -0.2, 0.1]


def test_loss_by_hand(by_hand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = torch.tensor(BAD, dtype=torch.float64)
    monkeypatch.setattr(bad_teacher, "incompetent", lambda ctx, size: lambda batch: constant.repeat(len(batch), 1))
    m = BadTeacher(batch_size=8, retain_share=1.0, temperature=2.0)
    value, row = by_hand.loss(m, w=0.5, before=1.0)
    terms = [by_hand.kl(BAD, [0.5 * v for v in z], 2.0) for z, _ in by_hand.forget]
    terms += [by_hand.kl(z, [0.5 * v for v in z], 2.0) for z, _ in by_hand.retain]
    assert row["forget_in_batch"] == 2
    assert value == pytest.approx(sum(terms) / 4, abs=1e-8)


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_incompetent_teacher_knows_nothing_and_is_not_constant(
    trained: Trained, splits: Splits, task: Classification, kind: str
) -> None:
    model = trained(kind)
    ctx = Context(
        model=model, before=model, data=Data(forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop),
        task=task, request_kind="random", card=None, seed=0, identity="",
    )  # fmt: skip
    before = state_digest(model)
    with torch.random.fork_rng():
        bad = teacher.incompetent(ctx, 128)
    assert state_digest(model) == before
    own = state_digest(bad.model)
    batch = task.batch(splits.forget, np.arange(len(splits.forget)))
    logits = bad(batch)
    p = torch.softmax(logits.double(), 1)
    entropy = float(-(p * p.log()).sum(1).mean())
    assert entropy > 0.8 * math.log(10)
    assert float(logits.std(0).max()) > 1e-3
    assert float((logits.argmax(1) == batch.y).double().mean()) < 0.4
    assert state_digest(bad.model) == own


def test_only_a_part_of_the_retain_set_is_used(trained: Trained, splits: Splits, task: Classification) -> None:
    result = BadTeacher(lr=1e-3, batch_size=60)(trained("cnn"), splits, task, request_kind="random")
    union = len(splits.forget) + round(0.3 * len(splits.retain))
    assert result.passes == pytest.approx(union / len(splits.retain), abs=0.03)
    assert sum(row["forget_in_batch"] for row in result.trace) == len(splits.forget)
