"""Between the graph's order of codes (channel first) and the firmware's (channel last)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int8]


def to_stored(codes: Codes) -> Codes:
    """Codes [n, C, ...] in the graph's order to the firmware's, [n, ..., C]."""
    return np.ascontiguousarray(np.moveaxis(codes, 1, -1)) if codes.ndim > 2 else codes


def from_stored(codes: Codes, shape: tuple[int, ...]) -> Codes:
    """Codes [n, ...] in the firmware's order to the graph's, [n, *shape]."""
    if len(shape) < 2:
        return codes.reshape(len(codes), *shape)
    return np.ascontiguousarray(np.moveaxis(codes.reshape(len(codes), *shape[1:], shape[0]), -1, 1))
