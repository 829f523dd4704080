"""The torch backend: flat operations, no Python loop over tensors. The reference for all others.

Inner products have two stages: float32 within a block of ``ALIGN`` floats, then float64 over blocks, in one order. On a
CPU numpy's ``vecdot`` takes the blocks, one BLAS dot product each: too short for BLAS to share it among threads (a
long one has other bits with other numbers of threads), and out of reach of autocast and torch's precision settings. A
row is worked through in pieces: all but the first product of a piece, and those of its update, read from the cache.
On other devices blocks are multiplied and added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, GradientArena, Units

PIECE = 512
"""Blocks (512 KiB of float32) that a CPU works on before it goes on, so that they are still in its cache."""

SHARED = 8 * PIECE
"""Blocks from which on several threads share the inner products of a CPU."""

GRAIN = 32768 // ALIGN
"""Blocks that torch gives a thread at least in an element-wise operation on a CPU."""

FR, RR, FF, RPF, RPR = range(5)
"""Columns of the sums: <f, r>, <r, r>, <f, f>; with a metric P also <r, P f>, <r, P r>, otherwise 0."""

Factor = Tensor | float
"""A number, or one float32 for every block of a row [blocks, 1]."""


def unit_count(arena: GradientArena, scope: str) -> int:
    """Number of units of a scope: tensors, layers, or one."""
    return {"tensor": len(arena.segments), "layer": len(arena.group_names)}.get(scope, 1)


def row_sums(f: Tensor, r: Tensor, *, metric: Tensor | None = None, factor: float | None = None) -> list[float]:
    """First ``f -= factor r`` in place (if given), then the five sums over two whole rows [N_pad], as numbers.

    After an update the sums of ``r`` alone, which have not changed, are 0.
    """
    out = total(_block_sums(f, r, metric, factor))
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
    out = unit_total(table, _block_sums(f, r, metric, per_block))
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
    if factors is not None:
        columns = factors.T
        moves = [(q, float(c) if len(c) == 1 else _per_block(table, c)) for q, c in zip(minus, columns, strict=True)]

    def update(here: slice, floats: slice) -> None:
        for q, factor in moves:
            move(x[floats], q[floats], factor if isinstance(factor, float) else factor[here])

    def dots(here: slice, out: NDArray[np.float32]) -> None:
        for y, row in zip(rows, out, strict=True):
            np.vecdot(own[here], y[here], out=row[here])

    if x.device.type != "cpu":
        update(slice(None), slice(None))
        partial = torch.stack([_multiplied(x, y) for y in against])
    else:
        own, rows = blocks_of(x), [blocks_of(y) for y in against]
        partial = _by_pieces(len(own), len(rows), dots, update if moves else None)
    if len(table.count) == 1:
        return torch.tensor([total(partial)], dtype=torch.float64, device=x.device)
    return unit_total(table, partial)


def subtract(arena: GradientArena, f: Tensor, r: Tensor, factor: Tensor, scope: str) -> None:
    """``f -= factor r`` in place, one float64 factor per unit of the scope."""
    move(f, r, float(factor) if len(factor) == 1 else _per_block(arena.units(scope), factor))


def move(f: Tensor, r: Tensor, factor: Factor) -> None:
    """``f -= factor r`` in place."""
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


def total(partial: Tensor) -> list[float]:
    """Sums over all blocks of ``partial`` float32 [columns, blocks], in float64 and one order."""
    if partial.device.type != "cpu":
        numbers: list[float] = partial.sum(dim=1, dtype=torch.float64).tolist()
        return numbers
    with np.errstate(all="ignore"):
        out: list[float] = partial.numpy().sum(axis=1, dtype=np.float64).tolist()
    return out


def unit_total(table: Units, partial: Tensor) -> Tensor:
    """Sums of ``partial`` float32 [columns, blocks] per unit. Float64 [units, columns]."""
    ordered = partial.T.double()
    if table.order is not None:
        ordered = ordered[table.order]
    return torch.segment_reduce(ordered, "sum", lengths=table.count, axis=0, unsafe=True, initial=0.0)


def blocks_of(row: Tensor) -> NDArray[np.float32]:
    """A row on the CPU as an array [blocks, ALIGN] over the same memory."""
    out: NDArray[np.float32] = row.detach().numpy().reshape(-1, ALIGN)
    return out


def _block_sums(f: Tensor, r: Tensor, metric: Tensor | None, factor: Factor | None) -> Tensor:
    """The update, if any, and the sums of every block, float32 [3 or 5, blocks]; after an update <r, .> are 0."""
    if f.device.type != "cpu":
        if factor is not None:
            move(f, r, factor)
        pairs = [(f, r), (r, r), (f, f)]
        if metric is not None:
            weighted = r * metric
            pairs += [(f, weighted), (r, weighted)]
        return torch.stack([_multiplied(a, b) for a, b in pairs])
    x, y = blocks_of(f), blocks_of(r)
    p = None if metric is None else blocks_of(metric)

    def update(here: slice, floats: slice) -> None:
        assert factor is not None
        move(f[floats], r[floats], factor if isinstance(factor, float) else factor[here])

    def dots(here: slice, out: NDArray[np.float32]) -> None:
        a, b = x[here], y[here]
        np.vecdot(a, b, out=out[FR, here])
        np.vecdot(a, a, out=out[FF, here])
        if factor is None:
            np.vecdot(b, b, out=out[RR, here])
        if p is not None:
            weighted = b * p[here]
            np.vecdot(a, weighted, out=out[RPF, here])
            if factor is None:
                np.vecdot(b, weighted, out=out[RPR, here])

    return _by_pieces(len(x), 3 if p is None else 5, dots, None if factor is None else update)


def _by_pieces(
    blocks: int,
    columns: int,
    dots: Callable[[slice, NDArray[np.float32]], None],
    update: Callable[[slice, slice], None] | None,
) -> Tensor:
    """Run ``update(blocks, floats)``, if any, and ``dots(blocks, out)`` over a row of the CPU; out [columns, blocks].

    One thread does both piece by piece. Several let torch share the whole update, and then share the pieces of dots.
    """
    out = np.zeros((columns, blocks), dtype=np.float32)
    threads = torch.get_num_threads() if blocks >= SHARED else 1
    if threads > 1 and update is not None:
        update(slice(0, blocks), slice(0, blocks * ALIGN))

    def run(lo: int) -> None:
        here = slice(lo, min(lo + PIECE, blocks))
        with np.errstate(all="ignore"):
            if threads == 1 and update is not None:
                update(here, slice(ALIGN * here.start, ALIGN * here.stop))
            dots(here, out)

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(0, blocks, PIECE)))
    else:
        for lo in range(0, blocks, PIECE):
            run(lo)
    return torch.from_numpy(out)


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
