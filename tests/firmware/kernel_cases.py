"""Random single kernels with the oracle's answers, as a file that ``kernel_runner.c`` reads."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.layout import counts, folded_bias
from qunlearn_export.nodes import conv_op
from qunlearn_export.oracle import average_multiplier, bounds, multiplier, requant, run_layer
from qunlearn_export.shapes import output_shape

OPS = ("conv2d", "conv2d_grouped", "depthwise", "linear", "add", "maxpool", "avgpool", "requant")
F32 = np.float32
Codes = NDArray[np.int8]


@dataclass(frozen=True)
class KernelCase:
    """Parameters and memory of one call, and the codes expected in y."""

    op: str
    params: tuple[int, ...]
    parts: tuple[bytes, ...]
    expected: bytes
    note: str

    def pack(self) -> bytes:
        head = struct.pack("<i17i8I", OPS.index(self.op), *self.params, *map(len, self.parts))
        return head + b"".join(self.parts)


def write(path: Path, cases: Sequence[KernelCase]) -> None:
    """The runner's input."""
    path.write_bytes(struct.pack("<i", len(cases)) + b"".join(c.pack() for c in cases))


def differences(out: bytes, cases: Sequence[KernelCase]) -> list[str]:
    """What the runner's output has wrong."""
    found, start = [], 0
    for i, case in enumerate(cases):
        got = out[start : start + len(case.expected)]
        start += len(case.expected)
        if got != case.expected:
            a, b = np.frombuffer(got, np.int8), np.frombuffer(case.expected, np.int8)
            wrong = np.flatnonzero(a != b) if len(a) == len(b) else np.array([-1])
            found.append(f"{i} {case.op} {case.params} {case.note}: {len(wrong)} of {len(b)}, first {wrong[:3]}")
    if start != len(out):
        found.append(f"{len(out)} bytes of output, {start} expected")
    return found


def random_case(op: str, rng: np.random.Generator) -> KernelCase:
    """One call of kernel ``op`` with random shapes (1 to 17 and, for channels, some of up to 40), windows, grids."""
    match op:
        case "conv2d" | "conv2d_grouped" | "depthwise":
            return _conv(op, rng)
        case "linear":
            return _linear(rng)
        case "add":
            return _add(rng)
        case "requant":
            return _requant(rng)
    return _pool(op, rng)


def _draw(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _channels(rng: np.random.Generator) -> int:
    return int(rng.choice([_draw(rng, 1, 17), _draw(rng, 1, 17), 8, 16, 32, _draw(rng, 18, 40)]))


def _codes(rng: np.random.Generator, shape: tuple[int, ...]) -> Codes:
    """Mostly random; sometimes all at an end of the range."""
    kind = _draw(rng, 0, 9)
    if kind == 0:
        return np.full(shape, -128, dtype=np.int8)
    if kind == 1:
        return rng.choice(np.array([-128, 127], dtype=np.int8), shape)
    return rng.integers(-128, 128, shape).astype(np.int8)


def _act(name: str, shape: tuple[int, ...], rng: np.random.Generator, scale: float | None = None) -> g.Activation:
    zero = int(rng.choice([-128, 127, 0, *rng.integers(-128, 128, 5)]))
    return g.Activation(name=name, shape=shape, scale=F32(scale or rng.uniform(0.005, 0.05)), zero_point=zero)


def _clamp(rng: np.random.Generator, scale: float) -> dict[str, Any]:
    kind = _draw(rng, 0, 2)
    return {"relu": kind > 0, "clip": F32(scale * rng.integers(20, 250)) if kind == 2 else None}


def _stored(x: Codes) -> bytes:
    return np.ascontiguousarray(np.moveaxis(x, 0, -1)).tobytes() if x.ndim > 1 else x.tobytes()


def _case(
    op: str, layer: g.AnyLayer, acts: list[g.Activation], codes: list[Codes], params: dict[int, int], **parts: Any
) -> KernelCase:
    """Output of the oracle for ``codes``; ``acts`` are inputs then output."""
    graph = g.Graph(activations={a.name: a for a in acts}, layers=(layer,), input="input", output="y")
    y = run_layer(graph, layer, *(c[None] for c in codes))[0]
    expected = _stored(y)
    row = np.array([*(a.zero_point for a in acts), *bounds(layer, acts[-1])]).astype(np.int8).tobytes()
    empty = np.zeros(0, dtype=np.int8)
    memory = (
        _stored(codes[0]),
        _stored(codes[1]) if len(codes) > 1 else b"",
        parts.get("weight", empty).tobytes(),
        parts.get("bias", empty).tobytes(),
        np.asarray(parts.get("m", empty)).tobytes(),
        parts.get("row", row),
        parts.get("n", empty).tobytes(),
        b"\x55" * len(expected),
    )
    values = tuple(int(params.get(i, 0)) for i in range(17))
    return KernelCase(op, values, memory, expected, f"zeros {[a.zero_point for a in acts]}")


def _window(rng: np.random.Generator, size: int, dilation: int = 1) -> tuple[int, int, int, int]:
    """Taps, stride, padding before and after for a row of ``size``; pads less than the window."""
    taps = int(rng.choice([1, 2, 3, 3, 4, 5, _draw(rng, 1, 9)]))
    while True:
        reach = dilation * (taps - 1)
        before, after = (_draw(rng, 0, reach), _draw(rng, 0, reach)) if rng.random() < 0.6 else (0, 0)
        if size + before + after > reach:
            return taps, _draw(rng, 1, 3) if rng.random() < 0.5 else 1, before, after
        taps -= 1


def _conv(op: str, rng: np.random.Generator) -> KernelCase:
    h, w = _draw(rng, 1, 17), _draw(rng, 1, 17)
    if op == "conv2d":
        group, per, each = 1, _channels(rng), _channels(rng)
    elif op == "depthwise":
        group, per, each = max(2, _channels(rng)), 1, int(rng.choice([1, 1, 1, 2, 3]))
    else:
        group, per, each = _draw(rng, 2, 5), _draw(rng, 2, 9), _draw(rng, 1, 6)
    c, k = group * per, group * each
    dilations = tuple(_draw(rng, 1, 3) if rng.random() < 0.2 else 1 for _ in range(2))
    (kh, sh, top, bottom), (kw, sw, left, right) = (_window(rng, n, d) for n, d in zip((h, w), dilations, strict=True))
    weight = _codes(rng, (k, per, kh, kw))
    weight_scale = rng.uniform(0.001, 0.01, k).astype(F32)
    bias = rng.integers(-4000, 4000, k).astype(np.int32) if rng.random() < 0.8 else None
    x = _act("input", (c, h, w), rng)
    wide = float(rng.choice([0.02, 1, 1, 1, 1, 30]))
    scale = float(x.scale * weight_scale.mean() * 90 * 73 * np.sqrt(per * kh * kw) / 60) * wide
    layer = g.Conv(
        name="op",
        inputs=("input",),
        output="y",
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
        strides=(sh, sw),
        pads=(top, left, bottom, right),
        dilations=dilations,
        group=group,
        **_clamp(rng, scale),
    )
    y = _act("y", output_shape(layer, [x.shape]), rng, scale)
    assert conv_op(layer) == op
    values = [h, w, c, *y.shape[1:], k, kh, kw, sh, sw, top, left, *dilations, group]
    return _case(
        op,
        layer,
        [x, y],
        [_codes(rng, x.shape)],
        dict(enumerate(values)),
        weight=np.ascontiguousarray(weight.transpose((2, 3, 0, 1) if op == "depthwise" else (0, 2, 3, 1))),
        bias=folded_bias(layer, x.zero_point).astype(np.int32),
        m=multiplier(layer, x, y),
    )


def _linear(rng: np.random.Generator) -> KernelCase:
    n, k = int(rng.choice([_draw(rng, 1, 17), _draw(rng, 18, 300)])), _channels(rng)
    weight, weight_scale = _codes(rng, (k, n)), rng.uniform(0.001, 0.01, k).astype(F32)
    x = _act("input", (n,), rng)
    scale = float(x.scale * weight_scale.mean() * 90 * 73 * np.sqrt(n) / 60)
    bias = rng.integers(-4000, 4000, k).astype(np.int32)
    head = {"name": "op", "inputs": ("input",), "output": "y", **_clamp(rng, scale)}
    layer = g.Gemm(**head, weight=weight, weight_scale=weight_scale, bias=bias)
    y = _act("y", (k,), rng, scale)
    folded = folded_bias(layer, x.zero_point).astype(np.int32)
    parts = {"weight": weight, "bias": folded, "m": multiplier(layer, x, y)}
    return _case("linear", layer, [x, y], [_codes(rng, x.shape)], {2: n, 5: k}, **parts)


def _add(rng: np.random.Generator) -> KernelCase:
    n = int(rng.choice([_draw(rng, 1, 17), _draw(rng, 18, 400)]))
    a, b = (_act(name, (n,), rng) for name in ("input", "other"))
    y = _act("y", (n,), rng, 0.03)
    layer = g.Add(name="op", inputs=("input", "other"), output="y", **_clamp(rng, 0.03))
    m = np.array([np.divide(v.scale, y.scale, dtype=np.float32) for v in (a, b)])
    codes = [_codes(rng, (n,)) for _ in range(2)]
    return _case("add", layer, [a, b, y], codes, {2: n, 15: _draw(rng, 0, 2)}, m=m)


def _pool(op: str, rng: np.random.Generator) -> KernelCase:
    c, h, w = _channels(rng), _draw(rng, 1, 17), _draw(rng, 1, 17)
    (kh, sh, top, bottom), (kw, sw, left, right) = (_window(rng, n) for n in (h, w))
    x = _act("input", (c, h, w), rng)
    scale = float(x.scale) if op == "maxpool" else 0.02
    head = {"name": "op", "inputs": ("input",), "output": "y", **_clamp(rng, scale)}
    kind = _draw(rng, 0, 2)
    layer: Any
    if op == "avgpool" and kind == 0:
        layer, kh, kw, sh, sw, top, left = g.GlobalAveragePool(**head), h, w, 1, 1, 0, 0
    else:
        window = {"kernel": (kh, kw), "strides": (sh, sw), "pads": (top, left, bottom, right)}
        if op == "maxpool":
            layer = g.MaxPool(**head, **window)
        else:
            layer = g.AveragePool(**head, **window, count_include_pad=kind == 1)
    shape = output_shape(layer, [x.shape])
    y = g.Activation(name="y", shape=shape, scale=x.scale, zero_point=x.zero_point)
    parts: dict[str, Any] = {}
    values = dict(enumerate([h, w, c, *shape[1:], c, kh, kw, sh, sw, top, left]))
    if op == "avgpool":
        y = _act("y", shape, rng, 0.02)
        n = counts(layer, x.shape)
        parts = {"n": np.array(n, dtype=np.uint16), "m": average_multiplier(x, y, np.array(n))}
        values |= {15: int(kind == 1), 16: len(n)}
    return _case(op, layer, [x, y], [_codes(rng, x.shape)], values, **parts)


def _requant(rng: np.random.Generator) -> KernelCase:
    rows, c = _draw(rng, 1, 17), _channels(rng)
    before, after = (0, 0) if rng.random() < 0.5 else (_draw(rng, 0, 9), _draw(rng, 0, 9))
    x, y = _act("input", (rows, c), rng), _act("y", (rows, c), rng)
    layer = g.Requant(name="op", inputs=("input",), output="y", **_clamp(rng, float(y.scale)))
    codes = _codes(rng, (rows, c))
    stride = before + c + after
    table = requant(np.arange(-128, 128).astype(np.int8), x, y, *bounds(layer, y))
    expected = np.full((rows, stride), 0x55, dtype=np.int8)
    expected[:, before : before + c] = requant(codes, x, y, *bounds(layer, y))
    over = int(stride == c and rng.random() < 0.5)
    params = tuple({0: rows, 2: c, 5: stride, 15: over, 16: before}.get(i, 0) for i in range(17))
    tail = b"\x55" * expected.size
    memory = (codes.tobytes(), b"", b"", b"", b"", table.tobytes(), b"", tail)
    return KernelCase("requant", params, memory, expected.tobytes(), "")
