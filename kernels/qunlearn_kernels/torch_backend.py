"""The torch backend: flat operations, no Python loop over tensors. The reference for all others.

Inner products have two stages. One batched product gives the 2x2 Gram matrix of every block of ``ALIGN`` floats
(float32, one read of memory for all three inner products); blocks are then added in float64 in a fixed order. On a CPU
rows are worked through in pieces that fit the cache, so measuring what an update left costs no second trip to memory.
Pieces have one length whatever the number of threads, and BLAS' own dot product is not used: it has other bits with
other numbers of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, GradientArena

PIECE = 256
"""Blocks that one piece of a row holds on a CPU (256 KiB of float32); other devices take the row whole. Torch gives an
element-wise operation of this length to two threads at most, cut at a multiple of the vector length."""

FR, RR, FF, RPF, RPR = range(5)
"""Columns of the sums: <f, r>, <r, r>, <f, f>; with a metric P also <r, P f>, <r, P r>, otherwise 0."""

_GRAM = (1, 3, 0)


def units(arena: GradientArena, scope: str) -> int:
    """Number of units of a scope: tensors, layers, or one."""
    return {"tensor": len(arena.segments), "layer": len(arena.group_names)}.get(scope, 1)


def row_sums(f: Tensor, r: Tensor, *, metric: Tensor | None = None, factor: float | None = None) -> list[float]:
    """First ``f -= factor r`` in place (if given), then the five sums over two whole rows [N_pad], as numbers."""
    parts = [gram.sum(dim=0, dtype=torch.float64) for gram in _grams(f, r, metric, factor)]
    if not parts:
        return [0.0] * 5
    rows: list[list[float]] = torch.stack(parts).tolist()
    if len(rows) == 1:
        total = rows[0]
    else:
        total = [math.fsum(c) if all(map(math.isfinite, c)) else math.nan for c in zip(*rows, strict=True)]
    more = [total[4], total[5]] if metric is not None else [0.0, 0.0]
    return [total[1], total[3], total[0], *more]


def sums(
    arena: GradientArena,
    f: Tensor,
    r: Tensor,
    scope: str,
    *,
    metric: Tensor | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """As :func:`row_sums` for every unit of the scope; ``factor`` holds one float64 per unit. Float64 [units, 5]."""
    if units(arena, scope) == 1:
        values = row_sums(f, r, metric=metric, factor=None if factor is None else float(factor))
        return torch.tensor([values], dtype=torch.float64, device=f.device)
    each = None if factor is None else _per_block(arena, factor, scope)
    parts = list(_grams(f, r, metric, each))
    out = torch.zeros(units(arena, scope), 5, dtype=torch.float64, device=f.device)
    if not parts:
        return out
    partial = (parts[0] if len(parts) == 1 else torch.cat(parts)).double()
    total = torch.segment_reduce(partial, "sum", lengths=arena.block_count, axis=0, unsafe=True, initial=0.0)
    if scope == "layer":
        total = total.new_zeros(len(out), total.shape[1]).index_add_(0, arena.segment_group, total)
    out[:, :3] = total[:, _GRAM]
    if metric is not None:
        out[:, 3:] = total[:, 4:]
    return out


def block_dot(arena: GradientArena, x: Tensor, y: Tensor, scope: str) -> Tensor:
    """<x, y> per unit of the scope, float64 [units]."""
    return sums(arena, x, y, scope)[:, FR]


def subtract(arena: GradientArena, f: Tensor, r: Tensor, factor: Tensor, scope: str) -> None:
    """``f -= factor r`` in place, one float64 factor per unit of the scope."""
    each = float(factor) if len(factor) == 1 else _per_block(arena, factor, scope)
    for a, b, here in _pieces(f, r):
        _move(a, b, each, here)


def scale(arena: GradientArena, f: Tensor, factor: Tensor, scope: str) -> None:
    """``f *= factor`` in place, one float64 factor per unit of the scope."""
    if len(factor) == 1:
        f.mul_(float(factor))
        return
    f.view(-1, ALIGN).mul_(_per_block(arena, factor, scope))


def _grams(f: Tensor, r: Tensor, metric: Tensor | None, factor: Tensor | float | None) -> Iterator[Tensor]:
    """Piece by piece: the update, then per block <f, f>, <f, r>, <r, f>, <r, r> and with a metric <r, P f>, <r, P r>.

    Float32 [blocks, 4 or 6]; ``factor`` is a number or one float32 per block [all blocks, 1].
    """
    pairs = _pairs(f, r)
    for a, b, here in _pieces(f, r):
        if factor is not None:
            _move(a, b, factor, here)
        both = torch.stack([a, b], dim=1) if pairs is None else pairs[here]
        gram = torch.bmm(both, both.transpose(1, 2)).flatten(1)
        if metric is not None:
            weighted = b * metric.view(-1, ALIGN)[here]
            gram = torch.cat([gram, torch.bmm(both, weighted[:, :, None]).flatten(1)], dim=1)
        yield gram


def _pieces(f: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Both rows cut into pieces [blocks, ALIGN], with the blocks they hold."""
    blocks = f.numel() // ALIGN
    piece = PIECE if f.device.type == "cpu" else max(1, blocks)
    x, y = f.view(-1, ALIGN), r.view(-1, ALIGN)
    for lo in range(0, blocks, piece):
        here = slice(lo, min(lo + piece, blocks))
        yield x[here], y[here], here


def _move(a: Tensor, b: Tensor, factor: Tensor | float, here: slice) -> None:
    if isinstance(factor, Tensor):
        a.addcmul_(b, factor[here], value=-1.0)
    else:
        a.sub_(b, alpha=factor)


def _pairs(f: Tensor, r: Tensor) -> Tensor | None:
    """Two rows of one buffer, ``f`` before ``r``, as a strided view [blocks, 2, ALIGN]; None for other vectors."""
    gap = int(r.storage_offset()) - int(f.storage_offset())
    if gap <= 0 or f.untyped_storage().data_ptr() != r.untyped_storage().data_ptr():
        return None
    return f.as_strided((f.numel() // ALIGN, 2, ALIGN), (ALIGN, gap, 1))


def _per_block(arena: GradientArena, factor: Tensor, scope: str) -> Tensor:
    per_segment = factor if scope == "tensor" else factor[arena.segment_group]
    return per_segment[arena.block_segment].to(torch.float32)[:, None]
