"""The gradient arena: autograd fills it in place; frozen, tied, empty and low-precision parameters; replaced views."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qunlearn.errors import ConfigError, InvariantError
from qunlearn_kernels.arena import ALIGN, GradientArena


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 1))


def loss(model: nn.Module) -> torch.Tensor:
    x = torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    out: torch.Tensor = model(x).pow(2).mean()
    return out


def test_backward_fills_the_row() -> None:
    model = net()
    want = torch.autograd.grad(loss(model), list(model.parameters()))
    arena = GradientArena(model.named_parameters())
    arena.bind("forget")
    loss(model).backward()
    arena.collect()
    for view, g in zip(arena.views("forget"), want, strict=True):
        assert torch.equal(view, g)
    assert not arena.row("retain").any()
    assert all(s.offset % ALIGN == 0 for s in arena.segments)
    assert arena.row("forget").is_contiguous()


def test_bind_zeroes_and_gradients_accumulate() -> None:
    model = net()
    arena = GradientArena(model.named_parameters())
    for _ in range(2):
        arena.bind("retain")
        loss(model).backward()
        loss(model).backward()
        arena.collect()
    want = torch.autograd.grad(loss(model), list(model.parameters()))
    for view, g in zip(arena.views("retain"), want, strict=True):
        assert torch.allclose(view, 2 * g)


def test_a_layer_frozen_between_steps_has_zero_not_stale() -> None:
    model = net()
    arena = GradientArena(model.named_parameters())
    arena.bind("forget")
    loss(model).backward()
    arena.collect()
    model[0].requires_grad_(False)
    arena.bind("forget")
    loss(model).backward()
    arena.collect()
    assert not arena.views("forget")[0].any()
    assert arena.views("forget")[2].any()


def test_replaced_gradients_are_detected() -> None:
    model = net()
    arena = GradientArena(model.named_parameters())
    arena.bind("forget")
    for p in model.parameters():
        p.grad = None
    loss(model).backward()
    with pytest.raises(InvariantError, match=r"0\.weight"):
        arena.collect()
    with pytest.raises(InvariantError, match="bound"):
        GradientArena(net().named_parameters()).collect()


def test_tied_parameters_own_one_segment() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.b(self.a(x))
            return out

    model = Tied()
    arena = GradientArena([("a.weight", model.a.weight), ("b.weight", model.b.weight)])
    assert arena.names == ["a.weight"]
    x = torch.randn(3, 4)
    (want,) = torch.autograd.grad(model(x).sum(), model.a.weight)
    arena.bind("forget")
    model(x).sum().backward()
    arena.collect()
    assert torch.allclose(arena.views("forget")[0], want)


def test_low_precision_gradients_are_collected_in_float32() -> None:
    p = nn.Parameter(torch.randn(37).bfloat16())
    arena = GradientArena([("p", p)])
    arena.bind("forget")
    for _ in range(3):
        (p.float() * 0.1).sum().backward()
        arena.collect()
    want = 3 * torch.full((37,), 0.1).bfloat16().double()
    assert torch.allclose(arena.views("forget")[0].double(), want, rtol=1e-6)


def test_split_and_flatten_are_inverse() -> None:
    arena = GradientArena(net().named_parameters())
    vector = arena.flatten([torch.full(p.shape, float(i)) for i, p in enumerate(arena.params)])
    for i, view in enumerate(arena.split(vector)):
        assert (view == i).all()


def test_many_small_and_empty_tensors() -> None:
    params = [(f"m{i}.w", nn.Parameter(torch.zeros(i % 3))) for i in range(2000)]
    arena = GradientArena(params)
    assert len(arena.segments) == 2000
    arena.bind("forget")
    assert arena.row("forget").numel() == arena.size


def test_groups_are_modules_by_default() -> None:
    arena = GradientArena(net().named_parameters())
    assert arena.group_names == ["0", "2", "3"]
    own = GradientArena(net().named_parameters(), groups={n: "all" for n, _ in net().named_parameters()})
    assert own.group_names == ["all"]


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="no parameters"):
        GradientArena([])
    with pytest.raises(ConfigError, match="repeated"):
        GradientArena(net().named_parameters(), roles=("a", "a"))


def test_release_takes_the_views_away() -> None:
    model = net()
    arena = GradientArena(model.named_parameters())
    arena.bind("forget")
    arena.release()
    assert all(p.grad is None for p in model.parameters())


def test_a_repeated_name_is_refused() -> None:
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match="called 'a'"):
        GradientArena([("a", one), ("a", two)])
    assert GradientArena([one, two]).group_names == ["p0", "p1"]
