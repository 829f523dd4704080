"""The QOperator form: read back bit for bit, exact at every level, its own mutations caught (artefact_onnx 2.7)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qunlearn_export import check, codegen, coverage, emit, extract, oracle, parity, reader, runtime, writer
from qunlearn_export import graph as g
from qunlearn_export.errors import ConfigError, UnsupportedError, VerificationError
from qunlearn_export.inspect import inspect

ENDS = ("float", "int8")
ROUNDED = {"average_inside", "average_all", "global_average", "add"}
OPERATORS = {
    *("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool"),
    *("QLinearConcat", "MaxPool", "Clip", "Flatten", "Reshape", "QuantizeLinear", "DequantizeLinear"),
}
# changes only when the format, the fixture or the protobuf major version changes
GOLDEN = {
    "float": "69f03c0b15539830709f74889183a4bf466af2b5b283eef345a0099e3e3f1994",
    "int8": "a985aeb34d338d7c4b6b07901b90f17d8483956f2d3e0d8e72d6271d55e4443d",
}


def same(a: g.Graph, b: g.Graph) -> None:
    """Equal graphs, array by array."""
    assert (a.input, a.output, dict(a.meta)) == (b.input, b.output, dict(b.meta))
    assert dict(a.activations) == dict(b.activations)
    assert [type(x) for x in a.layers] == [type(x) for x in b.layers]
    for one, two in zip(a.layers, b.layers, strict=True):
        for field in dataclasses.fields(one):
            x, y = getattr(one, field.name), getattr(two, field.name)
            assert type(x) is type(y), (one.name, field.name)
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
            else:
                assert x == y, (one.name, field.name)


def written(case: Any) -> g.Graph:
    """A random layer's graph as a file can say it: a Clip implies its Relu."""
    layer = dataclasses.replace(case.layer, relu=case.layer.relu or case.layer.clip is not None)
    graph: g.Graph = dataclasses.replace(case.graph, layers=(*case.graph.layers[:-1], layer))
    return graph


@pytest.mark.parametrize("io", ENDS)
@pytest.mark.parametrize("seed", range(3))
def test_read_inverts_write(nets: Any, seed: int, io: str) -> None:
    graph = nets.tiny(seed, preprocess={"mean": [0.5]}, labels=["a", "b", "c", "d", "e"])
    data = writer.serialize(graph, form="qop", io=io)
    assert check.static_check(data) == []
    back = reader.read(data)
    same(graph, back)
    assert back.codes_digest() == graph.codes_digest() == reader.read(writer.serialize(graph)).codes_digest()


def test_read_inverts_write_for_every_kind(nets: Any) -> None:
    for kind in nets.kinds:
        rng = np.random.default_rng([1, nets.kinds.index(kind)])
        for _ in range(8):
            graph = written(nets.random(kind, rng))
            same(graph, reader.read(writer.serialize(graph, form="qop")))


@pytest.mark.parametrize("bits", [2, 4])
def test_bits_of_an_activation_survive(nets: Any, bits: int) -> None:
    graph = nets.tiny()
    scale = graph.activations["conv1.out"].scale
    graph = nets.with_layer(graph, "conv1", clip=np.float32(2**bits - 1) * scale)
    acts = {**graph.activations, "conv1.out": dataclasses.replace(graph.activations["conv1.out"], bits=bits)}
    same(dataclasses.replace(graph, activations=acts), reader.read(writer.serialize(graph, form="qop")))


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_equals_the_oracle_at_every_level(nets: Any, seed: int) -> None:
    """20 random configurations of every operator: 0 LSB, and for sums of two roundings at most 1 LSB in 0.1 %."""
    for kind in nets.kinds:
        rng = np.random.default_rng([seed, nets.kinds.index(kind)])
        differ = total = 0
        for _ in range(20):
            case = nets.random(kind, rng)
            want = oracle.run_layer(case.graph, case.layer, *case.inputs)
            model = writer.to_model(case.graph, form="qop")
            settings: list[dict[str, object]] = [{"level": v} for v in ("off", "extended", "all")]
            for got in extract.run_layer(model, case.graph, case.layer, case.codes, settings=settings):
                d = np.abs(got.astype(int) - want.astype(int))
                assert d.max() <= (1 if kind in ROUNDED else 0), (kind, case.layer)
                differ, total = differ + int((d > 0).sum()), total + d.size
        assert differ <= total // 1000, kind


@pytest.mark.parametrize("io", ENDS)
def test_whole_network_equals_the_oracle(nets: Any, io: str) -> None:
    for seed in range(3):
        graph = nets.tiny(seed)
        x, run = nets.inputs(graph, 100), oracle.Oracle(graph)
        data = writer.serialize(graph, form="qop", io=io)
        for level in ("off", "extended", "all"):
            session = runtime.make_session(data, level=level)
            got = runtime.run(session, x if io == "float" else run.quantize(x))["logits"]
            np.testing.assert_array_equal(got, run.logits(x) if io == "float" else run.run(x))


@pytest.mark.parametrize("io", ENDS)
def test_parity_passes_and_every_weighted_layer_is_exact(nets: Any, io: str) -> None:
    graph = nets.tiny(1)
    report = parity.parity(graph, writer.serialize(graph, form="qop", io=io), nets.inputs(graph, 64))
    assert (report.verdict, report.reasons) == ("pass", ())
    assert report.runtime["format"] == "int8-qop/1"
    assert report.runtime["entries"] == {}
    free = {r.name for r in report.layers if r.mode == "free" and r.pair.startswith("onnx")}
    assert free == {one.name for one in graph.layers[:-1]}
    assert max(r.max_abs for r in report.layers if r.op in parity.EXACT) == 0
    assert (report.coverage.integer, report.coverage.total, report.coverage.macs) == (6, 6, 1.0)


def test_one_lsb_is_too_much_for_a_weighted_layer_of_this_form() -> None:
    row = parity.Row(
        name="c",
        op="Conv",
        pair="onnx-off vs oracle",
        mode="forced",
        max_abs=1,
        share=1e-4,
        mean=0.0,
        uninformative=False,
    )
    assert list(parity._row_reasons([row])) == []
    reason = "layer c, onnx-off vs oracle: 1 LSB, more than 0"
    assert list(parity._row_reasons([row], exact=parity.EXACT)) == [reason]
    for other in ({"op": "Add"}, {"pair": "torch-fq vs oracle"}):
        assert list(parity._row_reasons([dataclasses.replace(row, **other)], exact=parity.EXACT)) == []


def test_one_weight_code_is_found_and_named(nets: Any) -> None:
    graph = nets.tiny()
    other = nets.with_layer(graph, "fc", weight=(graph.layers[-1].weight // 2).astype(np.int8))
    report = parity.parity(graph, writer.serialize(other, form="qop"), nets.inputs(graph, 64))
    assert report.verdict == "fail"
    assert any(r.startswith("layer fc: weight") for r in report.reasons)
    assert any(r.startswith("layer fc, onnx-off vs oracle") for r in report.reasons)
    assert not any("conv1" in r for r in report.reasons)
    # both levels run the same kernel and agree on the wrong answer: only the oracle's row can tell
    assert not [r for r in report.layers if r.pair == "onnx-all vs onnx-off" and r.max_abs]


@pytest.mark.parametrize("level", ["off", "all"])
def test_sessions_take_no_entry_and_refuse_a_forced_one(nets: Any, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "is_x86", lambda: True)
    data = writer.serialize(nets.tiny(), form="qop")
    assert runtime.classify(data).form == "qop-int8"
    assert runtime.session_info(data, level=level).entries == {}
    runtime.make_session(data, level=level)
    for entries in ({runtime.PRECISION: "1"}, {runtime.PRECISION: "1", runtime.SIGNED: "1"}):
        with pytest.raises(ConfigError, match=r"QOperator|exclude each other"):
            runtime.make_session(data, level=level, entries=entries)


def test_the_form_in_the_file(nets: Any) -> None:
    graph = nets.tiny()
    model = writer.to_model(graph, form="qop")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17), ("com.microsoft", 1)]
    assert (model.ir_version, model.producer_name, model.producer_version) == (8, "qunlearn", "1")
    assert {n.op_type for n in model.graph.node} <= OPERATORS
    props = {p.key: p.value for p in model.metadata_props}
    assert list(props) == sorted(props)
    assert props["qunlearn.format"] == "int8-qop/1"
    assert props["qunlearn.codes_digest"] == graph.codes_digest()
    assert not {t.name for t in model.graph.initializer} & {i.name for i in model.graph.input}
    kinds = {v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert kinds == {TensorProto.INT8}, "int8 throughout"
    inside = {o for n in model.graph.node for o in n.output} - {"logits"}
    assert {v.name for v in model.graph.value_info} == inside
    assert not [t for t in model.graph.initializer if t.name.endswith("bias_scale")]


def test_inspect(nets: Any, tmp_path: Path) -> None:
    graph = nets.tiny()
    for io in ENDS:
        report = writer.export(graph, tmp_path / "m.onnx", form="qop", io=io)
        found = inspect(tmp_path / "m.onnx")
        assert (found.label, found.is_int8, found.loads, found.findings) == ("int8-qop", True, True, ())
        assert found.codes_digest == graph.codes_digest() == report.codes_digest
        assert found.coverage is not None
        assert found.coverage.render().startswith("6 of 6 nodes, 100 % of MACs")
        assert report.warnings == ()


def test_smaller_than_the_other_form(nets: Any) -> None:
    graph = nets.tiny()
    sizes = {form: len(writer.serialize(graph, form=form)) for form in ("qdq", "qop")}
    assert sizes["qop"] < 0.7 * sizes["qdq"]


@pytest.mark.parametrize("io", ENDS)
def test_golden_digest(nets: Any, io: str) -> None:
    data = writer.serialize(nets.tiny(7), form="qop", io=io)
    assert data == writer.serialize(nets.tiny(7), form="qop", io=io)
    assert hashlib.sha256(data).hexdigest() == GOLDEN[io]


def test_unknown_form_and_what_cannot_be_written(nets: Any, tmp_path: Path) -> None:
    graph = nets.tiny()
    with pytest.raises(ConfigError, match="form 'qoperator' is unknown"):
        writer.export(graph, tmp_path / "m.onnx", form="qoperator")
    with pytest.raises(UnsupportedError, match="pool: pads"):
        writer.serialize(nets.with_layer(graph, "pool", pads=(2, 0, 0, 0)), form="qop")
    lone = nets.graph(
        nets.act("input", (1, 4, 4), 0.02, 0), (g.Flatten(name="f", inputs=("input",), output="f.out"), 0.02, 0)
    )
    with pytest.raises(VerificationError, match="no layer tells the grid"):
        writer.export(lone, tmp_path / "m.onnx", form="qop", io="int8")
    assert list(tmp_path.iterdir()) == []


Edit = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def change(name: str, kind: str, edit: Callable[[np.ndarray], Any]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        t = next(t for t in model.graph.initializer if t.name == name)
        t.raw_data = np.asarray(edit(np.frombuffer(t.raw_data, kind).copy()), kind).tobytes()

    return apply


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: np.concatenate([[value], v[1:]])


def rewire(name: str, at: int, tensor: str) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        node(model, name).input[at] = tensor

    return apply


def attr(name: str, key: str, value: Any) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        one = node(model, name)
        kept = [a for a in one.attribute if a.name != key]
        del one.attribute[:]
        one.attribute.extend([*kept, helper.make_attribute(key, value)])

    return apply


def fact(key: str, value: str) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        next(p for p in model.metadata_props if p.key == key).value = value

    return apply


def other_domain(m: onnx.ModelProto) -> None:
    m.opset_import[1].domain = "elsewhere"


def newer_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 18


def wrong_domain(m: onnx.ModelProto) -> None:
    node(m, "add/qlinearadd").domain = ""


def listed(m: onnx.ModelProto) -> None:
    m.graph.input.append(helper.make_tensor_value_info("conv1.weight", TensorProto.INT8, [8, 2, 3, 3]))


def value(name: str, edit: Callable[[onnx.ValueInfoProto], None]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        edit(next(v for v in model.graph.value_info if v.name == name))

    return apply


def float_kind(v: onnx.ValueInfoProto) -> None:
    v.type.tensor_type.elem_type = TensorProto.FLOAT


def odd_size(v: onnx.ValueInfoProto) -> None:
    v.type.tensor_type.shape.dim[2].dim_value = 5


def int8_output(m: onnx.ModelProto) -> None:
    m.graph.node.pop()
    m.graph.output[0].name = "fc.q"
    m.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    del m.graph.value_info[[v.name for v in m.graph.value_info].index("fc.q")]


def unclipped(m: onnx.ModelProto) -> None:
    clip = node(m, "down/clip")
    node(m, "down/qlinearconv").output[0] = clip.output[0]
    m.graph.node.remove(clip)
    for end in ("down.clip_min", "down.clip_max"):
        m.graph.initializer.remove(next(t for t in m.graph.initializer if t.name == end))


MUTATIONS: dict[str, tuple[str, Edit]] = {
    "opset 18": ("S1", newer_opset),
    "another domain": ("S1", other_domain),
    "a later format": ("S1", fact("qunlearn.format", "int8-qop/2")),
    "clamps not JSON": ("S1", fact("qunlearn.clamps", "{")),
    "clamps a list": ("S1", fact("qunlearn.clamps", "[]")),
    "clamps with a word": ("S1", fact("qunlearn.clamps", '{"conv1":"gelu"}')),
    "clamps of no layer": ("S1", fact("qunlearn.clamps", '{"nope":"relu"}')),
    "clamp at a negative": ("S1", fact("qunlearn.clamps", '{"down":-1.0}')),
    "clamp at infinity": ("S1", fact("qunlearn.clamps", '{"down":1e300}')),
    "initializer among inputs": ("S2", listed),
    "operator in the wrong domain": ("S3", wrong_domain),
    "attribute outside the subset": ("S3", attr("pool/maxpool", "ceil_mode", 1)),
    "channels last": ("S3", attr("gap/qlinearglobalaveragepool", "channels_last", 1)),
    "concat axis": ("S3", attr("cat/qlinearconcat", "axis", 2)),
    "kernel shape": ("S3", attr("conv1/qlinearconv", "kernel_shape", [1, 3])),
    "no transB": ("S11", attr("fc/qgemm", "transB", 0)),
    "reader's grid": ("S4", rewire("dw/qlinearconv", 1, "dw.out_scale")),
    "clip with other codes": ("S4", change("down.clip_max", "i1", put(50))),
    "clip taken away": ("S4", unclipped),
    "clamp of the metadata taken away": ("S4", fact("qunlearn.clamps", "{}")),
    "weight code -128": ("S5", change("conv1.weight", "i1", put(-128))),
    "weight zero point": ("S5", change("conv1.weight_zp", "i1", put(1))),
    "8-bit codes called 7-bit": ("S5", fact("qunlearn.weight_range", "7bit")),
    "zero point -127 after Relu": ("S7", change("conv1.out_zp", "i1", put(-127))),
    "scale 0": ("S7", change("avg.out_scale", "<f4", put(0.0))),
    "scale NaN": ("S7", change("conv1.weight_scale", "<f4", put(np.nan))),
    "bias code at the int32 limit": ("S9/D1", change("conv1.bias", "<i4", put(2**31 - 1))),
    "an inner tensor said to be float": ("S11", value("conv1.q", float_kind)),
    "shape of a coded tensor": ("S11", value("conv1.q", odd_size)),
    "shape before a clip": ("S11", value("down.raw", odd_size)),
    "stride 0": ("S11", attr("conv1/qlinearconv", "strides", [0, 1])),
    "int8 output beside float input": ("S12", int8_output),
    "digest of other codes": ("S13", fact("qunlearn.codes_digest", "0" * 64)),
    "weight code +1": ("S13", change("conv1.weight", "i1", lambda v: np.concatenate([v[:1] - np.sign(v[:1]), v[1:]]))),
    "grid of a layer that keeps codes": ("S4", rewire("cat/qlinearconcat", 3, "conv1.out_scale")),
}


@pytest.fixture(scope="module")
def model(nets: Any) -> onnx.ModelProto:
    return writer.to_model(nets.tiny(), form="qop")


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_caught_by_its_check(model: onnx.ModelProto, name: str) -> None:
    code, edit = MUTATIONS[name]
    mutant = onnx.ModelProto()
    mutant.CopyFrom(model)
    edit(mutant)
    assert mutant.SerializeToString() != model.SerializeToString()
    findings = check.static_check(mutant)
    assert code in {f.code for f in findings if f.level == "error"}, findings
    with pytest.raises(VerificationError, match=f"{code} "):
        reader.read(mutant.SerializeToString())


def test_coverage_of_this_form(nets: Any) -> None:
    graph = nets.tiny()
    found = coverage.coverage(writer.serialize(graph, form="qop"), graph)
    assert (found.integer, found.total, found.macs) == (6, 6, 1.0)
    assert found.auxiliary == 5, "Add, both means, Concat and the int8 MaxPool"


def test_matrix_product_with_bias_is_one_integer_sum(nets: Any) -> None:
    """QLinearMatMul has no bias: QGemm on rows takes it, for any number of leading dimensions."""
    rng = np.random.default_rng(0)
    for lead in ((), (3,), (2, 3)):
        layer = g.MatMul(
            name="m",
            inputs=("input",),
            output="m.out",
            weight=rng.integers(-127, 128, (6, 4)).astype(np.int8),
            weight_scale=rng.uniform(0.001, 0.01, 4).astype(np.float32),
            bias=rng.integers(-3000, 3000, 4).astype(np.int32),
        )
        graph = nets.graph(nets.act("input", (*lead, 6), 0.02, 5), (layer, 0.3, -3))
        data = writer.serialize(graph, form="qop")
        ops = [n.op_type for n in onnx.load_from_string(data).graph.node[1:-1]]
        assert ops == (["Reshape", "QGemm", "Reshape"] if lead else ["QGemm"])
        same(graph, reader.read(data))
        x, run = nets.inputs(graph, 50), oracle.Oracle(graph)
        for level in ("off", "all"):
            got = runtime.run(runtime.make_session(data, level=level), x)["logits"]
            np.testing.assert_array_equal(got, run.logits(x))


def test_both_forms_give_the_same_c(nets: Any) -> None:
    graph = nets.tiny()
    made = [
        codegen.model_sources(codegen.site(reader.read(writer.serialize(graph, form=form))), "net")
        for form in emit.FORMS
    ]
    assert made[0] == made[1]
