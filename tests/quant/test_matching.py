"""Matching of traced networks: modules that run twice, awkward names, argument forms, shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn import quant
from qunlearn.errors import UnsupportedError
from qunlearn_export.oracle import Oracle

X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def agree(net: nn.Module, bits: str = "w8a8") -> quant.QuantModel:
    """Prepared network whose oracle gives its codes."""
    model = quant.prepare(net, quant.QuantSpec.parse(bits), X).eval()
    graph = quant.lower(model)
    with torch.no_grad():
        difference = np.abs(Oracle(graph).logits(X.numpy()) - model(X).numpy())
    assert difference.max() <= 1.01 * graph.activations[graph.output].scale
    return model


class Repeats(nn.Module):
    """A pool and a ReLU that have no state and run twice."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.relu, self.head = pool, nn.ReLU(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.pool(self.a(x)))
        out: Tensor = self.head(self.relu(self.pool(self.b(y))).flatten(1))
        return out


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_stateless_modules_may_run_twice(pool: nn.Module, bits: str) -> None:
    model = agree(Repeats(pool), bits)
    names = [s.name for s in model.steps]
    assert len(set(names)) == len(names)
    assert {"pool", "pool_1"} <= set(names)
    acts = [s.act for s in model.steps if s.act is not None]
    assert len(set(acts)) == len(acts)


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.bn, self.head = nn.BatchNorm2d(1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.bn(self.b(self.bn(self.a(x)))).flatten(1))
        return out


def test_a_shared_batchnorm_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="bn: one module used twice"):
        quant.prepare(SharedNorm(), quant.QuantSpec(), X)


class Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name = name
        self.add_module(name, nn.Conv2d(1, 4, 3))
        self.head = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.get_submodule(self.name)(x).flatten(1))
        return out


@pytest.mark.parametrize("name", ["input", "conv_act", "head_act", "add"])
def test_awkward_names_work(name: str) -> None:
    model = agree(Named(name))
    assert set(quant.layer_of(model)) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["spec", "steps", "in_shape", "input_quant", "step"])
def test_names_of_the_quantized_network_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}: the name is taken"):
        quant.prepare(Named(name), quant.QuantSpec(), X)


class Tail(nn.Module):
    def __init__(self, tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.tail = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), tail

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.tail(self.conv(x)))
        return out


@pytest.mark.parametrize(
    "tail",
    [
        lambda x: F.adaptive_avg_pool2d(x, output_size=1).flatten(1),
        lambda x: torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), start_dim=1),
        lambda x: F.adaptive_avg_pool2d(F.relu6(x), 1).flatten(start_dim=1, end_dim=-1),
    ],
)
def test_arguments_by_name(tail: Callable[[Tensor], Tensor]) -> None:
    agree(Tail(tail))


@pytest.mark.parametrize(
    ("tail", "word"),
    [
        (lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), end_dim=1), "flatten"),
        (lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1), "adaptive_avg_pool2d"),
        (lambda x: torch.cat([x, x], dim=2), "cat"),
        (lambda x: torch.add(x, x, alpha=2), "add"),
        (lambda x: x + 1.0, "operand"),
        (lambda x: F.dropout(x), "nn.Dropout"),
    ],
)
def test_other_arguments_are_refused(tail: Callable[[Tensor], Tensor], word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        quant.prepare(Tail(tail), quant.QuantSpec(), X)


def test_batchnorm_without_running_statistics_is_refused() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(UnsupportedError, match="running statistics"):
        quant.prepare(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, 3)), quant.QuantSpec(), X)


def test_batchnorm_without_affine_is_folded() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, affine=False)
    agree(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)))


def test_the_result_must_be_logits() -> None:
    with pytest.raises(UnsupportedError, match=r"\[N, K\]"):
        quant.prepare(nn.Sequential(nn.Conv2d(1, 4, 3)), quant.QuantSpec(), X)


class DeadBranch(Named):
    def __init__(self) -> None:
        super().__init__("conv")
        self.unused = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return super().forward(x)


def test_a_branch_that_nothing_reads_is_dropped() -> None:
    assert "unused" not in [s.name for s in agree(DeadBranch()).steps]


class SharedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        out: Tensor = self.head((y + y + self.b(x) + x).flatten(1))
        return out


def test_an_input_that_several_read() -> None:
    assert [s.kind for s in agree(SharedInput()).steps].count("add") == 3


def test_frozen_layers_stay_frozen() -> None:
    net = Named("conv")
    net.get_submodule("conv").requires_grad_(False)
    model = quant.prepare(net, quant.QuantSpec(), X)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["conv.weight", "conv.bias"]
