"""What is this ONNX file? Label, dtypes, integer coverage, static checks; files of others are never fixed."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.numpy_helper import to_array

from qunlearn_export import graph as g
from qunlearn_export.check import examine, limits, load_model
from qunlearn_export.coverage import Coverage, coverage, layer_costs
from qunlearn_export.degenerate import Finding
from qunlearn_export.errors import ArtefactError, QunlearnError
from qunlearn_export.memory import make_room
from qunlearn_export.runtime import MAX_BYTES, classify, cpu_flags, file_kind, is_x86, read_bytes
from qunlearn_export.ties import Tie, ties

QOPERATORS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "MatMulInteger": 1, "ConvInteger": 1}
"""Operators on codes, with the position of their weights."""

INT_KINDS = (TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """``label`` is int8-qdq, int8-qop, int8 weight-only, fake-quant only, or float; sizes in bytes."""

    label: str
    n_bytes: int
    file_digest: str
    ir_version: int
    opsets: tuple[str, ...]
    dtypes: Mapping[str, int]
    ops: Mapping[str, int]
    loads: bool
    load_error: str
    coverage: Coverage | None
    findings: tuple[Finding, ...]
    ties: tuple[Tie, ...]
    codes_digest: str
    seven_bit: bool
    may_saturate: bool
    metadata: Mapping[str, str]

    @property
    def is_int8(self) -> bool:
        """Whether weights are int8 on disk and layers compute on quantized activations."""
        return self.label in ("int8-qdq", "int8-qop")

    def to_json(self) -> dict[str, Any]:
        """Plain mapping."""
        out = asdict(self)
        out["coverage"] = self.coverage.to_json() if self.coverage else None
        return {**out, "opsets": list(self.opsets), "is_int8": self.is_int8}

    def render(self) -> str:
        """Lines for the terminal."""
        kinds = ", ".join(f"{k} {n:,} B" for k, n in self.dtypes.items()) or "none"
        lines = [
            f"label      {self.label}",
            f"size       {self.n_bytes:,} B   SHA-256 {self.file_digest[:16]}",
            f"versions   IR {self.ir_version}, {', '.join(self.opsets)}",
            f"constants  {kinds}",
            "operators  " + ", ".join(f"{n} {op}" for op, n in self.ops.items()),
            f"loads      {'yes' if self.loads else 'no: ' + self.load_error}",
        ]
        if self.coverage:
            lines.append(f"integer    {self.coverage.render()}")
        lines.append(f"codes      {self.codes_digest or 'none: not of this project'}")
        lines.append(f"weights    {'within 7 bits' if self.seven_bit else 'use 8 bits'}")
        if self.may_saturate:
            lines.append("warning    may saturate in an unprepared session on x86 without dot-product instructions")
        lines += [f"{f.level:<10} {f.code} {f.where}: {f.message}" for f in self.findings]
        return "\n".join(lines)


def inspect(file: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> Inspection:
    """Describe an ONNX file; ArtefactError when it cannot be read or exceeds the limits."""
    data = read_bytes(file, max_bytes=max_bytes)
    size, digest, kind, form = len(data), hashlib.sha256(data).hexdigest(), file_kind(data), classify(data).form
    model = load_model(data, max_bytes=max_bytes)
    del data  # the model holds all of it
    bad = limits(model)
    if bad:
        raise ArtefactError(f"the file is malformed: {'; '.join(bad[:6])}.", remedy="Get an intact copy.")
    graph, findings = examine(model) if kind.startswith("int8-") else (None, [])
    seven, label = _within_seven_bits(model), _label(model)
    facts: dict[str, Any] = {
        "label": label,
        "n_bytes": size,
        "file_digest": digest,
        "ir_version": model.ir_version,
        "opsets": tuple(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import),
        "dtypes": _dtypes(model),
        "ops": dict(sorted(Counter(n.op_type for n in model.graph.node).items())),
        "findings": tuple(findings),
        "ties": _ties(graph, findings),
        "codes_digest": graph.codes_digest() if graph is not None else "",
        "seven_bit": seven,
        "may_saturate": is_x86()
        and (label == "int8-qdq" or (label == "int8-qop" and form == "qop-uint8"))
        and not seven
        and not any("vnni" in f or "amx" in f for f in cpu_flags()),
        "metadata": {p.key: p.value for p in model.metadata_props},
    }
    costs = None if graph is None else layer_costs(graph)
    del model, graph
    make_room()
    loads, error, covered = True, "", None
    try:
        covered = coverage(file, costs=costs)
    except QunlearnError as err:
        loads, error = False, err.message
    if hashlib.sha256(read_bytes(file, max_bytes=max_bytes)).hexdigest() != digest:
        raise ArtefactError(f"{file!s} changed while it was inspected.", remedy="Try again.")
    return Inspection(**facts, loads=loads, load_error=error, coverage=covered)


@np.errstate(all="ignore")
def _ties(graph: g.Graph | None, findings: list[Finding]) -> tuple[Tie, ...]:
    """Ties of a file whose scales are numbers."""
    if graph is None or any(f.code == "S7" for f in findings):
        return ()
    return tuple(t for t in ties(graph) if t.share > 0)


def _dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the constants by type."""
    dtypes: Counter[str] = Counter()
    kinds = {number: name.lower() for name, number in TensorProto.DataType.items()}
    for t in model.graph.initializer:
        dtypes[kinds.get(t.data_type, "unknown")] += _data_bytes(t)
    return dict(sorted(dtypes.items()))


def _data_bytes(t: onnx.TensorProto) -> int:
    """Bytes of the numbers of a tensor, however they are stored."""
    if t.HasField("raw_data"):
        return len(t.raw_data)
    try:
        return int(math.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize)
    except KeyError:
        return int(t.ByteSize())


def _label(model: onnx.ModelProto) -> str:
    """What the weights and activations of the weighted layers are; a layer with float weights makes it not int8."""
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    coded = fake = quantized = plain = operators = 0
    for n in model.graph.node:
        at = QOPERATORS.get(n.op_type, 1)
        if n.op_type not in ("Conv", "Gemm", "MatMul", *QOPERATORS) or len(n.input) <= at:
            continue
        operator = n.op_type in QOPERATORS
        operators += operator
        source = n.input[at]
        for _ in range(8):  # not forever: a foreign file may hold a cycle
            if source not in makers or makers[source].op_type not in ("Reshape", "Transpose"):
                break
            source = makers[source].input[0]
        maker = makers.get(source)
        if not operator and (maker is None or maker.op_type != "DequantizeLinear"):
            plain += source in kinds
            continue
        codes = source if operator or maker is None else maker.input[0]
        if kinds.get(codes) in INT_KINDS:
            coded += 1
            data = makers.get(n.input[0])
            quantized += operator or (data is not None and data.op_type == "DequantizeLinear")
        elif codes in makers and makers[codes].op_type == "QuantizeLinear":
            fake += 1
    if coded and quantized == coded and not (plain or fake):
        return "int8-qop" if operators else "int8-qdq"
    if coded and not fake:
        return "int8 weight-only"
    if fake or any(n.op_type == "QuantizeLinear" for n in model.graph.node):
        return "fake-quant only"
    return "float"


def _within_seven_bits(model: onnx.ModelProto) -> bool:
    codes = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
    try:
        arrays = map(to_array, codes)
        return bool(codes) and all(max(int(a.max(initial=0)), -int(a.min(initial=0))) <= 64 for a in arrays)
    except ValueError:
        return False
