"""The torch backend: whole-row operations, no Python loop over tensors. The reference for all others."""

from __future__ import annotations

import torch
from torch import Tensor

from qunlearn_kernels.arena import ALIGN, GradientArena


def block_dot(arena: GradientArena, x: Tensor, y: Tensor, scope: str) -> Tensor:
    """<x, y> per unit of the scope, float64 [units]: blocks of 16 in float64, then sums over blocks and segments."""
    partial = torch.mul(x.view(-1, ALIGN), y.view(-1, ALIGN)).sum(dim=1, dtype=torch.float64)
    per_segment = torch.segment_reduce(partial, "sum", lengths=arena.block_count, unsafe=True, initial=0.0)
    if scope == "tensor":
        return per_segment
    if scope == "layer":
        out = torch.zeros(len(arena.group_names), dtype=torch.float64, device=arena.device)
        return out.index_add_(0, arena.segment_group, per_segment)
    return per_segment.sum().reshape(1)


def subtract(arena: GradientArena, f: Tensor, r: Tensor, factor: Tensor, scope: str) -> None:
    """``f -= factor r`` in place, one float64 factor per unit of the scope."""
    if factor.numel() == 1:
        f.sub_(r, alpha=float(factor))
        return
    f.view(-1, ALIGN).addcmul_(r.view(-1, ALIGN), _per_block(arena, factor, scope), value=-1.0)


def scale(arena: GradientArena, f: Tensor, factor: Tensor, scope: str) -> None:
    """``f *= factor`` in place, one float64 factor per unit of the scope."""
    if factor.numel() == 1:
        f.mul_(float(factor))
        return
    f.view(-1, ALIGN).mul_(_per_block(arena, factor, scope))


def _per_block(arena: GradientArena, factor: Tensor, scope: str) -> Tensor:
    per_segment = factor if scope == "tensor" else factor[arena.segment_group]
    return per_segment[arena.block_segment].to(torch.float32)[:, None]
