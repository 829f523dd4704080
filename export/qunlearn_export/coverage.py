"""How much of a file ONNX Runtime really runs in integer kernels: the optimised graph is written out and read."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from qunlearn_export import graph as g
from qunlearn_export.errors import ArtefactError
from qunlearn_export.memory import make_room
from qunlearn_export.runtime import cpu_flags, make_session, proto_fields, read_bytes

INTEGER = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
)
AUXILIARY = ("QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConcat", "NhwcMaxPool")
WEIGHT_ONLY = "MatMulNBits"
GRAPH = 7
_MOVES = ("Transpose", "Reshape", "Flatten", "MaxPool")
_SUFFIX = re.compile(r"\.weight(_s8_2_u8.*|_token_.*|_zp.*)?$")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """``integer`` of ``total`` weighted nodes and ``macs`` (fraction 0..1, None where unknown) run in integer.

    ``auxiliary`` counts integer nodes without weights (sums, pools, Concat), ``weight_only`` MatMulNBits nodes, which
    hold int8 weights but are not integer arithmetic.
    """

    integer: int
    total: int
    macs: float | None
    auxiliary: int
    weight_only: int
    ops: dict[str, int]
    runtime: str
    cpu: tuple[str, ...]

    def render(self) -> str:
        """One line, such as ``5 of 6 nodes, 71 % of MACs, by onnxruntime 1.32 on CPU flags avx2``."""
        share = "" if self.macs is None else f", {100 * self.macs:.0f} % of MACs"
        flags = " ".join(self.cpu) or "unknown"
        apart = f"; apart from them {self.weight_only} {WEIGHT_ONLY}, not integer" if self.weight_only else ""
        return f"{self.integer} of {self.total} nodes{share}, by onnxruntime {self.runtime} on CPU flags {flags}{apart}"

    def to_json(self) -> dict[str, Any]:
        """Plain mapping."""
        return {
            "integer": self.integer,
            "total": self.total,
            "macs": self.macs,
            "auxiliary": self.auxiliary,
            "weight_only": self.weight_only,
            "ops": self.ops,
            "runtime": self.runtime,
            "cpu": list(self.cpu),
        }


def coverage(
    file: str | os.PathLike[str] | bytes, graph: g.Graph | None = None, *, costs: Mapping[str, int] | None = None
) -> Coverage:
    """Read the graph that :func:`make_session` at level ``all`` runs; ``graph``, or its :func:`layer_costs`, give the
    MACs of every layer."""
    total = _weighted_nodes(skeleton(read_bytes(file)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        make_session(file, optimized_path=path, lean=True)
        make_room()
        try:
            optimized = skeleton(path.read_bytes())
        except OSError as err:
            raise ArtefactError("ONNX Runtime wrote no optimised graph.", remedy="Check the temporary folder.") from err
    ops = Counter(n.op_type for n in optimized.node)
    cost = costs if graph is None else layer_costs(graph)
    macs = None
    if cost is not None:
        run = {_SUFFIX.sub("", i) for n in optimized.node if n.op_type in INTEGER for i in n.input if ".weight" in i}
        macs = sum(c for name, c in cost.items() if name in run) / max(1, sum(cost.values()))
    return Coverage(
        integer=sum(ops[o] for o in INTEGER),
        total=total,
        macs=macs,
        auxiliary=sum(ops[o] for o in AUXILIARY) + _integer_pools(optimized),
        weight_only=ops[WEIGHT_ONLY],
        ops=dict(sorted(ops.items())),
        runtime=str(ort.__version__),
        cpu=cpu_flags(),
    )


def layer_costs(graph: g.Graph) -> dict[str, int]:
    """Multiply-accumulates of every weighted layer for one sample, by name."""
    return {layer.name: layer_macs(graph, layer) for layer in graph.weighted()}


def skeleton(data: bytes) -> onnx.GraphProto:
    """Nodes, inputs, and constants without their numbers, of the bytes of a model: little beside a large file."""
    graph = onnx.GraphProto()
    bodies = [v for n, v in proto_fields(data) if n == GRAPH and not isinstance(v, int)]
    for number, value in (f for body in bodies for f in proto_fields(body)):
        if isinstance(value, int):
            continue
        match number:
            case 1:
                graph.node.add().ParseFromString(bytes(value))
            case 5:
                facts = dict(reversed([f for f in proto_fields(value) if f[0] in (2, 8)]))
                name, kind = facts.get(8, b""), facts.get(2, 0)
                if not isinstance(name, int) and isinstance(kind, int):
                    graph.initializer.add(name=bytes(name).decode("utf-8", "replace"), data_type=kind)
            case 11:
                graph.input.add().ParseFromString(bytes(value))
    return graph


def _weighted_nodes(original: onnx.GraphProto) -> int:
    """Conv, Gemm and MatMul with int8 weights, and integer operators, in the file as it was written."""
    coded = {t.name for t in original.initializer if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    by_output = {o: n for n in original.node for o in n.output}
    total = 0
    for n in original.node:
        if n.op_type in ("Conv", "Gemm", "MatMul") and len(n.input) > 1:
            total += _weight_source(n.input[1], by_output) in coded
        elif n.op_type in INTEGER:
            total += 1
    return total


def _weight_source(tensor: str, by_output: dict[str, onnx.NodeProto]) -> str:
    """The constant behind a dequantized weight, also through Reshape and Transpose (group-wise scales); else ""."""
    for _ in range(4):
        node = by_output.get(tensor)
        if node is None or node.op_type not in ("Reshape", "Transpose", "DequantizeLinear"):
            return ""
        if node.op_type == "DequantizeLinear":
            return str(node.input[0])
        tensor = str(node.input[0])
    return ""


def _integer_pools(graph: onnx.GraphProto) -> int:
    """MaxPool nodes that read codes: their input is quantized, or made by an integer operator."""
    makers = {o: n for n in graph.node for o in n.output}
    bytes_in = {i.name for i in graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.INT8}
    count = 0
    for pool in (n for n in graph.node if n.op_type == "MaxPool"):
        tensor = pool.input[0]
        while tensor in makers and makers[tensor].op_type in _MOVES:
            tensor = makers[tensor].input[0]
        op = makers[tensor].op_type if tensor in makers else ""
        count += tensor in bytes_in or op in ("QuantizeLinear", "QLinearConv", "QGemm", "QLinearMatMul", *AUXILIARY)
    return count


def layer_macs(graph: g.Graph, layer: g.Conv | g.Gemm | g.MatMul) -> int:
    """Multiply-accumulates of one layer for one sample."""
    if isinstance(layer, g.Conv):
        return int(layer.weight.size * np.prod(graph.activations[layer.output].shape[1:]))
    rows = int(np.prod(graph.activations[layer.inputs[0]].shape[:-1]))
    return int(layer.weight.size) * max(1, rows)
