"""Does this host's ONNX Runtime saturate 16-bit sums, and would a given layer notice? (artefact_audit 3.5)

A probe is a one-layer QDQ file that ends in DequantizeLinear: with an int8 graph output ONNX Runtime keeps the layer
off the saturating path and the probe would look clean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.extract import recover
from qunlearn_export.oracle import dequantize, run_layer
from qunlearn_export.runtime import make_session, run
from qunlearn_export.writer import serialize

_SEED = 20260202


@dataclass(frozen=True, kw_only=True)
class Probe:
    """``saturates``: raw sessions differ from the oracle on this host; ``protected``: this project's do not."""

    saturates: bool
    protected: bool
    raw_share: float
    raw_max: int

    def to_json(self) -> dict[str, Any]:
        """Plain mapping."""
        return {
            "saturates": self.saturates,
            "protected": self.protected,
            "raw_share": self.raw_share,
            "raw_max": self.raw_max,
        }


def probe_graph() -> g.Graph:
    """One 3x3 convolution, 16 in and 32 out, weight codes of full range, ReLU, 8 x 8 positions."""
    rng = np.random.default_rng(_SEED)
    x = g.Activation(name="input", shape=(16, 8, 8), scale=np.float32(0.02), zero_point=3)
    y = g.Activation(name="conv.out", shape=(32, 8, 8), scale=np.float32(0.4), zero_point=-128)
    weight = rng.integers(-127, 128, (32, 16, 3, 3)).astype(np.int8)
    weight[0] = 127
    layer = g.Conv(
        name="conv",
        inputs=("input",),
        output="conv.out",
        relu=True,
        weight=weight,
        weight_scale=np.full(32, 0.01, dtype=np.float32),
        bias=rng.integers(-2000, 2000, 32).astype(np.int32),
        strides=(1, 1),
        pads=(1, 1, 1, 1),
        dilations=(1, 1),
    )
    return g.Graph(activations={"input": x, "conv.out": y}, layers=(layer,), input="input", output="conv.out")


def host_saturates() -> Probe:
    """Run the probe raw and protected on this host, at q_max and on random codes."""
    graph = probe_graph()
    rng = np.random.default_rng(_SEED + 1)
    codes = np.concatenate([np.full((1, 16, 8, 8), 127), rng.integers(-128, 128, (7, 16, 8, 8))]).astype(np.int8)
    raw, safe = (compare_layer(graph, graph.layers[0], codes, raw=r) for r in (True, False))
    return Probe(saturates=raw[1] > 0, protected=safe[1] == 0, raw_share=raw[0], raw_max=raw[1])


def layer_vector(graph: g.Graph, layer: g.Conv | g.Gemm | g.MatMul) -> NDArray[np.int8]:
    """Input codes [1, ...] that drive the layer's worst channel: 127 where its weight is positive, else -128."""
    a = graph.activations[layer.inputs[0]]
    w = layer.weight.T if isinstance(layer, g.MatMul) else layer.weight
    worst = int(np.abs(w.reshape(len(w), -1).astype(np.int64)).sum(axis=1).argmax())
    if not isinstance(layer, g.Conv):
        row = np.where(w[worst] > 0, 127, -128).astype(np.int8)
        return np.broadcast_to(row, (1, *a.shape)).copy()
    kernel = w[worst]
    out = np.full((1, *a.shape), -128, dtype=np.int8)
    first = worst // (len(w) // layer.group) * kernel.shape[0]
    full = np.where(kernel > 0, 127, -128).astype(np.int8)
    for i, size in enumerate(a.shape[1:]):
        positions = graph.activations[layer.output].shape[1 + i]
        start = positions // 2 * layer.strides[i] - layer.pads[i]
        taps = (np.arange(size) - start) // layer.dilations[i] % kernel.shape[1 + i]
        full = np.take(full, taps, axis=1 + i)
    out[0, first : first + kernel.shape[0]] = full
    return out


def one_layer(graph: g.Graph, layer: g.AnyLayer) -> g.Graph:
    """The graph that holds only ``layer``, which reads one tensor; that tensor becomes ``input``."""
    source = replace(graph.activations[layer.inputs[0]], name="input")
    alone = replace(layer, inputs=("input",) * len(layer.inputs))
    keep = {"input": source, layer.output: graph.activations[layer.output]}
    return g.Graph(activations=keep, layers=(alone,), input="input", output=layer.output, meta=graph.meta)


def compare_layer(
    graph: g.Graph, layer: g.AnyLayer, codes: NDArray[np.int8], *, level: str = "all", raw: bool = False
) -> tuple[float, int]:
    """(share of outputs that differ, largest difference in LSB) of a one-layer session against the oracle."""
    got, want = session_layer(graph, layer, codes, level=level, raw=raw), run_layer(graph, layer, codes)
    d = np.abs(got.astype(np.int64) - want.astype(np.int64))
    return float((d != 0).mean()), int(d.max(initial=0))


def session_layer(
    graph: g.Graph, layer: g.AnyLayer, codes: NDArray[np.int8], *, level: str = "all", raw: bool = False
) -> NDArray[np.int8]:
    """Output codes of a one-layer QDQ session, read back from its dequantized output."""
    single = one_layer(graph, layer)
    a, out = single.activations[single.input], single.activations[single.output]
    real = run(make_session(serialize(single), level=level, raw=raw), dequantize(codes, a))["logits"]
    return recover(real, out)
