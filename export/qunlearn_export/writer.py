"""From the integer graph to a QDQ ONNX file: the same graph gives the same bytes, in any process."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from qunlearn_export import emit
from qunlearn_export import graph as g
from qunlearn_export.check import check_or_raise
from qunlearn_export.degenerate import Finding, degenerate
from qunlearn_export.degenerate import repair_dead as repair
from qunlearn_export.emit import LOGITS, Builder
from qunlearn_export.errors import ConfigError, VerificationError
from qunlearn_export.files import write_atomic
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.qop import to_qop_model
from qunlearn_export.ties import Tie, ties

SIZE_FACTOR, SIZE_FIXED = 1.3, 16_384
"""A file is expected to be at most 1.3 bytes a weight code and 16 KiB large (artefact_onnx 3.5)."""

IO_WARNING = (
    "W-IO-INT8: with an int8 output ONNX Runtime does not fuse the last layer on x86, so that it runs in float; "
    "the caller quantizes inputs and reads codes"
)


def to_model(graph: g.Graph, *, io: str = "float", form: str = "qdq") -> onnx.ModelProto:
    """The ONNX model of ``graph`` (artefact_onnx 2.1 to 2.3; form ``qop``: 2.7).

    ``io="float"``: float32 ``input`` and ``logits``; ``io="int8"``: both int8, on the grids of first and last tensor.
    UnsupportedError lists every layer that the file cannot hold; ConfigError for an unknown form or ``io``.
    """
    if form not in emit.FORMS:
        raise ConfigError(f"form {form!r} is unknown.", remedy=f"Use {' or '.join(emit.FORMS)}.")
    if form == "qop":
        return to_qop_model(graph, io=io)
    b, coded = emit.start(graph, io)
    for layer in graph.layers:
        reals = [b.dequantize(t, coded[t], layer.name, i) for i, t in enumerate(layer.inputs)]
        real = _clamp(b, layer, _operator(b, layer, reals, graph), graph.activations[layer.output])
        coded[layer.output] = b.quantize(layer.output, real)
    if io == "float":
        b.dequantize(graph.output, coded[graph.output], LOGITS, out=LOGITS)
    return b.model(form="qdq", io=io, domains=[("", emit.OPSET)])


def serialize(graph: g.Graph, *, io: str = "float", form: str = "qdq") -> bytes:
    """The file's bytes; deterministic."""
    return bytes(to_model(graph, io=io, form=form).SerializeToString(deterministic=True))


def _weights(b: Builder, layer: g.Weighted, graph: g.Graph, axis: int) -> tuple[str, str | None]:
    n, scale = layer.name, np.ascontiguousarray(layer.weight_scale, dtype=np.float32)
    inputs = list(b.codes(layer))
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


def _operator(b: Builder, layer: g.AnyLayer, reals: list[str], graph: g.Graph) -> str:
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


def _clamp(b: Builder, layer: g.AnyLayer, real: str, a: g.Activation) -> str:
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


def repaired(graph: g.Graph) -> g.Graph:
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

    ``before`` is what D8 compares with. VerificationError lists every violated rule.
    """
    if repair_dead:
        graph = repaired(graph)
    findings = degenerate(graph, before)
    bad = [f for f in findings if f.level == "error"]
    if bad:
        raise VerificationError(
            "degenerate scales: " + "; ".join(f"{f.code} {f.where}: {f.message}" for f in bad[:8]) + ".",
            remedy="Train or unlearn more gently, or repair dead channels (`export --repair-dead`).",
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
    data = serialize(graph, io=io, form=form)
    check_or_raise(data, tie_limit=tie_limit)
    target = write_atomic(path, data)
    codes = sum(layer.weight.size for layer in graph.weighted())
    warnings = []
    expected = SIZE_FACTOR * codes + SIZE_FIXED
    if len(data) > expected:
        warnings.append(f"W-SIZE: {len(data)} bytes for {codes} weight codes, more than the expected {expected:.0f}")
    if io == "int8" and form == "qdq":
        warnings.append(IO_WARNING)
    return ExportReport(
        path=target,
        file_digest=hashlib.sha256(data).hexdigest(),
        codes_digest=graph.codes_digest(),
        n_bytes=len(data),
        findings=tuple(findings),
        ties=tuple(t for t in found if t.share > 0),
        warnings=tuple(warnings),
    )
