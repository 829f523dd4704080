"""Saturation: what an unprepared session does on this host, and what ours does (acceptance 2, trap 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qunlearn_export import coverage, extract, oracle, probe, runtime
from qunlearn_export.writer import serialize, to_model


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


def test_only_the_probe_that_ends_in_dequantize_can_show_saturation() -> None:
    """Trap 1: the same layer with an int8 graph output runs in float in an unprepared session, on every host."""
    graph = probe.probe_graph()
    codes = np.random.default_rng(1).integers(-128, 128, (8, 16, 8, 8)).astype(np.int8)
    want = oracle.run_layer(graph, graph.layers[0], codes)
    blind = runtime.run(runtime.make_session(serialize(graph, io="int8"), raw=True), codes)["logits"]
    d = np.abs(blind.astype(int) - want)
    assert d.max() <= 1
    assert (d > 0).mean() <= 1e-3
    seen = probe.compare_layer(graph, graph.layers[0], codes, raw=True)
    assert (seen[1] > 0) == probe.host_saturates().saturates


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


@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_auxiliary_nodes_include_the_int8_pool(nets: Any, form: str) -> None:
    graph = nets.tiny()
    found = coverage.coverage(serialize(graph, form=form), graph)
    pools = sum(n for op, n in found.ops.items() if op in ("MaxPool", "NhwcMaxPool"))
    assert pools == 1
    names = ("QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConcat")
    others = sum(found.ops.get(o, 0) for o in names)
    # in the QDQ file ONNX Runtime may run this pool on dequantized values, and then it does not count
    assert found.auxiliary - others in ((1,) if form == "qop" else (0, 1))
    assert (found.weight_only, found.to_json()["weight_only"]) == (0, 0)


def weight_only(rng: np.random.Generator, *, grouped: bool) -> tuple[bytes, np.ndarray]:
    """A MatMul [N, 64] x [64, 32] on int8 weights, float input; ``grouped``: a scale for every 16 rows of a column."""
    codes = rng.integers(-127, 128, (64, 32)).astype(np.int8)
    scale = rng.uniform(0.001, 0.01, (32, 4) if grouped else (32,)).astype(np.float32)
    constants = {"w.weight": codes, "w.scale": scale, "w.zp": np.zeros(scale.size, np.int8)}
    nodes = [onnx.helper.make_node("DequantizeLinear", ["w.weight", "w.scale", "w.zp"], ["wf"], axis=1)]
    real = codes.astype(np.float32) * scale if not grouped else np.repeat(scale.T, 16, axis=0) * codes
    if grouped:
        constants |= {"w.weight": codes.T.reshape(128, 16), "w.scale": scale.ravel(), "shape": np.array([32, 64])}
        nodes = [
            onnx.helper.make_node("DequantizeLinear", ["w.weight", "w.scale", "w.zp"], ["a"], axis=0),
            onnx.helper.make_node("Reshape", ["a", "shape"], ["b"]),
            onnx.helper.make_node("Transpose", ["b"], ["wf"], perm=[1, 0]),
        ]
    nodes.append(onnx.helper.make_node("MatMul", ["input", "wf"], ["logits"]))
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["N", k]) for n, k in (("input", 64), ("logits", 32))]
    inits = [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], inits)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString()), real


@pytest.mark.parametrize("grouped", [False, True])
def test_weight_only_products_are_listed_apart_and_stay_exact(grouped: bool) -> None:
    """Trap 12: MatMulNBits is no integer kernel, and with the entry of make_session its input stays float."""
    rng = np.random.default_rng(0)
    data, real = weight_only(rng, grouped=grouped)
    found = coverage.coverage(data)
    assert (found.integer, found.total) == (0, 1)
    assert found.weight_only == found.ops.get("MatMulNBits", 0)
    if found.weight_only:
        assert found.render().endswith(f"; apart from them {found.weight_only} MatMulNBits, not integer")
    x = rng.normal(size=(50, 64)).astype(np.float32)
    got, want = runtime.run(runtime.make_session(data), x)["logits"], x.astype(np.float64) @ real
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    if runtime.is_x86():
        assert runtime.session_info(data).entries[runtime.MATMULNBITS] == "1"
