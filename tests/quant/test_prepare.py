"""Tracing and matching: which networks are accepted, what is refused, and how."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qunlearn import models, quant
from qunlearn.errors import ConfigError, NotYetError, UnsupportedError

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["dscnn@8", "resnet8@8", "resnet18@8", "mobilenetv2@0.1"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w2a2"])
def test_registered_networks(name: str, bits: str) -> None:
    net = models.build(name, in_shape=(3, 32, 32), num_classes=10, seed=0)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = quant.prepare(net, quant.QuantSpec.parse(bits), x).eval()
    assert model(x).shape == (4, 10)
    assert all(torch.equal(v, net.state_dict()[n]) for n, v in before.items()), "the given network is untouched"
    graph = quant.lower(model)
    weighted = list(graph.weighted())
    limits = [int(abs(layer.weight.astype(int)).max()) for layer in weighted]
    top = quant.QuantSpec.parse(bits).weight_qmax(edge=False)
    assert all(m <= top for m in limits[1:-1])
    assert limits[0] <= 127
    assert limits[0] > 7, "first and last layer keep 8 bits"
    assert limits[-1] > 7


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.sigmoid(self.norm(self.conv(x))).flatten(1))
        return out


def test_unsupported_operators_are_listed_all_at_once() -> None:
    with pytest.raises(UnsupportedError, match=r"GroupNorm.*sigmoid"):
        quant.prepare(Odd(), quant.QuantSpec(), X)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_branches_on_values_cannot_be_traced() -> None:
    with pytest.raises(UnsupportedError, match="traced"):
        quant.prepare(Branching(), quant.QuantSpec(), X)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.conv(x)).flatten(1)
        return out


def test_a_module_used_twice_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="used twice"):
        quant.prepare(Twice(), quant.QuantSpec(), X)


def test_batchnorm_must_follow_a_convolution() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UnsupportedError, match="BatchNorm2d"):
        quant.prepare(net, quant.QuantSpec(), X)


def test_no_weights_at_all() -> None:
    with pytest.raises(UnsupportedError, match="no convolution"):
        quant.prepare(nn.Sequential(nn.ReLU(), nn.Flatten()), quant.QuantSpec(), X)


class Joined(nn.Module):
    """Concat, a residual of the input's own kind, average pool, ReLU6, dropout and an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(1, 4, 3, padding=1)
        self.six = nn.ReLU6()
        self.same = nn.Identity()
        self.pool = nn.AvgPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.six(self.a(x)), self.same(self.b(x))], 1)
        y = self.pool(y)
        y = y + self.mix(y)
        out: Tensor = self.head(self.drop(y.flatten(1)))
        return out


def test_concat_residual_pool_and_dropout() -> None:
    torch.manual_seed(0)
    model = quant.prepare(Joined(), quant.QuantSpec(), X).eval()
    kinds = [s.kind for s in model.steps]
    assert kinds == ["conv", "conv", "concat", "avgpool", "conv", "add", "flatten", "dropout", "linear"]
    graph = quant.lower(model)
    assert [type(layer).__name__ for layer in graph.layers].count("Flatten") == 1
    assert len(graph.layers) == 8, "dropout is gone"


def test_wrong_example() -> None:
    with pytest.raises(ConfigError, match="shape"):
        quant.prepare(nn.Linear(4, 2), quant.QuantSpec(), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="does not accept"):
        quant.prepare(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), quant.QuantSpec(), X)


@pytest.mark.parametrize("bits", ["w3a3", "w8a4", "w16a16"])
def test_bits_not_offered(bits: str) -> None:
    with pytest.raises(NotYetError):
        quant.QuantSpec.parse(bits)


def test_layers_own_their_parameters(tiny: nn.Module) -> None:
    model = quant.prepare(tiny, quant.QuantSpec(), X)
    owner = quant.layer_of(model)
    assert set(owner) == {n for n, _ in model.named_parameters()}
    assert {owner[n] for n in owner if n.startswith(("conv", "bn", "input_quant"))} == {"conv"}
    assert set(owner.values()) == {s.name for s in model.steps if s.kind in ("conv", "linear")}
    scales = quant.scale_parameter_names(model)
    assert all(n.endswith(".scale") for n in scales)
    assert len(scales) == 2 + 3
