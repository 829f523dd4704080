"""Both optimizer states of an OEU step against torch's own optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qunlearn.unlearn.compose import Composer
from qunlearn.unlearn.orthogonal import Reference, add
from qunlearn_kernels.arena import GradientArena

LR, LAM, DECAY = 0.02, 0.7, 0.1


def _arena() -> tuple[GradientArena, list[nn.Parameter]]:
    params = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)), nn.Parameter(torch.tensor([0.5, -2.0, 3.0]))]
    return GradientArena([("a.bias", params[1]), ("a.weight", params[0])]), params


def _composer(arena: GradientArena, **settings: Any) -> Composer:
    reference = Reference(
        arena, kind="batch", scope="none", when="always", k=1, beta=0.9, ema_only=False, eps=1e-12
    )  # fmt: skip
    options = {"project_at": "gradient", "momentum": 0.0, "weight_decay": 0.0, "clip": None, **settings}
    return Composer(arena, reference, lam=LAM, **options)


def _gradients(arena: GradientArena, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    r, f = ([torch.randn(p.shape, generator=generator) for p in arena.params] for _ in range(2))
    return arena.flatten(r), arena.flatten(f)


def _set_gradient(arena: GradientArena, params: list[nn.Parameter], flat: Tensor) -> None:
    for p, g in zip(params, arena.split(flat), strict=True):
        p.grad = g.reshape(p.shape).clone()


def _sgd(params: list[nn.Parameter], decay: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=LR, momentum=0.9, weight_decay=decay)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": DECAY}, lambda p: _sgd(p, DECAY)),
        ({"optimizer": "sgd", "momentum": 0.9, "project_at": "update"}, _sgd),
        ({"optimizer": "adam", "weight_decay": DECAY}, lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=DECAY)),
    ],
)
def test_without_projection_it_is_the_optimizer_on_the_sum(settings: dict[str, Any], make: Any) -> None:
    arena, _ = _arena()
    composer = _composer(arena, **settings)
    twin = [nn.Parameter(p.detach().clone()) for p in arena.params]
    optimizer = make(twin)
    for step in range(6):
        r, f = _gradients(arena, step)
        u = composer(r, f, LR)
        add(arena.params, arena.split(u.retain + u.forget))
        _set_gradient(arena, twin, r + LAM * f)
        optimizer.step()
        for p, q in zip(arena.params, twin, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_adam_at_the_update_keeps_two_optimizers_and_decay_is_the_retain_parts() -> None:
    arena, _ = _arena()
    composer = _composer(arena, optimizer="adam", project_at="update", weight_decay=DECAY)
    twins = [[nn.Parameter(p.detach().clone()) for p in arena.params] for _ in range(2)]
    own_r = torch.optim.AdamW(twins[0], lr=LR, weight_decay=DECAY)
    own_f = torch.optim.Adam(twins[1], lr=LR)
    for step in range(6):
        r, f = _gradients(arena, step)
        u = composer(r, f, LR)
        for twin, optimizer, g, part, scale in (
            (twins[0], own_r, r, u.retain, 1.0), (twins[1], own_f, f, u.forget, LAM)
        ):  # fmt: skip
            with torch.no_grad():
                for p, now in zip(twin, arena.params, strict=True):
                    p.copy_(now)
            _set_gradient(arena, twin, g)
            optimizer.step()
            moved = arena.flatten(
                [scale * (p.detach() - now.detach()) for p, now in zip(twin, arena.params, strict=True)]
            )
            torch.testing.assert_close(part, moved, rtol=1e-4, atol=1e-6)
        add(arena.params, arena.split(u.retain + u.forget))
