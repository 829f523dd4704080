"""The integer graph as the kernels of the firmware see it: channel-last buffers and one node a kernel call.

Maps [C, H, W] are stored [H][W][C]; sequences [C, L] are maps with H = 1; vectors [D] keep their order. Flatten and
Reshape move no data where the stored order allows it: a linear layer after a flattened map gets its columns permuted
instead, anything else gets a ``transpose`` node (firmware.md 2.2, 2.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qunlearn_export import graph as g
from qunlearn_export.errors import UnsupportedError

Hwc = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One kernel call: ``op`` on buffers ``inputs``, into buffer ``output``.

    ``views`` is (H, W, C) of every input as this node sees it, which may differ from the shape its buffer was written
    in. ``layer`` is the graph's layer (None for a transpose), ``columns`` the (C, H * W) of a flattened map whose order
    the weights of a linear node follow, ``activation`` the graph's activation that ``output`` holds afterwards.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    views: tuple[Hwc, ...]
    output: str
    layer: g.AnyLayer | None
    activation: str | None
    columns: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Program:
    """Nodes in execution order; ``shapes`` is (H, W, C) by buffer; ``input`` and ``output`` name buffers."""

    nodes: tuple[Node, ...]
    shapes: Mapping[str, Hwc]
    input: str
    output: str

    def size(self, buffer: str) -> int:
        """Bytes of a buffer."""
        return math.prod(self.shapes[buffer])


@dataclass(frozen=True)
class _Held:
    """An activation in memory: its buffer, and (C, H * W) if a vector is stored in the order of a flattened map."""

    buffer: str
    columns: tuple[int, int] | None = None


def hwc(shape: tuple[int, ...]) -> Hwc:
    """(H, W, C) of an activation shape without batch: [D], [C, L] or [C, H, W]."""
    if len(shape) == 1:
        return 1, 1, shape[0]
    if len(shape) == 2:
        return 1, shape[1], shape[0]
    return shape[1], shape[2], shape[0]


def program(graph: g.Graph) -> Program:
    """Nodes and buffers of ``graph``; UnsupportedError names every layer that has no kernel."""
    _refuse(graph)
    return _Builder(graph).build()


def _refuse(graph: g.Graph) -> None:
    bad = [
        layer.name
        for layer in graph.layers
        if len(graph.activations[layer.output].shape) > 3
        or (isinstance(layer, g.MatMul) and len(graph.activations[layer.inputs[0]].shape) > 1)
    ]
    if len(graph.activations[graph.input].shape) > 3:
        bad.insert(0, graph.input)
    if bad:
        raise UnsupportedError(
            f"no C kernel for {', '.join(map(repr, bad[:8]))}{' and more' if len(bad) > 8 else ''}: a matrix product "
            "over a sequence, or a tensor of more than three dimensions.",
            remedy="Firmware is for convolutional networks; run transformers with ONNX Runtime.",
        )


class _Builder:
    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.shapes: dict[str, Hwc] = {}
        self.held: dict[str, _Held] = {}

    def build(self) -> Program:
        start = self.graph.input
        self.shapes[start] = hwc(self.graph.activations[start].shape)
        self.held[start] = _Held(start)
        for layer in self.graph.layers:
            self._layer(layer)
        output = self._plain(self.graph.output)
        if output == start:
            raise UnsupportedError("a network without a computing layer.", remedy="Give a network with weights.")
        return Program(nodes=tuple(self.nodes), shapes=self.shapes, input=start, output=output)

    def _layer(self, layer: g.AnyLayer) -> None:
        match layer:
            case g.Flatten() | g.Reshape():
                held = self._reshape(layer)
                if layer.relu or layer.clip is not None:
                    held = _Held(self._emit("requant", layer, (held.buffer,)), held.columns)
                self.held[layer.output] = held
                return
            case g.Gemm() | g.MatMul():
                held = self.held[layer.inputs[0]]
                buffer = self._emit("linear", layer, (held.buffer,), columns=held.columns)
            case g.Requant():
                held = self.held[layer.inputs[0]]
                self.held[layer.output] = _Held(self._emit("requant", layer, (held.buffer,)), held.columns)
                return
            case g.Conv():
                buffer = self._emit(conv_op(layer), layer, (self._plain(layer.inputs[0]),))
            case _:
                names = {g.Add: "add", g.MaxPool: "maxpool", g.Concat: "concat"}
                op = names.get(type(layer), "avgpool")
                buffer = self._emit(op, layer, tuple(self._plain(n) for n in layer.inputs))
        self.held[layer.output] = _Held(buffer)

    def _emit(
        self, op: str, layer: g.AnyLayer, inputs: tuple[str, ...], *, columns: tuple[int, int] | None = None
    ) -> str:
        self.shapes[layer.output] = hwc(self.graph.activations[layer.output].shape)
        self.nodes.append(
            Node(
                op=op,
                name=layer.name,
                inputs=inputs,
                views=tuple(hwc(self.graph.activations[n].shape) for n in layer.inputs),
                output=layer.output,
                layer=layer,
                activation=layer.output,
                columns=columns,
            )
        )
        return layer.output

    def _plain(self, activation: str) -> str:
        """The buffer of an activation in its own order; a transpose is inserted where a flattened map is in the way."""
        held = self.held[activation]
        if held.columns is None:
            return held.buffer
        channels, places = held.columns
        buffer = self._transpose(held.buffer, places, channels, (1, 1, channels * places))
        self.held[activation] = _Held(buffer)
        return buffer

    def _transpose(self, buffer: str, rows: int, columns: int, shape: Hwc) -> str:
        """[rows][columns] to [columns][rows]."""
        name = f"transpose/{len(self.nodes)}"
        self.shapes[name] = shape
        self.nodes.append(
            Node(
                op="transpose",
                name=name,
                inputs=(buffer,),
                views=(shape,),
                output=name,
                layer=None,
                activation=None,
                columns=(rows, columns),
            )
        )
        return name

    def _reshape(self, layer: g.Flatten | g.Reshape) -> _Held:
        held = self.held[layer.inputs[0]]
        old, new = self.graph.activations[layer.inputs[0]].shape, self.graph.activations[layer.output].shape
        channels, places = held.columns or (old[0], math.prod(old[1:]))
        packed = held.columns is not None or len(old) > 1
        swapped = packed and channels > 1 and places > 1
        target = hwc(new)
        if not swapped:
            if len(new) == 1 or new[0] == 1 or math.prod(new[1:]) == 1:
                return _Held(held.buffer)
            return _Held(self._transpose(held.buffer, new[0], math.prod(new[1:]), target))
        if len(new) == 1:
            return _Held(held.buffer, (channels, places))
        if new[0] == channels:
            return _Held(held.buffer)
        plain = self._transpose(held.buffer, places, channels, (1, 1, channels * places))
        if new[0] == 1 or math.prod(new[1:]) == 1:
            return _Held(plain)
        return _Held(self._transpose(plain, new[0], math.prod(new[1:]), target))


def conv_op(layer: g.Conv) -> str:
    """``conv2d``, ``depthwise`` (one input channel a group) or ``conv2d_grouped``."""
    if layer.group == 1:
        return "conv2d"
    return "depthwise" if layer.weight.shape[1] == 1 else "conv2d_grouped"
