"""From a QOperator file of this project back to the integer graph; problems become findings.

A layer is the run of nodes named ``<module>/...``: for some a Reshape to rows, the operator, a Reshape back, for some
a Clip of codes. Layers that keep codes (MaxPool, Flatten, Reshape) carry no grid: theirs is that of their input.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import onnx

from qunlearn_export import graph as g
from qunlearn_export.degenerate import Finding
from qunlearn_export.emit import CLAMPS
from qunlearn_export.match import Matcher, MismatchError, Parsed, attributes, bits_of, conv_attributes, window
from qunlearn_export.oracle import bounds

MICROSOFT_OPS: dict[str, frozenset[str]] = {
    "QGemm": frozenset({"transB"}),
    "QLinearAdd": frozenset(),
    "QLinearAveragePool": frozenset({"kernel_shape", "strides", "pads", "count_include_pad"}),
    "QLinearGlobalAveragePool": frozenset(),
    "QLinearConcat": frozenset({"axis"}),
}
ONNX_OPS: dict[str, frozenset[str]] = {
    "QuantizeLinear": frozenset(),
    "DequantizeLinear": frozenset(),
    "QLinearConv": frozenset({"kernel_shape", "strides", "pads", "dilations", "group"}),
    "QLinearMatMul": frozenset(),
    "MaxPool": frozenset({"kernel_shape", "strides", "pads"}),
    "Clip": frozenset(),
    "Flatten": frozenset({"axis"}),
    "Reshape": frozenset(),
}
"""The operator and attribute subset of the form, by domain (artefact_onnx 2.7)."""

COPIES = ("MaxPool", "Flatten", "Reshape", "Clip")
OUT_GRID = {
    "QLinearConv": 6,
    "QGemm": 7,
    "QLinearMatMul": 6,
    "QLinearAdd": 6,
    "QLinearAveragePool": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearConcat": 0,
}
"""Position of the output's scale among a node's inputs; its zero point follows."""

COUNTS = {
    "QLinearConv": (8, 9),
    "QGemm": (9,),
    "QLinearMatMul": (8,),
    "QLinearAdd": (8,),
    "QLinearAveragePool": (5,),
    "QLinearGlobalAveragePool": (5,),
}


def parse_qop(model: onnx.ModelProto, meta: dict[str, Any]) -> Parsed:
    """Match the whole model. S4, S5, S7, S8 and S12 are checked here, since they need the pattern."""
    out = Parsed()
    try:
        props = {p.key: p.value for p in model.metadata_props}
        out.graph = _Matcher(model, out.findings, _clamps(props.get(CLAMPS, ""))).graph(meta)
    except MismatchError as err:
        out.findings.append(err.finding)
    return out


def _clamps(text: str) -> dict[str, np.float32 | None]:
    """The ``c`` of Clip(0, c) by layer, None for Relu, from the metadata."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(v == "relu" or isinstance(v, float) for v in value.values()):
        raise MismatchError("S1", "metadata", f"{CLAMPS} is not a mapping of layers to relu or a number")
    return {name: None if v == "relu" else np.float32(v) for name, v in value.items()}


def operands(node: onnx.NodeProto) -> Iterator[tuple[str, str, str]]:
    """Every data operand of a node with scale and zero point."""
    if node.op_type == "QLinearConcat":
        yield from zip(node.input[2::3], node.input[3::3], node.input[4::3], strict=True)
        return
    yield node.input[0], node.input[1], node.input[2]
    if node.op_type == "QLinearAdd":
        yield node.input[3], node.input[4], node.input[5]


class _Matcher(Matcher):
    def __init__(
        self, model: onnx.ModelProto, findings: list[Finding], clamps: Mapping[str, np.float32 | None]
    ) -> None:
        super().__init__(model, findings)
        self.clamps = clamps
        self.kinds = {v.name: v.type.tensor_type.elem_type for v in self.proto.value_info}

    def graph(self, meta: dict[str, Any]) -> g.Graph:
        """Float input and output, or both int8 (no first QuantizeLinear, no last DequantizeLinear)."""
        source, sink = self.proto.input[0], self.proto.output[0]
        nodes = list(self.proto.node)
        coded = source.type.tensor_type.elem_type == onnx.TensorProto.INT8
        if coded:
            self.activation(source.name, *self._input_grid(nodes, source.name), g_name="input", where="input")
        else:
            first = nodes.pop(0)
            if first.op_type != "QuantizeLinear" or first.input[0] != source.name:
                raise MismatchError("S4", "input", "the graph input is not quantized first")
            self._typed(first.output[0], "input")
            self.activation(first.output[0], first.input[1], first.input[2], g_name="input", where="input")
        last = None if coded else nodes.pop()
        layers = [self._layer(name, list(run)) for name, run in groupby(nodes, lambda n: n.name.rpartition("/")[0])]
        if last is not None:
            if last.op_type != "DequantizeLinear" or last.output[0] != sink.name:
                raise MismatchError("S12", "output", "the output does not come from DequantizeLinear")
            output = self.on_grid(last.input[:3], "output")
        elif sink.name not in self.tensor_of or sink.type.tensor_type.elem_type != onnx.TensorProto.INT8:
            raise MismatchError("S12", "output", "the int8 output does not come from a layer")
        else:
            output = self.tensor_of[sink.name]
        unknown = sorted(set(self.clamps) - {layer.name for layer in layers})
        if unknown:
            raise MismatchError("S1", "metadata", f"{CLAMPS} names {unknown[0][:40]!r}, which is no layer")
        return g.Graph(activations=self.activations, layers=tuple(layers), input="input", output=output, meta=meta)

    def _input_grid(self, nodes: list[onnx.NodeProto], source: str) -> tuple[str, str]:
        """Constants of an int8 graph input: those of its first reader, through layers that keep codes."""
        held = {source}
        for node in nodes:
            if node.op_type in COPIES:
                if node.input[0] in held:
                    held.add(node.output[0])
                continue
            for tensor, scale, zero in operands(node):
                if tensor in held:
                    return scale, zero
        raise MismatchError("S4", "input", "no layer tells the grid of the int8 input")

    def _typed(self, tensor: str, name: str) -> None:
        """ONNX infers no types behind com.microsoft operators: what is recorded must be int8."""
        if tensor in self.kinds and self.kinds[tensor] != onnx.TensorProto.INT8:
            raise MismatchError("S11", name, "an inner tensor is not int8")

    def _layer(self, name: str, nodes: list[onnx.NodeProto]) -> g.AnyLayer:
        """The layer of one run of nodes, which must be a chain."""
        for node in nodes:
            self._typed(node.output[0], name)
        for a, b in pairwise(nodes):
            if b.input[0] != a.output[0]:
                raise MismatchError("S4", name, "the nodes of a layer are not a chain")
        result = nodes[-1].output[0]
        out = f"{name}.out"
        relu = name in self.clamps
        common: dict[str, Any] = {"name": name, "output": out, "relu": relu, "clip": self.clamps.get(name)}
        clip = nodes.pop() if len(nodes) > 1 and nodes[-1].op_type == "Clip" else None
        layer, grid = self._operator(nodes, common)
        if grid is None:
            a = self.activations[layer.inputs[0]]
            shape = self.shapes.get(result, ())
            self.activations[out] = replace(a, name=out, shape=shape[1:], bits=8)
            self.tensor_of[result] = out
        else:
            self.activation(result, *grid, g_name=out, where=name)
        held = self.activations[out]
        if layer.clip is not None:
            self.activations[out] = replace(held, bits=bits_of(layer.clip, held.scale))
        self._check_clamp(layer, clip, held)
        self.check_grid(layer)
        return layer

    def _check_clamp(self, layer: g.AnyLayer, clip: onnx.NodeProto | None, out: g.Activation) -> None:
        held = (-128, 127)
        if clip is not None:
            _, low, high = clip.input
            held = (int(self.scalar(low, "int8", layer.name)), int(self.scalar(high, "int8", layer.name)))
            if self.shapes.get(clip.input[0], ())[1:] != out.shape:
                raise MismatchError("S11", layer.name, "Clip changes the shape")
        if layer.clip is not None and not (np.isfinite(layer.clip) and layer.clip > 0.0):
            raise MismatchError("S1", "metadata", f"{CLAMPS}: Clip of {layer.name} is not Clip(0, c) with c > 0")
        if held != bounds(layer, out):
            self.note("S4", layer.name, f"codes are clamped to {held}, the metadata say {bounds(layer, out)}")

    def _operator(self, nodes: list[onnx.NodeProto], common: dict[str, Any]) -> tuple[g.AnyLayer, Any]:
        """The layer, and the constants of its output's grid (None where codes are kept)."""
        name = common["name"]
        rows = back = None
        if len(nodes) == 3 and nodes[0].op_type == nodes[2].op_type == "Reshape":
            rows, node, back = nodes
        elif len(nodes) == 1:
            node = nodes[0]
        else:
            raise MismatchError("S4", name, f"{len(nodes)} nodes are not one layer")
        op, attrs = node.op_type, attributes(node)
        if len(node.input) not in COUNTS.get(op, (len(node.input),)):
            raise MismatchError("S4", name, f"{op} with {len(node.input)} inputs")
        if rows is not None and (op != "QGemm" or attrs.get("transB")):
            raise MismatchError("S4", name, f"{op} between two Reshape nodes")
        if attrs.get("axis", 1) != 1 or (op in ("QLinearConcat", "Flatten") and "axis" not in attrs):
            raise MismatchError("S3", name, f"{op} is not along axis 1")
        if attrs.get("count_include_pad", 0) not in (0, 1):
            raise MismatchError("S3", name, "count_include_pad is not 0 or 1")
        if op in ("MaxPool", "Flatten", "Reshape"):
            return self._copy(node, attrs, common), None
        if op not in OUT_GRID:
            raise MismatchError("S3", name, f"{op} is not a layer")
        at = OUT_GRID[op]
        grid = (node.input[at], node.input[at + 1])
        if op in ("QLinearConv", "QGemm", "QLinearMatMul"):
            return self._weighted(node, attrs, common, rows, back), grid
        common["inputs"] = tuple(self.on_grid(triple, name) for triple in operands(node))
        match op:
            case "QLinearAdd":
                return g.Add(**common), grid
            case "QLinearGlobalAveragePool":
                return g.GlobalAveragePool(**common), grid
            case "QLinearConcat":
                lone = node.name.endswith("/requant")
                return (g.Requant(**common) if lone else g.Concat(**common)), grid
        include = bool(attrs.get("count_include_pad", 0))
        return g.AveragePool(**window(attrs, name), count_include_pad=include, **common), grid

    def _copy(self, node: onnx.NodeProto, attrs: dict[str, Any], common: dict[str, Any]) -> g.AnyLayer:
        name = common["name"]
        if node.input[0] not in self.tensor_of:
            raise MismatchError("S4", name, "an operand is not a coded tensor")
        common["inputs"] = (self.tensor_of[node.input[0]],)
        if node.op_type == "MaxPool":
            return g.MaxPool(**window(attrs, name), **common)
        if node.op_type == "Flatten":
            return g.Flatten(**common)
        return g.Reshape(shape=self.target(node.input[1], name), **common)

    def _weighted(
        self,
        node: onnx.NodeProto,
        attrs: dict[str, Any],
        common: dict[str, Any],
        rows: onnx.NodeProto | None,
        back: onnx.NodeProto | None,
    ) -> g.AnyLayer:
        name, op = common["name"], node.op_type
        source = node.input[0] if rows is None else rows.input[0]
        common["inputs"] = (self.on_grid((source, node.input[1], node.input[2]), name),)
        weight = self.const(node.input[3], "int8", name)
        scale, zero = self.const(node.input[4], "float32", name), self.const(node.input[5], "int8", name)
        transposed = op == "QGemm" and attrs.get("transB", 0) == 1
        by_row = op == "QLinearConv" or transposed
        self.check_codes(weight, scale, zero, 0 if by_row else 1, name)
        at = {"QLinearConv": 8, "QGemm": 6}.get(op)
        named = at is not None and len(node.input) > at and node.input[at]
        bias = self.const(node.input[at], "int32", name) if named and at is not None else None
        common |= {"weight": weight, "weight_scale": scale, "bias": bias}
        if op == "QLinearConv":
            return g.Conv(**conv_attributes(attrs, weight, name), **common)
        if transposed:
            return g.Gemm(**common)
        if op == "QGemm" and bias is None:
            raise MismatchError("S4", name, "QGemm on columns without bias codes")
        if rows is not None and back is not None:
            inside = self.target(rows.input[1], name) == weight.shape[:1]
            outside = self.target(back.input[1], name) == self.shapes.get(back.output[0], ())[1:]
            if not inside or not outside:
                raise MismatchError("S11", name, "rows of a matrix product do not fit its weights")
        return g.MatMul(**common)
