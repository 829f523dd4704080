"""The segment table of the device kernels: rows cut into tiles that lie in one segment each, ordered by unit.

A tile's length depends on the arena only, never on the launch grid, so that sums have the same bits for any grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, GradientArena
from qunlearn_kernels.torch_backend import unit_count

CHUNK = 1024
"""Floats that one thread block works on at a time."""

FEW = 4096
"""Tiles are as short as :data:`CHUNK` while the row has no more than this many of them; then they double."""

LONGEST = 32 * CHUNK
"""Longest tile in floats: a lane adds up at most 32 products in float32 before float64 takes over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TilePlan:
    """Tiles of an arena's rows for one scope.

    ``table`` int32 [4, tiles] on the arena's device: start and length in blocks of ``ALIGN`` floats, unit, segment.
    ``first`` int32 [units + 1]: the tiles of unit u are first[u] to first[u + 1]. ``unit`` int64 [tiles] on the CPU.
    """

    table: Tensor
    first: Tensor
    unit: Tensor
    host: NDArray[np.int32]
    tiles: int
    units: int


def tile_length(blocks: list[int]) -> int:
    """Floats in a full tile for segments of that many blocks of ``ALIGN`` floats."""
    length = CHUNK
    while length < LONGEST and sum(-(-b * ALIGN // length) for b in blocks) > FEW:
        length *= 2
    return length


def plan(arena: GradientArena, scope: str) -> TilePlan:
    """The arena's tiles for a scope, made once per arena and scope."""
    key = scope if scope in ("layer", "tensor") else "global"
    known = arena.plans.get(key)
    if isinstance(known, TilePlan):
        return known
    made = arena.plans[key] = _make(arena, key)
    return made


def _make(arena: GradientArena, scope: str) -> TilePlan:
    blocks = [-(-s.numel // ALIGN) for s in arena.segments]
    step = tile_length(blocks) // ALIGN
    number = {g: i for i, g in enumerate(arena.group_names)}
    rows: list[tuple[int, int, int, int]] = []
    for i, (s, count) in enumerate(zip(arena.segments, blocks, strict=True)):
        unit = {"tensor": i, "layer": number[s.group]}.get(scope, 0)
        begin = s.offset // ALIGN
        rows += [(begin + b, min(step, count - b), unit, i) for b in range(0, count, step)]
    rows.sort(key=lambda row: (row[2], row[0]))
    host = np.array(rows, dtype=np.int32).reshape(-1, 4).T.copy()
    total = unit_count(arena, scope)
    first = np.searchsorted(host[2], np.arange(total + 1)).astype(np.int32)
    return TilePlan(
        table=torch.from_numpy(host.copy()).to(arena.device),
        first=torch.from_numpy(first).to(arena.device),
        unit=torch.from_numpy(host[2].astype(np.int64)),
        host=host,
        tiles=len(rows),
        units=total,
    )
