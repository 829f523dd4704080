"""The torch backend: flat operations, no Python loop over tensors. The reference for all others.

Inner products have two stages. One batched product gives the 2x2 Gram matrix of every block of ``ALIGN`` floats
(float32, one read of memory for all three inner products); blocks are then added in float64 in a fixed order. Long
rows are worked through in pieces that fit the cache, so measuring what an update left costs no second trip to memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, GradientArena

PIECE = 1024
"""Blocks that one piece of a long row holds on a CPU (1 MiB of float32); other devices take the row whole."""


def sums(
    arena: GradientArena,
    f: Tensor,
    r: Tensor,
    scope: str,
    *,
    metric: Tensor | None = None,
    factor: Tensor | float | None = None,
) -> Tensor:
    """First ``f -= factor r`` in place (if given: a number, or one float64 factor per unit), then the sums.

    Float64 [units, 3]: <f, r>, <r, r>, <f, f>; with ``metric`` P also <r, P f> and <r, P r> ([units, 5]).
    """
    pair, swapped = _pair(f, r)
    piece = PIECE if f.device.type == "cpu" else arena.blocks
    scratch = None if pair is not None else f.new_empty(2, min(piece, arena.blocks) * ALIGN)
    each = _per_block(arena, factor, scope) if isinstance(factor, Tensor) else None
    parts = []
    for lo in range(0, arena.blocks, max(1, piece)):
        hi = min(lo + piece, arena.blocks)
        here = slice(lo * ALIGN, hi * ALIGN)
        if each is not None:
            f[here].view(-1, ALIGN).addcmul_(r[here].view(-1, ALIGN), each[lo:hi], value=-1.0)
        elif isinstance(factor, float):
            f[here].sub_(r[here], alpha=factor)
        if pair is not None:
            both = pair[:, here]
        elif scratch is not None:
            both = scratch[:, : (hi - lo) * ALIGN]
            both[0].copy_(f[here])
            both[1].copy_(r[here])
        x = both.view(2, hi - lo, ALIGN).transpose(0, 1)
        gram = torch.bmm(x, x.transpose(1, 2)).flatten(1)
        if metric is not None:
            weighted = x * metric[here].view(-1, 1, ALIGN)
            gram = torch.cat([gram, torch.bmm(x, weighted.transpose(1, 2)).flatten(1)], dim=1)
        parts.append(gram)
    if not parts:
        return torch.zeros(_units(arena, scope), 3 if metric is None else 5, dtype=torch.float64, device=f.device)
    columns = [1, 0, 3] if swapped else [1, 3, 0]
    if metric is not None:
        columns += [5, 4 if swapped else 7]
    partial = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _over(arena, partial.double(), scope)[:, columns]


def block_dot(arena: GradientArena, x: Tensor, y: Tensor, scope: str) -> Tensor:
    """<x, y> per unit of the scope, float64 [units]."""
    return sums(arena, x, y, scope)[:, 0]


def subtract(arena: GradientArena, f: Tensor, r: Tensor, factor: Tensor, scope: str) -> None:
    """``f -= factor r`` in place, one float64 factor per unit of the scope."""
    if len(factor) == 1:
        f.sub_(r, alpha=float(factor))
        return
    f.view(-1, ALIGN).addcmul_(r.view(-1, ALIGN), _per_block(arena, factor, scope), value=-1.0)


def scale(arena: GradientArena, f: Tensor, factor: Tensor, scope: str) -> None:
    """``f *= factor`` in place, one float64 factor per unit of the scope."""
    if len(factor) == 1:
        f.mul_(float(factor))
        return
    f.view(-1, ALIGN).mul_(_per_block(arena, factor, scope))


def _pair(f: Tensor, r: Tensor) -> tuple[Tensor | None, bool]:
    """Two rows of one buffer as a strided [2, N_pad] view, and whether r comes first; None for separate vectors."""
    if f.untyped_storage().data_ptr() != r.untyped_storage().data_ptr():
        return None, False
    gap = int(r.storage_offset()) - int(f.storage_offset())
    return (f if gap >= 0 else r).as_strided((2, f.numel()), (abs(gap), 1)), gap < 0


def _units(arena: GradientArena, scope: str) -> int:
    return {"tensor": len(arena.segments), "layer": len(arena.group_names)}.get(scope, 1)


def _over(arena: GradientArena, partial: Tensor, scope: str) -> Tensor:
    """Block sums [blocks, c] float64 to sums per unit [units, c], always added in the same order."""
    if scope in ("global", "none"):
        return partial.sum(dim=0, keepdim=True)
    per_segment = torch.segment_reduce(partial, "sum", lengths=arena.block_count, axis=0, unsafe=True, initial=0.0)
    if scope == "tensor":
        return per_segment
    out = torch.zeros(len(arena.group_names), partial.shape[1], dtype=torch.float64, device=arena.device)
    return out.index_add_(0, arena.segment_group, per_segment)


def _per_block(arena: GradientArena, factor: Tensor, scope: str) -> Tensor:
    per_segment = factor if scope == "tensor" else factor[arena.segment_group]
    return per_segment[arena.block_segment].to(torch.float32)[:, None]
