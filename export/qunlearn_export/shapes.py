"""Does an integer graph hang together? Names, order, shapes and windows, before anything is computed or written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from qunlearn_export import graph as g
from qunlearn_export.ties import combinations

MAX_LAYER_NAME = 60
MAX_ELEMENTS = 2**26
MAX_WINDOW = 2**16
MAX_COMBINATIONS = 2**23
"""Code combinations that the tie check may go through for one network: 128 additions, or a mean over 181 x 181."""

RESERVED = ("input", "logits")


class ShapeError(Exception):
    """A layer cannot work on its inputs; the message says why. Turned into a finding by the callers."""


def problems(graph: g.Graph) -> list[tuple[str, str]]:
    """Every (layer or tensor, message) that makes ``graph`` impossible; empty for a sound one."""
    out: list[tuple[str, str]] = []
    for name, a in graph.activations.items():
        if not a.shape or any(d < 1 for d in a.shape) or math.prod(a.shape) > MAX_ELEMENTS:
            out.append((name, f"shape {a.shape} is not 1 to {MAX_ELEMENTS} elements"))
    if graph.input != "input" or graph.input not in graph.activations:
        out.append((graph.input, "the input tensor must be an activation named input"))
    if not graph.layers or graph.output != graph.layers[-1].output:
        out.append((graph.output, "the output must be that of the last layer"))
    if out:
        return out
    known, names = {graph.input}, set(RESERVED)
    for layer in graph.layers:
        if layer.name in names or not layer.name.isascii() or not 0 < len(layer.name) <= MAX_LAYER_NAME:
            out.append((layer.name, f"a layer name is taken, not ASCII, or not 1 to {MAX_LAYER_NAME} characters"))
        names.add(layer.name)
        missing = [n for n in layer.inputs if n not in known]
        if missing or layer.output in known or layer.output not in graph.activations:
            out.append((layer.name, "an input is not computed before it is read, or the output is computed twice"))
            return out
        known.add(layer.output)
        try:
            want = output_shape(layer, [graph.activations[n].shape for n in layer.inputs])
        except ShapeError as err:
            out.append((layer.name, str(err)))
            continue
        have = graph.activations[layer.output].shape
        if want != have:
            out.append((layer.name, f"output shape {have} is recorded, {want} follows from the inputs"))
        if layer.clip is not None and not (np.isfinite(layer.clip) and layer.clip > 0):
            out.append((layer.name, f"Clip(0, {layer.clip:g}) has no positive, finite end"))
    if not out:
        count = sum(combinations(one, [graph.activations[n].shape for n in one.inputs]) for one in graph.layers)
        if count > MAX_COMBINATIONS:
            out.append(("graph", f"{count} code combinations of sums and means are too many to check for ties"))
    return out


def output_shape(layer: g.AnyLayer, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Shape without the batch dimension of the layer's result; ShapeError when the layer does not fit."""
    count = {g.Add: 2, g.Concat: len(shapes)}.get(type(layer), 1)
    if len(shapes) != count or not shapes:
        raise ShapeError(f"{len(shapes)} inputs instead of {count}")
    first = shapes[0]
    match layer:
        case g.Conv():
            return _conv(layer, first)
        case g.Gemm():
            _parameters(layer, 0, 2)
            _need(first == (layer.weight.shape[1],), f"input {first} does not fit weights {layer.weight.shape}")
            return (layer.weight.shape[0],)
        case g.MatMul():
            _parameters(layer, 1, 2)
            fits = len(first) <= 3 and first[-1] == layer.weight.shape[0]
            _need(fits, f"input {first} does not fit weights {layer.weight.shape}")
            return (*first[:-1], layer.weight.shape[1])
        case g.Add():
            _need(first == shapes[1], f"operands have shapes {first} and {shapes[1]}")
            return first
        case g.MaxPool():
            return (first[0], *_window(first[1:], layer.kernel, layer.strides, layer.pads))
        case g.AveragePool():
            _need(math.prod(layer.kernel) <= MAX_WINDOW, f"a window of more than {MAX_WINDOW} positions")
            return (first[0], *_window(first[1:], layer.kernel, layer.strides, layer.pads))
        case g.GlobalAveragePool():
            _need(2 <= len(first) <= 3, f"input {first} has no one or two spatial dimensions")
            _need(math.prod(first[1:]) <= MAX_WINDOW, f"a window of more than {MAX_WINDOW} positions")
            return (first[0], *([1] * (len(first) - 1)))
        case g.Concat():
            _need(all(s[1:] == first[1:] for s in shapes), f"operands have shapes {list(shapes)}")
            return (sum(s[0] for s in shapes), *first[1:])
        case g.Requant():
            # without a clamp in between, ONNX Runtime merges two quantizers and rounds once instead of twice
            _need(layer.relu or layer.clip is not None, "a change of scale alone is not an operator of the artefact")
            return first
        case g.Flatten():
            return (math.prod(first),)
        case g.Reshape():
            fits = math.prod(layer.shape) == math.prod(first) and all(d > 0 for d in layer.shape)
            _need(fits and len(layer.shape) <= 5, f"{first} cannot become {layer.shape}")
            return layer.shape
    raise ShapeError(f"{type(layer).__name__} is not an operator of the artefact")


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def _parameters(layer: g.Conv | g.Gemm | g.MatMul, axis: int, *ranks: int) -> None:
    shape = layer.weight.shape
    _need(len(shape) in ranks and all(d > 0 for d in shape), f"weights of shape {shape}")
    k = (shape[axis],)
    _need(layer.weight_scale.shape == k, f"{layer.weight_scale.shape} weight scales for {k[0]} channels")
    _need(layer.bias is None or layer.bias.shape == k, f"bias codes do not match {k[0]} channels")


def _conv(layer: g.Conv, shape: tuple[int, ...]) -> tuple[int, ...]:
    _parameters(layer, 0, 3, 4)
    k, per_group, *kernel = layer.weight.shape
    fits = layer.group >= 1 and k % layer.group == 0 and shape[0] == per_group * layer.group
    _need(fits and len(shape) == 1 + len(kernel), f"input {shape} does not fit weights {layer.weight.shape}")
    return (k, *_sizes(shape[1:], tuple(kernel), layer.strides, layer.pads, layer.dilations))


def _window(
    spatial: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...]
) -> Iterator[int]:
    inside = len(pads) == 2 * len(kernel) and all(p < k for p, k in zip(pads, (*kernel, *kernel), strict=True))
    _need(inside, f"pads {pads} are not smaller than the window {kernel}")
    return iter(_sizes(spatial, kernel, strides, pads, (1,) * len(kernel)))


def _sizes(
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
) -> list[int]:
    r = len(kernel)
    lengths = len(spatial) == len(strides) == len(dilations) == r and len(pads) == 2 * r and r in (1, 2)
    _need(lengths, "kernel, strides, pads and dilations do not match the input's dimensions")
    _need(
        all(v >= 1 for v in (*kernel, *strides, *dilations)) and min(pads) >= 0, "a stride, window or pad is negative"
    )
    _need(max((*kernel, *strides, *pads, *dilations)) <= MAX_ELEMENTS, "a stride, window or pad is absurd")
    full = [n + pads[i] + pads[i + r] for i, n in enumerate(spatial)]
    _need(math.prod(full) <= MAX_ELEMENTS, "the padded input is too large")
    out = [(full[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(r)]
    _need(min(out) >= 1, f"the window {kernel} is larger than the input")
    return out
