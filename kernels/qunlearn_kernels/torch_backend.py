"""The torch backend: flat operations, no Python loop over tensors. The reference for all others.

Inner products have two stages: float32 within a block, then float64 over blocks, in one order. On a CPU numpy's
``vecdot`` takes the blocks, one BLAS dot product each: too short for BLAS to share it among threads (a long one has
other bits with other numbers of threads), and out of reach of autocast and torch's precision settings. For long rows
one call takes all products of a block while it is in the first cache, so that both rows are read once; where a row is
updated and measured, that goes piece by piece. On other devices blocks are multiplied and added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, ROW, GradientArena, Units

PIECE = 1024 * ALIGN
"""Floats (1 MiB) that a CPU updates and measures before it goes on, so that they are still in its cache."""

SHARED = 4 * PIECE
"""Floats from which on several threads share the inner products of a CPU."""

GRAIN = 32768 // ALIGN
"""Blocks that torch gives a thread at least in an element-wise operation on a CPU."""

FR, RR, FF, RPF, RPR = range(5)
"""Columns of the sums: <f, r>, <r, r>, <f, f>; with a metric P also <r, P f>, <r, P r>, otherwise 0."""

Factor = Tensor | float
"""A number, or one float32 for every block of a row [blocks, 1]."""

Blocks = Tensor | NDArray[np.float32]
"""Sums of every block [columns, blocks]; an array if the rows are on a CPU."""


def unit_count(arena: GradientArena, scope: str) -> int:
    """Number of units of a scope: tensors, layers, or one."""
    return {"tensor": len(arena.segments), "layer": len(arena.group_names)}.get(scope, 1)


def row_sums(f: Tensor, r: Tensor, *, metric: Tensor | None = None, factor: float | None = None) -> list[float]:
    """First ``f -= factor r`` in place (if given), then the five sums over two whole rows [N_pad], as numbers.

    After an update the sums of ``r`` alone, which have not changed, are 0.
    """
    with np.errstate(all="ignore"):
        out = total(_block_sums(f, r, metric, factor, ROW))
    return out if metric is not None else [*out, 0.0, 0.0]


def sums(arena: GradientArena, f: Tensor, r: Tensor, scope: str, *, metric: Tensor | None = None) -> Tensor:
    """The five sums of two rows for every unit of the scope. Float64 [units, 5]."""
    if unit_count(arena, scope) == 1:
        return torch.tensor([row_sums(f, r, metric=metric)], dtype=torch.float64, device=f.device)
    return unit_sums(arena.units(scope), f, r, metric=metric)


def unit_sums(
    table: Units, f: Tensor, r: Tensor, *, metric: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """The same over any blocks [blocks * ALIGN] whose units a table gives. Float64 [units, 5].

    First ``f -= factor r`` in place, if a float64 factor per unit is given; then the sums of ``r`` alone are 0.
    """
    per_block = None if factor is None else _per_block(table, factor)
    with np.errstate(all="ignore"):
        out = unit_total(table, _block_sums(f, r, metric, per_block, ALIGN))
    return out if metric is not None else torch.nn.functional.pad(out, (0, 2))


def products(
    arena: GradientArena,
    x: Tensor,
    against: Sequence[Tensor],
    scope: str,
    *,
    minus: Sequence[Tensor] = (),
    factors: Tensor | None = None,
) -> Tensor:
    """First ``x -= factors[:, j] minus[j]`` in place, then <x, against[j]> per unit of the scope.

    ``factors`` and the result are float64 [units, rows]; of the sums only those over ``x`` itself see its update.
    """
    table = arena.units(scope)
    moves: list[tuple[Tensor, Factor]] = []
    if factors is not None and len(factors) == 1:
        moves = list(zip(minus, factors[0].tolist(), strict=True))
    elif factors is not None:
        moves = [(q, _per_block(table, c)) for q, c in zip(minus, factors.T, strict=True)]
    if not _by_numpy(x):
        for q, factor in moves:
            move(x, q, factor)
        partial: Blocks = torch.stack([_multiplied(x, y) for y in against])
    else:
        own, rows = blocks_of(x), [blocks_of(y) for y in against]

        def run(here: slice, out: NDArray[np.float32]) -> None:
            for y, row in zip(rows, out, strict=True):
                np.vecdot(own[here], y[here], out=row)

        partial = _by_pieces(x, moves, run, len(rows), ALIGN, PIECE)
    with np.errstate(all="ignore"):
        return unit_total(table, partial)


def subtract(arena: GradientArena, f: Tensor, r: Tensor, factor: Tensor, scope: str) -> None:
    """``f -= factor r`` in place, one float64 factor per unit of the scope."""
    move(f, r, float(factor) if len(factor) == 1 else _per_block(arena.units(scope), factor))


def move(f: Tensor, r: Tensor, factor: Factor) -> None:
    """``f -= factor r`` in place."""
    if isinstance(factor, float) and (torch.get_num_threads() == 1 or f.numel() <= GRAIN * ALIGN):
        f.sub_(r, alpha=factor)
        return
    shares = _shares(f.numel() // ALIGN, f.device)
    x, y = f.view(-1, ALIGN), r.view(-1, ALIGN)
    for here in shares:
        if isinstance(factor, float):
            x[here].sub_(y[here], alpha=factor)
        else:
            x[here].addcmul_(y[here], factor[here], value=-1.0)


def scale(arena: GradientArena, f: Tensor, factor: Tensor, scope: str) -> None:
    """``f *= factor`` in place, one float64 factor per unit of the scope."""
    if len(factor) == 1:
        f.mul_(float(factor))
        return
    unit_scale(arena.units(scope), f, factor)


def unit_scale(table: Units, f: Tensor, factor: Tensor) -> None:
    """The same over any blocks [blocks * ALIGN] whose units a table gives."""
    f.view(-1, ALIGN).mul_(_per_block(table, factor))


def total(partial: Blocks) -> list[float]:
    """Sums over all blocks of ``partial`` float32 [columns, blocks], in float64 and one order."""
    if isinstance(partial, np.ndarray):
        out: list[float] = np.add.reduce(partial, axis=1, dtype=np.float64).tolist()
    else:
        out = partial.sum(dim=1, dtype=torch.float64).tolist()
    return out


def unit_total(table: Units, partial: Blocks) -> Tensor:
    """Sums of ``partial`` float32 [columns, blocks] per unit. Float64 [units, columns]."""
    if isinstance(partial, np.ndarray):
        if len(table.count) == 1:
            return torch.from_numpy(np.add.reduce(partial, axis=1, dtype=np.float64))[None]
        partial = torch.from_numpy(partial)
    ordered = partial.T.double()
    if table.order is not None:
        ordered = ordered[table.order]
    return torch.segment_reduce(ordered, "sum", lengths=table.count, axis=0, unsafe=True, initial=0.0)


def blocks_of(row: Tensor, length: int = ALIGN) -> NDArray[np.float32]:
    """A row on the CPU as an array [blocks, length] over the same memory."""
    out: NDArray[np.float32] = (row.detach() if row.requires_grad else row).numpy().reshape(-1, length)
    return out


def _block_sums(f: Tensor, r: Tensor, metric: Tensor | None, factor: Factor | None, length: int) -> Blocks:
    """The update, if any, and the sums of every block, float32 [3 or 5, blocks]; after an update <r, .> are 0."""
    if not _by_numpy(f):
        if factor is not None:
            move(f, r, factor)
        pairs = [(f, r), (r, r), (f, f)]
        if metric is not None:
            weighted = r * metric
            pairs += [(f, weighted), (r, weighted)]
        return torch.stack([_multiplied(a, b) for a, b in pairs])
    x, y = blocks_of(f, length), blocks_of(r, length)
    p = None if metric is None else blocks_of(metric, length)
    if f.numel() <= PIECE:
        if factor is not None:
            move(f, r, factor)
        out = np.zeros((3 if p is None else 5, len(x)), dtype=np.float32)
        _separate(x, y, p, out, fresh=factor is None)
        return out
    moves = [] if factor is None else [(r, factor)]
    if p is None:
        both = _together(x, y)
        piece = PIECE if moves or torch.get_num_threads() > 1 else SHARED
        return _by_pieces(f, moves, lambda at, out: _paired(both[at], out, fresh=not moves), 3, length, piece)
    return _by_pieces(f, moves, lambda at, out: _separate(x[at], y[at], p[at], out, fresh=not moves), 5, length, PIECE)


def _separate(
    x: NDArray[np.float32], y: NDArray[np.float32], p: NDArray[np.float32] | None, out: NDArray[np.float32], fresh: bool
) -> None:
    """The sums of blocks that are in the cache, one call each; those of ``y`` alone if ``fresh``."""
    np.vecdot(x, y, out=out[FR])
    np.vecdot(x, x, out=out[FF])
    if fresh:
        np.vecdot(y, y, out=out[RR])
    if p is not None:
        weighted = y * p
        np.vecdot(x, weighted, out=out[RPF])
        if fresh:
            np.vecdot(y, weighted, out=out[RPR])


def _paired(both: NDArray[np.float32], out: NDArray[np.float32], fresh: bool) -> None:
    """The same, block by block (order C) for all products, so that each block comes from memory once."""
    if fresh:
        gram = np.vecdot(both[:, :, None], both[:, None], order="C")
        out[RR] = gram[:, 1, 1]
        first = gram[:, 0]
    else:
        first = np.vecdot(both[:, :1], both, order="C")
    out[FF], out[FR] = first[:, 0], first[:, 1]


def _together(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two contiguous arrays [blocks, length] as one [blocks, 2, length] over their memory, to be used while they live.

    The middle stride is the distance of the two in memory, so that nothing between them is ever touched.
    """
    gap = y.__array_interface__["data"][0] - x.__array_interface__["data"][0]
    strides = (x.strides[0], gap, x.strides[1])
    return np.lib.stride_tricks.as_strided(x, (len(x), 2, x.shape[1]), strides, writeable=False)


def _by_pieces(
    x: Tensor,
    moves: Sequence[tuple[Tensor, Factor]],
    sums: Callable[[slice, NDArray[np.float32]], None],
    columns: int,
    length: int,
    piece: int,
) -> NDArray[np.float32]:
    """Subtract ``moves`` from a row on the CPU and run ``sums(blocks, out)`` over it; float32 [columns, blocks].

    One thread does both piece by piece. Several let torch share the whole update, and then share the pieces of sums.
    """
    floats = x.numel()
    out = np.zeros((columns, floats // length), dtype=np.float32)
    threads = torch.get_num_threads() if floats >= SHARED else 1

    def update(lo: int, hi: int) -> None:
        here, own = slice(lo // ALIGN, hi // ALIGN), x[lo:hi]
        for q, factor in moves:
            move(own, q if hi - lo == floats else q[lo:hi], factor if isinstance(factor, float) else factor[here])

    def run(lo: int) -> None:
        hi = min(lo + piece, floats)
        if threads == 1:
            update(lo, hi)
        here = slice(lo // length, hi // length)
        with np.errstate(all="ignore"):  # a thread of the pool has its own settings
            sums(here, out[:, here])

    if threads == 1:
        for lo in range(0, floats, piece):
            run(lo)
    else:
        update(0, floats)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(0, floats, piece)))
    return out


def _by_numpy(row: Tensor) -> bool:
    return row.is_cpu


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    return (a.view(-1, ALIGN) * b.view(-1, ALIGN)).sum(dim=1)


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


def _per_block(table: Units, factor: Tensor) -> Tensor:
    return factor[table.of].to(torch.float32)[:, None]
