"""From the integer graph to a QDQ ONNX file: the same graph gives the same bytes, in any process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qunlearn_export import graph as g
from qunlearn_export.check import check_or_raise
from qunlearn_export.degenerate import Finding, degenerate
from qunlearn_export.degenerate import repair_dead as repair
from qunlearn_export.errors import ConfigError, NotYetError, UnsupportedError, VerificationError
from qunlearn_export.files import canonical_json, write_atomic
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.shapes import problems
from qunlearn_export.ties import Tie, ties

OPSET, IR_VERSION = 17, 8
FORMAT = f"int8-qdq/{g.FORMAT_VERSION}"
LOGITS = "logits"
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class _Builder:
    """Collects nodes, initializers (in order of first use) and value_info (in node order)."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.values: list[onnx.ValueInfoProto] = []
        self.reals = 0

    def constant(self, name: str, value: NDArray[Any]) -> str:
        little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        tensor = helper.make_tensor(name, _TYPES[value.dtype.name], value.shape, little.tobytes(), raw=True)
        self.initializers.setdefault(name, tensor)
        return name

    def real(self) -> str:
        """A short name for the next float tensor: names of intermediates are a large part of a small file."""
        self.reals += 1
        return f"t{self.reals}"

    def node(
        self, op: str, name: str, inputs: Sequence[str], out: str, kind: int, shape: Sequence[Any], **attrs: Any
    ) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=name, **dict(sorted(attrs.items()))))
        self.values.append(helper.make_tensor_value_info(out, kind, list(shape)))
        return out


def to_model(graph: g.Graph, *, io: str = "float") -> onnx.ModelProto:
    """The ONNX model of ``graph`` (artefact_onnx 2.1 to 2.3).

    ``io="float"``: float32 ``input`` and ``logits``; ``io="int8"``: both int8, on the grids of first and last tensor.
    UnsupportedError lists every layer that the file cannot hold.
    """
    if io not in ("float", "int8"):
        raise ConfigError(f"io {io!r} is unknown.", remedy="Use float or int8.")
    broken = problems(graph)
    if broken:
        raise UnsupportedError(
            "the network cannot be written: " + "; ".join(f"{where}: {message}" for where, message in broken) + ".",
            remedy="Change these layers.",
        )
    b = _Builder()
    coded: dict[str, str] = {}
    owner = {graph.input: graph.input, **{layer.output: layer.name for layer in graph.layers}}
    first = graph.activations[graph.input]
    if io == "float":
        coded[graph.input] = _quantize(b, graph.input, "input", first)
        source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *first.shape])
    else:
        coded[graph.input] = "input"
        source = helper.make_tensor_value_info("input", TensorProto.INT8, ["N", *first.shape])
    for layer in graph.layers:
        reals = [
            _dequantize(b, coded[t], owner[t], layer.name, graph.activations[t], i) for i, t in enumerate(layer.inputs)
        ]
        out = graph.activations[layer.output]
        real = _operator(b, layer, reals, graph)
        real = _clamp(b, layer, real, out)
        coded[layer.output] = _quantize(b, layer.name, real, out)
    last = graph.activations[graph.output]
    if io == "float":
        _dequantize(b, coded[graph.output], owner[graph.output], LOGITS, last, 0, out=LOGITS)
        sink = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", *last.shape])
    else:
        renamed = b.nodes[-1]
        renamed.output[0] = LOGITS
        sink = helper.make_tensor_value_info(LOGITS, TensorProto.INT8, ["N", *last.shape])
    values = b.values[:-1]
    proto = helper.make_graph(b.nodes, "qunlearn", [source], [sink], list(b.initializers.values()), value_info=values)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.model_version = "qunlearn", str(g.FORMAT_VERSION), 1
    for key, value in sorted(_metadata(graph).items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model


def serialize(graph: g.Graph, *, io: str = "float") -> bytes:
    """The file's bytes; deterministic."""
    return bytes(to_model(graph, io=io).SerializeToString(deterministic=True))


def _metadata(graph: g.Graph) -> dict[str, str]:
    meta = graph.meta
    out = {
        "qunlearn.format": FORMAT,
        "qunlearn.codes_digest": graph.codes_digest(),
        "qunlearn.weight_bits": str(meta.get("weight_bits", 8)),
        "qunlearn.weight_range": str(meta.get("weight_range", "8bit")),
        "qunlearn.activation": "int8",
        "qunlearn.rounding": "half-even-f32",
        "qunlearn.task": str(meta.get("task", "classification")),
        "qunlearn.preprocess": canonical_json(meta.get("preprocess", {})),
    }
    if meta.get("labels"):
        out["qunlearn.labels"] = canonical_json(list(meta["labels"]))
    return out


def _grid(b: _Builder, owner: str, a: g.Activation) -> tuple[str, str]:
    return (
        b.constant(f"{owner}.out_scale", np.asarray(a.scale, dtype=np.float32)),
        b.constant(f"{owner}.out_zp", np.asarray(a.zero_point, dtype=np.int8)),
    )


def _quantize(b: _Builder, owner: str, real: str, a: g.Activation) -> str:
    scale, zero = _grid(b, owner, a)
    return b.node("QuantizeLinear", f"{owner}/q", [real, scale, zero], f"{owner}.q", TensorProto.INT8, ["N", *a.shape])


def _dequantize(
    b: _Builder, coded: str, owner: str, consumer: str, a: g.Activation, position: int, *, out: str | None = None
) -> str:
    scale, zero = _grid(b, owner, a)
    tail = f"{consumer}.{position}" if position else consumer
    name = out or b.real()
    return b.node(
        "DequantizeLinear", f"{owner}/dq.{tail}", [coded, scale, zero], name, TensorProto.FLOAT, ["N", *a.shape]
    )


def _weights(b: _Builder, layer: g.Weighted, graph: g.Graph, axis: int) -> tuple[str, str | None]:
    n, scale = layer.name, np.ascontiguousarray(layer.weight_scale, dtype=np.float32)
    codes = b.constant(f"{n}.weight", np.ascontiguousarray(layer.weight, dtype=np.int8))
    inputs = [
        codes,
        b.constant(f"{n}.weight_scale", scale),
        b.constant(f"{n}.weight_zp", np.zeros(len(scale), dtype=np.int8)),
    ]
    w = b.node("DequantizeLinear", f"{n}/dq.weight", inputs, b.real(), TensorProto.FLOAT, layer.weight.shape, axis=axis)
    if layer.bias is None:
        return w, None
    x = graph.activations[layer.inputs[0]]
    inputs = [
        b.constant(f"{n}.bias", np.ascontiguousarray(layer.bias, dtype=np.int32)),
        b.constant(f"{n}.bias_scale", g.bias_scale(x.scale, scale)),
        b.constant(f"{n}.bias_zp", np.zeros(len(scale), dtype=np.int32)),
    ]
    bias = b.node("DequantizeLinear", f"{n}/dq.bias", inputs, b.real(), TensorProto.FLOAT, layer.bias.shape, axis=0)
    return w, bias


def _operator(b: _Builder, layer: g.AnyLayer, reals: list[str], graph: g.Graph) -> str:
    n = layer.name
    shape = ["N", *graph.activations[layer.output].shape]

    def emit(op: str, inputs: list[str], **attrs: Any) -> str:
        return b.node(op, f"{n}/{op.lower()}", inputs, b.real(), TensorProto.FLOAT, shape, **attrs)

    match layer:
        case g.Conv():
            w, bias = _weights(b, layer, graph, 0)
            return emit(
                "Conv",
                [*reals, w] + ([bias] if bias else []),
                kernel_shape=list(layer.weight.shape[2:]),
                strides=list(layer.strides),
                pads=list(layer.pads),
                dilations=list(layer.dilations),
                group=layer.group,
            )
        case g.Gemm():
            w, bias = _weights(b, layer, graph, 0)
            return emit("Gemm", [*reals, w] + ([bias] if bias else []), transB=1)
        case g.MatMul():
            w, bias = _weights(b, layer, graph, 1)
            out = emit("MatMul", [*reals, w])
            return emit("Add", [out, bias]) if bias else out
        case g.Add():
            return emit("Add", reals)
        case g.MaxPool():
            return emit(
                "MaxPool", reals, kernel_shape=list(layer.kernel), strides=list(layer.strides), pads=list(layer.pads)
            )
        case g.AveragePool():
            return emit(
                "AveragePool",
                reals,
                kernel_shape=list(layer.kernel),
                strides=list(layer.strides),
                pads=list(layer.pads),
                count_include_pad=int(layer.count_include_pad),
            )
        case g.GlobalAveragePool():
            return emit("GlobalAveragePool", reals)
        case g.Concat():
            return emit("Concat", reals, axis=1)
        case g.Requant():
            return reals[0]
        case g.Flatten():
            return emit("Flatten", reals, axis=1)
        case g.Reshape():
            target = b.constant(f"{n}.shape", np.asarray([-1, *layer.shape], dtype=np.int64))
            return emit("Reshape", [*reals, target])


def _clamp(b: _Builder, layer: g.AnyLayer, real: str, a: g.Activation) -> str:
    n, shape = layer.name, ["N", *a.shape]
    if layer.clip is not None:
        low = b.constant(f"{n}.clip_min", np.asarray(0, dtype=np.float32))
        high = b.constant(f"{n}.clip_max", np.asarray(layer.clip, dtype=np.float32))
        return b.node("Clip", f"{n}/clip", [real, low, high], b.real(), TensorProto.FLOAT, shape)
    if layer.relu:
        return b.node("Relu", f"{n}/relu", [real], b.real(), TensorProto.FLOAT, shape)
    return real


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: digests (SHA-256, hex), size in bytes, findings that do not forbid the file, ties, warnings."""

    path: Path
    file_digest: str
    codes_digest: str
    n_bytes: int
    findings: tuple[Finding, ...]
    ties: tuple[Tie, ...]
    warnings: tuple[str, ...]


def _repaired(graph: g.Graph) -> g.Graph:
    """Check D4's repair, held to its promise: no logit of 16 seeded inputs moves by more than 1 LSB."""
    out = repair(graph)
    a = graph.activations[graph.input]
    codes = np.random.default_rng(0).integers(-128, 128, (16, *a.shape)).astype(np.int8)
    x = dequantize(codes, a)
    try:
        old = Oracle(graph).run(x)
    except VerificationError:
        return out  # sums left int32 before the repair: there is no right answer to compare with
    moved = int(np.abs(old.astype(np.int64) - Oracle(out).run(x)).max(initial=0))
    if moved > 1:
        raise VerificationError(
            f"repairing dead channels moves the logits by {moved} LSB.", remedy="Train or unlearn more gently."
        )
    return out


def export(
    graph: g.Graph,
    path: str | os.PathLike[str],
    *,
    form: str = "qdq",
    io: str = "float",
    tie_limit: float = 1e-3,
    repair_dead: bool = False,
    before: g.Graph | None = None,
) -> ExportReport:
    """Check ``graph`` (D1 to D8, ties, static check of the result) and write it whole or not at all.

    ``before`` is what D8 compares with. VerificationError lists every violated rule; NotYetError for a form that is
    not offered.
    """
    if form != "qdq":
        raise NotYetError(f"form {form!r} is not offered.", remedy="Use qdq.")
    if repair_dead:
        graph = _repaired(graph)
    findings = degenerate(graph, before)
    bad = [f for f in findings if f.level == "error"]
    if bad:
        raise VerificationError(
            "degenerate scales: " + "; ".join(f"{f.code} {f.where}: {f.message}" for f in bad[:8]) + ".",
            remedy="Train or unlearn more gently, or repair dead channels.",
        )
    found = ties(graph)
    tied = [t for t in found if t.share > tie_limit]
    if tied:
        raise VerificationError(
            "ties between integer and float rounding: "
            + ", ".join(f"{t.layer} ({100 * t.share:.2g} % of combinations)" for t in tied)
            + ".",
            remedy="Move the output scale off a simple fraction (quant.train does so once, when scales are fixed).",
        )
    data = serialize(graph, io=io)
    check_or_raise(data, tie_limit=tie_limit)
    target = write_atomic(path, data)
    codes = sum(layer.weight.size for layer in graph.weighted())
    warnings = []
    if len(data) > 1.3 * codes + 16_384:
        warnings.append(f"W-SIZE: {len(data)} bytes for {codes} weight codes")
    return ExportReport(
        path=target,
        file_digest=hashlib.sha256(data).hexdigest(),
        codes_digest=graph.codes_digest(),
        n_bytes=len(data),
        findings=tuple(findings),
        ties=tuple(t for t in found if t.share > 0),
        warnings=tuple(warnings),
    )
