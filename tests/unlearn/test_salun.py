"""SalUn: the mask is the ranking it claims to be, and what is outside it does not move by a bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError
from qunlearn.quant import QuantModel, codes
from qunlearn.tasks import Classification
from qunlearn.unlearn.mask import top_share
from qunlearn.unlearn.salun import SalUn

Trained = Callable[..., QuantModel]


def test_ranking_over_all_tensors_with_ties_by_index() -> None:
    scores = {"a": torch.tensor([[1.0, 5.0], [2.0, 2.0]]), "b": torch.tensor([2.0, 4.0])}
    masks = top_share(scores, 4 / 6)
    assert masks["a"].tolist() == [[False, True], [True, True]]
    assert masks["b"].tolist() == [False, True]
    assert top_share(scores, 3 / 6)["a"].tolist() == [[False, True], [True, False]]
    assert all(bool(m.all()) for m in top_share(scores, 1.0).values())


def oracle_mask(model: QuantModel, splits: Splits, task: Classification, ratio: float) -> dict[str, Any]:
    """From the gradient of the whole set's mean loss, in numpy (one batch: the sum has one term)."""
    ref = copy.deepcopy(model).eval()
    batch = task.batch(splits.forget, np.arange(len(splits.forget)))
    task.loss(ref(batch.x), batch).backward()  # type: ignore[no-untyped-call]
    names = sorted(n for n, p in ref.named_parameters() if not n.endswith(".scale"))
    params = dict(ref.named_parameters())
    grads = [np.abs(params[n].grad.numpy()) if params[n].grad is not None else np.zeros(params[n].shape) for n in names]
    flat = np.concatenate([g.ravel() for g in grads])
    keep = set(np.argsort(-flat, kind="stable")[: int(np.ceil(ratio * len(flat)))].tolist())
    out, start = {}, 0
    for name, g in zip(names, grads, strict=True):
        out[name] = np.array([start + i in keep for i in range(g.size)]).reshape(g.shape)
        start += g.size
    return out


def test_coordinates_outside_the_mask_keep_bits_and_codes(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    model = trained("cnn")
    m = SalUn(ratio=0.3, epochs=6, batch_size=128, lr=0.05)
    result = m(model, splits, task, request_kind="random", seed=2)
    assert len(result.trace) >= 50
    assert result.fields["mask_share"] == pytest.approx(0.3, abs=1e-3)
    masks = oracle_mask(model, splits, task, 0.3)
    old, new = dict(model.named_parameters()), dict(result.model.named_parameters())
    moved = 0
    for name, mask in masks.items():
        still = torch.from_numpy(~mask)
        assert torch.equal(old[name][still], new[name][still]), name
        moved += int((old[name] != new[name]).sum())
    assert moved > 0.9 * sum(int(mask.sum()) for mask in masks.values())
    was, now = codes(model), codes(result.model)
    for layer in ("conv2", "fc"):
        still = ~masks[f"{layer}.weight"]
        assert np.array_equal(was[f"{layer}.weight"][still], now[f"{layer}.weight"][still])


def test_masked_gradient_alone_would_not_hold_them(trained: Trained, splits: Splits, task: Classification) -> None:
    """Control: with momentum and weight decay, all coordinates move when nothing is restored."""
    model = trained("cnn")
    result = SalUn(ratio=1.0, epochs=1)(model, splits, task, request_kind="random")
    pairs = zip(model.named_parameters(), result.model.parameters(), strict=True)
    assert all(not torch.equal(p, q) for (n, p), q in pairs if p.ndim > 1 and not n.endswith(".scale"))


def test_scales_stay_frozen(trained: Trained, splits: Splits, task: Classification) -> None:
    with pytest.raises(ConfigError, match="train_scales"):
        SalUn(train_scales=True)(trained("cnn"), splits, task, request_kind="random")
