"""Brevitas layers with this project's fake quantizer plugged in as their ``tensor_quant``."""

from __future__ import annotations

import math
from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.inject import ExtendedInjector
from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import Tensor, nn

from qunlearn.quant.fake import FakeQuantize


def _weight_injector(quantizer: FakeQuantize) -> Any:
    class WeightQuant(ExtendedInjector):  # type: ignore[misc]
        proxy_class = WeightQuantProxyFromInjector
        tensor_quant = quantizer
        signed = True
        narrow_range = True

    return WeightQuant


def _act_injector(quantizer: FakeQuantize) -> Any:
    class ActQuant(ExtendedInjector):  # type: ignore[misc]
        proxy_class = ActQuantProxyFromInjector
        tensor_quant = quantizer
        signed = True
        narrow_range = False

    return ActQuant


def _plain_output(proxy: Any) -> None:
    proxy.skip_create_quant_tensor = True


def quant_conv(conv: nn.Conv2d, *, qmax: int, bits: int) -> nn.Module:
    """A brevitas convolution with the weights of ``conv``; codes in [-qmax, qmax], one scale per output channel."""
    q = FakeQuantize(scale_shape=(conv.out_channels, 1, 1, 1), lo=-qmax, hi=qmax, bits=bits)
    layer = _QuantConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        weight_quant=_weight_injector(q),
    )
    return _with_parameters(layer, conv)


def quant_linear(linear: nn.Linear, *, qmax: int, bits: int) -> nn.Module:
    """A brevitas linear layer with the weights of ``linear``."""
    q = FakeQuantize(scale_shape=(linear.out_features, 1), lo=-qmax, hi=qmax, bits=bits)
    layer = _QuantLinear(
        linear.in_features, linear.out_features, bias=linear.bias is not None, weight_quant=_weight_injector(q)
    )
    return _with_parameters(layer, linear)


def _with_parameters(layer: Any, source: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = getattr(source, name)
            if value is not None:
                getattr(layer, name).copy_(value)
                getattr(layer, name).requires_grad_(value.requires_grad)
    _plain_output(layer.weight_quant)
    out: nn.Module = layer
    return out


class _QuantReLU(qnn.QuantReLU):  # type: ignore[misc]
    """ReLU that is cut at ``ceiling``; brevitas' own HardTanh leaves the cut to a quantizer, whose range moves.

    Cut and rounding are one operation, without the detour through the proxies of brevitas.
    """

    ceiling: float | None = None

    def forward(self, x: Tensor) -> Any:
        q = act_quantizer(self)
        if q.enabled:
            return q.quantize(x, clip=(0.0, math.inf if self.ceiling is None else self.ceiling))
        return torch.relu(x if self.ceiling is None else x.clamp(max=self.ceiling))


class _QuantIdentity(qnn.QuantIdentity):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Any:
        q = act_quantizer(self)
        return q.quantize(x) if q.enabled else x


class _QuantConv2d(qnn.QuantConv2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Any:
        return self._conv_forward(x, weight_quantizer(self)(self.weight)[0], self.bias)


class _QuantLinear(qnn.QuantLinear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Any:
        return nn.functional.linear(x, weight_quantizer(self)(self.weight)[0], self.bias)


def quant_relu(*, bits: int, ceiling: float | None, power_of_two: bool = False) -> nn.Module:
    """ReLU, or Clip(0, ``ceiling``), with codes -128 .. -128 + 2^bits - 1 and zero point -128 (artefact_onnx 2.2)."""
    q = FakeQuantize(scale_shape=(), lo=-128, hi=-128 + 2**bits - 1, bits=bits, zero_point=-128)
    _fix(q, power_of_two)
    layer = _QuantReLU(act_quant=_act_injector(q))
    layer.ceiling = ceiling
    _plain_output(layer.act_quant)
    out: nn.Module = layer
    return out


def quant_identity(*, power_of_two: bool = False) -> nn.Module:
    """An 8-bit affine grid with a free zero point (graph input, residual branches, pools, logits)."""
    q = FakeQuantize(scale_shape=(), lo=-128, hi=127, bits=8)
    _fix(q, power_of_two)
    layer = _QuantIdentity(act_quant=_act_injector(q))
    _plain_output(layer.act_quant)
    out: nn.Module = layer
    return out


def _fix(q: FakeQuantize, power_of_two: bool) -> None:
    q.power_of_two = power_of_two
    q.scale.requires_grad_(not power_of_two)


def weight_quantizer(layer: Any) -> FakeQuantize:
    """The quantizer of a layer's weights."""
    q: FakeQuantize = layer.weight_quant.tensor_quant
    return q


def act_quantizer(layer: Any) -> FakeQuantize:
    """The quantizer of an activation layer."""
    q: FakeQuantize = layer.act_quant.fused_activation_quant_proxy.tensor_quant
    return q
