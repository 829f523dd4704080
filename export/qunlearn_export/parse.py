"""Pattern matcher from an ONNX model of this project's form back to the integer graph; problems become findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.degenerate import Finding
from qunlearn_export.match import Matcher, MismatchError, Parsed, attributes, bits_of, conv_attributes, window

ATTRIBUTES: dict[str, frozenset[str]] = {
    "QuantizeLinear": frozenset(),
    "DequantizeLinear": frozenset({"axis"}),
    "Conv": frozenset({"kernel_shape", "strides", "pads", "dilations", "group"}),
    "Gemm": frozenset({"transB"}),
    "MatMul": frozenset(),
    "Add": frozenset(),
    "MaxPool": frozenset({"kernel_shape", "strides", "pads"}),
    "AveragePool": frozenset({"kernel_shape", "strides", "pads", "count_include_pad"}),
    "GlobalAveragePool": frozenset(),
    "Concat": frozenset({"axis"}),
    "Relu": frozenset(),
    "Clip": frozenset(),
    "Flatten": frozenset({"axis"}),
    "Reshape": frozenset(),
}
"""The operator and attribute subset (artefact_onnx 2.3)."""


def parse(model: onnx.ModelProto, meta: dict[str, Any]) -> Parsed:
    """Match the whole model. S4, S5, S6, S7 and S8 are checked here, since they need the pattern."""
    out = Parsed()
    try:
        out.graph = _Matcher(model, out.findings).graph(meta)
    except MismatchError as err:
        out.findings.append(err.finding)
    return out


class _Matcher(Matcher):
    def __init__(self, model: onnx.ModelProto, findings: list[Finding]) -> None:
        super().__init__(model, findings)
        self.used: set[str] = set()

    def graph(self, meta: dict[str, Any]) -> g.Graph:
        """Float input and output, or both int8 (no first QuantizeLinear, no last DequantizeLinear)."""
        source, sink = self.proto.input[0], self.proto.output[0]
        coded = source.type.tensor_type.elem_type == onnx.TensorProto.INT8
        quantizers = [n for n in self.proto.node if n.op_type == "QuantizeLinear"]
        if coded:
            readers = (n for n in self.proto.node if n.op_type == "DequantizeLinear" and n.input[0] == source.name)
            reader = next(readers, None)
            if reader is None:
                raise MismatchError("S4", "input", "the int8 graph input is not dequantized")
            self.activation(source.name, reader.input[1], reader.input[2], g_name="input", where="input")
        else:
            if not quantizers or quantizers[0].input[0] != source.name:
                raise MismatchError("S4", "input", "the graph input is not quantized first")
            first = quantizers.pop(0)
            self.activation(first.output[0], first.input[1], first.input[2], g_name="input", where="input")
            self.used.add(first.output[0])
        layers = [self._layer(q) for q in quantizers]
        last = self.by_output.get(sink.name)
        want = "QuantizeLinear" if coded else "DequantizeLinear"
        if last is None or last.op_type != want or (not coded and last.input[0] not in self.tensor_of):
            raise MismatchError("S12", "output", f"the output does not come from {want}")
        output = self.tensor_of[sink.name] if coded else self._source(last, "output")
        left = [n.name for n in self.proto.node if n.output[0] not in self.used]
        if left:
            raise MismatchError("S4", left[0], f"{len(left)} nodes are outside every quantized layer")
        return g.Graph(activations=self.activations, layers=tuple(layers), input="input", output=output, meta=meta)

    def _source(self, dq: onnx.NodeProto, where: str) -> str:
        """Activation that a DequantizeLinear of a layer's input reads; its grid must be that of the producer."""
        if dq.op_type != "DequantizeLinear" or dq.input[0] not in self.tensor_of or dq.attribute:
            raise MismatchError("S4", where, "an operand is not a dequantized tensor")
        self.used.add(dq.output[0])
        return self.on_grid(dq.input[:3], where)

    def _node(self, tensor: str, where: str) -> onnx.NodeProto:
        node = self.by_output.get(tensor)
        if node is None:
            raise MismatchError("S4", where, f"{tensor} is not computed by a node")
        return node

    def _layer(self, q: onnx.NodeProto) -> g.AnyLayer:
        if not q.name.endswith("/q"):
            raise MismatchError("S4", q.name, "a quantizer is not named <module>/q")
        name = q.name[:-2]
        node = self._node(q.input[0], name)
        relu, clip = False, None
        if node.op_type == "Clip":
            low, high = (self.const(i, "float32", name) for i in node.input[1:3])
            if low.ndim or high.ndim or low != 0.0 or not (np.isfinite(high) and high > 0.0):
                raise MismatchError("S3", name, "Clip is not Clip(0, c) with c > 0")
            relu, clip = True, np.float32(high[()])
            self.used.add(node.output[0])
            node = self._node(node.input[0], name)
        elif node.op_type == "Relu":
            relu = True
            self.used.add(node.output[0])
            node = self._node(node.input[0], name)
        out = f"{name}.out"
        common: dict[str, Any] = {"name": name, "output": out, "relu": relu, "clip": clip}
        if node.op_type == "DequantizeLinear":
            layer: g.AnyLayer = g.Requant(inputs=(self._source(node, name),), **common)
        else:
            self.used.add(node.output[0])
            layer = self._operator(node, common)
        self.activation(q.output[0], q.input[1], q.input[2], g_name=out, where=name)
        self.used.add(q.output[0])
        if clip is not None:
            a = self.activations[out]
            self.activations[out] = replace(a, bits=bits_of(clip, a.scale))
        self.check_grid(layer)
        return layer

    def _operator(self, node: onnx.NodeProto, common: dict[str, Any]) -> g.AnyLayer:
        name, op = common["name"], node.op_type
        attrs = attributes(node)
        if op == "Add" and self._node(node.input[0], name).op_type == "MatMul":
            product = self._node(node.input[0], name)
            self.used.add(product.output[0])
            return self._matmul(product, self._node(node.input[1], name), common)
        match op:
            case "Conv" | "Gemm":
                return self._weighted(node, attrs, common)
            case "MatMul":
                return self._matmul(node, None, common)
        common["inputs"] = tuple(self._source(self._node(i, name), name) for i in self._data_inputs(node))
        make: dict[str, Callable[[], g.AnyLayer]] = {
            "Add": lambda: g.Add(**common),
            "GlobalAveragePool": lambda: g.GlobalAveragePool(**common),
            "Concat": lambda: g.Concat(**common),
            "Flatten": lambda: g.Flatten(**common),
            "MaxPool": lambda: g.MaxPool(**window(attrs, name), **common),
            "AveragePool": lambda: g.AveragePool(
                **window(attrs, name), count_include_pad=bool(attrs.get("count_include_pad", 0)), **common
            ),
            "Reshape": lambda: g.Reshape(shape=self.target(node.input[1], name), **common),
        }
        if op in ("Concat", "Flatten") and attrs.get("axis") != 1:
            raise MismatchError("S3", name, f"{op} is not along axis 1")
        if attrs.get("count_include_pad", 0) not in (0, 1):
            raise MismatchError("S3", name, "count_include_pad is not 0 or 1")
        if op not in make:
            raise MismatchError("S3", name, f"{op} does not stand between dequantize and quantize")
        return make[op]()

    def _data_inputs(self, node: onnx.NodeProto) -> list[str]:
        return list(node.input[:1]) if node.op_type == "Reshape" else list(node.input)

    def _weighted(self, node: onnx.NodeProto, attrs: dict[str, Any], common: dict[str, Any]) -> g.AnyLayer:
        name = common["name"]
        source = self._source(self._node(node.input[0], name), name)
        weight, scale = self._codes(node.input[1], 0, name)
        bias = self._bias(node.input[2], source, scale, name) if len(node.input) > 2 else None
        common |= {"inputs": (source,), "weight": weight, "weight_scale": scale, "bias": bias}
        if node.op_type == "Gemm":
            if attrs.get("transB") != 1:
                raise MismatchError("S3", name, "Gemm without transB = 1")
            return g.Gemm(**common)
        return g.Conv(**conv_attributes(attrs, weight, name), **common)

    def _matmul(self, node: onnx.NodeProto, bias: onnx.NodeProto | None, common: dict[str, Any]) -> g.MatMul:
        name = common["name"]
        source = self._source(self._node(node.input[0], name), name)
        weight, scale = self._codes(node.input[1], 1, name)
        codes = self._bias(bias.output[0], source, scale, name) if bias is not None else None
        return g.MatMul(inputs=(source,), weight=weight, weight_scale=scale, bias=codes, **common)

    def _codes(self, tensor: str, axis: int, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        dq = self._node(tensor, name)
        weight, scale, zero = self._parameters(dq, "int8", axis, name)
        self.check_codes(weight, scale, zero, axis, name)
        return weight, scale

    def _bias(self, tensor: str, source: str, weight_scale: NDArray[np.float32], name: str) -> NDArray[np.int32]:
        bias, scale, zero = self._parameters(self._node(tensor, name), "int32", 0, name)
        if zero.any():
            self.note("S5", name, "bias zero points are not 0")
        want = g.bias_scale(self.activations[source].scale, weight_scale)
        if scale.shape != want.shape or scale.tobytes() != want.tobytes():
            self.note("S6", name, "a bias scale is not fl32(input scale * weight scale)")
        return np.asarray(bias)

    def _parameters(self, dq: onnx.NodeProto, kind: str, axis: int, name: str) -> tuple[Any, Any, Any]:
        if dq.op_type != "DequantizeLinear" or len(dq.input) != 3:
            raise MismatchError("S4", name, "a parameter does not come from DequantizeLinear with a zero point")
        self.used.add(dq.output[0])
        found = next((int(a.i) for a in dq.attribute if a.name == "axis"), 1)
        codes = self.const(dq.input[0], kind, name)
        if found != axis:
            self.note("S4", name, f"axis {found} of {dq.input[0]} is not {axis}")
        return codes, self.const(dq.input[1], "float32", name), self.const(dq.input[2], kind, name)
