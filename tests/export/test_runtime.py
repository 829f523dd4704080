"""Sessions of ONNX Runtime against the oracle, their entries, and what runs without torch or onnx (acceptance 2, 9)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qunlearn_export import extract, oracle, runtime
from qunlearn_export.errors import ArtefactError, ConfigError, DataError, UnsupportedError
from qunlearn_export.writer import serialize, to_model

KINDS = (
    *("dense", "depthwise", "grouped", "multiplier", "asymmetric", "strided", "dilated", "one_d"),
    *("gemm", "matmul2", "matmul3", "matmul4", "maxpool", "maxpool_1d", "average_inside", "average_all"),
    *("global_average", "add", "concat", "requant", "flatten", "reshape"),
)
ROUNDED = {"average_inside", "average_all", "global_average", "add"}
COPIED = {"maxpool", "maxpool_1d", "concat", "requant", "flatten", "reshape"}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_sessions_agree_with_the_oracle(nets: Any, kind: str, seed: int) -> None:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    differ = total = 0
    for _ in range(20):
        case = nets.random(kind, rng)
        want = oracle.run_layer(case.graph, case.layer, *case.inputs)
        settings: list[dict[str, object]] = [{"level": "off"}, {"level": "all"}]
        found = extract.run_layer(to_model(case.graph), case.graph, case.layer, case.codes, settings=settings)
        for level, got in zip(("off", "all"), found, strict=True):
            d = np.abs(got.astype(int) - want.astype(int))
            exact = kind in COPIED or (kind not in ROUNDED and level == "all")
            assert d.max() <= (0 if exact else 1), (kind, level, case.layer)
            differ, total = differ + int((d > 0).sum()), total + d.size
    assert differ <= max(1, total // 1000)


@pytest.mark.parametrize("io", ["float", "int8"])
@pytest.mark.parametrize("level", ["off", "extended", "all"])
def test_whole_network_agrees(nets: Any, level: str, io: str) -> None:
    graph = nets.tiny()
    x = nets.inputs(graph, 100)
    run = oracle.Oracle(graph)
    session = runtime.make_session(serialize(graph, io=io), level=level)
    if io == "float":
        got = runtime.run(session, x, batch=33)["logits"]
        d = got / graph.activations[graph.output].scale - run.logits(x) / graph.activations[graph.output].scale
    else:
        d = runtime.run(session, run.quantize(x))["logits"].astype(int) - run.run(x)
    assert np.abs(d).max() < 1.01
    assert (np.abs(d) > 0.5).mean() <= 1e-2


def test_one_file_opens_sessions() -> None:
    """Lint: a session opened elsewhere could miss its entries."""
    found = [
        path.relative_to(ROOT).as_posix()
        for room in ("qunlearn", "export", "kernels", "examples", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"InferenceSession\(", path.read_text())
    ]
    assert found == ["export/qunlearn_export/runtime.py"]


def operator_file(kind: int, *, tag: str = "") -> bytes:
    """A QLinearConv file with activations of type ``kind``."""
    numpy_kind = np.int8 if kind == TensorProto.INT8 else np.uint8
    constants = {
        "s": np.float32(0.02),
        "z": numpy_kind(3),
        "w": np.full((4, 2, 3, 3), 100, np.int8),
        "sw": np.float32(0.01),
        "zw": np.int8(0),
        "sy": np.float32(0.5),
    }
    inits = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "sw", "zw", "sy", "z"], ["y"]),
        helper.make_node("DequantizeLinear", ["y", "sy", "z"], ["logits"]),
    ]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 2, 5, 5])
    sink = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, 3, 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [source], [sink], inits), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    if tag:
        helper.set_model_props(model, {"qunlearn.format": tag})
    return bytes(model.SerializeToString())


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "is_x86", lambda: True)


@pytest.mark.parametrize("level", ["off", "all"])
@pytest.mark.parametrize("tag", ["", "int8-qop/1"])
def test_int8_operator_file_gets_no_entry(x86: None, level: str, tag: str) -> None:
    data = operator_file(TensorProto.INT8, tag=tag)
    assert runtime.session_info(data, level=level).entries == {}
    out = runtime.run(runtime.make_session(data, level=level), np.ones((2, 2, 5, 5), np.float32))
    assert out["logits"].shape == (2, 4, 3, 3)
    with pytest.raises(ConfigError, match="QOperator"):
        runtime.make_session(data, level=level, entries={runtime.PRECISION: "1"})


def test_uint8_operator_file(x86: None) -> None:
    data = operator_file(TensorProto.UINT8)
    assert runtime.session_info(data).entries == {runtime.PRECISION: "1"}
    runtime.make_session(data, level="all")
    with pytest.raises(UnsupportedError, match="not valid at level off"):
        runtime.make_session(data, level="off")


def test_uint8_zero_point_may_be_a_constant_node(x86: None) -> None:
    model = onnx.load_model_from_string(operator_file(TensorProto.UINT8))
    zero = next(t for t in model.graph.initializer if t.name == "z")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["z"], value=zero))
    model.graph.initializer.remove(zero)
    data = bytes(model.SerializeToString())
    assert runtime.classify(data).form == "qop-uint8"
    with pytest.raises(UnsupportedError, match="not valid at level off"):
        runtime.make_session(data, level="off")


@pytest.mark.parametrize("value", [0, "2"])
def test_senseless_numbers_are_refused(nets: Any, value: Any) -> None:
    data = serialize(nets.tiny())
    with pytest.raises(ConfigError, match=f"{value!r} threads are not possible"):
        runtime.make_session(data, threads=value)
    session, x = runtime.make_session(data), np.zeros((1, 2, 8, 8), np.float32)
    with pytest.raises(ConfigError, match=f"a batch of {value!r} rows is not possible"):
        runtime.run(session, x, batch=value)


def test_qdq_file_gets_the_precision_entry(nets: Any, monkeypatch: pytest.MonkeyPatch, x86: None) -> None:
    data = serialize(nets.tiny())
    assert runtime.file_kind(data) == "int8-qdq/1"
    assert runtime.session_info(data).entries == {runtime.PRECISION: "1"}
    assert runtime.session_info(data, raw=True).entries == {}
    session = runtime.make_session(data)
    assert session.get_session_options().get_session_config_entry(runtime.PRECISION) == "1"
    for level in ("off", "all"):
        with pytest.raises(ConfigError, match="exclude each other"):
            runtime.make_session(data, level=level, entries={runtime.SIGNED: "1"})
    monkeypatch.setattr(runtime, "is_x86", lambda: False)
    assert runtime.session_info(data).entries == {}


def test_weight_only_file_gets_both_entries(x86: None) -> None:
    inits = [
        onnx.numpy_helper.from_array(np.ones((4, 3), np.int8), "w"),
        onnx.numpy_helper.from_array(np.float32(0.1), "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"]),
        helper.make_node("MatMul", ["input", "wf"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("input", 4), ("y", 3))]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], inits))
    found = runtime.session_info(model.SerializeToString()).entries
    assert found == {runtime.PRECISION: "1", runtime.MATMULNBITS: "1"}


def test_information_is_complete(nets: Any) -> None:
    info = runtime.session_info(serialize(nets.tiny()), level="off", threads=2).to_json()
    assert set(info) == {"entries", "level", "threads", "version", "cpu", "machine"}
    assert (info["level"], info["threads"]) == ("off", 2)


def test_wrong_use_is_typed(nets: Any, tmp_path: Path) -> None:
    graph = nets.tiny()
    data = serialize(graph)
    session = runtime.make_session(data)
    good = nets.inputs(graph, 2)
    for bad, match in ((good[:, :1], "shape"), (good.astype(np.float64), "float64"), (good * np.nan, "NaN")):
        with pytest.raises(DataError, match=match):
            runtime.run(session, bad)
    with pytest.raises(ConfigError, match="level"):
        runtime.make_session(data, level="most")
    with pytest.raises(ConfigError, match="threads"):
        runtime.make_session(data, threads=0)
    with pytest.raises(UnsupportedError, match="CUDA"):
        runtime.make_session(data, provider="CUDAExecutionProvider")
    with pytest.raises(ArtefactError, match="cannot read"):
        runtime.make_session(tmp_path / "absent.onnx")
    with pytest.raises(ArtefactError, match="does not load"):
        runtime.make_session(data[:-500])
    with pytest.raises(ArtefactError, match="more than 10"):
        runtime.read_bytes(data, max_bytes=10)


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""

WITHOUT_TORCH = """
import importlib, pathlib, qunlearn_export
names = sorted(p.stem for p in pathlib.Path(qunlearn_export.__file__).parent.glob("*.py") if p.stem != "__init__")
for name in names:
    importlib.import_module("qunlearn_export." + name)
from qunlearn_export import writer, oracle, probe, check, reader
graph = probe.probe_graph()
data = writer.serialize(graph)
assert not [f for f in check.static_check(data) if f.level == "error"]
import numpy as np
x = np.zeros((2, 16, 8, 8), np.float32)
assert (oracle.Oracle(reader.read(data)).run(x) == oracle.Oracle(graph).run(x)).all()
assert "torch" not in sys.modules
print(len(names))
"""

WITHOUT_ONNX = """
from qunlearn_export import runtime
import numpy as np
session = runtime.make_session({path!r})
out = runtime.run(session, np.zeros((3, 2, 8, 8), np.float32))["logits"]
assert out.shape == (3, 5), out.shape
assert runtime.session_info({path!r}).version
ours = {{m for m in sys.modules if m.startswith("qunlearn")}}
assert ours == {{"qunlearn_export", "qunlearn_export.runtime", "qunlearn_export.errors"}}, ours
print("ran")
"""


def test_everything_imports_without_torch(python: Callable[..., Any]) -> None:
    done = python(BLOCK.format(blocked={"torch", "brevitas", "qunlearn", "qunlearn_kernels"}) + WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15


def test_device_side_needs_neither_onnx_nor_torch(nets: Any, python: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(serialize(nets.tiny()))
    done = python(BLOCK.format(blocked={"onnx", "torch", "brevitas"}) + WITHOUT_ONNX.format(path=str(path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ran"


def test_the_block_works(python: Callable[..., Any]) -> None:
    done = python(BLOCK.format(blocked={"onnx"}) + "import qunlearn_export.writer")
    assert done.returncode != 0
    assert "onnx is blocked" in done.stderr


def test_a_pipe_or_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ArtefactError, match="regular file"):
            runtime.read_bytes(path)
