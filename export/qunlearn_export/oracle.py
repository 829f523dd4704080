"""The integer oracle: the written rounding rule of the artefact, executed with numpy on int8 codes.

Every accumulator is an exact integer (computed in float32 or float64 BLAS where all partial sums are provably exact).
Rounding is half to even; every float32 operation is one rounding, never fused (artefact_onnx 2.4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.errors import ConfigError, DataError, UnsupportedError, VerificationError

Codes = NDArray[np.int8]
F32 = np.float32
EXACT32 = 2.0**24
CHUNK = 64


class Oracle:
    """Runs a :class:`~qunlearn_export.graph.Graph`, ``chunk`` samples at a time."""

    def __init__(self, graph: g.Graph, *, chunk: int = CHUNK) -> None:
        self.graph = graph
        self.chunk = chunk
        self.last_use: dict[str, int] = {}
        for i, layer in enumerate(graph.layers):
            for name in layer.inputs:
                self.last_use[name] = i

    def quantize(self, x: NDArray[np.float32]) -> Codes:
        """Codes [N, ...] of float32 input [N, ...]; DataError for wrong shape, NaN or infinity."""
        a = self.graph.activations[self.graph.input]
        x = np.asarray(x, dtype=np.float32)
        if x.shape[1:] != a.shape:
            raise DataError(
                f"input has shape {x.shape}, the network reads [N, {', '.join(map(str, a.shape))}].",
                remedy="Give input of that shape.",
            )
        return quantize(x, a)

    def run(self, x: NDArray[np.float32]) -> Codes:
        """Codes of the output [N, K]."""
        return np.concatenate([self._forward(part)[self.graph.output] for part in self._parts(x)])

    def run_all(self, x: NDArray[np.float32]) -> dict[str, Codes]:
        """Codes of every activation by name."""
        parts = [self._forward(part, keep=True) for part in self._parts(x)]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dequantized output, float32 [N, K]."""
        return dequantize(self.run(x), self.graph.activations[self.graph.output])

    def run_layer(self, layer: g.AnyLayer | str, *codes: Codes) -> Codes:
        """Output codes of one layer for given input codes (teacher forcing)."""
        if isinstance(layer, str):
            found = [one for one in self.graph.layers if one.name == layer]
            if not found:
                raise ConfigError(f"the network has no layer {layer!r}.", remedy="Give the name of a layer.")
            layer = found[0]
        return run_layer(self.graph, layer, *codes)

    def _parts(self, x: NDArray[np.float32]) -> list[Codes]:
        codes = self.quantize(x)
        return [codes[i : i + self.chunk] for i in range(0, max(1, len(codes)), self.chunk)]

    def _forward(self, codes: Codes, *, keep: bool = False) -> dict[str, Codes]:
        values = {self.graph.input: codes}
        for i, layer in enumerate(self.graph.layers):
            values[layer.output] = run_layer(self.graph, layer, *(values[n] for n in layer.inputs))
            if not keep:
                for name in layer.inputs:
                    if self.last_use[name] == i and name != self.graph.output:
                        values.pop(name, None)
        return values


def run_layer(graph: g.Graph, layer: g.AnyLayer, *codes: Codes) -> Codes:
    """One layer on int8 codes [N, ...]; returns int8 codes."""
    ins = [graph.activations[n] for n in layer.inputs]
    out = graph.activations[layer.output]
    lo, hi = bounds(layer, out)
    match layer:
        case g.Conv():
            acc = _conv(layer, codes[0], ins[0].zero_point)
            shape = (1, -1, *([1] * (codes[0].ndim - 2)))
            return _scaled(acc, multiplier(layer, ins[0], out).reshape(shape), out.zero_point, lo, hi)
        case g.Gemm() | g.MatMul():
            w = layer.weight.T if isinstance(layer, g.Gemm) else layer.weight
            acc = _matmul(codes[0], ins[0].zero_point, w, layer.bias)
            return _scaled(acc, multiplier(layer, ins[0], out), out.zero_point, lo, hi)
        case g.Add():
            return add(codes[0], codes[1], ins[0], ins[1], out, lo, hi)
        case g.MaxPool():
            top = _pool(codes[0], layer.kernel, layer.strides, layer.pads, -128, np.maximum, np.int8)
            return _clamped(top, lo, hi)
        case g.AveragePool():
            return _average(layer, codes[0], ins[0], out, lo, hi)
        case g.GlobalAveragePool():
            axes = tuple(range(2, codes[0].ndim))
            total = (codes[0].astype(np.int64) - ins[0].zero_point).sum(axis=axes, keepdims=True)
            n = int(np.prod(codes[0].shape[2:]))
            return _scaled(total, average_multiplier(ins[0], out, n), out.zero_point, lo, hi)
        case g.Concat():
            return np.concatenate([requant(c, a, out, lo, hi) for c, a in zip(codes, ins, strict=True)], axis=1)
        case g.Requant():
            return requant(codes[0], ins[0], out, lo, hi)
        case g.Flatten():
            return _clamped(codes[0].reshape(len(codes[0]), out.shape[0]), lo, hi)
        case g.Reshape():
            return _clamped(codes[0].reshape(len(codes[0]), *layer.shape), lo, hi)
    raise UnsupportedError(f"layer {layer.name} has no integer meaning.", remedy="Use the artefact's operators.")


def quantize(x: NDArray[np.float32], a: g.Activation) -> Codes:
    """``sat(rint(fl(x / s)) + z)``; NaN or infinity is a DataError."""
    if not np.isfinite(x).all():
        raise DataError("the input holds NaN or infinity.", remedy="Clean the data.")
    q = np.rint(np.divide(x, F32(a.scale), dtype=np.float32)) + F32(a.zero_point)
    return np.asarray(np.clip(q, -128, 127).astype(np.int8))


def dequantize(codes: Codes, a: g.Activation) -> NDArray[np.float32]:
    """``fl(fl32(q - z) * s)``."""
    real = np.multiply(codes.astype(np.float32) - F32(a.zero_point), F32(a.scale), dtype=np.float32)
    return np.asarray(real)


def bounds(layer: g.Layer, out: g.Activation) -> tuple[int, int]:
    """Smallest and largest output code: the clamp of Relu and Clip."""
    lo = out.zero_point if layer.relu or layer.clip is not None else -128
    hi = 127
    if layer.clip is not None:
        hi = min(127, int(np.rint(np.divide(F32(layer.clip), F32(out.scale), dtype=np.float32))) + out.zero_point)
    return lo, hi


def multiplier(layer: g.Weighted, x: g.Activation, out: g.Activation) -> NDArray[np.float32]:
    """``M[k] = fl(fl(s_x * s_w[k]) / s_y)``."""
    return np.divide(g.bias_scale(x.scale, layer.weight_scale), F32(out.scale), dtype=np.float32)


def average_multiplier(x: g.Activation, out: g.Activation, n: Any) -> NDArray[np.float32]:
    """``M = fl(fl(s_x / s_y) / fl32(n))``; ``n`` may be an array of counts."""
    ratio = np.divide(F32(x.scale), F32(out.scale), dtype=np.float32)
    return np.divide(ratio, np.asarray(n).astype(np.float32), dtype=np.float32)


def add(a: Codes, b: Codes, xa: g.Activation, xb: g.Activation, out: g.Activation, lo: int, hi: int) -> Codes:
    """Sum of two quantized tensors of equal shape."""
    parts = []
    for codes, act in ((a, xa), (b, xb)):
        m = np.divide(F32(act.scale), F32(out.scale), dtype=np.float32)
        parts.append(np.multiply(codes.astype(np.float32) - F32(act.zero_point), m, dtype=np.float32))
    total = np.add(parts[0], parts[1], dtype=np.float32)
    return np.asarray(np.clip(np.rint(total) + F32(out.zero_point), lo, hi).astype(np.int8))


def requant(codes: Codes, x: g.Activation, out: g.Activation, lo: int, hi: int) -> Codes:
    """Change of grid, by a table of 256 entries; the identity where both grids are equal and nothing is clamped."""
    every = np.arange(-128, 128).astype(np.int8)
    real = dequantize(every, x)
    table = np.clip(np.rint(np.divide(real, F32(out.scale), dtype=np.float32)) + F32(out.zero_point), lo, hi)
    picked: Codes = table.astype(np.int8)[codes.astype(np.int64) + 128]
    return picked


def _clamped(codes: Codes, lo: int, hi: int) -> Codes:
    return codes if (lo, hi) == (-128, 127) else np.clip(codes, lo, hi).astype(np.int8)


def _scaled(acc: NDArray[Any], m: NDArray[np.float32], zero: int, lo: int, hi: int) -> Codes:
    if acc.size and np.abs(acc).max() >= 2**31:
        raise VerificationError("an accumulator leaves int32 (check D2).", remedy="Export would refuse this network.")
    y = np.rint(np.multiply(acc.astype(np.float32), m, dtype=np.float32)) + F32(zero)
    return np.clip(y, lo, hi).astype(np.int8)


def _exact_type(weight: NDArray[np.int8], per_output: tuple[int, ...]) -> type[np.floating[Any]]:
    bound = float(np.abs(weight.astype(np.int64)).sum(axis=per_output).max(initial=0)) * 255
    return np.float32 if bound < EXACT32 else np.float64


def _matmul(x: Codes, zero: int, w: NDArray[np.int8], bias: NDArray[np.int32] | None) -> NDArray[np.int64]:
    kind = _exact_type(w, (0,))
    acc = ((x.astype(kind) - kind(zero)) @ w.astype(kind)).astype(np.int64)
    return np.asarray(acc if bias is None else acc + bias)


def _conv(layer: g.Conv, x: Codes, zero: int) -> NDArray[np.int64]:
    one_d = x.ndim == 3
    if one_d:
        x = x[:, :, None, :]
    w = layer.weight[:, :, None, :] if one_d else layer.weight
    lift: Callable[[tuple[int, ...], int], tuple[int, ...]] = lambda v, fill: (fill, *v) if one_d else v  # noqa: E731
    (sh, sw), (dh, dw) = lift(layer.strides, 1), lift(layer.dilations, 1)
    half = len(layer.pads) // 2
    (top, left), (bottom, right) = lift(layer.pads[:half], 0), lift(layer.pads[half:], 0)
    kind = _exact_type(w, (1, 2, 3))
    real = np.pad(x.transpose(0, 2, 3, 1).astype(kind) - kind(zero), ((0, 0), (top, bottom), (left, right), (0, 0)))
    k, per_group, kh, kw = w.shape
    oh = (real.shape[1] - dh * (kh - 1) - 1) // sh + 1
    ow = (real.shape[2] - dw * (kw - 1) - 1) // sw + 1
    acc = np.zeros((len(x), oh, ow, k), dtype=kind)
    each = k // layer.group
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            cols = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
            patch, tap = real[:, rows, cols, :], w[:, :, i, j].astype(kind)
            if per_group == 1:
                acc += (np.repeat(patch, each, axis=3) if each > 1 else patch) * tap[:, 0]
            else:
                for n in range(layer.group):
                    part = patch[..., n * per_group : (n + 1) * per_group]
                    acc[..., n * each : (n + 1) * each] += part @ tap[n * each : (n + 1) * each].T
    total = acc.astype(np.int64)
    if layer.bias is not None:
        total += layer.bias
    total = total.transpose(0, 3, 1, 2)
    return total[:, :, 0, :] if one_d else total


def _pool(
    x: NDArray[Any],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    fill: int,
    combine: Callable[[Any, Any], Any],
    kind: Any,
) -> NDArray[Any]:
    half = len(pads) // 2
    width = [(0, 0), (0, 0), *((int(pads[i]), int(pads[i + half])) for i in range(half))]
    padded = np.pad(x.astype(kind), width, constant_values=fill)
    sizes = [(padded.shape[2 + i] - kernel[i]) // strides[i] + 1 for i in range(half)]
    out: NDArray[Any] | None = None
    for offset in np.ndindex(*kernel):
        steps = (slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, sizes, strides, strict=True))
        part = padded[(slice(None), slice(None), *steps)]
        out = part if out is None else combine(out, part)
    return padded if out is None else np.asarray(out)


def _average(layer: g.AveragePool, x: Codes, xin: g.Activation, out: g.Activation, lo: int, hi: int) -> Codes:
    args = (layer.kernel, layer.strides, layer.pads, 0, np.add, np.int64)
    total = _pool(x.astype(np.int64) - xin.zero_point, *args)
    ones = np.ones((1, 1, *x.shape[2:]), dtype=np.int64)
    n = np.asarray(np.prod(layer.kernel)) if layer.count_include_pad else _pool(ones, *args)
    return _scaled(total, average_multiplier(xin, out, n), out.zero_point, lo, hi)
