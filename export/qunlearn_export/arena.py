"""Where each buffer of a program lies in the one static arena (firmware.md 2.4).

A buffer lives from its producer to its last consumer. An Add, or a change of grid, writes over an operand that dies
with it. Buffers are placed by size, largest first, at the lowest 16-byte aligned offset free of any buffer alive at
the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qunlearn_export.nodes import Program

ALIGN = 16
IN_PLACE = ("add", "requant")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Memory of one or more buffers that follow each other in place: ``size`` in bytes, alive in steps first..last.

    The network's input is alive from step -1, its output until one step after the last.
    """

    buffers: tuple[str, ...]
    size: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Arena:
    """``offsets`` in bytes by buffer; ``size`` of the arena, ``bound`` below which no plan exists, ``total`` of all
    buffers without any sharing (bytes)."""

    offsets: Mapping[str, int]
    blocks: tuple[Block, ...]
    size: int
    bound: int
    total: int


def plan_arena(program: Program) -> Arena:
    """The arena of ``program``."""
    blocks = live_blocks(program)
    starts = place([(b.size, b.first, b.last) for b in blocks])
    return Arena(
        offsets={name: start for b, start in zip(blocks, starts, strict=True) for name in b.buffers},
        blocks=tuple(blocks),
        size=_up(max(start + b.size for b, start in zip(blocks, starts, strict=True))),
        bound=lower_bound([(b.size, b.first, b.last) for b in blocks]),
        total=sum(program.size(name) for name in program.shapes),
    )


def live_blocks(program: Program) -> list[Block]:
    """Buffers with the steps they are alive in, those that share memory by construction joined."""
    last = {program.input: -1}
    for step, node in enumerate(program.nodes):
        last[node.output] = step
        for name in node.inputs:
            last[name] = step
    last[program.output] = len(program.nodes)
    found = {program.input: [program.input]}
    spans = {program.input: [-1, last[program.input]]}
    home = {program.input: program.input}
    for step, node in enumerate(program.nodes):
        size, out = program.size(node.output), node.output
        heir = None
        if node.op in IN_PLACE:
            dying = (n for n in node.inputs if last[n] == step and program.size(n) == size)
            heir = next(dying, None)
        if heir is None:
            home[out], found[out], spans[out] = out, [out], [step, last[out]]
            continue
        root = home[heir]
        home[out] = root
        found[root].append(out)
        spans[root][1] = last[out]
    return [Block(buffers=tuple(found[r]), size=program.size(r), first=spans[r][0], last=spans[r][1]) for r in found]


def place(items: Sequence[tuple[int, int, int]]) -> list[int]:
    """Offsets of (size, first, last) intervals: largest first, then earliest; lowest free aligned offset."""
    starts = [0] * len(items)
    done: list[int] = []
    for i in sorted(range(len(items)), key=lambda i: (-items[i][0], items[i][1], i)):
        size, first, last = items[i]
        rivals = sorted(
            (starts[j], starts[j] + items[j][0]) for j in done if items[j][1] <= last and first <= items[j][2]
        )
        at = 0
        for begin, end in rivals:
            if at + size <= begin:
                break
            at = max(at, _up(end))
        starts[i] = at
        done.append(i)
    return starts


def lower_bound(items: Sequence[tuple[int, int, int]]) -> int:
    """Most bytes alive in one step."""
    steps = {first for _, first, _ in items}
    return max(sum(size for size, first, last in items if first <= t <= last) for t in steps)


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN
