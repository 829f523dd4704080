"""One kernel call a node: the parameter structure of ``qul_kernels.h``, filled from shapes and layout offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qunlearn_export import graph as g
from qunlearn_export.arena import Arena
from qunlearn_export.layout import Entry, Layout, counts
from qunlearn_export.nodes import Hwc, Node, Program

Field = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a call is written from: the program, its layout and its arena."""

    graph: g.Graph
    program: Program
    layout: Layout
    arena: Arena

    def at(self, buffer: str, extra: int = 0) -> str:
        """C expression of a buffer's address."""
        offset = self.arena.offsets[buffer] + extra
        return f"arena + {offset}" if offset else "arena"


def call(site: Site, node: Node) -> list[str]:
    """C lines, without indentation, that compute ``node``."""
    shapes = site.program.shapes
    entries = site.layout.of(node.name) if node.layer is not None else {}
    out = shapes[node.output]
    y, xs = site.at(node.output), [site.at(n) for n in node.inputs]
    layer = node.layer
    match node.op:
        case "conv2d" | "conv2d_grouped" | "depthwise":
            assert isinstance(layer, g.Conv)
            fields = [*_maps(node.views[0], out), *_conv(layer), *_weights(entries)]
            return _call(node.op, fields, [xs[0], y])
        case "linear":
            inside = site.program.size(node.inputs[0])
            return _call("linear", [("n", str(inside)), ("k", str(out[2])), *_weights(entries)], [xs[0], y])
        case "add":
            fields = [("n", str(site.program.size(node.output))), ("m", _m(entries)), ("row", _row(entries))]
            return _call("add", fields, [*xs, y])
        case "maxpool":
            fields = [*_maps(node.views[0], out), *_window(layer), ("row", _row(entries))]
            return _call("maxpool", fields, [xs[0], y])
        case "avgpool":
            return _average(site, node, entries)
        case "requant" | "concat":
            return _requant(site, node, entries)
    rows, columns = node.columns or (1, 1)
    return [f"transpose({xs[0]}, {y}, {rows}u, {columns}u);"]


def _call(op: str, fields: list[Field], pointers: list[str]) -> list[str]:
    body = ", ".join(f".{name} = {value}" for name, value in fields)
    return [f"const qul_{op}_t p = {{{body}}};", f"qul_{op}(&p, {', '.join(pointers)});"]


def _maps(a: Hwc, b: Hwc) -> list[Field]:
    names = ("h", "w", "c", "oh", "ow", "k")
    return [(n, str(v)) for n, v in zip(names, (*a, *b), strict=True)]


def _two(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    """Rows and columns; a sequence is one row."""
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def _conv(layer: g.Conv) -> list[Field]:
    (kh, kw), (sh, sw) = _two(layer.weight.shape[2:], 1), _two(layer.strides, 1)
    (dh, dw), (top, left) = _two(layer.dilations, 1), _two(layer.pads[: len(layer.pads) // 2], 0)
    values = {"kh": kh, "kw": kw, "sh": sh, "sw": sw, "pt": top, "pl": left, "dh": dh, "dw": dw}
    return [(n, str(v)) for n, v in ({**values, "g": layer.group}).items()]


def _window(layer: g.AnyLayer | None) -> list[Field]:
    assert isinstance(layer, g.MaxPool | g.AveragePool)
    (kh, kw), (sh, sw) = _two(layer.kernel, 1), _two(layer.strides, 1)
    top, left = _two(layer.pads[: len(layer.pads) // 2], 0)
    return [(n, str(v)) for n, v in {"kh": kh, "kw": kw, "sh": sh, "sw": sw, "pt": top, "pl": left}.items()]


def _average(site: Site, node: Node, entries: Mapping[str, Entry]) -> list[str]:
    layer, a = node.layer, node.views[0]
    assert isinstance(layer, g.AveragePool | g.GlobalAveragePool)
    if isinstance(layer, g.GlobalAveragePool):
        window = {"kh": a[0], "kw": a[1], "sh": 1, "sw": 1, "pt": 0, "pl": 0}
        fields = [(n, str(v)) for n, v in window.items()]
        whole = False
    else:
        fields, whole = _window(layer), layer.count_include_pad
    divisors = counts(layer, site.graph.activations[layer.inputs[0]].shape)
    lines = [f"static const uint16_t n[{len(divisors)}] = {{{', '.join(map(str, divisors))}}};"]
    fields = [
        *_maps(a, site.program.shapes[node.output]),
        *fields,
        ("all", str(int(whole))),
        ("counts", str(len(divisors))),
        ("n", "n"),
        ("m", _m(entries)),
        ("row", _row(entries)),
    ]
    return [*lines, *_call("avgpool", fields, [site.at(node.inputs[0]), site.at(node.output)])]


def _requant(site: Site, node: Node, entries: Mapping[str, Entry]) -> list[str]:
    total, lines, start = site.program.shapes[node.output][2], [], 0
    for i, (name, (h, w, c)) in enumerate(zip(node.inputs, node.views, strict=True)):
        table = f"P + {entries[f'table{i}'].offset}"
        fields = [("rows", str(h * w)), ("c", str(c)), ("stride", str(total)), ("table", table)]
        lines += ["{", *_call("requant", fields, [site.at(name), site.at(node.output, start)]), "}"]
        start += c
    return lines


def _weights(entries: Mapping[str, Entry]) -> list[Field]:
    return [
        ("weight", f"W + {entries['weight'].offset}"),
        ("bias", f"B + {entries['bias'].offset}"),
        ("m", _m(entries)),
        ("row", _row(entries)),
    ]


def _m(entries: Mapping[str, Entry]) -> str:
    return f"M + {entries['multiplier'].offset}"


def _row(entries: Mapping[str, Entry]) -> str:
    return f"P + {entries['row'].offset}"
