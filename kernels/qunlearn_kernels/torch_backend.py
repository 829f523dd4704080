"""The torch backend: whole-row operations, no Python loop over tensors. The reference for all others."""

from __future__ import annotations

import torch
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, PAGE, GradientArena

PIECE = 256 * PAGE
"""Floats that one pass over a long row handles at a time (1 MiB)."""


def block_dot(arena: GradientArena, x: Tensor, y: Tensor, scope: str) -> Tensor:
    """<x, y> per unit of the scope, float64 [units]: blocks in float32, then float64 sums over blocks and segments."""
    if scope in ("global", "none"):
        return _whole_dot(x, y)
    partial = torch.mul(x, y).view(-1, ALIGN)[: arena.blocks].sum(dim=1).double()
    per_segment = torch.segment_reduce(partial, "sum", lengths=arena.block_count, unsafe=True, initial=0.0)
    if scope == "tensor":
        return per_segment
    out = torch.zeros(len(arena.group_names), dtype=torch.float64, device=arena.device)
    return out.index_add_(0, arena.segment_group, per_segment)


def _whole_dot(x: Tensor, y: Tensor) -> Tensor:
    """Pieces that stay in cache, in a fixed order, with one small buffer."""
    size = x.numel()
    if not size:
        return torch.zeros(1, dtype=torch.float64, device=x.device)
    buffer = torch.empty(min(PIECE, size), device=x.device)
    pages = []
    for start in range(0, size, PIECE):
        n = min(PIECE, size - start)
        torch.mul(x[start : start + n], y[start : start + n], out=buffer[:n])
        pages.append(buffer[:n].view(-1, PAGE).sum(dim=1))
    return torch.cat(pages).double().sum().reshape(1)


def subtract(arena: GradientArena, f: Tensor, r: Tensor, factor: Tensor, scope: str) -> None:
    """``f -= factor r`` in place, one float64 factor per unit of the scope."""
    if scope in ("global", "none"):
        f.sub_(r, alpha=float(factor))
        return
    blocks = r.view(-1, ALIGN)[: arena.blocks]
    f.view(-1, ALIGN)[: arena.blocks].addcmul_(blocks, _per_block(arena, factor, scope), value=-1.0)


def scale(arena: GradientArena, f: Tensor, factor: Tensor, scope: str) -> None:
    """``f *= factor`` in place, one float64 factor per unit of the scope."""
    if scope in ("global", "none"):
        f.mul_(float(factor))
        return
    f.view(-1, ALIGN)[: arena.blocks].mul_(_per_block(arena, factor, scope))


def _per_block(arena: GradientArena, factor: Tensor, scope: str) -> Tensor:
    per_segment = factor if scope == "tensor" else factor[arena.segment_group]
    return per_segment[arena.block_segment].to(torch.float32)[:, None]
