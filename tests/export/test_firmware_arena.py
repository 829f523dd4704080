"""The planner: no two live buffers share a byte, nothing beats the bound, and the plan stays near it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qunlearn_export import graph as g
from qunlearn_export.arena import Arena, live_blocks, lower_bound, place, plan_arena
from qunlearn_export.nodes import Program, program


def check(prog: Program, arena: Arena) -> None:
    """Walk the steps with a byte map: every live buffer owns its bytes alone, or shares them with its own chain."""
    last = {prog.input: 0, prog.output: len(prog.nodes)}
    for step, node in enumerate(prog.nodes):
        for name in node.inputs:
            last[name] = max(step, last.get(name, 0))
    chain = {name: i for i, b in enumerate(arena.blocks) for name in b.buffers}
    first = {prog.input: -1, **{node.output: i for i, node in enumerate(prog.nodes)}}
    for step in range(len(prog.nodes)):
        owner = np.full(arena.size, -1)
        for name, offset in arena.offsets.items():
            if first[name] <= step <= last.get(name, first[name]):
                assert offset % 16 == 0
                held = owner[offset : offset + prog.size(name)]
                assert len(held) == prog.size(name)
                assert set(held.tolist()) <= {-1, chain[name]}, (step, name)
                held[:] = chain[name]
    for node in prog.nodes:
        if any(chain[n] == chain[node.output] for n in node.inputs):
            assert node.op in ("add", "requant")


def random_graph(nets: Any, rng: np.random.Generator) -> g.Graph:
    """A chain of pools with branches and additions: shapes shrink, skips live long."""
    start = nets.act("input", (int(rng.integers(1, 9)), 12, 12), 0.02, 0)
    names, shapes, steps = ["input"], {"input": start.shape}, []
    for i in range(int(rng.integers(3, 14))):
        source = names[int(rng.integers(max(0, len(names) - 4), len(names)))]
        twins = [n for n in names if shapes[n] == shapes[source]]
        kind = int(rng.integers(4))
        name = f"n{i}"
        out = f"{name}.out"
        if kind == 0 and len(twins) > 1:
            other = twins[int(rng.integers(len(twins)))]
            layer: g.AnyLayer = g.Add(name=name, inputs=(source, other), output=out)
            shape = shapes[source]
        elif kind == 1:
            layer = g.Requant(name=name, inputs=(source,), output=out, relu=True)
            shape = shapes[source]
        elif kind == 2:
            layer = g.Concat(name=name, inputs=(source, twins[0]), output=out)
            shape = (2 * shapes[source][0], *shapes[source][1:])
        else:
            k = int(rng.integers(1, 3)) if shapes[source][1] > 2 else 1
            layer = g.MaxPool(name=name, inputs=(source,), output=out, kernel=(k, k), strides=(k, k), pads=(0,) * 4)
            shape = (shapes[source][0], shapes[source][1] // k, shapes[source][2] // k)
        steps.append((layer, 0.02, 0))
        shapes[out] = shape
        names.append(out)
    return nets.graph(start, *steps)


def test_five_hundred_random_graphs(nets: Any) -> None:
    in_place = 0
    for seed in range(500):
        prog = program(random_graph(nets, np.random.default_rng(seed)))
        arena = plan_arena(prog)
        check(prog, arena)
        assert arena.size >= arena.bound
        in_place += sum(len(b.buffers) > 1 for b in arena.blocks)
    assert in_place > 50


def test_the_checker_sees_an_overlap(nets: Any) -> None:
    prog = program(nets.tiny())
    arena = plan_arena(prog)
    offsets = {**arena.offsets, "dw.out": arena.offsets["conv1.out"]}
    broken = Arena(offsets=offsets, blocks=arena.blocks, size=arena.size, bound=arena.bound, total=arena.total)
    with pytest.raises(AssertionError):
        check(prog, broken)


def test_tiny_network_reaches_the_bound(nets: Any) -> None:
    prog = program(nets.tiny())
    arena = plan_arena(prog)
    assert arena.size == arena.bound == 1536
    assert arena.total > 1.5 * arena.size
    joined = [b.buffers for b in live_blocks(prog) if len(b.buffers) > 1]
    assert joined == [("conv1.out", "add.out")]


def test_bound_and_places_by_hand() -> None:
    items = [(32, 0, 1), (16, 1, 2), (48, 2, 3), (5, 0, 3)]
    assert lower_bound(items) == 69
    starts = place(items)
    for i, (size, first, last) in enumerate(items):
        for j, (size2, first2, last2) in enumerate(items[:i]):
            apart = starts[i] + size <= starts[j] or starts[j] + size2 <= starts[i]
            assert apart or last < first2 or last2 < first
