"""The blob: everything that an unlearning step may change, and where each tensor lies in it (firmware.md 2.2).

Four sections, W (int8 weights), B (int32 folded biases), M (float32 multipliers), P (int8 zero points, clamps, tables),
contiguous and little-endian, every tensor aligned to 16 bytes with zeros between. Equal layout digest: same C code,
other blob.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.arena import plan_arena
from qunlearn_export.errors import VerificationError
from qunlearn_export.files import canonical_json
from qunlearn_export.nodes import Node, Program, program
from qunlearn_export.oracle import average_multiplier, bounds, multiplier, requant
from qunlearn_export.ties import window_counts

SECTIONS = ("W", "B", "M", "P")
DTYPES: Mapping[str, np.dtype[Any]] = {
    "W": np.dtype("i1"),
    "B": np.dtype("<i4"),
    "M": np.dtype("<f4"),
    "P": np.dtype("i1"),
}
ALIGN = 16
GRAPH = ""
"""Node name of the entries that belong to the network's own input and output."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the blob: ``offset`` and ``count`` in elements of ``section``; ``role`` within layer ``node``.

    Roles: W ``weight``; B ``bias``; M ``multiplier`` (graph: input and output scale); P ``row`` (z of every input, z_y,
    lo, hi; graph: z of input and output) and ``table0``, ``table1`` ... (256 codes, from input code -128 upward).
    """

    section: str
    offset: int
    count: int
    node: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A W tensor whose changes move a folded bias (bundle.md 2.4): where it starts in W and its ``count``.

    Element i belongs to channel i // ``inner``, or i mod ``channels`` where ``inner`` is 0 (depthwise). ``bias`` is
    the offset of its tensor in B, ``zero`` the index of z_x in P. A change d of an element moves its channel's folded
    bias by -z_x * d.
    """

    weight: int
    count: int
    channels: int
    inner: int
    bias: int
    zero: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``sizes`` are elements of W, B, M, P, padding included; ``structure`` is the canonical text of all nodes."""

    sizes: tuple[int, int, int, int]
    entries: tuple[Entry, ...]
    folds: tuple[Fold, ...]
    structure: str

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of sizes, tensors, folds and nodes: what code is compiled against, in hex."""
        slots = {(f.weight, f.count): i for i, f in enumerate(self.folds)}
        tensors = []
        for e in self.entries:
            slot = slots.get((e.offset, e.count)) if e.section == "W" else None
            fold = None if slot is None else self.folds[slot]
            tensors.append(
                [e.section, e.offset, e.count, e.node, e.role, slot]
                + ([] if fold is None else [fold.channels, fold.inner, fold.bias, fold.zero])
            )
        text = canonical_json({"sizes": list(self.sizes), "tensors": tensors, "nodes": self.structure})
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def section_bytes(self) -> tuple[int, int, int, int]:
        """Bytes of W, B, M, P."""
        w, b, m, p = self.sizes
        return w, 4 * b, 4 * m, p

    @property
    def blob_bytes(self) -> int:
        """Bytes of the whole blob."""
        return sum(self.section_bytes)

    @property
    def scratch_bytes(self) -> int:
        """Bytes the delta applier needs: 4 for every channel of every fold."""
        return 4 * sum(f.channels for f in self.folds)

    def of(self, node: str) -> dict[str, Entry]:
        """The tensors of one layer by role; the graph's own under ``GRAPH``."""
        return {e.role: e for e in self.entries if e.node == node}


def plan(graph: g.Graph) -> Layout:
    """Offsets of every tensor; UnsupportedError for layers without a kernel.

    No fold slots are declared where the applier's scratch would not fit the network's own arena.
    """
    prog = program(graph)
    sizes = dict.fromkeys(SECTIONS, 0)
    entries: list[Entry] = []
    folds: list[Fold] = []
    for name, node, parts in _tensors(graph, prog):
        placed = {}
        for section, role, values in parts:
            entry = Entry(section=section, offset=sizes[section], count=values.size, node=name, role=role)
            step = ALIGN // DTYPES[section].itemsize
            sizes[section] = -(-(entry.offset + entry.count) // step) * step
            placed[role] = entry
            entries.append(entry)
        if node is not None and "weight" in placed:
            folds.append(_fold(node, placed))
    if 4 * sum(f.channels for f in folds) > plan_arena(prog).size:
        folds = []
    w, b, m, p = (sizes[s] for s in SECTIONS)
    return Layout(sizes=(w, b, m, p), entries=tuple(entries), folds=tuple(folds), structure=_structure(graph, prog))


def pack(graph: g.Graph, layout: Layout) -> bytes:
    """The blob of ``graph``; VerificationError where it does not have this layout."""
    if plan(graph).digest() != layout.digest():
        raise VerificationError(
            "the network does not have this layout.", remedy="An update needs the network it was made from."
        )
    sections = {s: np.zeros(n, dtype=DTYPES[s]) for s, n in zip(SECTIONS, layout.sizes, strict=True)}
    where = {(e.node, e.role): e for e in layout.entries}
    for name, _, parts in _tensors(graph, program(graph)):
        for section, role, values in parts:
            e = where[name, role]
            sections[section][e.offset : e.offset + e.count] = values
    return b"".join(sections[s].tobytes() for s in SECTIONS)


def sections(blob: bytes, layout: Layout) -> dict[str, NDArray[Any]]:
    """Read-only arrays W, B, M, P of a blob; VerificationError for a wrong length."""
    if len(blob) != layout.blob_bytes:
        raise VerificationError(
            f"a blob of {len(blob)} bytes, the layout has {layout.blob_bytes}.", remedy="Use the blob made for it."
        )
    out, start = {}, 0
    for name, count, size in zip(SECTIONS, layout.sizes, layout.section_bytes, strict=True):
        out[name] = np.frombuffer(blob, dtype=DTYPES[name], count=count, offset=start)
        start += size
    return out


def unpack(blob: bytes, layout: Layout, graph: g.Graph) -> g.Graph:
    """The network in ``blob``: codes, biases and zero points from it, everything else from ``graph``.

    ``graph`` is any network of this layout with the blob's scales; multipliers do not determine scales, so a blob whose
    multipliers are not those of ``graph``'s scales is a VerificationError, as is one that is not canonical.
    """
    prog = program(graph)
    parts = sections(blob, layout)
    read = {(e.node, e.role): parts[e.section][e.offset : e.offset + e.count] for e in layout.entries}
    made = {node.activation: node for node in prog.nodes if node.layer is not None}
    zero = {graph.input: int(read[GRAPH, "row"][0])}
    layers: list[g.AnyLayer] = []
    for layer in graph.layers:
        node = made.get(layer.output)
        if node is None:
            zero[layer.output] = zero[layer.inputs[0]]
            layers.append(layer)
            continue
        zero[layer.output] = int(read[layer.name, "row"][len(layer.inputs)])
        if isinstance(layer, g.Conv | g.Gemm | g.MatMul):
            weight = stored_to_weight(read[layer.name, "weight"], layer, node)
            folded = read[layer.name, "bias"].astype(np.int64)
            bias = (folded + zero[layer.inputs[0]] * _row_sums(weight, layer) + 2**31) % 2**32 - 2**31
            none = layer.bias is None and not bias.any()
            layer = replace(layer, weight=weight, bias=None if none else bias.astype(np.int32))
        layers.append(layer)
    acts = {n: replace(a, zero_point=zero.get(n, a.zero_point)) for n, a in graph.activations.items()}
    out = replace(graph, activations=acts, layers=tuple(layers))
    again = pack(out, layout)
    if again != blob:
        raise VerificationError(
            f"the blob is not one of this network: {_first_difference(blob, again, layout)}.",
            remedy="Give the network whose scales the blob was made with, and an intact blob.",
        )
    return out


def weight_to_stored(layer: g.Conv | g.Gemm | g.MatMul, node: Node) -> NDArray[np.int8]:
    """Weight codes in the firmware's order, flat."""
    w = layer.weight
    if isinstance(layer, g.Conv):
        w = w[:, :, None, :] if w.ndim == 3 else w
        return np.ascontiguousarray(w.transpose((2, 3, 0, 1) if node.op == "depthwise" else (0, 2, 3, 1))).ravel()
    rows = w.T if isinstance(layer, g.MatMul) else w
    if node.columns is not None:
        rows = rows.reshape(len(rows), *node.columns).transpose(0, 2, 1)
    return np.ascontiguousarray(rows).ravel()


def stored_to_weight(flat: NDArray[np.int8], layer: g.Conv | g.Gemm | g.MatMul, node: Node) -> NDArray[np.int8]:
    """The inverse of :func:`weight_to_stored`: codes in the shape of ``layer.weight``."""
    shape = layer.weight.shape
    if isinstance(layer, g.Conv):
        k, per, *kernel = shape
        kh, kw = (1, kernel[0]) if len(kernel) == 1 else (kernel[0], kernel[1])
        if node.op == "depthwise":
            w = flat.reshape(kh, kw, k, per).transpose(2, 3, 0, 1)
        else:
            w = flat.reshape(k, kh, kw, per).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(w).reshape(shape)
    k, d = (shape[1], shape[0]) if isinstance(layer, g.MatMul) else shape
    rows = flat.reshape(k, d)
    if node.columns is not None:
        rows = flat.reshape(k, node.columns[1], node.columns[0]).transpose(0, 2, 1).reshape(k, d)
    return np.ascontiguousarray(rows.T if isinstance(layer, g.MatMul) else rows)


def folded_bias(layer: g.Conv | g.Gemm | g.MatMul, zero: int) -> NDArray[np.int64]:
    """``b_q[k] - z_x * sum of w_q over the window of k`` (int64, before the check that it fits int32)."""
    bias = 0 if layer.bias is None else layer.bias.astype(np.int64)
    return np.asarray(bias - zero * _row_sums(layer.weight, layer))


def check_sums(graph: g.Graph) -> None:
    """F1: ``sum |w| * 128 + |bf| < 2^31`` for every channel, else VerificationError naming the layers."""
    bad = []
    for layer in graph.weighted():
        rows = np.abs(layer.weight.astype(np.int64)).sum(axis=_axes(layer))
        folded = folded_bias(layer, graph.activations[layer.inputs[0]].zero_point)
        if (rows * 128 + np.abs(folded) >= 2**31).any():
            bad.append(layer.name)
    if bad:
        raise VerificationError(
            f"partial sums of {', '.join(bad)} can leave int32 (F1).", remedy="Use smaller layers or biases."
        )


def _axes(layer: g.Conv | g.Gemm | g.MatMul) -> tuple[int, ...]:
    return (0,) if isinstance(layer, g.MatMul) else tuple(range(1, layer.weight.ndim))


def _row_sums(weight: NDArray[np.int8], layer: g.Conv | g.Gemm | g.MatMul) -> NDArray[np.int64]:
    return np.asarray(weight.astype(np.int64).sum(axis=_axes(layer)))


_Part = tuple[str, str, NDArray[Any]]


def _tensors(graph: g.Graph, prog: Program) -> Iterator[tuple[str, Node | None, list[_Part]]]:
    """(node name, node, [(section, role, values)]) of everything in the blob, in its order."""
    start, end = graph.activations[graph.input], graph.activations[graph.output]
    scales = np.array([start.scale, end.scale], dtype=np.float32)
    zeros = np.array([start.zero_point, end.zero_point], dtype=np.int8)
    yield GRAPH, None, [("M", "multiplier", scales), ("P", "row", zeros)]
    for node in prog.nodes:
        if node.layer is not None:
            yield node.name, node, list(_parts(graph, node, node.layer))


def _parts(graph: g.Graph, node: Node, layer: g.AnyLayer) -> Iterator[_Part]:
    ins, out = [graph.activations[n] for n in layer.inputs], graph.activations[layer.output]
    lo, hi = bounds(layer, out)
    match layer:
        case g.Conv() | g.Gemm() | g.MatMul():
            yield "W", "weight", weight_to_stored(layer, node)
            yield "B", "bias", ((folded_bias(layer, ins[0].zero_point) + 2**31) % 2**32 - 2**31).astype(np.int32)
            yield "M", "multiplier", multiplier(layer, ins[0], out)
        case g.Add():
            ratios = [np.divide(np.float32(a.scale), np.float32(out.scale), dtype=np.float32) for a in ins]
            yield "M", "multiplier", np.array(ratios, dtype=np.float32)
        case g.AveragePool() | g.GlobalAveragePool():
            yield "M", "multiplier", average_multiplier(ins[0], out, np.array(counts(layer, ins[0].shape)))
        case g.Concat() | g.Requant() | g.Flatten() | g.Reshape():
            every = np.arange(-128, 128).astype(np.int8)
            for i, a in enumerate(ins):
                grid = isinstance(layer, g.Concat | g.Requant)
                table = requant(every, a, out, lo, hi) if grid else np.clip(every, lo, hi).astype(np.int8)
                yield "P", f"table{i}", table
    row = [*(a.zero_point for a in ins), out.zero_point, lo, hi]
    if not all(-128 <= v <= 127 for v in row):
        raise VerificationError(f"zero point or clamp of {layer.name} is not int8 (F3).", remedy="Export it anew.")
    yield "P", "row", np.array(row, dtype=np.int8)


def counts(layer: g.AveragePool | g.GlobalAveragePool, shape: tuple[int, ...]) -> list[int]:
    """Divisors of an average, ascending: one multiplier each."""
    if isinstance(layer, g.GlobalAveragePool):
        return [math.prod(shape[1:])]
    return window_counts(layer, shape)


def _fold(node: Node, placed: Mapping[str, Entry]) -> Fold:
    weight, bias = placed["weight"], placed["bias"]
    return Fold(
        weight=weight.offset,
        count=weight.count,
        channels=bias.count,
        inner=0 if node.op == "depthwise" else weight.count // bias.count,
        bias=bias.offset,
        zero=placed["row"].offset,
    )


def _structure(graph: g.Graph, prog: Program) -> str:
    """Canonical text of all that the code is generated from: operators, buffers, shapes and windows; no names."""
    index = {name: i for i, name in enumerate(prog.shapes)}
    facts: list[Any] = [[list(prog.shapes[n]) for n in prog.shapes], index[prog.input], index[prog.output]]
    for node in prog.nodes:
        layer = node.layer
        fact: dict[str, Any] = {"op": node.op, "in": [index[n] for n in node.inputs], "out": index[node.output]}
        fact["views"] = [list(v) for v in node.views]
        fact |= {} if node.columns is None else {"columns": list(node.columns)}
        for key in ("kernel", "strides", "pads", "dilations", "group", "count_include_pad"):
            if layer is not None and hasattr(layer, key):
                value = getattr(layer, key)
                fact[key] = list(value) if isinstance(value, tuple) else value
        if isinstance(layer, g.Conv | g.Gemm | g.MatMul):
            fact["weight"] = list(layer.weight.shape)
        if isinstance(layer, g.AveragePool | g.GlobalAveragePool):
            fact["counts"] = counts(layer, graph.activations[layer.inputs[0]].shape)
        facts.append(fact)
    return canonical_json(facts)


def _first_difference(a: bytes, b: bytes, layout: Layout) -> str:
    at = int(np.flatnonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8))[0])
    start = 0
    for section, size in zip(SECTIONS, layout.section_bytes, strict=True):
        if at < start + size:
            element = (at - start) // DTYPES[section].itemsize
            for e in layout.entries:
                if e.section == section and e.offset <= element < e.offset + e.count:
                    return f"{e.role} of {e.node or 'the graph'} differs at element {element - e.offset}"
            return f"padding of section {section} is not zero"
        start += size
    return "length"
