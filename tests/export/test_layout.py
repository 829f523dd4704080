"""The blob: what pack writes, unpack reads back; the digest covers what the code depends on and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qunlearn_export import graph as g
from qunlearn_export.errors import UnsupportedError, VerificationError
from qunlearn_export.layout import GRAPH, check_sums, pack, plan, sections, unpack
from qunlearn_export.nodes import program
from qunlearn_export.oracle import multiplier

KINDS = ("dense", "depthwise", "grouped", "multiplier", "asymmetric", "one_d", "gemm", "matmul2", "maxpool",
         "average_inside", "average_all", "global_average", "add", "concat", "requant")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_unpack_inverts_pack(nets: Any, kind: str) -> None:
    for seed in range(5):
        graph = nets.random(kind, np.random.default_rng(seed)).graph
        layout = plan(graph)
        blob = pack(graph, layout)
        assert len(blob) == layout.blob_bytes
        assert unpack(blob, layout, graph).codes_digest() == graph.codes_digest()


def test_sections_are_what_the_rule_says(nets: Any) -> None:
    graph = nets.tiny()
    layout = plan(graph)
    parts = sections(pack(graph, layout), layout)
    assert all(n % 16 == 0 for n in layout.section_bytes)
    for e in layout.entries:
        assert e.offset * parts[e.section].itemsize % 16 == 0

    def read(node: str, role: str) -> Any:
        e = layout.of(node)[role]
        return parts[e.section][e.offset : e.offset + e.count]

    conv, dw, fc = (next(one for one in graph.weighted() if one.name == n) for n in ("conv1", "dw", "fc"))
    assert np.array_equal(read("conv1", "weight").reshape(8, 3, 3, 2), conv.weight.transpose(0, 2, 3, 1))
    assert np.array_equal(read("dw", "weight").reshape(3, 3, 8), dw.weight[:, 0].transpose(1, 2, 0))
    assert np.array_equal(read("fc", "weight").reshape(5, 12), fc.weight)
    x, y = graph.activations["input"], graph.activations["conv1.out"]
    folded = [int(b) - x.zero_point * int(w.astype(int).sum()) for b, w in zip(conv.bias, conv.weight, strict=True)]
    assert read("conv1", "bias").tolist() == folded
    assert read("conv1", "multiplier").tobytes() == multiplier(conv, x, y).tobytes()
    assert read("conv1", "row").tolist() == [3, -128, -128, 127]
    a, b = graph.activations["conv1.out"], graph.activations["pw.out"]
    assert read("add", "row").tolist() == [a.zero_point, b.zero_point, -128, -128, 127]
    assert len(read("avg", "multiplier")) == 1
    assert read(GRAPH, "row").tolist() == [3, graph.activations["fc.out"].zero_point]
    assert read("cat", "table1")[0] == -128


def test_folds_name_every_weight_tensor(nets: Any) -> None:
    graph = nets.tiny()
    layout = plan(graph)
    parts = sections(pack(graph, layout), layout)
    assert [f.channels for f in layout.folds] == [len(one.weight_scale) for one in graph.weighted()]
    assert [f.inner for f in layout.folds] == [18, 0, 8, 8, 108, 12]
    for f, layer in zip(layout.folds, graph.weighted(), strict=True):
        zero = graph.activations[layer.inputs[0]].zero_point
        assert parts["P"][f.zero] == zero
        w = parts["W"][f.weight : f.weight + f.count].astype(int)
        channel = np.arange(f.count) // f.inner if f.inner else np.arange(f.count) % f.channels
        sums = np.bincount(channel, weights=w, minlength=f.channels).astype(int)
        assert parts["B"][f.bias : f.bias + f.channels].tolist() == (layer.bias - zero * sums).tolist()
    assert layout.scratch_bytes == 4 * sum(f.channels for f in layout.folds)


def test_no_fold_slots_where_the_scratch_does_not_fit_the_arena(nets: Any) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (40, 2)).astype(np.int8)
    layer = g.Gemm(
        name="fc", inputs=("input",), output="fc.out", weight=weight, weight_scale=np.full(40, 0.01, np.float32)
    )
    graph = nets.graph(nets.act("input", (2,), 0.02, 3), (layer, 0.1, 0))
    assert plan(graph).folds == ()


def test_digest_is_of_the_code_not_of_the_values(nets: Any) -> None:
    graph = nets.tiny()
    digest = plan(graph).digest()
    other = nets.tiny(seed=5)
    assert plan(other).digest() == digest
    assert pack(other, plan(graph)) != pack(graph, plan(graph))
    moved = nets.with_scale(graph, "pw.out", 0.5)
    assert plan(moved).digest() == digest
    assert plan(nets.with_layer(graph, "avg", count_include_pad=True)).digest() != digest
    assert plan(nets.with_layer(graph, "avg", pads=(0, 1, 2, 1))).digest() != digest
    pad = nets.with_layer(graph, "dw", dilations=(1, 1), pads=(2, 1, 0, 1))
    assert plan(pad).digest() != digest


def test_columns_after_a_flattened_map_are_permuted(nets: Any) -> None:
    """Trap 13: a 3x2 map of 4 channels before the linear layer."""
    weight = np.arange(-12, 12, dtype=np.int8)[None]
    start = nets.act("input", (4, 3, 2), 0.02, 3)
    flat = (g.Flatten(name="flat", inputs=("input",), output="flat.out"), 0.02, 3)
    fc = g.Gemm(name="fc", inputs=("flat.out",), output="fc.out", weight=weight, weight_scale=np.ones(1, np.float32))
    graph = nets.graph(start, flat, (fc, 900.0, 0))
    layout = plan(graph)
    parts = sections(pack(graph, layout), layout)
    assert parts["W"][:24].tolist() == weight.reshape(4, 6).T.ravel().tolist()
    assert [n.op for n in program(graph).nodes] == ["linear"]
    assert unpack(pack(graph, layout), layout, graph).codes_digest() == graph.codes_digest()


def test_a_changed_blob_gives_the_changed_network(nets: Any) -> None:
    graph = nets.tiny()
    layout = plan(graph)
    blob = bytearray(pack(graph, layout))
    fold = layout.folds[2]
    blob[fold.weight] = (blob[fold.weight] + 1) % 256
    bias = layout.sizes[0] + 4 * fold.bias
    zero = graph.activations["dw.out"].zero_point
    old = int.from_bytes(blob[bias : bias + 4], "little", signed=True)
    blob[bias : bias + 4] = (old - zero).to_bytes(4, "little", signed=True)
    out = unpack(bytes(blob), layout, graph)
    before, after = (next(one for one in gr.weighted() if one.name == "pw") for gr in (graph, out))
    assert int((before.weight != after.weight).sum()) == 1
    assert np.array_equal(before.bias, after.bias)
    assert pack(out, layout) == bytes(blob)


def test_what_is_not_this_network_is_refused(nets: Any) -> None:
    graph = nets.tiny()
    layout = plan(graph)
    blob = pack(graph, layout)
    with pytest.raises(VerificationError, match="bytes, the layout has"):
        unpack(blob[:-1], layout, graph)
    with pytest.raises(VerificationError, match="multiplier of conv1"):
        unpack(blob, layout, nets.with_scale(graph, "conv1.out", 0.7))
    padded = bytearray(blob)
    padded[-1] = 1
    with pytest.raises(VerificationError, match="padding of section P"):
        unpack(bytes(padded), layout, graph)
    with pytest.raises(VerificationError, match="does not have this layout"):
        pack(nets.with_layer(graph, "avg", count_include_pad=True), layout)
    big = nets.with_layer(graph, "fc", bias=np.full(5, 2**31 - 1000, np.int32))
    with pytest.raises(VerificationError, match=r"fc can leave int32 \(F1\)"):
        check_sums(big)


def test_transformers_are_refused_with_all_names(nets: Any) -> None:
    graph = nets.random("matmul3", np.random.default_rng(0)).graph
    with pytest.raises(UnsupportedError, match="'op'"):
        program(graph)
    twice = replace(graph, layers=(*graph.layers, replace(graph.layers[0], name="second", inputs=("op.out",))))
    with pytest.raises(UnsupportedError, match="'op', 'second'"):
        program(twice)
