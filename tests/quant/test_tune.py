"""Attacks on shipped integers: decoding loses nothing, training moves only what it says, coarse grids are coarse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qunlearn.audit import OnnxPredictor, TorchPredictor, TorchTrainer
from qunlearn.audit.trainer import Budget
from qunlearn.data.arrays import from_arrays
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import UnsupportedError
from qunlearn.models import build
from qunlearn.quant import QuantSpec, codes, lower, prepare, state_digest
from qunlearn.quant.detie import detie
from qunlearn.quant.model import scale_parameter_names
from qunlearn.quant.tune import coarse, decoded, fresh_head, shuffled, tuned
from qunlearn.tasks import Classification
from qunlearn_export.writer import serialize

SHAPE = (1, 12, 8)


@pytest.fixture(scope="module")
def splits() -> Any:
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = np.clip(128 + rng.normal(0, 60, (3, *SHAPE))[y] + rng.normal(0, 40, (240, *SHAPE)), 0, 255).astype(np.uint8)
    data = from_arrays("blobs", {"x": x, "y": y, "group": np.array(["g0", "g1"])[np.arange(240) // 3 % 2]})
    return make_splits(data, Request.parse("group=g0"), seed=0)


@pytest.fixture(params=["free", "exact"])
def model(request: Any, splits: Any) -> Any:
    example = torch.from_numpy(splits.retain.inputs())
    net = build("dscnn@8", in_shape=SHAPE, num_classes=3, seed=0)
    return prepare(net, QuantSpec(grid=request.param), example).eval()


def train(model: Any, splits: Any, **settings: Any) -> list[int]:
    kw = {"steps": 5, "every": 2, "lr": 1e-2, "batch": 16, "seed": 0, **settings}
    return [step for step, _ in tuned(model, Classification(), splits.retain, **kw)]


def test_decoding_keeps_codes_and_logits(model: Any, splits: Any) -> None:
    digest = state_digest(model)
    copy = decoded(model)
    assert state_digest(model) == digest != state_digest(copy), "latent weights are not on the grid"
    a, b = codes(model), codes(copy)
    assert all(np.array_equal(a[k], b[k]) for k in a)
    x = torch.from_numpy(splits.test.inputs())
    with torch.no_grad():
        assert torch.allclose(model(x), copy(x), atol=1e-5)


def test_training_moves_weights_and_neither_grids_nor_statistics(model: Any, splits: Any) -> None:
    copy = decoded(model)
    before = {n: t.clone() for n, t in copy.state_dict().items()}
    flags = {n: p.requires_grad for n, p in copy.named_parameters()}
    assert train(copy, splits) == [0, 2, 4, 5]
    moved = {n for n, t in copy.state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert not moved & scale_parameter_names(copy)
    assert not [n for n in moved if "running" in n or "zero_point" in n]
    assert {n: p.requires_grad for n, p in copy.named_parameters()} == flags
    again = decoded(model)
    train(again, splits)
    assert state_digest(again) == state_digest(copy)


def test_the_head_alone_and_drawn_anew(model: Any, splits: Any) -> None:
    head = str([s for s in model.steps if s.kind in ("conv", "linear")][-1].module)
    for change in (lambda m: train(m, splits, part="head"), lambda m: fresh_head(m, 0)):
        copy = decoded(model)
        before = {n: t.clone() for n, t in copy.state_dict().items()}
        change(copy)
        moved = {n for n, t in copy.state_dict().items() if not torch.equal(t, before[n])}
        assert moved
        assert all(n.startswith(head + ".") for n in moved)


def test_the_head_on_frozen_features_is_the_head_in_place(model: Any, splits: Any) -> None:
    """The fast path against plain training of everything with all other gradients dropped."""
    fast, slow = decoded(model), decoded(model)
    train(fast, splits, part="head", steps=3)
    head = str([s for s in slow.steps if s.kind in ("conv", "linear")][-1].module)
    names = [n for n, _ in slow.named_parameters() if n.startswith(head) and n not in scale_parameter_names(slow)]
    own = dict(slow.named_parameters())
    optimizer = torch.optim.AdamW([own[n] for n in names], lr=1e-2, weight_decay=0.0)
    task = Classification()
    rng = np.random.default_rng([0, 62])
    order = np.concatenate([rng.permutation(len(splits.retain)) for _ in range(2)])
    for step in range(3):
        b = task.batch(splits.retain, order[16 * step : 16 * step + 16])
        optimizer.zero_grad()
        task.loss(slow(b.x), b).backward()
        optimizer.step()
    assert torch.allclose(own[names[0]], dict(fast.named_parameters())[names[0]], atol=1e-5)


@pytest.mark.parametrize("bits", [3, 5])
def test_coarse_grids(model: Any, bits: int) -> None:
    digest = state_digest(model)
    out, found = coarse(model, bits)
    assert state_digest(model) == digest
    top = 2 ** (bits - 1) - 1
    for name, q in found.items():
        assert np.abs(q).max() == top, name
        weight = out.get_submodule(str(out.step(name).module)).weight.detach()
        values = [len(torch.unique(row.round(decimals=7))) for row in weight.flatten(1)]
        assert max(values) <= 2 * top + 1


def test_shuffled_weights_keep_every_channel_s_codes_and_nothing_else(model: Any, splits: Any) -> None:
    digest = state_digest(model)
    out, again, other = shuffled(model, 0), shuffled(model, 0), shuffled(model, 1)
    assert state_digest(model) == digest
    assert state_digest(out) == state_digest(again) != state_digest(other)
    before, after = codes(model), codes(out)
    moved = 0
    for name, q in before.items():
        if name.endswith("weight"):
            rows, mixed = (np.sort(v.reshape(len(v), -1), axis=1) for v in (q, after[name]))
            assert np.array_equal(rows, mixed), name
            moved += int((q != after[name]).sum())
        else:
            assert np.array_equal(q, after[name]), name
    assert moved > sum(q.size for n, q in before.items() if n.endswith("weight")) / 2


def test_a_trainer_serves_files_of_its_networks_and_no_others(model: Any, splits: Any) -> None:
    other = prepare(
        build("dscnn@8", in_shape=SHAPE, num_classes=3, seed=1), model.spec, torch.from_numpy(splits.retain.inputs())
    ).eval()
    for network in (model, other):
        detie(network)
    trainer = TorchTrainer([model], Classification())
    file, foreign = (OnnxPredictor(serialize(lower(m))) for m in (model, other))
    assert trainer.serves(TorchPredictor(model))
    assert trainer.serves(file)
    assert not trainer.serves(foreign)
    budget = Budget(steps=4, every=2, lr=1e-2, batch=16, seed=0)
    digest = state_digest(model)
    one, two = (trainer.curve(p, splits.retain, splits.forget, budget) for p in (TorchPredictor(model), file))
    assert trainer.shuffled(TorchPredictor(model), 3) is trainer.shuffled(file, 3)
    assert one is two, "remembered by codes: both kinds share one training"
    assert one.shape == (3, len(splits.forget))
    assert state_digest(model) == digest
    with pytest.raises(UnsupportedError, match="codes"):
        trainer.coarse(foreign, 4)
