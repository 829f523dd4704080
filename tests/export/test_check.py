"""Mutated files: every one is caught by the check that is named for it (acceptance 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qunlearn_export import check, reader, writer
from qunlearn_export.errors import ArtefactError, VerificationError

Edit = Callable[[onnx.ModelProto], None]


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def attribute(model: onnx.ModelProto, name: str, key: str) -> onnx.AttributeProto:
    return next(a for a in node(model, name).attribute if a.name == key)


def change(name: str, kind: str, edit: Callable[[np.ndarray], Any]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        t = constant(model, name)
        value = np.frombuffer(t.raw_data, kind).copy()
        t.raw_data = np.asarray(edit(value), kind).tobytes()

    return apply


def up(v: np.ndarray) -> np.ndarray:
    return np.concatenate([np.nextafter(v[:1], np.float32(1e9)), v[1:]])


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v: np.concatenate([[value], v[1:]])


def set_ints(name: str, key: str, values: list[int]) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        attribute(model, name, key).ints[:] = values

    return apply


def listed_weight(m: onnx.ModelProto) -> None:
    m.graph.input.append(helper.make_tensor_value_info("conv1.weight", TensorProto.INT8, [8, 2, 3, 3]))


def swapped_axis(m: onnx.ModelProto) -> None:
    attribute(m, "conv1/dq.weight", "axis").i = 1


def twice(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(constant(m, "conv1.weight"))


def unused(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "spare"))


def newer_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 18


def newer_ir(m: onnx.ModelProto) -> None:
    m.ir_version = 10


def other_domain(m: onnx.ModelProto) -> None:
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def softmax(m: onnx.ModelProto) -> None:
    node(m, "conv1/relu").op_type = "Softmax"


def ceil_mode(m: onnx.ModelProto) -> None:
    node(m, "pool/maxpool").attribute.append(helper.make_attribute("ceil_mode", 1))


def concat_axis(m: onnx.ModelProto) -> None:
    attribute(m, "cat/concat", "axis").i = 2


def no_transpose(m: onnx.ModelProto) -> None:
    attribute(m, "fc/gemm", "transB").i = 0


def skipped_quantizer(m: onnx.ModelProto) -> None:
    node(m, "dw/conv").input[0] = node(m, "conv1/relu").output[0]


def other_grid(m: onnx.ModelProto) -> None:
    node(m, "conv1/dq.dw").input[1] = "dw.out_scale"


def int8_output(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = "fc.q"
    m.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    m.graph.node.pop()
    del m.graph.value_info[[v.name for v in m.graph.value_info].index("fc.q")]


def wrong_shape(m: onnx.ModelProto) -> None:
    value = next(v for v in m.graph.value_info if v.name == "pool.q")
    value.type.tensor_type.shape.dim[2].dim_value = 5


def wrong_inner_shape(m: onnx.ModelProto) -> None:
    name = node(m, "conv1/conv").output[0]
    value = next(v for v in m.graph.value_info if v.name == name)
    value.type.tensor_type.shape.dim[2].dim_value = 5


def fixed_batch(m: onnx.ModelProto) -> None:
    dim = m.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_value = 1


def other_digest(m: onnx.ModelProto) -> None:
    entry = next(p for p in m.metadata_props if p.key == "qunlearn.codes_digest")
    entry.value = "0" * 64


def no_digest(m: onnx.ModelProto) -> None:
    del m.metadata_props[[p.key for p in m.metadata_props].index("qunlearn.codes_digest")]


def seven_bit(m: onnx.ModelProto) -> None:
    next(p for p in m.metadata_props if p.key == "qunlearn.weight_range").value = "7bit"


def four_bit(m: onnx.ModelProto) -> None:
    next(p for p in m.metadata_props if p.key == "qunlearn.weight_bits").value = "4"


def float_data(m: onnx.ModelProto) -> None:
    t = constant(m, "conv1.out_scale")
    value = np.frombuffer(t.raw_data, "<f4")[0]
    t.ClearField("raw_data")
    t.float_data.append(float(value))


def tied(m: onnx.ModelProto) -> None:
    for name in ("conv1.out_scale", "pw.out_scale"):
        change(name, "<f4", put(0.02))(m)
    for name in ("add.out_scale", "pool.out_scale"):
        change(name, "<f4", put(0.04))(m)


def fact(key: str, value: str | None) -> Edit:
    """Replace one value of the metadata, or remove it."""

    def apply(model: onnx.ModelProto) -> None:
        at = [p.key for p in model.metadata_props].index(key)
        if value is None:
            del model.metadata_props[at]
        else:
            model.metadata_props[at].value = value

    return apply


def model_domain(m: onnx.ModelProto) -> None:
    m.domain = "elsewhere"


MUTATIONS: dict[str, tuple[str, Edit]] = {
    "opset 18": ("S1", newer_opset),
    "IR 10": ("S1", newer_ir),
    "another domain": ("S1", other_domain),
    "model domain": ("S1", model_domain),
    "a later format": ("S1", fact("qunlearn.format", "int8-qdq/2")),
    "no format": ("S1", fact("qunlearn.format", None)),
    "another rounding rule": ("S1", fact("qunlearn.rounding", "half-up")),
    "another activation type": ("S1", fact("qunlearn.activation", "uint8")),
    "initializer among inputs": ("S2", listed_weight),
    "initializer twice": ("S2", twice),
    "initializer unused": ("S2", unused),
    "numbers not raw": ("S2", float_data),
    "operator outside the subset": ("S3", softmax),
    "attribute outside the subset": ("S3", ceil_mode),
    "concat axis": ("S3", concat_axis),
    "no transB": ("S3", no_transpose),
    "kernel shape": ("S3", set_ints("conv1/conv", "kernel_shape", [1, 3])),
    "swapped axis": ("S4", swapped_axis),
    "edge not quantized": ("S4", skipped_quantizer),
    "quantize and dequantize differ": ("S4", other_grid),
    "weight code -128": ("S5", change("conv1.weight", "i1", put(-128))),
    "weight zero point": ("S5", change("conv1.weight_zp", "i1", put(1))),
    "bias zero point": ("S5", change("conv1.bias_zp", "<i4", put(1))),
    "8-bit codes called 7-bit": ("S5", seven_bit),
    "8-bit codes called 4-bit": ("S5", four_bit),
    "bias scale one ulp": ("S6", change("conv1.bias_scale", "<f4", up)),
    "bias scale of the head one ulp": ("S6", change("fc.bias_scale", "<f4", up)),
    "zero point -127 after Relu": ("S7", change("conv1.out_zp", "i1", put(-127))),
    "scale 0": ("S7", change("avg.out_scale", "<f4", put(0.0))),
    "scale NaN": ("S7", change("conv1.weight_scale", "<f4", put(np.nan))),
    "scale denormal": ("S7", change("input.out_scale", "<f4", put(1e-40))),
    "MaxPool scale one ulp": ("S8", change("pool.out_scale", "<f4", up)),
    "Flatten zero point": ("S8", change("flat.out_zp", "i1", put(-120))),
    "bias code at the int32 limit": ("S9/D1", change("conv1.bias", "<i4", put(2**31 - 1))),
    "tie": ("S10", tied),
    "shape of a coded tensor": ("S11", wrong_shape),
    "shape of an inner tensor": ("S11", wrong_inner_shape),
    "fixed batch": ("S11", fixed_batch),
    "pads as large as the window": ("S11", set_ints("pool/maxpool", "pads", [2, 0, 0, 0])),
    "absurd window": ("S11", set_ints("avg/averagepool", "kernel_shape", [2**40, 2**40])),
    "stride 0": ("S11", set_ints("conv1/conv", "strides", [0, 1])),
    "int8 output beside float input": ("S12", int8_output),
    "digest of other codes": ("S13", other_digest),
    "digest missing": ("S13", no_digest),
    "weight code +1": ("S13", change("conv1.weight", "i1", lambda v: np.concatenate([v[:1] - np.sign(v[:1]), v[1:]]))),
}


@pytest.fixture(scope="module")
def model(nets: Any) -> onnx.ModelProto:
    return writer.to_model(nets.tiny())


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


def test_a_clean_file_has_no_finding(nets: Any) -> None:
    for seed in range(3):
        for io in ("float", "int8"):
            assert check.static_check(writer.serialize(nets.tiny(seed), io=io)) == []


def wrong_length(m: onnx.ModelProto) -> None:
    constant(m, "conv1.weight").raw_data += b"\0"


def external(m: onnx.ModelProto) -> None:
    t = constant(m, "conv1.weight")
    t.external_data.add(key="location", value="/etc/passwd")
    t.data_location = TensorProto.EXTERNAL


def external_in_attribute(m: onnx.ModelProto) -> None:
    t = TensorProto(name="hidden", data_type=1, dims=[1])
    t.external_data.add(key="location", value="../x")
    m.graph.node[0].attribute.append(helper.make_attribute("value", t))


def overflowing(m: onnx.ModelProto) -> None:
    constant(m, "conv1.weight").dims[:] = [2**31, 2**31, 2**31]


def negative(m: onnx.ModelProto) -> None:
    constant(m, "conv1.weight").dims[0] = -8


def high_rank(m: onnx.ModelProto) -> None:
    constant(m, "conv1.weight").dims[:] = [8, 2, 3, 3, 1, 1, 1]


def foreign_name(m: onnx.ModelProto) -> None:
    m.graph.node[0].name = "schicht-ä"


def long_name(m: onnx.ModelProto) -> None:
    m.graph.node[0].name = "n" * 129


def many_nodes(m: onnx.ModelProto) -> None:
    m.graph.node.extend(onnx.NodeProto() for _ in range(20_001))


LIMITS: dict[str, tuple[str, Edit]] = {
    "wrong length": ("bytes for dimensions", wrong_length),
    "external data": ("external data", external),
    "external data in an attribute": ("external data", external_in_attribute),
    "dims overflow": ("bytes for dimensions", overflowing),
    "negative dim": ("impossible dimensions", negative),
    "rank 7": ("impossible dimensions", high_rank),
    "name not ASCII": ("not ASCII", foreign_name),
    "name too long": ("not ASCII of at most 128", long_name),
    "too many nodes": ("more than 20000", many_nodes),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_come_first(model: onnx.ModelProto, name: str) -> None:
    message, edit = LIMITS[name]
    mutant = onnx.ModelProto()
    mutant.CopyFrom(model)
    edit(mutant)
    for reads in (check.static_check, reader.read):
        with pytest.raises(ArtefactError, match=message):
            reads(mutant.SerializeToString())


def test_what_is_no_model(nets: Any) -> None:
    data = writer.serialize(nets.tiny())
    for junk in (b"", b"PK\x03\x04 zip", b"\xff" * 100, data[:-3]):
        with pytest.raises(ArtefactError):
            reader.read(junk)
    with pytest.raises(ArtefactError, match="more than 100"):
        reader.read(data, max_bytes=100)


def test_tie_limit_is_the_readers_too(model: onnx.ModelProto) -> None:
    mutant = onnx.ModelProto()
    mutant.CopyFrom(model)
    tied(mutant)
    findings = {f.code: f.level for f in check.examine(mutant, tie_limit=1.0)[1]}
    assert findings["S10"] == "warning"
