"""D1 to D8: one fixture each; a clean network raises none; repairing dead channels moves no logit by more than 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn_export import degenerate as d
from qunlearn_export import graph as g
from qunlearn_export import oracle, runtime, writer
from qunlearn_export.errors import VerificationError


def layer_of(graph: g.Graph, name: str) -> Any:
    return next(one for one in graph.layers if one.name == name)


def first(values: Any, value: float) -> Any:
    out = values.copy()
    out[0] = value
    return out


def wide(nets: Any, n: int, weight: int = 127) -> g.Graph:
    """A Gemm of ``n`` inputs whose sums reach n * weight * 255."""
    layer = g.Gemm(
        name="fc",
        inputs=("input",),
        output="fc.out",
        weight=np.full((2, n), weight, np.int8),
        weight_scale=np.full(2, 1e-3, np.float32),
        bias=np.zeros(2, np.int32),
    )
    return nets.graph(nets.act("input", (n,), 0.02, -128), (layer, 4.0, 0))


def fixture(nets: Any, code: str) -> tuple[g.Graph, g.Graph | None]:
    graph = nets.tiny()
    conv = layer_of(graph, "conv1")
    match code:
        case "D1":
            return nets.with_layer(graph, "conv1", bias=first(conv.bias, 2**31 - 1)), None
        case "D1 warning":
            return nets.with_layer(graph, "conv1", bias=first(conv.bias, -(2**30) - 1)), None
        case "D2":
            return wide(nets, 70_000), None
        case "D3":
            return wide(nets, 700), None
        case "D4":
            return nets.with_layer(graph, "conv1", weight=first(conv.weight, 0)), None
        case "D4 floor":
            return nets.with_layer(graph, "conv1", weight_scale=first(conv.weight_scale, 2.0**-24)), None
        case "D4 median":
            scale = np.full(8, 1e3, np.float32)
            return nets.with_layer(graph, "conv1", weight_scale=first(scale, 1e-4)), None
        case "D5":
            return nets.with_layer(graph, "conv1", weight_scale=first(conv.weight_scale, 1e-12)), None
        case "D5 warning":
            return nets.with_layer(graph, "conv1", weight_scale=first(conv.weight_scale, 1e3)), None
        case "D6":
            return nets.with_scale(graph, "dw.out", 1e-40), None
        case "D6 weight":
            return nets.with_layer(graph, "conv1", weight_scale=first(conv.weight_scale, np.inf)), None
        case "D7":
            return nets.with_layer(graph, "conv1", weight_scale=first(conv.weight_scale, 1e3)), None
        case _:
            return nets.with_layer(graph, "conv1", weight=first(conv.weight, 0)), graph


CASES = {
    "D1": "error",
    "D1 warning": "warning",
    "D2": "error",
    "D3": "warning",
    "D4": "warning",
    "D4 floor": "warning",
    "D4 median": "warning",
    "D5": "error",
    "D5 warning": "warning",
    "D6": "error",
    "D6 weight": "error",
    "D7": "warning",
    "D8": "warning",
}


@pytest.mark.parametrize("case", CASES)
def test_fixture_raises_its_finding(nets: Any, case: str) -> None:
    graph, before = fixture(nets, case)
    found = [f for f in d.degenerate(graph, before) if f.code == case[:2]]
    assert {f.level for f in found} == {CASES[case]}
    assert all(f.where and f.message for f in found)


@pytest.mark.parametrize("seed", range(3))
def test_clean_network_has_no_finding(nets: Any, seed: int) -> None:
    assert d.degenerate(nets.tiny(seed), nets.tiny(seed)) == []


def test_newly_dead_needs_more_than_a_tenth_and_a_change(nets: Any) -> None:
    graph, before = fixture(nets, "D8")
    assert not [f for f in d.degenerate(graph, graph) if f.code == "D8"]
    twelve = layer_of(before, "down")
    one = nets.with_layer(before, "down", weight=first(twelve.weight, 0))
    assert not [f for f in d.degenerate(one, before) if f.code == "D8"], "1 of 12 is not more than 10 %"
    two = nets.with_layer(one, "down", weight=first(first(twelve.weight, 0)[::-1], 0)[::-1])
    assert [f.where for f in d.degenerate(two, before) if f.code == "D8"] == ["down"]


def test_runtimes_agree_on_a_wrong_bias_and_the_check_still_fails(nets: Any, tmp_path: Path) -> None:
    """Parity among runtimes cannot find D1."""
    graph, _ = fixture(nets, "D1")
    data = writer.serialize(graph)
    x = nets.inputs(graph, 32)
    off, full = (runtime.run(runtime.make_session(data, level=v), x)["logits"] for v in ("off", "all"))
    step = float(graph.activations[graph.output].scale)
    assert np.abs(off - full).max() <= 1.001 * step
    with pytest.raises(VerificationError, match="D1 conv1"):
        writer.export(graph, tmp_path / "m.onnx")


def pruned(nets: Any) -> g.Graph:
    """Two channels pruned to zero, with a tiny scale and hence a large bias code, as pruning methods leave them."""
    graph = nets.tiny()
    conv = layer_of(graph, "conv1")
    weight, scale, bias = conv.weight.copy(), conv.weight_scale.copy(), conv.bias.copy()
    real = bias * g.bias_scale(graph.activations["input"].scale, scale).astype(np.float64)
    for k in (1, 4):
        weight[k], scale[k] = 0, 3e-8
        bias[k] = np.rint(real[k] / (float(graph.activations["input"].scale) * 3e-8))
    return nets.with_layer(graph, "conv1", weight=weight, weight_scale=scale, bias=bias)


def test_repair_of_dead_channels(nets: Any, tmp_path: Path) -> None:
    graph = pruned(nets)
    assert "D4" in {f.code for f in d.degenerate(graph)}
    fixed = d.repair_dead(graph)
    conv = layer_of(fixed, "conv1")
    live = np.delete(conv.weight_scale, [1, 4])
    assert conv.weight_scale[1] == conv.weight_scale[4] == np.float32(np.median(live))
    assert not conv.weight[[1, 4]].any()
    x = nets.inputs(graph, 200)
    moved = oracle.Oracle(graph).run(x).astype(int) - oracle.Oracle(fixed).run(x)
    assert np.abs(moved).max() <= 1
    report = writer.export(graph, tmp_path / "m.onnx", repair_dead=True)
    assert report.codes_digest == fixed.codes_digest() != graph.codes_digest()
    assert {f.code for f in report.findings} == {"D4"}


def test_repair_leaves_clean_and_wholly_dead_layers(nets: Any) -> None:
    graph = nets.tiny()
    assert d.repair_dead(graph).codes_digest() == graph.codes_digest()
    dead = nets.with_layer(graph, "fc", weight=np.zeros((5, 12), np.int8))
    assert d.repair_dead(dead).codes_digest() == dead.codes_digest()


def test_repair_works_along_columns_of_matmul(nets: Any) -> None:
    weight = np.full((3, 4), 50, np.int8)
    weight[:, 2] = 0
    scale = np.array([0.01, 0.02, 1e-7, 0.04], np.float32)
    layer = g.MatMul(name="m", inputs=("input",), output="m.out", weight=weight, weight_scale=scale)
    graph = nets.graph(nets.act("input", (3,), 0.02, 0), (layer, 0.1, 0))
    fixed = layer_of(d.repair_dead(graph), "m")
    assert fixed.weight_scale.tolist() == [scale[0], scale[1], np.float32(0.02), scale[3]]
    assert not d.dead_channels(layer)[[0, 1, 3]].any()
