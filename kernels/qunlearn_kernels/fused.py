"""Projection and parameter step together: f <- f_perp, then p <- p - lr (r + lam f), in 28 bytes a float, not 36.

On a device the second launch of the projection moves the parameters while f and r are at hand; the torch backend
takes the two calls one after the other. Should rounding ask for a further pass, it carries its change of f over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qunlearn_kernels import projection, two_launch
from qunlearn_kernels.arena import ALIGN, GradientArena
from qunlearn_kernels.backends import choose_backend, launcher
from qunlearn_kernels.projection import ProjectionStats
from qunlearn_kernels.tiles import plan


def project_and_step(
    arena: GradientArena,
    *,
    lr: float,
    lam: float,
    forget: str | Tensor = "forget",
    retain: str | Tensor = "retain",
    scope: str = "global",
    when: str = "always",
    metric: Tensor | None = None,
    eps: float = 1e-12,
    backend: str = "auto",
    process_group: Any = None,
) -> ProjectionStats:
    """:func:`qunlearn_kernels.projection.project`, then :func:`qunlearn_kernels.projection.step`, in place.

    Arguments, statistics and errors are theirs; with ``process_group`` every process moves its own shard. Gradients
    that are not finite move neither ``forget`` nor parameters. Frozen parameters stay; those that are not contiguous
    float32 get a step of their own.
    """
    chosen = choose_backend(backend, arena.device)
    if chosen == "torch" or scope == "none":
        stats = projection.project(
            arena,
            forget=forget,
            retain=retain,
            scope=scope,
            when=when,
            metric=metric,
            eps=eps,
            backend=backend,
            process_group=process_group,
        )
        projection.step(arena, lr=lr, lam=lam, forget=forget, retain=retain)
        return stats
    run = launcher(chosen, arena.device)
    f, r, weight = projection.rows(arena, forget, retain, metric, scope, when)
    inside = [_movable(p) for p in arena.params]
    where, aligned = _addresses(arena, scope, inside)
    moves = two_launch.Step(where=where, aligned=aligned, lr=lr, lam=lam)
    totals = two_launch.project(
        run,
        arena,
        f,
        r,
        scope,
        conflict=when == "conflict",
        metric=weight,
        eps=eps,
        process_group=process_group,
        step=moves,
    )
    stats = projection.statistics(arena, f, r, weight, totals)
    with torch.no_grad():
        views = zip(arena.params, inside, arena.split(f), arena.split(r), strict=True)
        for p, done, a, b in views:
            if done:
                torch.autograd.graph.increment_version(p)
            elif p.requires_grad:
                p.sub_(torch.add(b, a, alpha=lam).to(p.dtype), alpha=lr)
    return stats


def _movable(p: nn.Parameter) -> bool:
    return p.requires_grad and p.dtype == torch.float32 and p.is_contiguous()


def _addresses(arena: GradientArena, scope: str, inside: list[bool]) -> tuple[Tensor, bool]:
    """For every tile the address of its first entry's parameter and the number of entries, int64 [2, tiles]; and
    whether all addresses are multiples of 16. Kept while the parameters stay where they are."""
    pointers = tuple(p.data_ptr() if here else 0 for p, here in zip(arena.params, inside, strict=True))
    key = f"step {scope}"
    known = arena.plans.get(key)
    if isinstance(known, tuple) and known[0] == pointers:
        return known[1], known[2]
    tiles = plan(arena, scope)
    start, length, _, segment = tiles.host.astype(np.int64)
    offset = np.array([s.offset for s in arena.segments], dtype=np.int64)[segment]
    numel = np.array([s.numel for s in arena.segments], dtype=np.int64)[segment]
    base = np.array(pointers, dtype=np.int64)[segment]
    entries = np.where(base != 0, np.minimum(length * ALIGN, numel - (start * ALIGN - offset)), 0)
    where = torch.from_numpy(np.stack([base + 4 * (start * ALIGN - offset), entries])).to(arena.device)
    aligned = all(pointer % 16 == 0 for pointer in pointers)
    arena.plans[key] = (pointers, where, aligned)
    return where, aligned
