"""Saturation: what an unprepared session does on this host, and what ours does (acceptance 2, trap 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qunlearn_export import coverage, extract, oracle, probe, runtime
from qunlearn_export.writer import to_model


def test_protected_sessions_equal_the_oracle_on_every_host() -> None:
    found = probe.host_saturates()
    assert found.protected
    assert set(found.to_json()) == {"saturates", "protected", "raw_share", "raw_max"}
    assert found.saturates == (found.raw_max > 0) == (found.raw_share > 0)


def test_control_an_unprepared_session_saturates() -> None:
    found = probe.host_saturates()
    if not found.saturates:
        pytest.skip(f"this host does not saturate (CPU flags {' '.join(runtime.cpu_flags())}): no control possible")
    assert found.raw_max > 1


def test_the_probe_ends_in_dequantize() -> None:
    """With an int8 graph output the runtime keeps the layer off the saturating path, and the probe would look clean."""
    model = to_model(probe.probe_graph())
    assert model.graph.node[-1].op_type == "DequantizeLinear"
    assert model.graph.node[0].op_type == "QuantizeLinear"
    data, _ = extract.layer_model(model, "conv")
    small = onnx.load_from_string(data)
    assert [n.op_type for n in (small.graph.node[0], small.graph.node[-1])] == ["QuantizeLinear", "DequantizeLinear"]


def test_the_probe_has_no_clipped_blindness() -> None:
    """Its outputs must not all sit at the clamps, or saturation could not be seen."""
    graph = probe.probe_graph()
    codes = np.random.default_rng(0).integers(-128, 128, (4, 16, 8, 8)).astype(np.int8)
    out = oracle.run_layer(graph, graph.layers[0], codes)
    assert len(np.unique(out)) > 100
    assert ((out > -128) & (out < 127)).mean() > 0.2


@pytest.mark.parametrize("kind", ["dense", "depthwise", "grouped", "multiplier", "asymmetric", "strided", "dilated"])
def test_vector_drives_the_worst_channel_as_far_as_codes_can(nets: Any, kind: str) -> None:
    """Some output of the worst channel reaches sum |w| at full scale, wherever a whole window is inside the image."""
    rng = np.random.default_rng(4)
    reached = 0
    for _ in range(20):
        case = nets.random(kind, rng)
        layer = case.layer
        vector = probe.layer_vector(case.graph, layer)
        assert vector.shape == (1, *case.graph.activations["input"].shape)
        acc = oracle._conv(layer, vector, 0) - (0 if layer.bias is None else layer.bias.reshape(1, -1, 1, 1))
        w = layer.weight.astype(np.int64).reshape(len(layer.weight), -1)
        worst = int(np.abs(w).sum(axis=1).argmax())
        most = int((w[worst] * np.where(w[worst] > 0, 127, -128)).sum())
        assert acc[0, worst].max() <= most
        reached += int(acc[0, worst].max() == most)
    assert reached >= 10


def test_vector_of_linear_layers(nets: Any) -> None:
    rng = np.random.default_rng(4)
    for kind in ("gemm", "matmul2", "matmul3", "matmul4"):
        case = nets.random(kind, rng)
        w = case.layer.weight if kind == "gemm" else case.layer.weight.T
        worst = int(np.abs(w.astype(np.int64)).sum(axis=1).argmax())
        vector = probe.layer_vector(case.graph, case.layer)
        assert vector.shape == (1, *case.graph.activations["input"].shape)
        assert ((vector == 127) == (w[worst] > 0)).all()


def test_every_layer_is_right_at_full_scale(nets: Any) -> None:
    graph = nets.tiny()
    for layer in graph.weighted():
        vector = probe.layer_vector(graph, layer)
        for level in ("off", "all"):
            assert probe.compare_layer(graph, layer, vector, level=level) == (0.0, 0)


def test_coverage_counts_nodes_and_macs(nets: Any) -> None:
    graph = nets.tiny()
    found = coverage.coverage(to_model(graph).SerializeToString(), graph)
    assert found.total == 6
    assert 0 < found.integer <= 6
    assert sum(found.ops[o] for o in found.ops if o in coverage.INTEGER) == found.integer
    cost = {layer.name: coverage.layer_macs(graph, layer) for layer in graph.weighted()}
    assert cost == {
        "conv1": 8 * 2 * 9 * 64,
        "dw": 8 * 9 * 64,
        "pw": 64 * 64,
        "side": 32 * 16,
        "down": 12 * 12 * 9 * 4,
        "fc": 60,
    }
    assert found.macs is not None
    assert (found.macs == 1.0) == (found.integer == 6)
    assert f"{found.integer} of 6 nodes" in found.render()
