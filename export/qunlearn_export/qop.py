"""From the integer graph to a QOperator ONNX file: int8 tensors throughout, one integer node per layer.

Operators of ``ai.onnx`` 17 and, where that has none, of ``com.microsoft`` 1 (artefact_onnx 2.7). Names, metadata and
digest are those of the QDQ form. A Relu needs no node (the output's zero point is -128); a Clip that ends below code
127 is a Clip of codes. What these two hide is kept in the metadata, so that the file reads back to the same graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from qunlearn_export import emit
from qunlearn_export import graph as g
from qunlearn_export.emit import LOGITS, MICROSOFT, Builder
from qunlearn_export.oracle import bounds

DOMAINS = (("", emit.OPSET), (MICROSOFT, 1))
INT8 = TensorProto.INT8


def to_qop_model(graph: g.Graph, *, io: str = "float") -> onnx.ModelProto:
    """The QOperator model of ``graph``; errors as :func:`qunlearn_export.writer.to_model`."""
    b, coded = emit.start(graph, io)
    for layer in graph.layers:
        coded[layer.output] = _Layer(b, layer, coded).write()
    if io == "float":
        b.dequantize(graph.output, coded[graph.output], LOGITS, out=LOGITS)
    return b.model(form="qop", io=io, domains=DOMAINS)


class _Layer:
    """The nodes of one layer: its operator, for some a Reshape before and after, for some a Clip of codes."""

    def __init__(self, b: Builder, layer: g.AnyLayer, coded: dict[str, str]) -> None:
        self.b, self.layer = b, layer
        self.sources = [coded[t] for t in layer.inputs]
        self.out = b.graph.activations[layer.output]
        self.limits = bounds(layer, self.out)
        self.clips = self.limits != (-128, 127)

    def write(self) -> str:
        """Emit; returns the name of the coded result."""
        n = self.layer.name
        made = self._operator(f"{n}.raw" if self.clips else f"{n}.q")
        if not self.clips:
            return made
        ends = zip(("clip_min", "clip_max"), self.limits, strict=True)
        inputs = [made, *(self.b.constant(f"{n}.{end}", np.asarray(v, dtype=np.int8)) for end, v in ends)]
        return self.b.node("Clip", f"{n}/clip", inputs, f"{n}.q", INT8, ["N", *self.out.shape])

    def _emit(self, op: str, inputs: list[str], out: str, *, rows: int = 0, role: str = "", **attrs: Any) -> str:
        """A node on [N, ...] like the layer's output, or on ``rows`` columns, of which there are not N."""
        shape = ["rows", rows] if rows else ["N", *self.out.shape]
        return self.b.node(op, f"{self.layer.name}/{role or op.lower()}", inputs, out, INT8, shape, **attrs)

    def _x(self, i: int) -> list[str]:
        """An operand with its scale and zero point."""
        return [self.sources[i], *self.b.grid(self.layer.inputs[i])]

    def _operator(self, out: str) -> str:
        layer, y = self.layer, self.b.grid(self.layer.output) if _has_grid(self.layer) else ()
        match layer:
            case g.Conv():
                inputs = [*self._x(0), *self.b.codes(layer), *y, *self._bias(layer)]
                attrs: dict[str, Any] = {"kernel_shape": list(layer.weight.shape[2:]), "group": layer.group}
                attrs |= {k: list(getattr(layer, k)) for k in ("strides", "pads", "dilations")}
                return self._emit("QLinearConv", inputs, out, **attrs)
            case g.Gemm():
                inputs = [*self._x(0), *self.b.codes(layer), *(self._bias(layer) or [""]), *y]
                return self._emit("QGemm", inputs, out, transB=1, domain=MICROSOFT)
            case g.MatMul():
                return self._matmul(layer, out, list(y))
            case g.Add():
                return self._emit("QLinearAdd", [*self._x(0), *self._x(1), *y], out, domain=MICROSOFT)
            case g.MaxPool():
                return self._emit("MaxPool", self.sources, out, **_window(layer))
            case g.AveragePool():
                attrs = {**_window(layer), "count_include_pad": int(layer.count_include_pad)}
                return self._emit("QLinearAveragePool", [*self._x(0), *y], out, domain=MICROSOFT, **attrs)
            case g.GlobalAveragePool():
                return self._emit("QLinearGlobalAveragePool", [*self._x(0), *y], out, domain=MICROSOFT)
            case g.Concat() | g.Requant():
                inputs = [*y, *(v for i in range(len(self.sources)) for v in self._x(i))]
                role = "requant" if isinstance(layer, g.Requant) else ""
                return self._emit("QLinearConcat", inputs, out, role=role, axis=1, domain=MICROSOFT)
            case g.Flatten():
                return self._emit("Flatten", self.sources, out, axis=1)
            case g.Reshape():
                return self._emit("Reshape", [*self.sources, self._target("shape", layer.shape)], out)

    def _bias(self, layer: g.Weighted) -> list[str]:
        if layer.bias is None:
            return []
        return [self.b.constant(f"{layer.name}.bias", np.ascontiguousarray(layer.bias, dtype=np.int32))]

    def _target(self, name: str, shape: tuple[int, ...]) -> str:
        return self.b.constant(f"{self.layer.name}.{name}", np.asarray([-1, *shape], dtype=np.int64))

    def _matmul(self, layer: g.MatMul, out: str, y: list[str]) -> str:
        """QLinearMatMul has no bias; with one, QGemm on rows [N * lead, D] computes it in the same integer sum."""
        weights = list(self.b.codes(layer))
        if layer.bias is None:
            return self._emit("QLinearMatMul", [*self._x(0), *weights, *y], out)
        n, lead = layer.name, self.out.shape[:-1]
        x = self._x(0)
        if lead:
            d = layer.weight.shape[0]
            x[0] = self._emit("Reshape", [x[0], self._target("rows", (d,))], f"{n}.in", rows=d, role="rows")
        inputs = [*x, *weights, *self._bias(layer), *y]
        if not lead:
            return self._emit("QGemm", inputs, out, domain=MICROSOFT)
        made = self._emit("QGemm", inputs, f"{n}.flat", rows=layer.weight.shape[1], domain=MICROSOFT)
        return self._emit("Reshape", [made, self._target("back", self.out.shape)], out, role="back")


def _has_grid(layer: g.AnyLayer) -> bool:
    """Whether the node carries scale and zero point of its output; layers that keep codes do not."""
    return not isinstance(layer, g.MaxPool | g.Flatten | g.Reshape)


def _window(layer: g.MaxPool | g.AveragePool) -> dict[str, Any]:
    return {"kernel_shape": list(layer.kernel), "strides": list(layer.strides), "pads": list(layer.pads)}
