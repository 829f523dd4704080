"""What both parsers share: constants and shapes of an untrusted file, and how a mismatch becomes a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qunlearn_export import graph as g
from qunlearn_export.degenerate import Finding


class MismatchError(Exception):
    """A node does not fit the pattern; carries the check's code."""

    def __init__(self, code: str, where: str, message: str) -> None:
        super().__init__(message)
        self.finding = Finding(code=code, level="error", where=where, message=message)


@dataclass
class Parsed:
    """The graph (None when the structure does not fit) and what was found on the way."""

    graph: g.Graph | None = None
    findings: list[Finding] = field(default_factory=list)


class Matcher:
    """A file being matched: activations by name, and ``tensor_of``: the activation that a coded tensor holds."""

    def __init__(self, model: onnx.ModelProto, findings: list[Finding]) -> None:
        self.proto = model.graph
        self.findings = findings
        self.constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in self.proto.initializer}
        self.shapes: dict[str, tuple[int, ...]] = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in [*self.proto.value_info, *self.proto.input, *self.proto.output]
        }
        self.by_output = {n.output[0]: n for n in self.proto.node}
        self.tensor_of: dict[str, str] = {}
        self.activations: dict[str, g.Activation] = {}

    def const(self, name: str, kind: str, where: str) -> NDArray[Any]:
        """An initializer of that numpy type."""
        value = self.constants.get(name)
        if value is None or value.dtype.name != kind:
            raise MismatchError("S4", where, f"{name} is not a constant of type {kind}")
        return value

    def scalar(self, name: str, kind: str, where: str) -> Any:
        """A rank-0 initializer."""
        value = self.const(name, kind, where)
        if value.ndim:
            raise MismatchError("S4", where, "an activation has one scale and one zero point")
        return value[()]

    def activation(self, tensor: str, scale: str, zero: str, *, g_name: str, where: str) -> None:
        """Record the activation that ``tensor`` holds, on the grid of two constants."""
        shape = self.shapes.get(tensor)
        if shape is None:
            raise MismatchError("S11", where, "no shape is recorded")
        self.activations[g_name] = g.Activation(
            name=g_name,
            shape=shape[1:],
            scale=np.float32(self.scalar(scale, "float32", where)),
            zero_point=int(self.scalar(zero, "int8", where)),
        )
        self.tensor_of[tensor] = g_name

    def on_grid(self, operand: Sequence[str], where: str) -> str:
        """Name of the activation of an operand (tensor, scale, zero point); its grid must be that of the producer."""
        tensor, scale, zero = operand
        if tensor not in self.tensor_of:
            raise MismatchError("S4", where, "an operand is not a coded tensor")
        name = self.tensor_of[tensor]
        a = self.activations[name]
        step, offset = self.scalar(scale, "float32", where), self.scalar(zero, "int8", where)
        if step.tobytes() != a.scale.tobytes() or int(offset) != a.zero_point:
            raise MismatchError("S4", where, "producer and reader of one tensor differ in scale or zero point")
        return name

    def check_grid(self, layer: g.AnyLayer) -> None:
        """S7 (zero point after Relu) and S8 (grids of layers that keep codes)."""
        out = self.activations[layer.output]
        if layer.relu and out.zero_point != -128:
            self.note("S7", layer.name, f"zero point {out.zero_point} after Relu, not -128")
        if isinstance(layer, g.MaxPool | g.Flatten | g.Reshape):
            a = self.activations[layer.inputs[0]]
            if (a.scale, a.zero_point) != (out.scale, out.zero_point):
                self.note("S8", layer.name, "scale or zero point changes across a layer that keeps codes")

    def check_codes(self, weight: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int, name: str) -> None:
        """S5: symmetric codes, one scale per output channel."""
        if scale.shape != (weight.shape[axis],) or zero.any():
            self.note("S5", name, "weight zero points are not 0 or scales are not one per output channel")
        if weight.min(initial=0) == -128:
            self.note("S5", name, "a weight code is -128")

    def note(self, code: str, where: str, message: str) -> None:
        """Add an error and go on."""
        self.findings.append(Finding(code=code, level="error", where=where, message=message))

    def target(self, tensor: str, name: str) -> tuple[int, ...]:
        """Shape without the batch dimension that a Reshape makes."""
        value = self.const(tensor, "int64", name)
        if value.ndim != 1 or value[0] != -1:
            raise MismatchError("S3", name, "Reshape does not keep the batch dimension")
        return tuple(int(d) for d in value[1:])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute values by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def ints(attrs: dict[str, Any], key: str, name: str) -> tuple[int, ...]:
    """A list of integers among the attributes."""
    value = attrs.get(key)
    if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
        raise MismatchError("S3", name, f"attribute {key} is missing or not a list of integers")
    return tuple(value)


def window(attrs: dict[str, Any], name: str) -> dict[str, Any]:
    """Kernel, strides and pads of a pool."""
    pairs = (("kernel", "kernel_shape"), ("strides", "strides"), ("pads", "pads"))
    return {key: ints(attrs, attribute, name) for key, attribute in pairs}


def conv_attributes(attrs: dict[str, Any], weight: NDArray[Any], name: str) -> dict[str, Any]:
    """Strides, pads, dilations and group of a convolution."""
    if ints(attrs, "kernel_shape", name) != weight.shape[2:]:
        raise MismatchError("S3", name, "kernel_shape is not that of the weights")
    if not isinstance(attrs.get("group"), int):
        raise MismatchError("S3", name, "attribute group is missing")
    return {"group": attrs["group"], **{k: ints(attrs, k, name) for k in ("strides", "pads", "dilations")}}


def bits_of(clip: np.float32, scale: np.float32) -> int:
    """Bits of an activation behind Clip(0, (2^b - 1) scale); 8 for any other clip."""
    for bits in range(1, 8):
        if clip == np.multiply(np.float32(2**bits - 1), scale, dtype=np.float32):
            return bits
    return 8
