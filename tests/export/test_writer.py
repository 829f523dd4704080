"""The file: read back bit for bit, byte-stable, named and sized as written (acceptance 6; traps 10 and 13)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qunlearn_export import graph as g
from qunlearn_export import reader, writer
from qunlearn_export.errors import ConfigError, UnsupportedError, VerificationError

# changes only when the format, the fixture or the protobuf major version changes
GOLDEN = {
    "float": "4754b2ea2aca4a1dba76e51450e73499eaa8e8348e081e1540014027287e9cfc",
    "int8": "5d501f7ad38da0e2b1b0274fc0b1783011a981575314572d872cd1e74c50e40e",
}


def same(a: g.Graph, b: g.Graph) -> None:
    assert (a.input, a.output) == (b.input, b.output)
    assert dict(a.activations) == dict(b.activations)
    assert len(a.layers) == len(b.layers)
    for one, two in zip(a.layers, b.layers, strict=True):
        assert type(one) is type(two)
        for field in dataclasses.fields(one):
            x, y = getattr(one, field.name), getattr(two, field.name)
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
            else:
                assert x == y, (one.name, field.name)
    assert dict(a.meta) == dict(b.meta)


@pytest.mark.parametrize("io", ["float", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_read_inverts_write(nets: Any, seed: int, io: str) -> None:
    preprocess = {"mean": [0.5], "std": [0.25], "layout": "NCHW"}
    graph = nets.tiny(seed, preprocess=preprocess, weight_bits=8, labels=["yes", "no", "up", "on", "off"])
    back = reader.read(writer.serialize(graph, io=io))
    same(graph, back)
    assert back.codes_digest() == graph.codes_digest()


@pytest.mark.parametrize(
    "kind", ["one_d", "matmul2", "matmul3", "matmul4", "reshape", "requant", "maxpool_1d", "dilated"]
)
def test_read_inverts_write_for_every_kind(nets: Any, kind: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        case = nets.random(kind, rng)
        layer = case.layer
        if layer.clip is not None:  # clip implies relu; only the pair is written
            layer = dataclasses.replace(layer, relu=True)
        graph = dataclasses.replace(case.graph, layers=(layer,))
        same(graph, reader.read(writer.serialize(graph)))


@pytest.mark.parametrize("bits", [2, 4])
def test_bits_of_an_activation_survive(nets: Any, bits: int) -> None:
    graph = nets.tiny()
    scale = graph.activations["conv1.out"].scale
    graph = nets.with_layer(graph, "conv1", clip=np.float32(2**bits - 1) * scale)
    acts = {**graph.activations, "conv1.out": dataclasses.replace(graph.activations["conv1.out"], bits=bits)}
    same(dataclasses.replace(graph, activations=acts), reader.read(writer.serialize(graph)))


SCRIPT = """
import importlib.util, hashlib, sys
sys.path.insert(0, {path!r}.rpartition("/")[0])
spec = importlib.util.spec_from_file_location("nets", {path!r})
module = importlib.util.module_from_spec(spec)
sys.modules["nets"] = module
spec.loader.exec_module(module)
from qunlearn_export import writer
for io in ("float", "int8"):
    print(hashlib.sha256(writer.serialize(module.Nets().tiny(preprocess={{"b": 1, "a": 2}}), io=io)).hexdigest())
"""


def test_bytes_do_not_depend_on_the_process(nets: Any, python: Callable[..., Any]) -> None:
    code = SCRIPT.format(path=str(Path(__file__).with_name("conftest.py")))
    found = []
    for seed in ("0", "1"):
        done = python(code, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found[0] == found[1]
    junk = [{str(i): object()} for i in range(1000)]
    here = [writer.serialize(nets.tiny(preprocess={"a": 2, "b": 1}), io=io) for io in ("float", "int8")]
    assert [hashlib.sha256(b).hexdigest() for b in here] == found[0], len(junk)


@pytest.mark.parametrize("io", ["float", "int8"])
def test_golden_digest(nets: Any, io: str) -> None:
    assert hashlib.sha256(writer.serialize(nets.tiny(7), io=io)).hexdigest() == GOLDEN[io]


def test_versions_names_and_metadata(nets: Any) -> None:
    model = writer.to_model(nets.tiny())
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert (model.producer_name, model.producer_version, model.model_version, model.domain) == ("qunlearn", "1", 1, "")
    keys = [p.key for p in model.metadata_props]
    want = ["activation", "codes_digest", "format", "preprocess", "rounding", "task", "weight_bits", "weight_range"]
    assert keys == [f"qunlearn.{k}" for k in want]
    props = {p.key: p.value for p in model.metadata_props}
    assert props["qunlearn.format"] == "int8-qdq/1"
    assert props["qunlearn.rounding"] == "half-even-f32"
    assert props["qunlearn.codes_digest"] == nets.tiny().codes_digest()
    names = {t.name for t in model.graph.initializer}
    parts = ("weight", "weight_scale", "weight_zp", "bias", "bias_scale", "bias_zp", "out_scale", "out_zp")
    assert {f"conv1.{part}" for part in parts} <= names
    nodes = {n.name for n in model.graph.node}
    assert {"conv1/conv", "conv1/relu", "conv1/q", "conv1/dq.dw", "conv1/dq.add", "pw/dq.add.1"} <= nodes
    assert len(nodes) == len(model.graph.node)
    assert not (names & {i.name for i in model.graph.input})
    assert all(t.HasField("raw_data") for t in model.graph.initializer)
    everything = [*names, *nodes, *(o for n in model.graph.node for o in n.output)]
    assert all(n.isascii() and len(n) <= 128 for n in everything)
    assert not any(n.doc_string for n in model.graph.node)
    assert not model.graph.doc_string + model.doc_string
    inside = {o for n in model.graph.node for o in n.output} - {"logits"}
    assert {v.name for v in model.graph.value_info} == inside


def test_labels_only_when_given(nets: Any) -> None:
    without = writer.serialize(nets.tiny())
    assert b"labels" not in without
    assert b'["a","b"]' in writer.serialize(nets.tiny(labels=["a", "b"]))


def test_ends(nets: Any) -> None:
    for io, kind in (("float", onnx.TensorProto.FLOAT), ("int8", onnx.TensorProto.INT8)):
        graph = writer.to_model(nets.tiny(), io=io).graph
        assert [v.name for v in (*graph.input, *graph.output)] == ["input", "logits"]
        for value, dims in ((graph.input[0], [0, 2, 8, 8]), (graph.output[0], [0, 5])):
            assert value.type.tensor_type.elem_type == kind
            assert [d.dim_value for d in value.type.tensor_type.shape.dim] == dims
            assert value.type.tensor_type.shape.dim[0].dim_param == "N"
    with pytest.raises(ConfigError, match="io 'int4'"):
        writer.to_model(nets.tiny(), io="int4")


def dscnn(nets: Any) -> g.Graph:
    """The sizes of a keyword-spotting DS-CNN: 64 channels, four separable blocks, 21,888 weight codes."""
    rng = np.random.default_rng(0)
    steps: list[tuple[Any, float, int]] = []

    def conv(name: str, shape: tuple[int, ...], **kw: Any) -> None:
        source = steps[-1][0].output if steps else "input"
        kw = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "relu": True, **kw}
        k = shape[0]
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        codes = {"weight": weight, "weight_scale": np.full(k, 0.003, np.float32), "bias": np.zeros(k, np.int32)}
        steps.append((g.Conv(name=name, inputs=(source,), output=f"{name}.out", **codes, **kw), 0.05, -128))

    conv("stem.0", (64, 1, 10, 4), strides=(2, 2), pads=(4, 1, 5, 2))
    for i in range(4):
        conv(f"blocks.{i}.0.0", (64, 1, 3, 3), pads=(1, 1, 1, 1), group=64)
        conv(f"blocks.{i}.1.0", (64, 64, 1, 1))
    steps.append((g.GlobalAveragePool(name="pool", inputs=(steps[-1][0].output,), output="pool.out"), 0.0213, -128))
    steps.append((g.Flatten(name="flatten", inputs=("pool.out",), output="flatten.out"), 0.0213, -128))
    head = {"weight": rng.integers(-127, 128, (10, 64)).astype(np.int8), "bias": np.zeros(10, np.int32)}
    scale = np.full(10, 0.003, np.float32)
    steps.append((g.Gemm(name="head", inputs=("flatten.out",), output="head.out", weight_scale=scale, **head), 0.1, 0))
    return nets.graph(nets.act("input", (1, 49, 10), 0.02, 0), *steps)


def test_file_is_hardly_larger_than_its_codes(nets: Any, tmp_path: Path) -> None:
    graph = dscnn(nets)
    codes = sum(layer.weight.size for layer in graph.weighted())
    assert codes == 21_888
    report = writer.export(graph, tmp_path / "m.onnx")
    assert report.n_bytes <= 1.3 * codes + 16_384
    assert report.warnings == ()
    small = writer.export(nets.tiny(), tmp_path / "small.onnx")
    assert small.n_bytes == (tmp_path / "small.onnx").stat().st_size


def test_export_reports(nets: Any, tmp_path: Path) -> None:
    graph, path = nets.tiny(), tmp_path / "m.onnx"
    report = writer.export(graph, path)
    data = path.read_bytes()
    assert data == writer.serialize(graph)
    assert report.file_digest == hashlib.sha256(data).hexdigest()
    assert report.codes_digest == graph.codes_digest()
    assert (report.path, report.n_bytes) == (path, len(data))
    again = writer.export(nets.tiny(), tmp_path / "n.onnx", io="int8")
    assert again.codes_digest == report.codes_digest
    assert again.file_digest != report.file_digest


def test_export_refuses_and_writes_nothing(nets: Any, tmp_path: Path) -> None:
    graph, path = nets.tiny(), tmp_path / "m.onnx"
    with pytest.raises(ConfigError, match="form 'qoperator' is unknown"):
        writer.export(graph, path, form="qoperator")
    broken = nets.with_layer(graph, "fc", bias=np.full(5, 2**31 - 1, np.int32))
    with pytest.raises(VerificationError, match="D1 fc"):
        writer.export(broken, path)
    tied = graph
    for name in ("avg.out", "gap.out", "flat.out"):
        tied = nets.with_scale(tied, name, 0.02)
    with pytest.raises(VerificationError, match="gap"):
        writer.export(tied, path)
    with pytest.raises(ConfigError, match="cannot write"):
        writer.export(graph, tmp_path / "absent" / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    report = writer.export(tied, path, tie_limit=0.1)
    assert [t.layer for t in report.ties] == ["gap"]


def test_what_cannot_be_written_is_listed_at_once(nets: Any) -> None:
    graph = nets.tiny()
    bad = nets.with_layer(nets.with_layer(graph, "pool", pads=(2, 0, 0, 0)), "conv1", name="input")
    with pytest.raises(UnsupportedError, match="pool: pads") as caught:
        writer.serialize(bad)
    assert "input: a layer name is taken" in str(caught.value)
    assert caught.value.remedy
    plain = g.Requant(name="op", inputs=("input",), output="op.out", relu=True)
    start = nets.act("input", (3,), 0.02, 0)
    lone = nets.graph(start, (plain, 0.03, -128))
    writer.serialize(lone)
    with pytest.raises(UnsupportedError, match="change of scale alone"):
        writer.serialize(nets.with_layer(lone, "op", relu=False))
    with pytest.raises(UnsupportedError, match="not computed before"):
        writer.serialize(dataclasses.replace(graph, layers=graph.layers[::-1], output="conv1.out"))
    with pytest.raises(UnsupportedError, match="last layer"):
        writer.serialize(dataclasses.replace(graph, output="gap.out"))
    long = nets.with_layer(graph, "fc", name="x" * 61)
    with pytest.raises(UnsupportedError, match="60 characters"):
        writer.serialize(long)
