"""The optional hook of methods: it is what a step minimises, and its absence is said; runs that are watched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qunlearn.bench import gaussians
from qunlearn.bench.watched import Watched, forget_loss_of
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import UnsupportedError
from qunlearn.quant import QuantModel, codes_digest
from qunlearn.quant.freeze import latent_parameters
from qunlearn.tasks import Classification
from qunlearn.unlearn import METHODS
from qunlearn.unlearn.entropy import entropy_loss

HAVE = {"ga", "graddiff", "neggrad_plus", "oeu", "qmul", "rl", "salun"}
Z = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 0.5]])
Y = torch.tensor([0, 2])


@pytest.fixture(scope="module")
def scene() -> tuple[QuantModel, Splits]:
    data = gaussians.data(0, samples=600)
    return gaussians.trained(data, seed=0), make_splits(data, Request.parse("random=10%"), seed=0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_the_hook_or_says_what_to_do(name: str) -> None:
    method = METHODS[name]()
    if name in HAVE:
        z = Z.clone().requires_grad_()
        loss, stand_in = forget_loss_of(method, "")
        (g,) = torch.autograd.grad(loss(z, Y), [z])
        assert bool(g.any())
        assert not stand_in
        return
    with pytest.raises(UnsupportedError, match="surrogate=neg_ce"):
        forget_loss_of(method, "")
    loss, stand_in = forget_loss_of(method, "neg_ce")
    assert stand_in
    assert float(loss(Z, Y)) == pytest.approx(-float(F.cross_entropy(Z, Y)))


def test_the_values_are_those_of_the_methods() -> None:
    ce = float(F.cross_entropy(Z, Y))
    assert float(METHODS["ga"]().forget_loss(Z, Y)) == pytest.approx(-ce)
    assert float(METHODS["graddiff"](forget_weight=0.5).forget_loss(Z, Y)) == pytest.approx(-0.5 * ce)  # type: ignore[call-arg]
    assert float(METHODS["neggrad_plus"]().forget_loss(Z, Y)) == pytest.approx(-0.05 * ce)
    assert float(METHODS["oeu"]().forget_loss(Z, Y)) == pytest.approx(float(entropy_loss(Z, kind="e2")))
    drawn = [float(F.cross_entropy(Z, torch.tensor([a, b]))) for a in (1, 2) for b in (0, 1)]
    assert float(METHODS["rl"]().forget_loss(Z, Y)) == pytest.approx(np.mean(drawn))
    every = [float(F.cross_entropy(Z, torch.tensor([a, b]))) for a in range(3) for b in range(3)]
    assert float(METHODS["rl"](exclude_true=False).forget_loss(Z, Y)) == pytest.approx(np.mean(every))  # type: ignore[call-arg]
    with pytest.raises(UnsupportedError):
        METHODS["qmul"](labels="random").forget_loss(Z, Y)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["ga", "graddiff"])
def test_one_step_of_the_method_goes_down_the_hooks_gradient(name: str, scene: Any) -> None:
    """With the whole forget set in one batch and no retain part, the step is -lr times the gradient of the hook."""
    model, splits = scene
    extra = {"retain_weight": 0.0} if name == "graddiff" else {}
    method = METHODS[name](
        lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant", batch_size=1000, epochs=1, **extra
    )  # type: ignore[call-arg]
    x, y = torch.from_numpy(splits.forget.inputs()), torch.from_numpy(splits.forget.targets())
    parameters = latent_parameters(model)
    grads = torch.autograd.grad(method.forget_loss(model(x), y), list(parameters.values()))
    seen: dict[str, torch.Tensor] = {}

    def watch(t: int, total: int, now: QuantModel) -> bool:
        seen.update({n: p.detach().clone() for n, p in latent_parameters(now).items()})
        return False

    method(model, splits, Classification(), request_kind="random", watch=watch)
    for (n, p), g in zip(parameters.items(), grads, strict=True):
        assert torch.allclose(seen[n], p.detach() - 0.01 * g, atol=1e-6), n


def test_a_watched_run_shows_every_step_and_ends_when_told(scene: Any) -> None:
    model, splits = scene
    steps: list[tuple[int, int]] = []

    def watch(t: int, total: int, now: QuantModel) -> bool:
        assert now is not model
        steps.append((t, total))
        return t < 3

    before = codes_digest(model)
    method = METHODS["ga"](lr=1e-7, batch_size=8, epochs=2)  # type: ignore[call-arg]
    result = method(model, splits, Classification(), request_kind="random", watch=watch)
    assert steps == [(1, 10), (2, 10), (3, 10)]
    assert len(result.trace) == 3
    assert codes_digest(result.model) == before  # whether codes changed is the watcher's affair
    assert "W-NOTHING-CHANGED" in " ".join(result.warnings)


def test_the_same_steps_on_kept_samples_only(scene: Any) -> None:
    model, splits = scene
    method = METHODS["graddiff"](lr=0.02, momentum=0.0, batch_size=64, schedule="constant", epochs=9)  # type: ignore[call-arg]
    runs: dict[bool, list[int]] = {False: [], True: []}
    for alone in (False, True):

        def watch(t: int, total: int, now: QuantModel, alone: bool = alone) -> bool:
            runs[alone].append(t)
            return t < 20

        Watched(method=method, steps=20).run(model, splits, seed=0, retain_only=alone, watch=watch)
    assert runs[True] == runs[False] == list(range(1, 21))
    ft = Watched(method=method, steps=20)._retain_only(len(splits.retain))
    assert (ft.name, ft.lr, ft.momentum, ft.batch_size, ft.schedule) == ("ft", 0.02, 0.0, 64, "constant")
