"""Fake quantization with a learned scale: the ``tensor_quant`` that the brevitas layers call.

Forward is the artefact's rule: ``q = clamp(rint(x / s) + z, lo, hi)`` (division, half to even), ``y = (q - z) s``.
Backward is the straight-through estimator for ``x`` (identity inside the range, zero outside) and LSQ for ``s``
(Esser et al. 2020, eq. 2-3, gradient scaled by 1/sqrt(n hi)). It is twice differentiable, because ``backward`` is made
of differentiable operations on the incoming gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MIN_SCALE = 2.0**-24
"""Floor of a learned scale; keeps float32 products of two scales normal."""


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lo: int, hi: int, grad_scale: float) -> Tensor:
        v = x / scale
        q = v.round().clamp_(lo, hi)
        ctx.save_for_backward(v, q)
        ctx.bounds = (lo, hi, grad_scale)
        ctx.scale_shape = scale.shape
        return q * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        v, q = ctx.saved_tensors
        lo, hi, grad_scale = ctx.bounds
        inside = (v >= lo) & (v <= hi)
        grad_x = g * inside if ctx.needs_input_grad[0] else None
        grad_s = None
        if ctx.needs_input_grad[1]:
            d = g * torch.where(inside, q - v, q)
            grad_s = d.sum_to_size(ctx.scale_shape) * grad_scale
        return grad_x, grad_s, None, None, None


class FakeQuantize(nn.Module):
    """Codes in [``lo``, ``hi``] around a fixed integer ``zero_point``; ``scale`` is a learned float32 parameter.

    ``lo`` and ``hi`` are codes as they ship (int8). ``scale`` has shape [] or, per output channel, [K, 1, ...].
    ``enabled = False`` lets values pass unchanged (the float phase of training).
    """

    scale: nn.Parameter
    zero_point: Tensor
    bits: Tensor

    def __init__(self, *, scale_shape: tuple[int, ...], lo: int, hi: int, bits: int, zero_point: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(scale_shape))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self.register_buffer("bits", torch.tensor(float(bits)), persistent=False)
        self.lo, self.hi = lo, hi
        self.enabled = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(value, scale, zero point, bit width): the tuple that a brevitas proxy expects."""
        return (self.quantize(x) if self.enabled else x), self.scale, self.zero_point, self.bits

    def quantize(self, x: Tensor) -> Tensor:
        """The dequantized value of the code nearest to ``x``; same shape, float32."""
        z = int(self.zero_point)
        hi = self.hi - z
        n = x.numel() / max(1, self.scale.numel()) if self.scale.numel() > 1 else x.numel() / x.shape[0]
        grad_scale = 1.0 / (n * max(1, hi)) ** 0.5
        out: Tensor = _FakeQuantize.apply(x, self.scale, self.lo - z, hi, grad_scale)  # type: ignore[no-untyped-call]
        return out

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes (int8) of ``x`` on this grid."""
        z = int(self.zero_point)
        q = (x.detach() / self.scale.detach()).round() + z
        return q.clamp(self.lo, self.hi).to(torch.int8)

    @torch.no_grad()
    def set_grid(self, scale: Tensor, zero_point: int | None = None) -> None:
        """Fix the scale (floored at MIN_SCALE) and, for affine activations, the zero point."""
        self.scale.copy_(scale.reshape(self.scale.shape).clamp_min(MIN_SCALE))
        if zero_point is not None:
            self.zero_point.fill_(int(zero_point))
