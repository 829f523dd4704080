"""The torch backend: flat operations, no Python loop over tensors. The reference for all others.

Inner products have two stages. On a CPU one batched product gives the 2x2 Gram matrix of every block of ``ALIGN``
floats (float32, one read of memory for all three inner products); blocks are then added in float64 in a fixed order.
BLAS' own dot product is not used: it has other bits with other numbers of threads. On other devices, and where autocast
or the precision settings of torch let a matrix product round its input, blocks are multiplied and added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, GradientArena, Units

PIECE = 1024
"""Blocks (1 MiB of float32) that a CPU updates and measures before it goes on, so that they are still in its cache."""

GRAIN = 32768 // ALIGN
"""Blocks that torch gives a thread at least in an element-wise operation on a CPU."""

FR, RR, FF, RPF, RPR = range(5)
"""Columns of the sums: <f, r>, <r, r>, <f, f>; with a metric P also <r, P f>, <r, P r>, otherwise 0."""

_GRAM = (1, 3, 0)


def units(arena: GradientArena, scope: str) -> int:
    """Number of units of a scope: tensors, layers, or one."""
    return {"tensor": len(arena.segments), "layer": len(arena.group_names)}.get(scope, 1)


def row_sums(f: Tensor, r: Tensor, *, metric: Tensor | None = None, factor: float | None = None) -> list[float]:
    """First ``f -= factor r`` in place (if given), then the five sums over two whole rows [N_pad], as numbers."""
    grams = _grams(f, r, metric, factor)
    rows: list[list[float]] = [gram.sum(dim=0, dtype=torch.float64).tolist() for gram in grams]
    if len(rows) == 1:
        total = rows[0]
    else:
        total = [math.fsum(c) if all(map(math.isfinite, c)) else math.nan for c in zip(*rows, strict=True)]
    more = [total[4], total[5]] if metric is not None else [0.0, 0.0]
    return [total[1], total[3], total[0], *more]


def sums(arena: GradientArena, f: Tensor, r: Tensor, scope: str, *, metric: Tensor | None = None) -> Tensor:
    """The five sums of two rows for every unit of the scope. Float64 [units, 5]."""
    if units(arena, scope) == 1:
        return torch.tensor([row_sums(f, r, metric=metric)], dtype=torch.float64, device=f.device)
    return unit_sums(arena.units(scope), f, r, metric=metric)


def unit_sums(table: Units, f: Tensor, r: Tensor, *, metric: Tensor | None = None) -> Tensor:
    """The same over any blocks [blocks * ALIGN] whose units a table gives. Float64 [units, 5]."""
    parts = list(_grams(f, r, metric, None))
    partial = (parts[0] if len(parts) == 1 else torch.cat(parts)).double()
    if table.order is not None:
        partial = partial[table.order]
    total = torch.segment_reduce(partial, "sum", lengths=table.count, axis=0, unsafe=True, initial=0.0)
    out = torch.zeros(len(table.count), 5, dtype=torch.float64, device=f.device)
    out[:, :3] = total[:, _GRAM]
    if metric is not None:
        out[:, 3:] = total[:, 4:]
    return out


def block_dot(arena: GradientArena, x: Tensor, y: Tensor, scope: str) -> Tensor:
    """<x, y> per unit of the scope, float64 [units]."""
    return sums(arena, x, y, scope)[:, FR]


def subtract(arena: GradientArena, f: Tensor, r: Tensor, factor: Tensor, scope: str) -> None:
    """``f -= factor r`` in place, one float64 factor per unit of the scope."""
    move(f, r, float(factor) if len(factor) == 1 else _per_block(arena.units(scope), factor))


def unit_subtract(table: Units, f: Tensor, r: Tensor, factor: Tensor) -> None:
    """The same over any blocks [blocks * ALIGN] whose units a table gives."""
    move(f, r, _per_block(table, factor))


def move(f: Tensor, r: Tensor, factor: Tensor | float) -> None:
    """``f -= factor r`` in place; ``factor`` is a number or one float32 for every block of the two [blocks, 1]."""
    shares = _shares(f.numel() // ALIGN, f.device)
    if len(shares) == 1 and isinstance(factor, float):
        f.sub_(r, alpha=factor)
        return
    x, y = f.view(-1, ALIGN), r.view(-1, ALIGN)
    for here in shares:
        if isinstance(factor, Tensor):
            x[here].addcmul_(y[here], factor[here], value=-1.0)
        else:
            x[here].sub_(y[here], alpha=factor)


def scale(arena: GradientArena, f: Tensor, factor: Tensor, scope: str) -> None:
    """``f *= factor`` in place, one float64 factor per unit of the scope."""
    if len(factor) == 1:
        f.mul_(float(factor))
        return
    unit_scale(arena.units(scope), f, factor)


def unit_scale(table: Units, f: Tensor, factor: Tensor) -> None:
    """The same over any blocks [blocks * ALIGN] whose units a table gives."""
    f.view(-1, ALIGN).mul_(_per_block(table, factor))


def _shares(blocks: int, device: torch.device) -> list[slice]:
    """Parts of a row that torch's threads cut between blocks, whatever their number.

    An element at the end of a thread's share may be computed without the vector unit, hence rounded differently: the
    share must be whole blocks. Torch cuts a long operation into equal parts, and into two at most below ``2 GRAIN``.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or blocks <= GRAIN:
        return [slice(0, blocks)]
    if blocks < threads * GRAIN:
        return [slice(lo, min(lo + 2 * GRAIN, blocks)) for lo in range(0, blocks, 2 * GRAIN)]
    even = blocks - blocks % threads
    return [slice(0, even), slice(even, blocks)][: 1 + (even < blocks)]


def _grams(f: Tensor, r: Tensor, metric: Tensor | None, factor: float | None) -> Iterable[Tensor]:
    """Piece by piece: the update, then per block <f, f>, <f, r>, <r, f>, <r, r> and with a metric <r, P f>, <r, P r>.

    Float32 [blocks, 4 or 6]. Two rows of one buffer that are only measured are one piece.
    """
    batched = _exact_products(f.device)
    pairs = _pairs(f, r) if batched else None
    if pairs is not None and metric is None and factor is None:
        return [torch.bmm(pairs, pairs.mT).view(-1, 4)]
    return _pieces(f, r, metric, factor, batched, pairs)


def _pieces(
    f: Tensor, r: Tensor, metric: Tensor | None, factor: float | None, batched: bool, pairs: Tensor | None
) -> Iterator[Tensor]:
    x, y = f.view(-1, ALIGN), r.view(-1, ALIGN)
    piece = PIECE if f.device.type == "cpu" else max(1, len(x))
    for lo in range(0, max(1, len(x)), piece):
        here = slice(lo, lo + piece)
        a, b = x[here], y[here]
        if factor is not None:
            move(a, b, factor)
        if batched:
            both = torch.stack([a, b], dim=1) if pairs is None else pairs[here]
            gram = torch.bmm(both, both.mT).view(-1, 4)
        else:
            fr = (a * b).sum(dim=1)
            gram = torch.stack([(a * a).sum(dim=1), fr, fr, (b * b).sum(dim=1)], dim=1)
        if metric is not None:
            weighted = b * metric.view(-1, ALIGN)[here]
            more = torch.stack([(a * weighted).sum(dim=1), (b * weighted).sum(dim=1)], dim=1)
            gram = torch.cat([gram, more], dim=1)
        yield gram


def _exact_products(device: torch.device) -> bool:
    """Whether a product of float32 matrices is surely computed in float32."""
    if device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    precision: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision in ("none", "ieee")


def _pairs(f: Tensor, r: Tensor) -> Tensor | None:
    """Two rows of one buffer, ``f`` before ``r``, as a strided view [blocks, 2, ALIGN]; None for other vectors."""
    gap = int(r.storage_offset()) - int(f.storage_offset())
    if not 0 < gap < 2**31 or f.untyped_storage().data_ptr() != r.untyped_storage().data_ptr():
        return None
    return f.as_strided((f.numel() // ALIGN, 2, ALIGN), (ALIGN, gap, 1))


def _per_block(table: Units, factor: Tensor) -> Tensor:
    return factor[table.of].to(torch.float32)[:, None]
