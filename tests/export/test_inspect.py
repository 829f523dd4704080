"""What a file is called (acceptance 10; R8): our two ends, float, fake-quant only, foreign, truncated, too large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qunlearn_export import coverage, writer
from qunlearn_export import inspect as inspection
from qunlearn_export.errors import ArtefactError
from qunlearn_export.inspect import inspect


def foreign(nodes: list[onnx.NodeProto], **constants: Any) -> bytes:
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])
    sink = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    inits = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [source], [sink], inits), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return bytes(model.SerializeToString())


def node(op: str, inputs: str, out: str, **kw: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [out], **kw)


FLOAT_WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
CODES = np.arange(-60, 60, 10, dtype=np.int8).reshape(4, 3)
GRID = {"s": np.float32(0.02), "z": np.int8(0)}
ENDS = [node("QuantizeLinear", "input s z", "xq"), node("DequantizeLinear", "xq s z", "x")]

FILES: dict[str, tuple[str, bytes]] = {
    "float": ("float", foreign([node("MatMul", "input w", "logits")], w=FLOAT_WEIGHT)),
    "fake-quantized weights": (
        "fake-quant only",
        foreign(
            [
                *ENDS,
                node("QuantizeLinear", "w s z", "wq"),
                node("DequantizeLinear", "wq s z", "wf"),
                node("MatMul", "x wf", "logits"),
            ],
            w=FLOAT_WEIGHT,
            **GRID,
        ),
    ),
    "quantized activations beside float weights": (
        "fake-quant only",
        foreign([*ENDS, node("MatMul", "x w", "logits")], w=FLOAT_WEIGHT, **GRID),
    ),
    "weight only": (
        "int8 weight-only",
        foreign([node("DequantizeLinear", "w s z", "wf"), node("MatMul", "input wf", "logits")], w=CODES, **GRID),
    ),
    "int8 by others": (
        "int8-qdq",
        foreign([*ENDS, node("DequantizeLinear", "w s z", "wf"), node("MatMul", "x wf", "logits")], w=CODES, **GRID),
    ),
    "int8 and float layers": (
        "int8 weight-only",
        foreign(
            [
                *ENDS,
                node("DequantizeLinear", "w s z", "wf"),
                node("MatMul", "x wf", "h"),
                node("MatMul", "h v", "logits"),
            ],
            w=CODES,
            v=np.eye(3, dtype=np.float32),
            **GRID,
        ),
    ),
    "operators beside a float layer": (
        "int8 weight-only",
        foreign(
            [
                ENDS[0],
                node("QLinearMatMul", "xq s z w s z s z", "yq"),
                node("DequantizeLinear", "yq s z", "h"),
                node("MatMul", "h v", "logits"),
            ],
            w=CODES,
            v=np.eye(3, dtype=np.float32),
            **GRID,
        ),
    ),
    "operators on weights that are float on disk": (
        "fake-quant only",
        foreign(
            [
                ENDS[0],
                node("QuantizeLinear", "w s z", "wq"),
                node("QLinearMatMul", "xq s z wq s z s z", "yq"),
                node("DequantizeLinear", "yq s z", "logits"),
            ],
            w=FLOAT_WEIGHT,
            **GRID,
        ),
    ),
    "operators": (
        "int8-qop",
        foreign(
            [
                ENDS[0],
                node("QLinearMatMul", "xq s z w s z s z", "yq"),
                node("DequantizeLinear", "yq s z", "logits"),
            ],
            w=CODES,
            **GRID,
        ),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_label_of_files_of_others(name: str) -> None:
    label, data = FILES[name]
    found = inspect(data)
    assert found.label == label
    assert found.is_int8 == label.startswith("int8-q")
    assert found.loads, found.load_error
    assert (found.codes_digest, found.findings) == ("", ())
    assert f"label      {label}" in found.render()


@pytest.mark.parametrize("io", ["float", "int8"])
def test_our_file(nets: Any, tmp_path: Path, io: str) -> None:
    graph = nets.tiny()
    path = tmp_path / "m.onnx"
    writer.export(graph, path, io=io)
    found = inspect(path)
    assert found.label == "int8-qdq"
    assert found.is_int8
    assert found.loads
    assert found.findings == ()
    assert found.codes_digest == graph.codes_digest()
    assert found.n_bytes == path.stat().st_size
    assert (found.ir_version, found.opsets) == (8, ("ai.onnx 17",))
    weights = sum(layer.weight.size + len(layer.weight_scale) for layer in graph.weighted())
    assert found.dtypes["int8"] == weights + 13  # and one zero point per tensor
    assert found.dtypes["int32"] == 8 * sum(len(layer.weight_scale) for layer in graph.weighted())
    assert found.ops["Conv"] == 5
    assert found.coverage is not None
    assert 0 < found.coverage.integer <= found.coverage.total == 6
    assert found.coverage.macs is not None
    assert 0 < found.coverage.macs <= 1
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["coverage"]["total"] == 6
    text = found.render()
    assert "of 6 nodes" in text
    assert "use 8 bits" in text


def unsigned_operators() -> bytes:
    wide = {**GRID, "z": np.uint8(128), "zw": np.int8(0)}
    nodes = [
        ENDS[0],
        node("QLinearMatMul", "xq s z w s zw s z", "yq"),
        node("DequantizeLinear", "yq s z", "logits"),
    ]
    return foreign(nodes, w=(CODES * 2).astype(np.int8), **wide)


def test_seven_bits_and_static_saturation_rule(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import qunlearn_export.inspect as module

    graph = nets.tiny()
    small = graph
    for layer in graph.weighted():
        small = nets.with_layer(small, layer.name, weight=(layer.weight // 2).astype(np.int8))
    monkeypatch.setattr(module, "is_x86", lambda: True)
    for flags, saturates in ((("avx2",), True), (("avx2", "avx512_vnni"), False)):
        monkeypatch.setattr(module, "cpu_flags", lambda flags=flags: flags)
        wide, narrow = inspect(writer.serialize(graph)), inspect(writer.serialize(small))
        assert (wide.seven_bit, wide.may_saturate) == (False, saturates)
        assert (narrow.seven_bit, narrow.may_saturate) == (True, False)
        # operators on int8 activations add exactly in every session; on uint8 activations they do not
        assert not inspect(writer.serialize(graph, form="qop")).may_saturate
        assert inspect(unsigned_operators()).may_saturate is saturates


def test_findings_of_a_changed_file_of_ours(nets: Any) -> None:
    model = writer.to_model(nets.tiny())
    next(p for p in model.metadata_props if p.key == "qunlearn.codes_digest").value = "00"
    found = inspect(model.SerializeToString())
    assert [f.code for f in found.findings] == ["S13"]
    assert "S13 metadata" in found.render()


def test_unreadable_files(nets: Any, tmp_path: Path) -> None:
    data = writer.serialize(nets.tiny())
    for junk in (data[: len(data) // 2], b"", b"not a model"):
        with pytest.raises(ArtefactError):
            inspect(junk)
    with pytest.raises(ArtefactError, match="cannot read"):
        inspect(tmp_path / "absent.onnx")
    large = tmp_path / "large.onnx"
    with large.open("wb") as f:
        f.truncate(300 * 2**20)
    with pytest.raises(ArtefactError, match="314572800 bytes, more than 268435456"):
        inspect(large)
    assert ArtefactError.exit_code == 2


def test_a_file_that_does_not_load_is_described() -> None:
    found = inspect(foreign([node("NoSuchOperator", "input", "logits")]))
    assert not found.loads
    assert "NoSuchOperator" in found.load_error
    assert found.label == "float"
    assert "loads      no" in found.render()


def test_a_cycle_of_nodes_does_not_hang() -> None:
    model = onnx.load_from_string(
        foreign([node("Reshape", "loop shape", "loop"), node("MatMul", "input loop", "logits")])
    )
    found = inspect(model.SerializeToString())
    assert (found.label, found.loads) == ("float", False)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime reads the path itself, after the digest was taken."""
    path = tmp_path / "model.ort"
    path.write_bytes(writer.serialize(nets.tiny()))
    assert inspect(path).loads
    other, real = writer.serialize(nets.tiny(seed=1)), coverage.coverage

    def slow(*args: Any, **kw: Any) -> coverage.Coverage:
        path.write_bytes(other)
        return real(*args, **kw)

    monkeypatch.setattr(inspection, "coverage", slow)
    with pytest.raises(ArtefactError, match="changed while it was inspected"):
        inspect(path)
