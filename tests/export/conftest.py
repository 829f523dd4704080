"""Integer networks for the tests of this room: one random layer of every operator, and one small whole network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import bundle_cases
import numpy as np
import pytest
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.shapes import output_shape

F32 = np.float32
CONVS = ("dense", "depthwise", "grouped", "multiplier", "asymmetric", "strided", "dilated", "one_d")
LINEAR = ("gemm", "matmul2", "matmul3", "matmul4")
POOLS = ("maxpool", "average_inside", "average_all", "global_average", "maxpool_1d")
OTHERS = ("add", "concat", "requant", "flatten", "reshape")


@dataclass(frozen=True)
class Case:
    """A graph whose last layer is the one under test, and input codes for it by activation name."""

    graph: g.Graph
    layer: g.AnyLayer
    codes: dict[str, NDArray[np.int8]]

    @property
    def inputs(self) -> list[NDArray[np.int8]]:
        return [self.codes[n] for n in self.layer.inputs]


class Nets:
    """Builders of graphs."""

    kinds = CONVS + LINEAR + POOLS + OTHERS

    def act(self, name: str, shape: tuple[int, ...], scale: float, zero: int, bits: int = 8) -> g.Activation:
        return g.Activation(name=name, shape=shape, scale=F32(scale), zero_point=zero, bits=bits)

    def graph(self, start: g.Activation, *steps: tuple[g.AnyLayer, float, int], **meta: Any) -> g.Graph:
        """Shapes follow from the layers; a step is (layer, output scale, output zero point)."""
        acts = {start.name: start}
        for layer, scale, zero in steps:
            shape = output_shape(layer, [acts[n].shape for n in layer.inputs])
            acts[layer.output] = self.act(layer.output, shape, scale, zero)
        layers = tuple(s[0] for s in steps)
        facts = {"task": "classification", "preprocess": {}, "weight_bits": 8, "weight_range": "8bit", **meta}
        return g.Graph(activations=acts, layers=layers, input=start.name, output=layers[-1].output, meta=facts)

    def random(self, kind: str, rng: np.random.Generator) -> Case:
        """One layer of that kind with random shape, codes, scales and clamp."""
        scale, zero = float(rng.uniform(0.005, 0.05)), int(rng.integers(-128, 128))
        out_scale = float(rng.uniform(0.005, 0.05))
        clamp, out_zero = _clamp(rng, out_scale, always=kind == "requant")
        common = {"name": "op", "inputs": ("input",), "output": "op.out", **clamp}
        if kind in CONVS + LINEAR:
            layer, shape = _weighted(kind, rng, common)
            fan_in = layer.weight.size / len(layer.weight_scale)
            out_scale = float(scale * layer.weight_scale.mean() * 90 * 73 * np.sqrt(fan_in) / 60)
            if layer.clip is not None:
                layer = replace(layer, clip=F32(out_scale * rng.integers(20, 250)))
        else:
            layer, shape, keeps = _unweighted(kind, rng, common)
            if keeps:
                out_scale, out_zero = scale, zero
        start = self.act("input", shape, scale, zero)
        if kind not in ("add", "concat"):
            graph = self.graph(start, (layer, out_scale, out_zero))
            codes = {"input": _codes(rng, shape)}
            return Case(graph, layer, codes)
        steps: list[tuple[g.AnyLayer, float, int]] = []
        for name in ("left", "right"):
            one = {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 0, 0, 0)}
            step = g.AveragePool(name=name, inputs=("input",), output=f"{name}.out", **one)
            steps.append((step, float(rng.uniform(0.005, 0.05)), int(rng.integers(-128, 128))))
        graph = self.graph(start, *steps, (layer, out_scale, out_zero))
        codes = {n: _codes(rng, shape) for n in layer.inputs}
        return Case(graph, layer, codes)

    def tiny(self, seed: int = 0, **meta: Any) -> g.Graph:
        """Twelve layers: stem, depthwise, 1x1, residual Add, pools, Concat, head; input [2, 8, 8], 5 logits."""
        rng = np.random.default_rng(seed)

        def conv(name: str, source: str, shape: tuple[int, ...], scale_in: float, **kw: Any) -> tuple[Any, float, int]:
            weight = rng.integers(-127, 128, shape).astype(np.int8)
            weight_scale = rng.uniform(0.002, 0.01, shape[0]).astype(F32)
            bias = rng.integers(-3000, 3000, shape[0]).astype(np.int32)
            scale = scale_in * 0.006 * 73 * 73 * float(np.sqrt(np.prod(shape[1:]))) / 60
            kw = {"pads": (0, 0, 0, 0), "strides": (1, 1), "dilations": (1, 1), "group": 1, "relu": True} | kw
            if kw.pop("clipped", False):
                kw["clip"] = F32(scale * 200)
            head = {"name": name, "inputs": (source,), "output": f"{name}.out", "weight": weight, "bias": bias}
            if len(shape) == 2:
                return g.Gemm(**head, weight_scale=weight_scale), scale, 5
            return g.Conv(**head, weight_scale=weight_scale, **kw), scale, -128 if kw["relu"] else 3

        one = (1, 1, 1, 1)
        c1 = conv("conv1", "input", (8, 2, 3, 3), 0.02, pads=one)
        dw = conv("dw", "conv1.out", (8, 1, 3, 3), c1[1], pads=one, group=8)
        pw = conv("pw", "dw.out", (8, 8, 1, 1), dw[1], relu=False)
        s_add = float(max(c1[1], pw[1]) * 1.37)
        add = (g.Add(name="add", inputs=("conv1.out", "pw.out"), output="add.out", relu=True), s_add, -128)
        window = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}
        pool = (g.MaxPool(name="pool", inputs=("add.out",), output="pool.out", **window), s_add, -128)
        side = conv("side", "pool.out", (4, 8, 1, 1), s_add)
        s_cat = float(max(side[1], s_add) * 1.13)
        cat = (g.Concat(name="cat", inputs=("pool.out", "side.out"), output="cat.out"), s_cat, -128)
        down = conv("down", "cat.out", (12, 12, 3, 3), s_cat, strides=(2, 2), pads=(0, 0, 1, 1), clipped=True)
        mean = {"kernel": (3, 3), "strides": (1, 1), "pads": one}
        avg = (g.AveragePool(name="avg", inputs=("down.out",), output="avg.out", **mean), down[1] * 0.71717, -128)
        gap = (g.GlobalAveragePool(name="gap", inputs=("avg.out",), output="gap.out"), down[1] * 0.47313, -128)
        flat = (g.Flatten(name="flat", inputs=("gap.out",), output="flat.out"), gap[1], -128)
        fc = conv("fc", "flat.out", (5, 12), gap[1])
        start = self.act("input", (2, 8, 8), 0.02, 3)
        return self.graph(start, c1, dw, pw, add, pool, side, cat, down, avg, gap, flat, fc, **meta)

    def inputs(self, graph: g.Graph, n: int, seed: int = 0) -> NDArray[np.float32]:
        """Float inputs [n, ...] that cover the input's range."""
        a = graph.activations[graph.input]
        codes = np.random.default_rng([seed, 9]).integers(-128, 128, (n, *a.shape))
        return ((codes - a.zero_point) * a.scale).astype(F32)

    def with_scale(self, graph: g.Graph, name: str, scale: float | np.float32) -> g.Graph:
        """The graph with another scale on one activation."""
        acts = {**graph.activations, name: replace(graph.activations[name], scale=F32(scale))}
        return replace(graph, activations=acts)

    def with_layer(self, graph: g.Graph, which: str, /, **changes: Any) -> g.Graph:
        """The graph with fields of one layer replaced."""
        layers = tuple(replace(one, **changes) if one.name == which else one for one in graph.layers)
        return replace(graph, layers=layers)


def _codes(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int8]:
    return rng.integers(-128, 128, (2, *shape)).astype(np.int8)


def _clamp(rng: np.random.Generator, scale: float, *, always: bool) -> tuple[dict[str, Any], int]:
    which = int(rng.integers(int(always), 3))
    if which == 0:
        return {}, int(rng.integers(-128, 128))
    return {"relu": True, "clip": F32(scale * rng.integers(20, 250)) if which == 2 else None}, -128


def _weighted(kind: str, rng: np.random.Generator, common: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    def draw(lo: int, hi: int) -> int:
        return int(rng.integers(lo, hi + 1))

    def codes(shape: tuple[int, ...], k: int) -> dict[str, Any]:
        bias = rng.integers(-4000, 4000, k).astype(np.int32) if rng.random() < 0.8 else None
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        return {"weight": weight, "weight_scale": rng.uniform(0.001, 0.01, k).astype(F32), "bias": bias}

    if kind in LINEAR:
        d, k = draw(1, 12), draw(1, 6)
        if kind == "gemm":
            return g.Gemm(**common, **codes((k, d), k)), (d,)
        lead = tuple(draw(1, 3) for _ in range(int(kind[-1]) - 2))
        return g.MatMul(**common, **codes((d, k), k)), (*lead, d)
    group, per, each = 1, draw(1, 4), draw(1, 5)
    if kind == "depthwise":
        group, per, each = draw(2, 5), 1, 1
    elif kind == "multiplier":
        group, per, each = draw(2, 4), 1, 2
    elif kind == "grouped":
        group, per, each = draw(2, 3), draw(2, 3), draw(1, 3)
    r = 1 if kind == "one_d" else 2
    kernel = tuple(draw(1, 3) for _ in range(r))
    strides = tuple(draw(1, 3) if kind in ("strided", "one_d") else 1 for _ in range(r))
    dilations = tuple(draw(2, 3) if kind == "dilated" else 1 for _ in range(r))
    pads = tuple(draw(0, 2) for _ in range(2 * r)) if kind in ("asymmetric", "one_d") else (draw(0, 1),) * (2 * r)
    spatial = tuple(dilations[i] * (kernel[i] - 1) + draw(1, 5) for i in range(r))
    layer = g.Conv(
        **common,
        **codes((group * each, per, *kernel), group * each),
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=group,
    )
    return layer, (group * per, *spatial)


def _unweighted(kind: str, rng: np.random.Generator, common: dict[str, Any]) -> tuple[Any, tuple[int, ...], bool]:
    """The layer, its input shape, and whether scale and zero point are kept."""
    shape = (int(rng.integers(1, 4)), int(rng.integers(3, 8)), int(rng.integers(3, 8)))
    plain = {k: common[k] for k in ("name", "inputs", "output")}
    two = {**common, "inputs": ("left.out", "right.out")}
    if kind in ("maxpool", "average_inside", "average_all", "maxpool_1d"):
        r = 1 if kind == "maxpool_1d" else 2
        kernel = tuple(int(rng.integers(1, 4)) for _ in range(r))
        window = {
            "kernel": kernel,
            "strides": tuple(int(rng.integers(1, 3)) for _ in range(r)),
            "pads": tuple(int(rng.integers(0, k)) for k in (*kernel, *kernel)),
        }
        shape = shape[: 1 + r]
        if kind.startswith("maxpool"):
            return g.MaxPool(**plain, **window), shape, True
        return g.AveragePool(**common, **window, count_include_pad=kind == "average_all"), shape, False
    if kind == "flatten":
        return g.Flatten(**plain), shape, True
    if kind == "reshape":
        return g.Reshape(**plain, shape=(shape[1], shape[0] * shape[2])), shape, True
    layers = {"add": g.Add, "concat": g.Concat, "requant": g.Requant, "global_average": g.GlobalAveragePool}
    return layers[kind](**(two if kind in ("add", "concat") else common)), shape, False


@pytest.fixture(scope="session")
def nets() -> Nets:
    """The graph builders."""
    return Nets()


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a fresh interpreter: ``python(code, PYTHONHASHSEED="1")``."""

    def go(code: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
        )

    return go


@pytest.fixture(scope="session")
def world(nets: Nets) -> bundle_cases.World:
    """Two small networks, their results and forget samples: enough for a bundle."""
    base = nets.tiny(seed=3)
    return bundle_cases.make(base, bundle_cases.unlearned(base))
