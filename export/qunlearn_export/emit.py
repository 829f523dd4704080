"""What both forms of the file share: nodes and constants in a fixed order, metadata, the model around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qunlearn_export import graph as g
from qunlearn_export.errors import ConfigError, UnsupportedError
from qunlearn_export.files import canonical_json
from qunlearn_export.shapes import problems

OPSET, IR_VERSION = 17, 8
MICROSOFT = "com.microsoft"
FORMS = ("qdq", "qop")
INPUT, LOGITS = "input", "logits"
CLAMPS = "qunlearn.clamps"
"""QOperator files only: which layers end in Relu or Clip(0, c), since a clamp of codes does not tell."""

_TYPES = {
    "float32": TensorProto.FLOAT,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


def format_tag(form: str) -> str:
    """``qunlearn.format`` of a form, such as ``int8-qdq/1``."""
    return f"int8-{form}/{g.FORMAT_VERSION}"


class Builder:
    """Collects nodes, initializers (in order of first use) and value_info (in node order) of one ``graph``."""

    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.owner = {graph.input: graph.input, **{layer.output: layer.name for layer in graph.layers}}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.values: list[onnx.ValueInfoProto] = []
        self.reals = 0

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An initializer with raw little-endian bytes, made once."""
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
        """A node with one output ``out`` of type ``kind``; ``domain`` among ``attrs`` is its operator domain."""
        made = helper.make_node(op, list(inputs), [out], name=name, **dict(sorted(attrs.items())))
        self.nodes.append(made)
        self.values.append(helper.make_tensor_value_info(out, kind, list(shape)))
        return out

    def grid(self, tensor: str) -> tuple[str, str]:
        """Constants of scale and zero point of an activation, named after the layer that makes it."""
        a, owner = self.graph.activations[tensor], self.owner[tensor]
        return (
            self.constant(f"{owner}.out_scale", np.asarray(a.scale, dtype=np.float32)),
            self.constant(f"{owner}.out_zp", np.asarray(a.zero_point, dtype=np.int8)),
        )

    def quantize(self, tensor: str, real: str) -> str:
        """Float ``real`` onto the grid of an activation."""
        owner, shape = self.owner[tensor], self.graph.activations[tensor].shape
        inputs = [real, *self.grid(tensor)]
        return self.node("QuantizeLinear", f"{owner}/q", inputs, f"{owner}.q", TensorProto.INT8, ["N", *shape])

    def dequantize(self, tensor: str, coded: str, consumer: str, position: int = 0, *, out: str | None = None) -> str:
        """The real values of an activation for one of its consumers."""
        tail = f"{consumer}.{position}" if position else consumer
        inputs, shape = [coded, *self.grid(tensor)], ["N", *self.graph.activations[tensor].shape]
        name = f"{self.owner[tensor]}/dq.{tail}"
        return self.node("DequantizeLinear", name, inputs, out or self.real(), TensorProto.FLOAT, shape)

    def codes(self, layer: g.Weighted) -> tuple[str, str, str]:
        """Constants of a layer's weight codes, their scales and their zero points (all 0)."""
        scale = np.ascontiguousarray(layer.weight_scale, dtype=np.float32)
        return (
            self.constant(f"{layer.name}.weight", np.ascontiguousarray(layer.weight, dtype=np.int8)),
            self.constant(f"{layer.name}.weight_scale", scale),
            self.constant(f"{layer.name}.weight_zp", np.zeros(len(scale), dtype=np.int8)),
        )

    def model(self, *, form: str, io: str, domains: Sequence[tuple[str, int]]) -> onnx.ModelProto:
        """The whole file. The last node's output is the graph output; with ``io="int8"`` it is renamed to logits."""
        kind = TensorProto.FLOAT if io == "float" else TensorProto.INT8
        first, last = (self.graph.activations[n] for n in (self.graph.input, self.graph.output))
        self.nodes[-1].output[0] = LOGITS
        source = helper.make_tensor_value_info(INPUT, kind, ["N", *first.shape])
        sink = helper.make_tensor_value_info(LOGITS, kind, ["N", *last.shape])
        constants = list(self.initializers.values())
        proto = helper.make_graph(self.nodes, "qunlearn", [source], [sink], constants, value_info=self.values[:-1])
        model = helper.make_model(proto, opset_imports=[helper.make_opsetid(d, v) for d, v in domains])
        model.ir_version = IR_VERSION
        model.producer_name, model.producer_version, model.model_version = "qunlearn", str(g.FORMAT_VERSION), 1
        for key, value in sorted(_metadata(self.graph, form).items()):
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
        return model


def start(graph: g.Graph, io: str) -> tuple[Builder, dict[str, str]]:
    """A builder, and the coded tensor by activation name with the graph input in it.

    ConfigError for an unknown ``io``; UnsupportedError lists every layer that a file cannot hold.
    """
    if io not in ("float", "int8"):
        raise ConfigError(f"io {io!r} is unknown.", remedy="Use float or int8.")
    broken = problems(graph)
    if broken:
        raise UnsupportedError(
            "the network cannot be written: " + "; ".join(f"{where}: {message}" for where, message in broken) + ".",
            remedy="Change these layers.",
        )
    b = Builder(graph)
    return b, {graph.input: b.quantize(graph.input, INPUT) if io == "float" else INPUT}


def _metadata(graph: g.Graph, form: str) -> Mapping[str, str]:
    meta = graph.meta
    out = {
        "qunlearn.format": format_tag(form),
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
    if form == "qop":
        clamps = {
            layer.name: "relu" if layer.clip is None else float(layer.clip)
            for layer in graph.layers
            if layer.relu or layer.clip is not None
        }
        out[CLAMPS] = canonical_json(clamps)
    return out
