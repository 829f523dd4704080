"""The exact grid: scales with which every float32 sum of a layer is exact, so that all runtimes give the same codes.

Activation scales are powers of two; folded weight scales (``s_w |gamma| / sigma``) have ``MANTISSA`` significant bits.
A product of two dequantized values is then an integer times a power of two, and a sum is exact in any order as long as
it stays below 2^24 of these units, that is below 2^18 integer steps; larger ones, far outside most output ranges, are
rounded as ever. The multiplier of the output is exact too, so halves are halves in every reading and go to even. Powers
of two for activations: Jain et al. 2020 (TQT); short weight scales beside them are our own choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn.quant.fake import FakeQuantize

MANTISSA = 6
"""Significant bits of a folded weight scale: its grid moves by at most 1.6 %, and 18 bits are left for the sum."""

CLIP = 0.25
"""A range that exceeds a power of two by at most 2^CLIP is cut there; a wider one gets the next power."""


def short(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``x`` to ``MANTISSA`` significant bits, half to even."""
    mantissa, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, MANTISSA)), exponent - MANTISSA))


def power_of_two(scale: Tensor, *, clip: float = CLIP) -> Tensor:
    """The power of two for a range that ``scale`` would just hold; ``clip`` 0.5 = the nearest one."""
    return torch.exp2(torch.ceil(torch.log2(scale) - clip))


def affine_grid(lo: Tensor, hi: Tensor) -> tuple[Tensor, int]:
    """Scale and zero point for values in [lo, hi] (lo <= 0 <= hi).

    The zero point is even: a kernel that adds it before it rounds must send halves to the same side.
    """
    scale = power_of_two((hi - lo) / 255)
    zero = 2 * int(torch.round((-1 - (lo + hi) / scale) / 4))
    return scale, max(-128, min(126, zero))


def bn_affine(bn: nn.Module) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor gamma / sigma and offset beta - mu gamma / sigma of a BatchNorm in evaluation mode, float64 [K]."""
    assert isinstance(bn, nn.BatchNorm2d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    mean, var = bn.running_mean.double(), bn.running_var.double()
    gamma = bn.weight.detach().double() if bn.affine else torch.ones_like(mean)
    beta = bn.bias.detach().double() if bn.affine else torch.zeros_like(mean)
    factor = gamma / torch.sqrt(var + bn.eps)
    return factor.cpu().numpy(), (beta - mean * factor).cpu().numpy()


def weight_grid(q: FakeQuantize, factor: NDArray[np.float64] | None) -> tuple[Tensor, NDArray[np.float64]]:
    """The weight scale [K, 1, ...] moved to be short after folding by ``factor`` [K], and the folded one [K]."""
    own = q.scale.detach().double().cpu().numpy().reshape(-1)
    gain = np.ones_like(own) if factor is None else np.abs(factor)
    folded = short(own * gain)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(folded > 0, folded / (own * gain), 1.0)
    return q.scale * torch.from_numpy(ratio).to(q.scale).reshape(q.scale.shape), folded


def run_weighted(module: Any, bn: nn.BatchNorm2d | None, q: FakeQuantize, x_scale: Tensor, x: Tensor) -> Tensor:
    """Convolution or linear layer with BatchNorm folded in, on exactly the values that ship.

    Gradients are those of the unfolded layer; what is rounded in addition passes straight through.
    """
    factor, offset = (None, None) if bn is None else bn_affine(bn)
    grid, folded = weight_grid(q, factor)
    like = (-1, *([1] * (module.weight.ndim - 1)))
    signed = folded if factor is None else np.copysign(folded, factor)
    exact = q.codes(module.weight, scale=grid).to(x.dtype) * _as(signed, x).reshape(like)
    raw = module.bias
    bias = 0.0 if raw is None else raw.detach().double().cpu().numpy()
    bias = bias if factor is None or offset is None else offset + bias * factor
    shift = None if raw is None and bn is None else _as(_rounded(bias, folded * float(x_scale)), x)
    if torch.is_grad_enabled():
        weight = q.quantize(module.weight, scale=grid)
        gain = None if bn is None else _gain(bn)
        weight = weight if gain is None else weight * gain.reshape(like)
        exact = weight + (exact - weight).detach()
        if shift is not None:
            real = raw if gain is None else _bias(bn, gain, raw)
            shift = real + (shift - real).detach()
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, exact, shift, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(x, exact, shift)


def _as(value: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(value)).to(like)


def _rounded(bias: Any, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bias on its int32 grid; a dead channel (no grid) keeps its own."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        out = np.rint(bias / grid) * grid
    return np.asarray(np.where(np.isfinite(out), out, bias))


def _gain(bn: nn.BatchNorm2d) -> Tensor:
    assert bn.running_var is not None
    gain = torch.rsqrt(bn.running_var + bn.eps)
    return gain if bn.weight is None else gain * bn.weight


def _bias(bn: nn.BatchNorm2d | None, gain: Tensor, raw: Tensor | None) -> Tensor:
    assert bn is not None
    assert bn.running_mean is not None
    out = -bn.running_mean * gain if raw is None else (raw - bn.running_mean) * gain
    return out if bn.bias is None else out + bn.bias
