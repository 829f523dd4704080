"""Q-MUL: labels and weights by hand; every switch does what it says; labels belong to samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel
from qunlearn.tasks import Classification
from qunlearn.unlearn.context import Context, Data
from qunlearn.unlearn.qmul import QMUL, SWITCHES, balance, similar_labels

Trained = Callable[..., QuantModel]
P = [0.5, 0.3, 0.2]


def context(model: QuantModel, splits: Splits, task: Classification) -> Context:
    own = copy.deepcopy(model)
    for name, p in own.named_parameters():
        p.requires_grad_(not name.endswith(".scale"))
    return Context(
        model=own, before=model, data=Data(forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop),
        task=task, request_kind="random", card=None, seed=0, identity="",
    )  # fmt: skip


def labels_of(p: list[float], ys: list[int], **switches: bool) -> list[int]:
    logits = torch.tensor([[math.log(v) for v in p]] * len(ys))
    return similar_labels(logits, torch.tensor(ys), **switches).tolist()


def test_similar_label_by_hand() -> None:
    """y on top: the runner-up; y in the middle: the nearer neighbour; y last: the one above."""
    assert labels_of(P, [0, 1, 2]) == [1, 2, 1]
    assert labels_of([0.1, 0.6, 0.12, 0.18], [0]) == [2]
    assert labels_of([0.25, 0.25, 0.5], [2]) == [0]


def test_index_shift_reproduces_the_wrong_label() -> None:
    """Without the true class the lists are [.3 .2], [.5 .2], [.5 .3]; arg-minima 0, 1, 1 are used as they are."""
    assert labels_of(P, [0, 1, 2], index_shift=True) == [0, 1, 1]


def test_logit_distance_compares_logits_with_a_probability() -> None:
    """|log .3 - .5| = 1.70 and |log .2 - .5| = 2.11; for y = 1: |log .5 - .3| = .99 and |log .2 - .3| = 1.91."""
    assert labels_of(P, [0, 1, 2], logit_distance=True) == [1, 0, 0]


def test_weights_by_hand() -> None:
    assert balance(3.0, 1.0) == (0.25, 0.75)
    assert balance(1.0, 3.0) == (0.75, 0.25)
    assert balance(0.0, 0.0) == (0.5, 0.5)


def test_loss_and_balance_by_hand(by_hand: Any) -> None:
    """Logits w z with w = 1: the gradient of the mean loss is mean_i (sum_c p_c z_c - z_y); its norm is its size."""
    labels = [1, 0]  # probabilities of the other classes tie: the lower index

    def slope(rows: Any, ys: list[int]) -> float:
        terms = [
            sum(a * b for a, b in zip(by_hand.p(z), z, strict=True)) - z[y] for (z, _), y in zip(rows, ys, strict=True)
        ]
        return abs(sum(terms) / len(terms))

    g_f, g_r = slope(by_hand.forget, labels), slope(by_hand.retain, [2, 0])
    w_f, w_r = g_r / (g_f + g_r), g_f / (g_f + g_r)
    value, row = by_hand.loss(QMUL(batch_size=4))
    assert (row["w_f"], row["w_r"]) == pytest.approx((w_f, w_r), abs=1e-8)
    forget = sum(by_hand.ce(z, y) for (z, _), y in zip(by_hand.forget, labels, strict=True))
    retain = sum(by_hand.ce(z, y) for z, y in by_hand.retain)
    assert value == pytest.approx((w_f * forget + w_r * retain) / 4, abs=1e-8)


def test_variants_and_switches(trained: Trained, splits: Splits, task: Classification) -> None:
    model, args = trained("cnn"), {"epochs": 2, "batch_size": 128, "lr": 1e-3}
    run = lambda **more: QMUL(**args, **more)(model, splits, task, request_kind="random")  # noqa: E731
    paper = run()
    assert paper.fields["switches"] == []
    assert run(**dict.fromkeys(SWITCHES, False)).digests["model_after"] == paper.digests["model_after"]
    released = run(variant="as_released")
    assert released.fields["switches"] == list(SWITCHES)
    assert released.digests["model_after"] != paper.digests["model_after"]
    assert run(**dict.fromkeys(SWITCHES, True)).digests["model_after"] == released.digests["model_after"]
    for switch in ("label_shuffle", "index_shift", "train_bn"):
        assert run(**{switch: True}).digests["model_after"] != paper.digests["model_after"], switch
    drop = [run(labels="random", rl_input_drop=on).digests["model_after"] for on in (True, False)]
    assert drop[0] != drop[1]


def test_shuffled_labels_belong_to_other_samples(trained: Trained, splits: Splits, task: Classification) -> None:
    ctx = context(trained("cnn"), splits, task)
    own = QMUL().label_table(ctx, 0)
    other = QMUL(label_shuffle=True).label_table(ctx, 0)
    assert (own != other).mean() >= 0.5
    assert sorted(own) == sorted(other)


def test_switches_reach_the_label_table(trained: Trained, splits: Splits, task: Classification) -> None:
    ctx = context(trained("cnn"), splits, task)
    paper = QMUL().label_table(ctx, 0)
    y = splits.forget.targets()
    shifted = QMUL(index_shift=True).label_table(ctx, 0)
    assert np.array_equal(shifted, paper - (paper > y))
    assert (shifted != paper).any()
    assert (QMUL(logit_distance=True).label_table(ctx, 0) != paper).any()


def test_dropped_pixels_are_few_and_of_forget_samples_with_random_labels_alone(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    ctx = context(trained("cnn"), splits, task)
    x = torch.ones(60, 2, 40, 40)
    out = QMUL(labels="random", rl_input_drop=True)._dropped(ctx, x, 0, 0, 40)
    lost = (out[:40] == 0).double().mean((1, 2, 3))
    assert 0.025 < float(lost.min()) < float(lost.max()) < 0.08
    assert 0.04 < float(lost.mean()) < 0.06
    assert torch.equal(out[:40, 0], out[:40, 1])  # a pixel goes in all channels
    assert torch.equal(out[40:], x[40:])
    assert QMUL(variant="as_released")._dropped(ctx, x, 0, 0, 40) is x
    assert QMUL(labels="random")._dropped(ctx, x, 0, 0, 40) is x


def test_labels_are_kept_with_their_samples(trained: Trained, splits: Splits, task: Classification) -> None:
    """The table does not depend on the size or order of batches."""
    ctx = context(trained("cnn"), splits, task)
    table = QMUL(batch_size=7).label_table(ctx, 0)
    assert np.array_equal(table, QMUL(batch_size=256).label_table(ctx, 0))
    for i in np.random.default_rng(0).permutation(len(table))[:20]:
        batch = task.batch(splits.forget, np.array([i]))
        p = torch.softmax(ctx.model.eval()(batch.x).detach().double(), 1)[0]
        gaps = (p - p[int(batch.y)]).abs()
        gaps[int(batch.y)] = torch.inf
        assert table[i] == int(gaps.argmin())


@pytest.mark.parametrize("order", ["union", "forget_first"])
def test_orders_and_mask(trained: Trained, splits: Splits, task: Classification, order: str) -> None:
    m = QMUL(epochs=1, batch_size=64, order=order, ratio=0.5, lr=0.02)
    model = trained("cnn")
    result = m(model, splits, task, request_kind="random")
    moved = sum(int((p != q).sum()) for p, q in zip(model.parameters(), result.model.parameters(), strict=True))
    total = sum(p.numel() for n, p in model.named_parameters() if not n.endswith(".scale"))
    assert 0.3 * total < moved <= math.ceil(0.5 * total)
