"""The oracle against brute force: Python integers for the sums, exact rationals for every rounding (acceptance 1)."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from qunlearn_export import graph as g
from qunlearn_export import oracle
from qunlearn_export.errors import ConfigError, DataError, VerificationError

KINDS = (
    *("dense", "depthwise", "grouped", "multiplier", "asymmetric", "strided", "dilated", "one_d"),
    *("gemm", "matmul2", "matmul3", "matmul4", "maxpool", "maxpool_1d", "average_inside", "average_all"),
    *("global_average", "add", "concat", "requant", "flatten", "reshape"),
)
CONFIGURATIONS = 20


def fl(value: Fraction | int) -> Fraction:
    """Nearest float32. Operands are float32, so one rounding to float64 before it is harmless (53 >= 2 * 24 + 2)."""
    return Fraction(struct.unpack("<f", struct.pack("<f", float(value)))[0])


def frac(value: Any) -> Fraction:
    return Fraction(float(value))


def finish(v: Fraction, out: g.Activation, lo: int, hi: int) -> int:
    return min(max(round(v) + out.zero_point, lo), hi)


def window(shape: tuple[int, ...], at: tuple[int, ...], k: Any, s: Any, p: Any, d: Any) -> list[tuple[Any, Any]]:
    """(offset in the window, position) of every tap inside the image."""
    taps = []
    for offset in itertools.product(*(range(n) for n in k)):
        where = tuple(at[i] * s[i] - p[i] + offset[i] * d[i] for i in range(len(k)))
        if all(0 <= w < n for w, n in zip(where, shape, strict=True)):
            taps.append((offset, where))
    return taps


def weighted_sum(layer: g.AnyLayer, x: Any, zero: int, at: tuple[int, ...]) -> tuple[int, int]:
    """(accumulator, output channel) of one output position ``at`` (batch first)."""
    if isinstance(layer, g.Conv):
        n, k, *place = at
        per, each = layer.weight.shape[1], layer.weight.shape[0] // layer.group
        taps = window(x.shape[2:], tuple(place), layer.weight.shape[2:], layer.strides, layer.pads, layer.dilations)
        first = k // each * per
        total = sum(
            (int(x[(n, first + c, *where)]) - zero) * int(layer.weight[(k, c, *offset)])
            for c in range(per)
            for offset, where in taps
        )
    else:
        *lead, k = at
        assert isinstance(layer, g.Gemm | g.MatMul)
        column = layer.weight[k] if isinstance(layer, g.Gemm) else layer.weight[:, k]
        total = sum((int(v) - zero) * int(w) for v, w in zip(x[tuple(lead)], column, strict=True))
    return total + (0 if layer.bias is None else int(layer.bias[k])), k


def brute(graph: g.Graph, layer: g.AnyLayer, codes: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    ins, out = [graph.activations[n] for n in layer.inputs], graph.activations[layer.output]
    sx, sy, zx = frac(ins[0].scale), frac(out.scale), ins[0].zero_point
    lo, hi = -128, 127
    if layer.relu:
        lo = out.zero_point
    if layer.clip is not None:
        hi = min(127, round(fl(frac(layer.clip) / sy)) + out.zero_point)
    result = np.zeros(shape, dtype=np.int64)
    for at in np.ndindex(shape):
        x = codes[0]
        match layer:
            case g.Conv() | g.Gemm() | g.MatMul():
                acc, k = weighted_sum(layer, x, zx, at)
                m = fl(fl(sx * frac(layer.weight_scale[k])) / sy)
                result[at] = finish(fl(fl(acc) * m), out, lo, hi)
            case g.Add():
                parts = [
                    fl((int(c[at]) - a.zero_point) * fl(frac(a.scale) / sy)) for c, a in zip(codes, ins, strict=True)
                ]
                result[at] = finish(fl(parts[0] + parts[1]), out, lo, hi)
            case g.MaxPool() | g.AveragePool():
                taps = window(x.shape[2:], at[2:], layer.kernel, layer.strides, layer.pads, (1, 1))
                inside = [int(x[(*at[:2], *where)]) for _, where in taps]
                if isinstance(layer, g.MaxPool):
                    result[at] = max(inside)
                    continue
                n = int(np.prod(layer.kernel)) if layer.count_include_pad else len(inside)
                result[at] = finish(fl(fl(sum(v - zx for v in inside)) * fl(fl(sx / sy) / n)), out, lo, hi)
            case g.GlobalAveragePool():
                inside = [int(v) - zx for v in x[at[0], at[1]].reshape(-1)]
                result[at] = finish(fl(fl(sum(inside)) * fl(fl(sx / sy) / len(inside))), out, lo, hi)
            case g.Concat() | g.Requant():
                channel, source = at[1], 0
                while channel >= codes[source].shape[1]:
                    channel -= codes[source].shape[1]
                    source += 1
                a = ins[source]
                real = fl((int(codes[source][(at[0], channel, *at[2:])]) - a.zero_point) * frac(a.scale))
                result[at] = finish(fl(real / sy), out, lo, hi)
            case g.Flatten() | g.Reshape():
                result[at] = x[at[0]].reshape(-1)[int(np.ravel_multi_index(at[1:], shape[1:]))]
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_oracle_equals_brute_force(nets: Any, kind: str, seed: int) -> None:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    codes_seen = set()
    for _ in range(CONFIGURATIONS):
        case = nets.random(kind, rng)
        got = oracle.run_layer(case.graph, case.layer, *case.inputs)
        assert got.dtype == np.int8
        assert got.shape[1:] == case.graph.activations[case.layer.output].shape
        np.testing.assert_array_equal(got, brute(case.graph, case.layer, case.inputs, got.shape))
        codes_seen |= set(np.unique(got).tolist())
    assert len(codes_seen) > 20, "the cases are too tame to tell roundings apart"


def test_every_operator_is_covered(nets: Any) -> None:
    rng = np.random.default_rng(0)
    tested = {type(nets.random(kind, rng).layer) for kind in KINDS}
    assert tested == set(g.AnyLayer.__args__)
    assert set(KINDS) == set(nets.kinds)


def test_quantize_divides_and_rounds_half_to_even(nets: Any) -> None:
    a = nets.act("input", (1,), 0.0237, 7)
    rng = np.random.default_rng(3)
    half = ((np.arange(-160, 160) + 0.5) * np.float64(a.scale)).astype(np.float32)
    x = np.concatenate([half, np.nextafter(half, np.float32(9)), np.nextafter(half, np.float32(-9))])
    x = np.concatenate([x, rng.normal(scale=2, size=2000).astype(np.float32)])
    want = [min(max(round(fl(frac(v) / frac(a.scale))) + 7, -128), 127) for v in x]
    np.testing.assert_array_equal(oracle.quantize(x[:, None], a)[:, 0], want)
    many = rng.normal(scale=2, size=1_000_000).astype(np.float32)
    exact = np.clip(np.rint((many.astype(np.float64) / np.float64(a.scale)).astype(np.float32)) + 7, -128, 127)
    np.testing.assert_array_equal(oracle.quantize(many, a), exact)
    by_inverse = np.clip(np.rint(x * (np.float32(1) / a.scale)) + 7, -128, 127)
    assert (by_inverse != want).any(), "the test cannot tell division from multiplication by 1/s"


def test_exact_halves_go_to_even(nets: Any) -> None:
    a = nets.act("input", (1,), 0.5, 0)
    x = np.array([0.25, 0.75, 1.25, -0.25, -0.75, -1.25], dtype=np.float32)
    assert oracle.quantize(x, a).tolist() == [0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_refuses_what_is_not_a_number(nets: Any, bad: float) -> None:
    graph = nets.tiny()
    x = nets.inputs(graph, 2)
    x[1, 0, 3, 3] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        oracle.Oracle(graph).run(x)


def test_padding_is_the_zero_point(nets: Any) -> None:
    """A corner output sees only the taps inside the image, even where the zero point is -128."""
    weight = np.full((1, 1, 3, 3), 1, dtype=np.int8)
    layer = g.Conv(
        name="c",
        inputs=("input",),
        output="c.out",
        weight=weight,
        weight_scale=np.ones(1, np.float32),
        strides=(1, 1),
        pads=(1, 1, 1, 1),
        dilations=(1, 1),
    )
    graph = nets.graph(nets.act("input", (1, 3, 3), 1.0, -128), (layer, 16.0, -128))
    out = oracle.run_layer(graph, layer, np.full((1, 1, 3, 3), -124, np.int8))[0, 0]
    # 4, 6 or 9 taps of 4 units each, in steps of 16, rounded half to even
    assert (out.astype(int) + 128).tolist() == [[1, 2, 1], [2, 2, 2], [1, 2, 1]]


def test_chunks_do_not_matter(nets: Any) -> None:
    graph = nets.tiny()
    x = nets.inputs(graph, 23)
    whole = oracle.Oracle(graph, chunk=64).run_all(x)
    parts = oracle.Oracle(graph, chunk=7).run_all(x)
    assert set(whole) == set(graph.activations)
    for name, codes in whole.items():
        np.testing.assert_array_equal(codes, parts[name])
    np.testing.assert_array_equal(oracle.Oracle(graph, chunk=5).run(x), whole[graph.output])
    a = graph.activations[graph.output]
    want = (whole[graph.output].astype(np.float32) - a.zero_point) * a.scale
    np.testing.assert_array_equal(oracle.Oracle(graph).logits(x), want)


def test_large_sums_stay_exact() -> None:
    """Above 2^24 float32 cannot hold the sums: the accumulator must not be computed there."""
    d = 4000
    w = np.full((1, d), 127, dtype=np.int8)
    w[0, 0] = 126
    x = np.full((1, d), 127, dtype=np.int8)
    got = oracle._matmul(x, -128, w.T, np.array([1], dtype=np.int32))
    assert got.tolist() == [[255 * 127 * (d - 1) + 255 * 126 + 1]]


def test_accumulator_beyond_int32_is_refused(nets: Any) -> None:
    layer = g.Gemm(
        name="f",
        inputs=("input",),
        output="f.out",
        weight=np.full((1, 4), 127, np.int8),
        weight_scale=np.ones(1, np.float32),
        bias=np.array([2**31 - 2], np.int32),
    )
    graph = nets.graph(nets.act("input", (4,), 1.0, -128), (layer, 1.0, 0))
    with pytest.raises(VerificationError, match="D2"):
        oracle.run_layer(graph, layer, np.full((1, 4), 127, np.int8))


def test_names_and_shapes_are_checked(nets: Any) -> None:
    run = oracle.Oracle(nets.tiny())
    with pytest.raises(ConfigError, match="no layer 'nope'"):
        run.run_layer("nope", np.zeros((1, 1), np.int8))
    with pytest.raises(DataError, match=r"\[N, 2, 8, 8\]"):
        run.run(np.zeros((1, 2, 8, 7), np.float32))
