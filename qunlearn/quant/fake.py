"""Fake quantization with a learned scale: the ``tensor_quant`` that the brevitas layers call.

Forward is the artefact's rule: ``q = clamp(rint(x / s) + z, lo, hi)`` (division, half to even), ``y = (q - z) s``.
Backward is the straight-through estimator for ``x`` (identity inside the range, zero outside) and LSQ for ``s``
(Esser et al. 2020, eq. 2-3, gradient scaled by 1/sqrt(n hi)). It is twice differentiable, because ``backward`` is made
of differentiable operations on the incoming gradient where a graph is asked for.

Large tensors are worked through in pieces that stay in the cache, in place, and nothing but input and result is kept.
"Inside the range" is decided on ``x`` itself: division by ``s`` is monotone, so the range is an interval whose ends
are found exactly, once per scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MIN_SCALE = 2.0**-24
"""Floor of a learned scale; keeps float32 products of two scales normal."""

NO_CLIP = (-math.inf, math.inf)

PIECE = 1 << 18
"""Values that one piece of a tensor holds on a CPU (1 MiB of float32)."""

_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
_BITS: dict[torch.dtype, Any] = {torch.float32: np.int32, torch.float64: np.int64}
_inside = torch.ops.aten.hardtanh_backward
"""``_inside(g, x, a, b)``: g where a < x < b, else 0; one pass, and differentiable in g."""


class _PerChannel(torch.autograd.Function):
    """Any shape of scale; for weights, which are small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lo: int, hi: int, grad_scale: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.constants = (lo, hi, grad_scale)
        return torch.div(x, scale).clamp_(lo, hi).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        x, scale = (t.detach() for t in ctx.saved_tensors)
        lo, hi, grad_scale = ctx.constants
        v = x / scale
        below, above = _next_to(lo, hi, v.dtype)
        grad_x = grad_s = None
        if ctx.needs_input_grad[0]:
            grad_x = _inside(g, v, below, above)
        if ctx.needs_input_grad[1]:
            slope = v.clamp(lo, hi).round_().sub_(_inside(v, v, below, above))
            grad_s = (g * slope).sum_to_size(scale.shape) * grad_scale
        return grad_x, grad_s, None, None, None


class _PerTensor(torch.autograd.Function):
    """One scale, float32 or float64; ``clip`` = (bottom, top) puts Clip(bottom, top) before the rounding."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, lo: int, hi: int, grad_scale: float, clip: tuple[float, float]
    ) -> Tensor:
        x = x.detach() if _dense(x) else x.detach().contiguous()
        out = torch.empty_like(x)
        s = scale.detach().reshape(())
        for a, y in _pieces(x, out):
            if clip[1] < math.inf:
                a = torch.clamp(a, max=clip[1], out=y)
            torch.div(a, s, out=y)
            y.clamp_(max(lo, clip[0]), hi).round_().mul_(s)
        ctx.save_for_backward(x, scale, out)
        ctx.constants = (lo, hi, grad_scale, clip)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        x, scale, y = (t.detach() for t in ctx.saved_tensors)
        s = scale.reshape(())
        lo, hi, grad_scale, clip = ctx.constants
        wants_x, wants_s = ctx.needs_input_grad[:2]
        grad_x = grad_s = None
        below, above = _ends(float(scale), lo, hi, x.dtype)
        low, high = (0.0 if clip[0] == 0 else below), min(above, _above(clip[1], x.dtype))
        if torch.is_grad_enabled() or not wants_s:
            if wants_x:
                grad_x = _inside(g, x, low, high)
            if wants_s:
                c = x.clamp(*clip)
                slope = (y - _inside(c, c, below, above)) / s
                grad_s = (g * slope).sum() * grad_scale
        else:
            if g.stride() != x.stride():
                g = torch.empty_like(x).copy_(g)
            grad_x = torch.empty_like(x) if wants_x else None
            work = x.new_empty(min(PIECE, x.numel()) if x.device.type == "cpu" else x.numel())
            total = torch.zeros((), dtype=torch.float64, device=x.device)
            for gp, xp, yp, out in _pieces(g, x, y, g if grad_x is None else grad_x):
                if grad_x is not None:
                    _inside.grad_input(gp, xp, low, high, grad_input=out)
                slope = work[: len(gp)]
                if clip[1] < math.inf:
                    xp = xp.clamp(max=clip[1])
                _inside.grad_input(xp, xp, low, above, grad_input=slope)
                total += torch.dot(gp, torch.sub(yp, slope, out=slope))
            grad_s = (total / s * grad_scale).to(scale.dtype)
        return grad_x, None if grad_s is None else grad_s.reshape(scale.shape), None, None, None, None


def _dense(t: Tensor) -> bool:
    return t.is_contiguous() or (t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same places of dense tensors with equal strides, as 1-D views; a GPU gets them whole."""
    n = tensors[0].numel()
    flat = [t.as_strided((n,), (1,)) for t in tensors]
    step = PIECE if tensors[0].device.type == "cpu" else max(1, n)
    if n <= step:
        yield tuple(flat)
        return
    for start in range(0, n, step):
        yield tuple(t[start : start + step] for t in flat)


def _above(value: float, dtype: torch.dtype) -> float:
    t = _NUMPY[dtype]
    return float(np.nextafter(t(value), t(np.inf)))


@lru_cache(maxsize=64)
def _next_to(lo: int, hi: int, dtype: torch.dtype) -> tuple[float, float]:
    """The neighbours of the two ends outside [lo, hi]."""
    ends = torch.tensor([lo, hi], dtype=dtype)
    outer = torch.nextafter(ends, torch.tensor([-torch.inf, torch.inf], dtype=dtype))
    return float(outer[0]), float(outer[1])


@lru_cache(maxsize=4096)
def _ends(scale: float, lo: int, hi: int, dtype: torch.dtype) -> tuple[float, float]:
    """The largest x with x / scale < lo and the smallest with x / scale > hi, in the arithmetic of ``dtype``.

    The real quotient must pass the midpoint between the bound and its neighbour, so both lie a few values off
    bound * scale. Only next to 0 can they lie further away, where x / scale underflows: those x are looked for by
    bisection over the bit patterns. A scale that is not positive and finite (a diverged network) has no ends.
    """
    if not 0 < scale < math.inf:
        return -math.inf, math.inf
    return -_end(scale, -lo, dtype), _end(scale, hi, dtype)


def _end(scale: float, bound: int, dtype: torch.dtype) -> float:
    t = _NUMPY[dtype]
    s, b = t(scale), t(bound)
    with np.errstate(all="ignore"):
        x = b * s
        for _ in range(8):
            if x / s > b:
                break
            x = np.nextafter(x, t(np.inf))
        else:
            lo, hi = 0, int(t(scale).view(_BITS[dtype]))
            while hi - lo > 1:
                mid = (lo + hi) // 2
                value = _BITS[dtype](mid).view(t)
                lo, hi = (lo, mid) if value / s > b else (mid, hi)
            return float(_BITS[dtype](hi).view(t))
        while np.nextafter(x, t(-np.inf)) / s > b:
            x = np.nextafter(x, t(-np.inf))
    return float(x)


class FakeQuantize(nn.Module):
    """Codes in [``lo``, ``hi``] around a fixed integer ``zero_point``; ``scale`` is a learned float32 parameter.

    ``lo`` and ``hi`` are codes as they ship (int8). ``scale`` has shape [] or, per output channel, [K, 1, ...].
    ``enabled = False`` lets values pass unchanged (the float phase of training). ``power_of_two`` marks a scale that
    must stay a power of two; it is set by calibration and not learned.
    """

    scale: nn.Parameter
    zero_point: Tensor
    bits: Tensor

    def __init__(self, *, scale_shape: tuple[int, ...], lo: int, hi: int, bits: int, zero_point: int = 0) -> None:
        super().__init__()
        self.power_of_two = False
        self.scale = nn.Parameter(torch.ones(scale_shape))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self.register_buffer("bits", torch.tensor(float(bits)), persistent=False)
        self.lo, self.hi = lo, hi
        self.enabled = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(value, scale, zero point, bit width): the tuple that a brevitas proxy expects."""
        return (self.quantize(x) if self.enabled else x), self.scale, self.zero_point, self.bits

    def quantize(self, x: Tensor, *, clip: tuple[float, float] = NO_CLIP, scale: Tensor | None = None) -> Tensor:
        """The dequantized value of the code nearest to ``x``, cut to ``clip`` before; same shape and type.

        The bottom of ``clip`` is 0 (ReLU) or minus infinity. ``scale`` takes the place of the quantizer's own.
        """
        own = self.scale if scale is None else scale
        z = int(self.zero_point)
        lo, hi = self.lo - z, self.hi - z
        n = x.numel() / max(1, own.numel()) if own.numel() > 1 else x.numel() / x.shape[0]
        grad_scale = 1.0 / (n * max(1, hi)) ** 0.5
        out: Tensor
        if own.numel() == 1 and own.dtype == x.dtype and x.dtype in _NUMPY:
            out = _PerTensor.apply(x, own, lo, hi, grad_scale, clip)  # type: ignore[no-untyped-call]
        else:
            x = x if clip[1] == math.inf else x.clamp(max=clip[1])
            x = x if clip[0] == -math.inf else torch.relu(x)
            out = _PerChannel.apply(x, own, lo, hi, grad_scale)  # type: ignore[no-untyped-call]
        return out

    def codes(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        """Integer codes (int8) of ``x`` on this grid, or on that of another ``scale``."""
        z = int(self.zero_point)
        q = (x.detach() / (self.scale if scale is None else scale).detach()).round() + z
        return q.clamp(self.lo, self.hi).to(torch.int8)

    @torch.no_grad()
    def set_grid(self, scale: Tensor, zero_point: int | None = None) -> None:
        """Fix the scale (floored at MIN_SCALE) and, for affine activations, the zero point."""
        self.scale.copy_(scale.reshape(self.scale.shape).clamp_min(MIN_SCALE))
        if zero_point is not None:
            self.zero_point.fill_(int(zero_point))
