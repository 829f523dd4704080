"""The grid of a network's input, and samples that stay on it: what leaves the data owner is 8-bit data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ConfigError

Float64 = NDArray[np.float64]
_SLACK = 1e-6
"""In steps: float32 rounding of a multiple of the scale."""


@dataclass(frozen=True, kw_only=True)
class InputGrid:
    """Values ``(q - zero_point) * scale`` for whole q in -128..127; ``low`` and ``high`` bound the data [C, 1, 1]."""

    scale: float
    zero_point: int
    low: Float64
    high: Float64

    @classmethod
    def of(cls, scale: float, zero_point: int, bounds: tuple[Any, Any] | None = None) -> InputGrid:
        """The grid's own range, narrowed to the ``bounds`` of the data where they are known."""
        low = np.reshape(np.float64((-128 - zero_point) * scale), (1, 1, 1))
        high = np.reshape(np.float64((127 - zero_point) * scale), (1, 1, 1))
        if bounds is not None:
            low, high = np.maximum(low, bounds[0]), np.minimum(high, bounds[1])
        return cls(scale=float(scale), zero_point=int(zero_point), low=low, high=high)

    def require_radius(self, eps: float) -> None:
        """ConfigError for a radius below one step: such a perturbation vanishes when the samples are stored."""
        if eps < self.scale * (1 - _SLACK):
            raise ConfigError(
                f"eps {eps:g} is less than one step of the network's input grid ({self.scale:g}).",
                remedy="Take a larger eps: what is altered by less does not survive 8-bit storage.",
            )

    def inside(self, x: NDArray[Any]) -> Float64:
        """``x`` [n, C, H, W] cut to the range: all that the network can tell of it."""
        return np.clip(np.asarray(x, np.float64), self.low, self.high)

    def snap(self, x: NDArray[Any], centre: NDArray[Any], eps: float) -> NDArray[np.int8]:
        """Codes (int8) of the grid points nearest to ``x`` that lie within ``eps`` of ``centre`` and in the range."""
        base = self.inside(centre)
        low = np.maximum(base - eps, self.low) / self.scale
        high = np.minimum(base + eps, self.high) / self.scale
        q = np.clip(np.rint(np.asarray(x, np.float64) / self.scale), np.ceil(low - _SLACK), np.floor(high + _SLACK))
        out: NDArray[np.int8] = np.clip(q + self.zero_point, -128, 127).astype(np.int8)
        return out

    def values(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Network inputs float32 of codes."""
        return grid_values(codes, self.scale, self.zero_point)


def grid_values(codes: NDArray[Any], scale: float, zero_point: int) -> NDArray[np.float32]:
    """``(q - zero_point) * scale`` in float32: the arithmetic that every backend has."""
    out: NDArray[np.float32] = (codes.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return out


def default_radius(
    x: NDArray[np.float32], stored: np.dtype[Any], divisor: float, std: tuple[float, ...], scale: float
) -> float:
    """Images stored in 8 bits: 8 of 255 levels, in whole input steps; all else: half the mean standard deviation."""
    if stored == np.uint8:
        wanted = 8.0 / divisor / max(std)
        return max(1.0, float(np.floor(wanted / scale + _SLACK))) * scale
    return 0.5 * float(np.asarray(x, np.float64).std(axis=0).mean())
