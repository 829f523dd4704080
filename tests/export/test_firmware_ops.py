"""Generated C against the oracle on random graphs of one operator each: 0 LSB, and clean under sanitizers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import op_program
import pytest
from numpy.typing import NDArray

from qunlearn_export import graph as g

F32 = np.float32
KINDS = ("dense", "grouped", "depthwise", "multiplier", "one_d", "linear", "flat_linear", "add", "maxpool",
         "average", "global", "requant", "concat", "flatten", "reshape")  # fmt: skip
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def draw(rng: np.random.Generator, lo: int, hi: int) -> int:
    return int(rng.integers(lo, hi + 1))


def clamp(rng: np.random.Generator, scale: float, *, always: bool = False) -> tuple[dict[str, Any], int]:
    which = draw(rng, int(always), 2)
    if which == 0:
        return {}, draw(rng, -128, 127)
    return {"relu": True, "clip": F32(scale * draw(rng, 20, 250)) if which == 2 else None}, -128


def codes(rng: np.random.Generator, shape: tuple[int, ...], n: int = 6) -> NDArray[np.int8]:
    """Corner codes and random ones."""
    made = rng.integers(-128, 128, (n, *shape)).astype(np.int8)
    made[0], made[1] = -128, 127
    return made


def work(nets: Any, kind: str, seed: int) -> op_program.Work:
    """A network with one operator of ``kind``, shapes 1 to 17."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    scale, zero = float(rng.uniform(0.005, 0.05)), draw(rng, -128, 127)
    head = {"name": "op", "inputs": ("input",), "output": "op.out"}
    if kind in ("dense", "grouped", "depthwise", "multiplier", "one_d", "linear"):
        return _weighted(nets, rng, kind, head, scale, zero)
    shape = (draw(rng, 1, 17), draw(rng, 1, 17), draw(rng, 1, 17))
    start = nets.act("input", shape, scale, zero)
    if kind == "flat_linear":
        return _after_a_map(nets, rng, start)
    out = float(rng.uniform(0.005, 0.05))
    limits, out_zero = clamp(rng, out, always=kind == "requant")
    if kind in ("add", "concat"):
        one = {"kernel": (1, 1), "strides": (1, 1), "pads": (0,) * 4}
        sides = [g.AveragePool(name=n, inputs=("input",), output=f"{n}.out", **one) for n in ("left", "right")]
        steps = [(s, float(rng.uniform(0.01, 0.05)), draw(rng, -128, 127)) for s in sides]
        both = {**head, "inputs": ("left.out", "right.out"), **limits}
        layer: Any = g.Add(**both) if kind == "add" else g.Concat(**both)
        return op_program.Work(nets.graph(start, *steps, (layer, 2 * out, out_zero)), codes(rng, shape))
    if kind in ("maxpool", "average"):
        kernel = tuple(draw(rng, 1, min(4, n)) for n in shape[1:])
        window = {
            "kernel": kernel,
            "strides": (draw(rng, 1, 3), draw(rng, 1, 3)),
            "pads": tuple(draw(rng, 0, k - 1) for k in (*kernel, *kernel)),
        }
        if kind == "maxpool":
            layer, out, out_zero = g.MaxPool(**head, **window), scale, zero
        else:
            layer = g.AveragePool(**head, **limits, **window, count_include_pad=bool(draw(rng, 0, 1)))
    elif kind == "global":
        layer = g.GlobalAveragePool(**head, **limits)
    elif kind == "requant":
        layer = g.Requant(**head, **limits)
    else:
        # a flattened map, and a map of another shape, each followed by something that computes
        size = shape[0] * shape[1] * shape[2]
        divisors = [d for d in range(1, 18) if size % d == 0]
        c = divisors[draw(rng, 0, len(divisors) - 1)]
        move: Any = g.Flatten(name="move", inputs=("input",), output="move.out")
        if kind == "reshape":
            move = g.Reshape(name="move", inputs=("input",), output="move.out", shape=(c, size // c))
        layer = g.Requant(**{**head, "inputs": ("move.out",)}, relu=True)
        steps = [(move, scale, zero), (layer, out, -128)]
        if kind == "flatten":
            steps.append(
                (g.Reshape(name="back", inputs=("op.out",), output="back.out", shape=(c, size // c)), out, -128)
            )
            last = g.Concat(name="end", inputs=("back.out", "back.out"), output="end.out")
            steps.append((last, out, -128))
        return op_program.Work(nets.graph(start, *steps), codes(rng, shape))
    return op_program.Work(nets.graph(start, (layer, out, out_zero)), codes(rng, shape))


def _after_a_map(nets: Any, rng: np.random.Generator, start: g.Activation) -> op_program.Work:
    """Trap 13: a flattened map, with or without a clamp on the way, before a linear layer."""
    d, k = int(np.prod(start.shape)), draw(rng, 1, 17)
    scale, zero = float(start.scale), start.zero_point
    weight = rng.integers(-127, 128, (k, d)).astype(np.int8)
    steps: list[Any] = [(g.Flatten(name="flat", inputs=("input",), output="flat.out"), scale, zero)]
    if draw(rng, 0, 1):
        steps.append((g.Requant(name="relu", inputs=("flat.out",), output="relu.out", relu=True), scale * 1.1, -128))
    source = steps[-1][0].output
    scales = rng.uniform(0.001, 0.01, k).astype(F32)
    fc = g.Gemm(name="fc", inputs=(source,), output="fc.out", weight=weight, weight_scale=scales)
    steps.append((fc, float(scale * 0.005 * 90 * 73 * np.sqrt(d) / 60), draw(rng, -128, 127)))
    return op_program.Work(nets.graph(start, *steps), codes(rng, start.shape))


def _weighted(
    nets: Any, rng: np.random.Generator, kind: str, head: dict[str, Any], scale: float, zero: int
) -> op_program.Work:
    def weights(shape: tuple[int, ...], k: int) -> dict[str, Any]:
        bias = rng.integers(-4000, 4000, k).astype(np.int32) if rng.random() < 0.8 else None
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        if rng.random() < 0.1:
            weight[:] = (-127, 127)[draw(rng, 0, 1)]
        return {"weight": weight, "weight_scale": rng.uniform(0.001, 0.01, k).astype(F32), "bias": bias}

    shape: tuple[int, ...]
    if kind == "linear":
        k, d = draw(rng, 1, 17), draw(rng, 1, 60)
        shape = (d,)
        layer: Any = g.Gemm(**head, **weights((k, d), k))
        if draw(rng, 0, 1):
            layer = g.MatMul(**head, **weights((d, k), k))
    else:
        group, per, each = 1, draw(rng, 1, 17), draw(rng, 1, 17)
        if kind in ("depthwise", "multiplier"):
            group, per, each = draw(rng, 2, 17), 1, 1 if kind == "depthwise" else draw(rng, 2, 3)
        elif kind == "grouped":
            group, per, each = draw(rng, 2, 4), draw(rng, 2, 4), draw(rng, 1, 4)
        rank = 1 if kind == "one_d" else 2
        kernel = tuple(draw(rng, 1, 5) for _ in range(rank))
        dilations = tuple(draw(rng, 2, 3) if rng.random() < 0.2 else 1 for _ in range(rank))
        pads = tuple(draw(rng, 0, 4) for _ in range(2 * rank))
        spatial = tuple(max(1, dilations[i] * (kernel[i] - 1) + 1 + draw(rng, -3, 9)) for i in range(rank))
        for i in range(rank):
            short = dilations[i] * (kernel[i] - 1) + 1 - (spatial[i] + pads[i] + pads[i + rank])
            pads = (*pads[:i], pads[i] + max(0, short), *pads[i + 1 :])
        layer = g.Conv(
            **head,
            **weights((group * each, per, *kernel), group * each),
            strides=tuple(draw(rng, 1, 3) for _ in range(rank)),
            pads=pads,
            dilations=dilations,
            group=group,
        )
        shape = (group * per, *spatial)
    fan_in = layer.weight.size / len(layer.weight_scale)
    out = float(scale * layer.weight_scale.mean() * 90 * 73 * np.sqrt(fan_in) / 60)
    limits, out_zero = clamp(rng, out)
    graph = nets.graph(nets.act("input", shape, scale, zero), (replace(layer, **limits), out, out_zero))
    return op_program.Work(graph, codes(rng, shape))


@pytest.mark.parametrize("kind", KINDS)
def test_forty_random_graphs(nets: Any, kind: str, tmp_path: Path) -> None:
    done = op_program.run(tmp_path, [work(nets, kind, seed) for seed in range(40)])
    assert done.returncode == 0, done.stdout
    assert op_program.networks(done.stdout) == 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_random_graphs_under_sanitizers(nets: Any, kind: str, tmp_path: Path) -> None:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    done = op_program.run(tmp_path, [work(nets, kind, seed) for seed in range(200)], flags=flags)
    assert done.returncode == 0, (done.stdout, done.stderr[:2000])
    assert op_program.networks(done.stdout) == 200


def test_whole_networks_under_sanitizers(nets: Any, tmp_path: Path) -> None:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    rng = np.random.default_rng(0)
    many = [op_program.Work(nets.tiny(seed), codes(rng, (2, 8, 8), 200)) for seed in range(3)]
    many += [work(nets, kind, seed) for kind in KINDS for seed in range(2)]
    done = op_program.run(tmp_path, many, flags=flags)
    assert done.returncode == 0, (done.stdout, done.stderr[:2000])


def test_the_comparison_sees_one_code(nets: Any, tmp_path: Path) -> None:
    done = op_program.run(tmp_path, [work(nets, "dense", s) for s in range(3)], spoil=1)
    assert done.returncode == 1
    assert "net 1: 1 of 6 inputs differ" in done.stdout
