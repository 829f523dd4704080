"""Where the float reading of a node and its integer rule round differently, by enumerating all code combinations.

The float reading (what ONNX Runtime computes with optimisations off): dequantize, add or average in float32, divide by
the output scale. Ties arise where the scale ratio is a simple fraction (artefact_onnx 2.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export import oracle

F32 = np.float32
FACTOR = 1.0007
TRIES = 8
_CODES = np.arange(-128, 128).astype(np.int8)


@dataclass(frozen=True, kw_only=True)
class Tie:
    """``share`` of all code combinations (0..1) of node ``layer`` (operator ``op``) for which the readings differ."""

    layer: str
    op: str
    share: float


def ties(graph: g.Graph) -> list[Tie]:
    """Every Add, average and requantizing node, in execution order, with its tie share (0 for most)."""
    return [
        Tie(layer=layer.name, op=type(layer).__name__, share=tie_share(layer, graph))
        for layer in graph.layers
        if isinstance(layer, g.Add | g.AveragePool | g.GlobalAveragePool | g.Concat | g.Requant)
    ]


def tie_share(layer: g.AnyLayer, graph: g.Graph) -> float:
    """Share of code combinations for which the float reading and the integer rule give different codes."""
    ins, out = [graph.activations[n] for n in layer.inputs], graph.activations[layer.output]
    lo, hi = oracle.bounds(layer, out)
    match layer:
        case g.Add():
            return _add_share(ins[0], ins[1], out, lo, hi)
        case g.AveragePool():
            return max(_average_share(ins[0], out, n, lo, hi) for n in window_counts(layer, ins[0].shape))
        case g.GlobalAveragePool():
            return _average_share(ins[0], out, int(np.prod(ins[0].shape[1:])), lo, hi)
        case g.Concat() | g.Requant():
            return max(_requant_share(a, out, lo, hi) for a in ins)
    return 0.0


def detie_scale(layer: g.AnyLayer, graph: g.Graph) -> np.float32:
    """An output scale for ``layer`` with tie share 0: times 1.0007, up to 8 times; else the best one tried."""
    out = graph.activations[layer.output]
    best, scale = (2.0, F32(out.scale)), F32(out.scale)
    for _ in range(TRIES + 1):
        moved = g.Activation(name=out.name, shape=out.shape, scale=scale, zero_point=out.zero_point, bits=out.bits)
        share = tie_share(
            layer, g.Graph(activations={**graph.activations, out.name: moved}, layers=(), input="", output="")
        )
        if share < best[0]:
            best = (share, scale)
        if share == 0:
            break
        scale = F32(scale * F32(FACTOR))
    return best[1]


def _differ(real: NDArray[np.float32], codes: NDArray[np.int8], out: g.Activation, lo: int, hi: int) -> float:
    standard = np.clip(np.rint(np.divide(real, F32(out.scale), dtype=np.float32)) + F32(out.zero_point), lo, hi).astype(
        np.int8
    )
    return float((standard != codes).mean())


def _add_share(a: g.Activation, b: g.Activation, out: g.Activation, lo: int, hi: int) -> float:
    left, right = (m.ravel() for m in np.meshgrid(_CODES, _CODES))
    real = np.add(oracle.dequantize(left, a), oracle.dequantize(right, b), dtype=np.float32)
    return _differ(real, oracle.add(left, right, a, b, out, lo, hi), out, lo, hi)


def _average_share(x: g.Activation, out: g.Activation, n: int, lo: int, hi: int) -> float:
    total = np.arange(n * (-128 - x.zero_point), n * (127 - x.zero_point) + 1, dtype=np.int64)
    real = np.multiply(total.astype(np.float32), F32(x.scale), dtype=np.float32)
    mean = np.divide(real, F32(n), dtype=np.float32)
    m = oracle.average_multiplier(x, out, n)
    y = np.rint(np.multiply(total.astype(np.float32), m, dtype=np.float32)) + F32(out.zero_point)
    return _differ(mean, np.clip(y, lo, hi).astype(np.int8), out, lo, hi)


def _requant_share(x: g.Activation, out: g.Activation, lo: int, hi: int) -> float:
    return _differ(oracle.dequantize(_CODES, x), oracle.requant(_CODES, x, out, lo, hi), out, lo, hi)


def window_counts(layer: g.AveragePool, shape: tuple[int, ...]) -> list[int]:
    """Every divisor that occurs in an average pool of input ``shape`` [C, ...], ascending."""
    if layer.count_include_pad:
        return [int(np.prod(layer.kernel))]
    per_axis: list[set[int]] = []
    half = len(layer.kernel)
    for i, size in enumerate(shape[1:]):
        begin, end, k, s = layer.pads[i], layer.pads[i + half], layer.kernel[i], layer.strides[i]
        starts: Any = range(-begin, size + end - k + 1, s)
        per_axis.append({min(o + k, size) - max(o, 0) for o in starts})
    out = {1}
    for counts in per_axis:
        out = {n * c for n in out for c in counts}
    return sorted(out)
