"""A frozen network for attacks on gradients, and the probe that names what has no second derivative."""

from __future__ import annotations

import brevitas.nn as qnn
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

from qunlearn import quant
from qunlearn.errors import ConfigError, UnsupportedError
from qunlearn.quant.freeze import freeze_quant, latent_parameters, supports_double_backward


class Fused(nn.Module):
    """Torch's fused operator that learns its scale: no derivative of its backward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.zero = nn.Parameter(torch.tensor([0.05])), nn.Parameter(torch.tensor([0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.zero, -128, 127, 1.0)


class Plain(nn.Module):
    """Torch's plain per-tensor (or, for weights, per-channel) fake quantization."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)


def net(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Sequential(nn.ReLU(), middle), nn.Linear(8, 3))


X = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_t5_the_fused_learnable_operator_is_named_and_the_error_says_what_to_use() -> None:
    found = supports_double_backward(net(Fused()), X)
    assert (found.ok, found.module) == (False, "2.1")
    assert "not implemented" in found.reason
    with pytest.raises(
        UnsupportedError, match=r"module '2\.1' cannot be differentiated twice.*qunlearn\.quant\.prepare"
    ):
        found.require()


def test_plain_operators_are_fine() -> None:
    found = supports_double_backward(net(Plain()), X)
    assert found.ok
    found.require()


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_prepared_networks_are_fine(bits: str) -> None:
    model = quant.prepare(net(nn.Identity()), quant.QuantSpec.parse(bits), X)
    assert supports_double_backward(model).ok


@pytest.mark.parametrize("bits", [8, 4])
def test_stock_brevitas_is_fine(bits: int) -> None:
    model = nn.Sequential(
        qnn.QuantConv2d(1, 4, 3, weight_bit_width=bits), nn.BatchNorm2d(4), qnn.QuantReLU(bit_width=bits),
        nn.Flatten(), qnn.QuantLinear(16, 3, True, weight_bit_width=bits),
    )  # fmt: skip
    model.train()
    model(X)
    assert supports_double_backward(model, X).ok


def test_a_gradient_that_ignores_the_input_is_no_support() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    model = nn.Sequential(nn.Flatten(), Cut(), nn.Linear(16, 3))
    found = supports_double_backward(model, X)
    assert (found.ok, found.reason) == (False, "the gradient of the parameters does not depend on the input")
    with pytest.raises(ConfigError, match="shape of the input"):
        supports_double_backward(model)


def test_frozen_inside_and_as_before_outside() -> None:
    observed = FakeQuantize(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), observed, nn.Flatten(), nn.Linear(8, 3)).train()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    model(X)
    modes = [m.training for m in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with freeze_quant(model) as frozen:
        assert frozen is model
        assert not any(m.training for m in model.modules())
        assert int(observed.observer_enabled[0]) == 0
        assert all(p.requires_grad for p in latent_parameters(model).values())
        model(10 * X)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == needs
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(10 * X)
    assert not all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the observer runs again


def test_frozen_networks_thaw_after_an_error() -> None:
    model = net(Plain()).train()
    with pytest.raises(RuntimeError, match="x"), freeze_quant(model):
        raise RuntimeError("x")
    assert model.training


def test_latent_parameters_are_weights_and_biases_only() -> None:
    model = quant.prepare(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
        quant.QuantSpec(),
        X,
    )
    names = list(latent_parameters(model))
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]
    assert list(latent_parameters(model, part="classifier")) == ["4.weight", "4.bias"]
    with freeze_quant(model):
        scales = quant.scale_parameter_names(model)
        assert scales
        assert not any(p.requires_grad for n, p in model.named_parameters() if n in scales)
    with pytest.raises(ConfigError, match="part 'head'"):
        latent_parameters(model, part="head")
    with pytest.raises(ConfigError, match="no layer with weights"):
        latent_parameters(nn.ReLU())
