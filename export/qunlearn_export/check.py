"""The static check S1 to S13 of an int8 file of either form, after bounds on what untrusted bytes may claim."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from qunlearn_export import graph as g
from qunlearn_export.degenerate import Finding, degenerate
from qunlearn_export.emit import IR_VERSION, MICROSOFT, OPSET, format_tag
from qunlearn_export.errors import ArtefactError, VerificationError
from qunlearn_export.parse import ATTRIBUTES, parse
from qunlearn_export.qop_parse import MICROSOFT_OPS, ONNX_OPS, parse_qop
from qunlearn_export.runtime import MAX_BYTES, read_bytes
from qunlearn_export.shapes import problems
from qunlearn_export.ties import ties

MAX_NODES, MAX_INITIALIZERS, MAX_RANK, MAX_NAME = 20_000, 50_000, 6, 128
ITEM_BYTES = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.INT8: 1,
    onnx.TensorProto.UINT8: 1,
    onnx.TensorProto.INT32: 4,
    onnx.TensorProto.INT64: 8,
}
WRITTEN = frozenset(ITEM_BYTES) - {onnx.TensorProto.UINT8}
TIE_LIMIT, LIGHT = 1e-3, 256
SUBSETS: dict[str, dict[str, dict[str, frozenset[str]]]] = {
    "qdq": {"": ATTRIBUTES},
    "qop": {"": ONNX_OPS, MICROSOFT: MICROSOFT_OPS},
}
"""Form, domain, operator, attributes."""

OPSETS = {"qdq": [("", OPSET)], "qop": [("", OPSET), (MICROSOFT, 1)]}
MEANING = {
    "qunlearn.activation": "int8",
    "qunlearn.rounding": "half-even-f32",
}
"""Metadata that fixes what the codes mean; a file that says otherwise is not read by this version."""


def load_model(file: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> onnx.ModelProto:
    """Parse the bytes of an ONNX file within the limits; ArtefactError for anything that is not one."""
    data = read_bytes(file, max_bytes=max_bytes)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as err:
        raise ArtefactError("the file is not an ONNX model.", remedy="Give a file that export wrote.") from err
    if not model.graph.node:
        raise ArtefactError("the file holds no network.", remedy="Give an ONNX model.")
    return model


def limits(model: onnx.ModelProto) -> list[str]:
    """Violated bounds of untrusted input, as sentences."""
    graph, bad = model.graph, []
    if len(graph.node) > MAX_NODES:
        bad.append(f"{len(graph.node)} nodes are more than {MAX_NODES}")
    if len(graph.initializer) > MAX_INITIALIZERS:
        bad.append(f"{len(graph.initializer)} initializers are more than {MAX_INITIALIZERS}")
    for t in _tensors(graph):
        raw = t.data_type in ITEM_BYTES and t.HasField("raw_data")
        if t.external_data or t.data_location == onnx.TensorProto.EXTERNAL:
            bad.append(f"{t.name!r} refers to external data")
        elif len(t.dims) > MAX_RANK or any(d < 0 or d > 2**31 for d in t.dims):
            bad.append(f"{t.name!r} has impossible dimensions")
        elif raw and math.prod(t.dims) * ITEM_BYTES[t.data_type] != len(t.raw_data):
            bad.append(f"{t.name!r} has {len(t.raw_data)} bytes for dimensions {list(t.dims)}")
    names = [n.name for n in graph.node] + [t.name for t in graph.initializer]
    names += [x for n in graph.node for x in (*n.input, *n.output)]
    names += [v.name for v in (*graph.input, *graph.output, *graph.value_info)]
    names += [s for n in graph.node for s in (n.op_type, n.domain, *(a.name for a in n.attribute))]
    names += [o.domain for o in model.opset_import]
    odd = [n for n in names if len(n) > MAX_NAME or not n.isascii()]
    if odd:
        bad.append(f"{len(odd)} names are not ASCII of at most {MAX_NAME} characters")
    facts = [s for p in model.metadata_props for s in (p.key, p.value)]
    if any(isinstance(s, bytes) for s in facts):  # protobuf hands malformed text on as bytes
        bad.append("the metadata is not UTF-8")
    return bad


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the graph, of attributes and of nested graphs."""
    waiting = [graph]
    while waiting:
        one = waiting.pop()
        yield from one.initializer
        for sparse in one.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for attribute in (a for n in one.node for a in n.attribute):
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def static_check(source: onnx.ModelProto | str | os.PathLike[str] | bytes) -> list[Finding]:
    """All findings of S1 to S13 (errors) and those of D1 to D8 and ties inside S9 and S10 (with their own levels)."""
    return examine(source)[1]


def check_or_raise(
    source: onnx.ModelProto | str | os.PathLike[str] | bytes, *, tie_limit: float = TIE_LIMIT
) -> g.Graph:
    """The integer graph of a file that passes; VerificationError listing every error otherwise."""
    graph, findings = examine(source, tie_limit=tie_limit)
    errors = [f for f in findings if f.level == "error"]
    if errors or graph is None:
        shown = "; ".join(f"{f.code} {f.where}: {f.message}" for f in errors[:8])
        raise VerificationError(
            f"the file fails the static check: {shown}{f'; and {len(errors) - 8} more' if len(errors) > 8 else ''}.",
            remedy="Export it anew from its run.",
        )
    return graph


@np.errstate(all="ignore")
def examine(
    source: onnx.ModelProto | str | os.PathLike[str] | bytes, *, tie_limit: float = TIE_LIMIT
) -> tuple[g.Graph | None, list[Finding]]:
    """The graph, where the structure allows one, and all findings. ArtefactError outside the limits."""
    model = source if isinstance(source, onnx.ModelProto) else load_model(source)
    bad = limits(model)
    if bad:
        raise ArtefactError(f"the file is malformed: {'; '.join(bad[:6])}.", remedy="Export it anew from its run.")
    form = form_of(model)
    findings = [*_versions(model, form), *_initializers(model), *_operators(model, form)]
    if any(f.code in ("S2", "S3") for f in findings):
        return None, findings
    try:
        parsed = (parse_qop if form == "qop" else parse)(model, metadata(model))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, AttributeError) as err:
        findings.append(_error("S4", "graph", f"the structure cannot be read ({type(err).__name__}: {err})"))
        return None, findings
    graph = parsed.graph
    findings += parsed.findings
    if graph is not None:
        broken = [_error("S11", where, message) for where, message in problems(graph)]
        if broken:
            return None, findings + broken
        findings += _values(model, graph, parsed.findings, tie_limit)
    findings += _shapes(model)
    return graph, findings


def form_of(model: onnx.ModelProto) -> str:
    """``qop`` for a file that calls itself one of that form, in any version; else ``qdq``."""
    tag = next((p.value for p in model.metadata_props if p.key == "qunlearn.format"), "")
    return "qop" if tag.startswith("int8-qop/") else "qdq"


def metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """The graph's meta from the file's metadata; malformed values are left out."""
    props = {p.key: p.value for p in model.metadata_props}
    out: dict[str, Any] = {
        "task": props.get("qunlearn.task", ""),
        "weight_range": props.get("qunlearn.weight_range", "8bit"),
    }
    try:
        out["weight_bits"] = int(props.get("qunlearn.weight_bits", "8"))
        out["preprocess"] = json.loads(props.get("qunlearn.preprocess", "{}"))
        if "qunlearn.labels" in props:
            out["labels"] = json.loads(props["qunlearn.labels"])
    except (ValueError, RecursionError):
        out.setdefault("weight_bits", 8)
        out.setdefault("preprocess", {})
    return out


def _error(code: str, where: str, message: str) -> Finding:
    return Finding(code=code, level="error", where=where, message=message)


def _versions(model: onnx.ModelProto, form: str) -> Iterable[Finding]:
    opsets = [(o.domain, o.version) for o in model.opset_import]
    if opsets != OPSETS[form]:
        yield _error("S1", "model", f"operator sets {opsets}, not {OPSETS[form]}")
    if model.ir_version != IR_VERSION:
        yield _error("S1", "model", f"IR version {model.ir_version}, not {IR_VERSION}")
    if model.functions or model.training_info or model.graph.sparse_initializer:
        yield _error("S1", "model", "functions, training info or sparse initializers are not allowed")
    props = {p.key: p.value for p in model.metadata_props}
    for key, want in {"qunlearn.format": format_tag(form), **MEANING}.items():
        if props.get(key) != want:
            yield _error("S1", "metadata", f"{key} is {props.get(key, '')[:40]!r}, this version reads {want!r}")
    if model.domain:
        yield _error("S1", "model", f"model domain {model.domain[:40]!r} is not empty")


def _initializers(model: onnx.ModelProto) -> Iterable[Finding]:
    graph = model.graph
    names = [t.name for t in graph.initializer]
    listed = sorted(set(names) & {i.name for i in graph.input})
    if listed:
        yield _error("S2", listed[0], "an initializer is listed as a graph input")
    twice = sorted(n for n, c in Counter(names).items() if c > 1)
    if twice:
        yield _error("S2", twice[0], "an initializer occurs twice")
    unused = sorted(set(names) - {i for n in graph.node for i in n.input})
    if unused:
        yield _error("S2", unused[0], "an initializer is not used")
    for t in graph.initializer:
        if t.data_type not in WRITTEN or not t.HasField("raw_data"):
            yield _error("S2", t.name, "an initializer is not raw float32, int8, int32 or int64")
    if len(graph.input) != 1 or len(graph.output) != 1:
        yield _error("S2", "graph", "there must be one input and one output")


def _operators(model: onnx.ModelProto, form: str) -> Iterable[Finding]:
    for node in model.graph.node:
        subset = SUBSETS[form].get("" if node.domain == "ai.onnx" else node.domain, {})
        if node.op_type not in subset:
            yield _error("S3", node.name, f"operator {node.domain or 'ai.onnx'}:{node.op_type} is outside the subset")
            continue
        extra = sorted({a.name for a in node.attribute} - subset[node.op_type])
        if extra:
            yield _error("S3", node.name, f"attribute {extra[0]} of {node.op_type} is outside the subset")
    named = sorted(n for n, c in Counter(n.name for n in model.graph.node).items() if c > 1)
    if named:
        yield _error("S4", named[0], "two nodes have one name")
    outputs = Counter(o for n in model.graph.node for o in n.output)
    twice = sorted(n for n, c in outputs.items() if c > 1)
    if twice:
        yield _error("S4", twice[0], "a tensor is computed twice")


def _values(model: onnx.ModelProto, graph: g.Graph, known: list[Finding], tie_limit: float) -> list[Finding]:
    out: list[Finding] = []
    for layer, limit in code_limits(graph):
        if max(int(layer.weight.max(initial=0)), -int(layer.weight.min(initial=0))) > limit:
            out.append(_error("S5", layer.name, f"a weight code is outside [-{limit}, {limit}]"))
    tiny = float(np.finfo(np.float32).tiny)
    tensors = graph.quantized_tensors()
    for name in sorted(n for n in tensors if n.endswith("_scale")):
        if not (np.isfinite(tensors[name]) & (tensors[name] >= tiny)).all():
            out.append(_error("S7", name, "a scale is not a normal positive number"))
    if not any(f.code in ("S5", "S7") for f in (*out, *known)):
        out += [replace(f, code=f"S9/{f.code}") for f in degenerate(graph)]
        for tie in ties(graph):
            if tie.share > 0:
                level = "error" if tie.share > tie_limit else "warning"
                out.append(Finding(code="S10", level=level, where=tie.layer, message=f"tie share {tie.share:.2g}"))
    digest = next((p.value for p in model.metadata_props if p.key == "qunlearn.codes_digest"), "")
    if digest != graph.codes_digest():
        out.append(_error("S13", "metadata", "the codes digest in the metadata is not that of the codes"))
    return out


def code_limits(graph: g.Graph) -> Iterator[tuple[g.Conv | g.Gemm | g.MatMul, int]]:
    """Every layer with the largest weight code that the declared range and bits allow.

    Fewer than 8 bits bind the inner layers only: the first and the last layer keep 8 bits.
    """
    layers = list(graph.weighted())
    whole = 63 if graph.meta.get("weight_range") == "7bit" else 127
    bits = graph.meta.get("weight_bits", 8)
    for i, layer in enumerate(layers):
        inner = 0 < i < len(layers) - 1
        yield layer, min(whole, 2 ** (bits - 1) - 1) if inner and 2 <= bits <= 8 else whole


def _shapes(model: onnx.ModelProto) -> Iterable[Finding]:
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if not dims or not dims[0].dim_param or any(d.dim_value <= 0 for d in dims[1:]):
            yield _error("S11", value.name, "only the batch dimension may be symbolic")
    try:
        onnx.checker.check_model(_light(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as err:
        yield _error("S11", "graph", " ".join(str(err).split())[:200])


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large constants as inputs of their type: the checker copies what it is given several times,
    and infers no shape from them."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    source, graph = model.graph, light.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.input.extend(source.input)
    for t in source.initializer:
        if math.prod(t.dims) > LIGHT:
            graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
        else:
            graph.initializer.append(t)
    return light
