"""Where the float reading of a node and its integer rule round differently, by enumerating all code combinations.

The float reading (what ONNX Runtime computes with optimisations off): dequantize, add or average in float32, divide by
the output scale. Ties arise where the scale ratio is a simple fraction (artefact_onnx 2.5). With optimisations on, a
residual add runs in a float kernel that rounds differently again; pools follow the integer rule to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export import oracle

F32 = np.float32
FACTOR = 1.0007
TRIES = 32
BLOCK = 2**16
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


def combinations(layer: g.AnyLayer, shapes: Sequence[tuple[int, ...]]) -> int:
    """How many code combinations (sums, for an average) :func:`tie_share` goes through."""
    match layer:
        case g.Add():
            return 2**16
        case g.AveragePool():
            return sum(255 * n + 1 for n in window_counts(layer, shapes[0]))
        case g.GlobalAveragePool():
            return 255 * math.prod(shapes[0][1:]) + 1
        case g.Concat() | g.Requant():
            return 256 * len(shapes)
    return 0


def reading_share(layer: g.AnyLayer, graph: g.Graph) -> float:
    """As :func:`tie_share`, and for an Add the readings of the optimised kernel too; the largest of all shares."""
    share = tie_share(layer, graph)
    if isinstance(layer, g.Add):
        a, b = (graph.activations[n] for n in layer.inputs)
        share = max(share, _add_kernel_share(a, b, graph.activations[layer.output], layer))
    return share


def detie_scale(layer: g.AnyLayer, graph: g.Graph) -> np.float32:
    """An output scale for ``layer`` at which all readings agree: times 1.0007, up to 32 times; else the best tried."""
    out = graph.activations[layer.output]
    best, scale = (2.0, F32(out.scale)), F32(out.scale)
    for _ in range(TRIES + 1):
        moved = g.Activation(name=out.name, shape=out.shape, scale=scale, zero_point=out.zero_point, bits=out.bits)
        share = reading_share(
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


def _add_kernel_share(a: g.Activation, b: g.Activation, out: g.Activation, layer: g.Add) -> float:
    """The worst reading of ONNX Runtime's add kernel: ``a Ma + (b Mb + c)`` in float32, rounded with the zero point in.

    Codes may be shifted to uint8 (x86) and multiply-adds fused (by the processor); ``c = z_y - (Ma z_a + Mb z_b)``.
    """
    lo, hi = oracle.bounds(layer, out)
    left, right = (m.ravel() for m in np.meshgrid(_CODES, _CODES))
    rule = oracle.add(left, right, a, b, out, lo, hi)
    ma, mb = (np.divide(F32(x.scale), F32(out.scale), dtype=np.float32) for x in (a, b))
    worst = 0.0
    for shift in (0, 128):
        p, q = (codes.astype(np.float32) + F32(shift) for codes in (left, right))
        za, zb, zy = (F32(x.zero_point + shift) for x in (a, b, out))
        for fused in (False, True):
            c = np.subtract(zy, _multiply_add(za, ma, np.multiply(zb, mb, dtype=np.float32), fused), dtype=np.float32)
            y = np.rint(_multiply_add(p, ma, _multiply_add(q, mb, c, fused), fused)) - F32(shift)
            worst = max(worst, float((np.clip(y, lo, hi).astype(np.int8) != rule).mean()))
    return worst


def _multiply_add(x: Any, m: Any, c: Any, fused: bool) -> Any:
    """``x m + c`` in float32: two roundings, or (fused) one; a code times a float32 is exact in float64."""
    if fused:
        return np.add(np.multiply(x, m, dtype=np.float64), c, dtype=np.float64).astype(np.float32)
    return np.add(np.multiply(x, m, dtype=np.float32), c, dtype=np.float32)


def _average_share(x: g.Activation, out: g.Activation, n: int, lo: int, hi: int) -> float:
    first, last = n * (-128 - x.zero_point), n * (127 - x.zero_point)
    m, differ = oracle.average_multiplier(x, out, n), 0.0
    for start in range(first, last + 1, BLOCK):
        total = np.arange(start, min(start + BLOCK, last + 1), dtype=np.int64).astype(np.float32)
        mean = np.divide(np.multiply(total, F32(x.scale), dtype=np.float32), F32(n), dtype=np.float32)
        y = np.rint(np.multiply(total, m, dtype=np.float32)) + F32(out.zero_point)
        differ += _differ(mean, np.clip(y, lo, hi).astype(np.int8), out, lo, hi) * len(total)
    return differ / (last - first + 1)


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
        starts = range(-begin, size + end - k + 1, s)
        edges = {*starts[: begin // s + 2], *starts[-(end // s + 2) :]}  # between them every window is whole
        per_axis.append({min(o + k, size) - max(o, 0) for o in edges})
    out = {1}
    for counts in per_axis:
        out = {n * c for n in out for c in counts}
    return sorted(out)
