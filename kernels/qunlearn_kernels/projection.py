"""Orthogonal projection of one flat gradient against others, behind one call for every backend.

    dots      a = <f, r>,  b = <r, r>,  c = <f, f>       per segment, summed over the scope
    project   f <- f - (a / (b + eps)) r                 scope global | layer | tensor; when always | conflict (a < 0)
    metric    f <- f - (<r, P f> / (<r, P r> + eps)) r   with a diagonal preconditioner P
    basis     rows orthonormal by Gram-Schmidt, twice;   f <- f - Q'(Q f)

Sums are taken in two stages, over fixed blocks of 16 floats and then in float64 over blocks, so that the result does
not depend on the number of threads. Source: oeu specification 2.3 to 2.5; block length and second pass are our choice.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qunlearn_export.errors import ConfigError, NotYetError
from qunlearn_kernels import torch_backend
from qunlearn_kernels.arena import GradientArena

SCOPES = ("global", "layer", "tensor", "none")
WHENS = ("always", "conflict")
TOLERANCE = 5e-7
PASSES = 4
DROP = 1e-6
_log = logging.getLogger("qunlearn_kernels")
_announced: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class ProjectionStats:
    """Over the whole vector: cosines of f and r before and after, norms, ``removed`` = 1 - |f_perp|^2 / |f|^2,
    ``segments`` of the scope and how many of them conflicted (<f, r> < 0)."""

    cos_before: float
    cos_after: float
    norm_f: float
    norm_r: float
    norm_fperp: float
    removed: float
    segments: int
    conflicting_segments: int


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Float64 sums per unit of the scope: ``fr`` = <f, r>, ``rr`` = <r, r>, ``ff`` = <f, f>."""

    fr: Tensor
    rr: Tensor
    ff: Tensor


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that ``project`` uses; ``auto`` picks by device and logs the choice once. Only ``torch`` so far."""
    if name in ("triton", "cuda"):
        raise NotYetError(f"projection backend {name!r} is not offered.", remedy="Use torch or auto.")
    if name not in ("auto", "torch"):
        raise ConfigError(f"projection backend {name!r} is unknown.", remedy="Use torch or auto.")
    if name == "auto" and str(device) not in _announced:
        _announced.add(str(device))
        _log.info("projection backend: torch on %s", device)
    return "torch"


def dots(arena: GradientArena, f: Tensor, r: Tensor, *, scope: str = "global", process_group: Any = None) -> Dots:
    """The three sums of two rows; all-reduced over ``process_group`` where the rows are shards."""
    _known(scope, "always")
    fr, rr, ff = (torch_backend.block_dot(arena, x, y, scope) for x, y in ((f, r), (r, r), (f, f)))
    if process_group is not None:
        packed = torch.stack([fr, rr, ff])
        torch.distributed.all_reduce(packed, group=process_group)
        fr, rr, ff = packed
    return Dots(fr=fr, rr=rr, ff=ff)


def project(
    arena: GradientArena,
    *,
    forget: str | Tensor = "forget",
    retain: str | Tensor = "retain",
    scope: str = "global",
    when: str = "always",
    metric: Tensor | None = None,
    eps: float = 1e-12,
    backend: str = "auto",
    process_group: Any = None,
) -> ProjectionStats:
    """Remove from ``forget`` its part along ``retain``, in place.

    Both are roles of the arena or vectors [N_pad] laid out like its rows (an optimizer's update, say). ``metric`` is a
    row of positive preconditioner entries P: then <r, P f_perp> = 0. After a projection without ``when="conflict"``
    |cos| <= 1e-6. ``r = 0`` leaves ``f`` untouched; a non-finite entry is a DivergedError naming its tensor.
    """
    choose_backend(backend, arena.device)
    _known(scope, when)
    f, r = _row(arena, forget), _row(arena, retain)
    first = dots(arena, f, r, scope=scope, process_group=process_group)
    if not bool(torch.isfinite(first.ff.sum() + first.rr.sum())):
        arena.check_finite(f, "forget")
        arena.check_finite(r, "retain")
    conflicts = int((first.fr < 0).sum())
    before = _whole(first)
    if scope == "none":
        return _stats(before, before, len(first.fr), conflicts)
    weighted = r if metric is None else r * metric
    mask = first.fr < 0 if when == "conflict" else torch.ones_like(first.fr, dtype=torch.bool)
    current = first
    for _ in range(PASSES):
        along = current if metric is None else dots(arena, f, weighted, scope=scope, process_group=process_group)
        norm = current.rr if metric is None else _cross(arena, r, weighted, scope, process_group)
        factor = torch.where(mask & (current.rr > 0), along.fr / (norm + eps), torch.zeros_like(norm))
        torch_backend.subtract(arena, f, r, factor, scope)
        current = _again(arena, f, r, current.rr, scope, process_group)
        reached = current if metric is None else dots(arena, f, weighted, scope=scope, process_group=process_group)
        if bool(_clean(reached, mask, first).all()):
            break
    return _stats(before, _whole(current), len(first.fr), conflicts)


class Basis:
    """Up to ``k`` retain gradients, orthonormal within each unit of ``scope``; the newest always stays in the span.

    ``push`` orthogonalises against the rows kept (Gram-Schmidt, twice) and drops a row whose residual is below 1e-6 of
    its norm; the oldest raw row leaves when ``k`` is reached.
    """

    def __init__(self, arena: GradientArena, k: int, *, scope: str = "global") -> None:
        if not 1 <= k <= 64:
            raise ConfigError(f"a basis of {k} rows is not possible.", remedy="Use 1 to 64.")
        _known(scope, "always")
        self.arena, self.k, self.scope = arena, k, scope
        self.raw: list[Tensor] = []

    def push(self, row: Tensor) -> None:
        """Add a copy of ``row`` [N_pad]."""
        self.raw = [*self.raw, row.detach().clone()][-self.k :]

    def rows(self) -> list[Tensor]:
        """Orthonormal rows of the span, built from the newest to the oldest."""
        out: list[Tensor] = []
        for raw in reversed(self.raw):
            q = raw.clone()
            size = torch_backend.block_dot(self.arena, raw, raw, self.scope)
            for _ in range(2):
                for other in out:
                    torch_backend.subtract(
                        self.arena, q, other, torch_backend.block_dot(self.arena, q, other, self.scope), self.scope
                    )
            left = torch_backend.block_dot(self.arena, q, q, self.scope)
            keep = left > DROP**2 * size
            if bool(keep.any()):
                scale = torch.where(keep, left.clamp_min(1e-300).rsqrt(), torch.zeros_like(left))
                torch_backend.scale(self.arena, q, scale, self.scope)
                out.append(q)
        return out


def project_k(
    arena: GradientArena, basis: Basis, *, forget: str | Tensor = "forget", retain: str | Tensor = "retain"
) -> ProjectionStats:
    """Remove from ``forget`` its part in the span of ``basis``, in place; the statistics are against ``retain``."""
    f, r = _row(arena, forget), _row(arena, retain)
    first = dots(arena, f, r, scope=basis.scope)
    if not bool(torch.isfinite(first.ff.sum() + first.rr.sum())):
        arena.check_finite(f, "forget")
        arena.check_finite(r, "retain")
    rows = basis.rows()
    for _ in range(2):
        for q in rows:
            torch_backend.subtract(arena, f, q, torch_backend.block_dot(arena, f, q, basis.scope), basis.scope)
    after = dots(arena, f, r, scope=basis.scope)
    return _stats(_whole(first), _whole(after), len(first.fr), int((first.fr < 0).sum()))


def step(
    arena: GradientArena, *, lr: float, lam: float, forget: str | Tensor = "forget", retain: str | Tensor = "retain"
) -> None:
    """``p <- p - lr (r + lam f)`` for every parameter, in place."""
    f, r = _row(arena, forget), _row(arena, retain)
    with torch.no_grad():
        for p, update in zip(arena.params, arena.split(torch.add(r, f, alpha=lam)), strict=True):
            if p.requires_grad:
                p.sub_(update.to(p.dtype), alpha=lr)


def _row(arena: GradientArena, what: str | Tensor) -> Tensor:
    if isinstance(what, str):
        return arena.row(what)
    if what.shape != (arena.size,):
        raise ConfigError(f"a vector of shape {tuple(what.shape)} is not laid out like a row.", remedy="Use flatten().")
    return what


def _known(scope: str, when: str) -> None:
    if scope not in SCOPES or when not in WHENS:
        raise ConfigError(
            f"scope {scope!r} with when {when!r} is unknown.", remedy=f"Use {', '.join(SCOPES)}; {', '.join(WHENS)}."
        )


def _cross(arena: GradientArena, x: Tensor, y: Tensor, scope: str, process_group: Any) -> Tensor:
    return dots(arena, x, y, scope=scope, process_group=process_group).fr


def _again(arena: GradientArena, f: Tensor, r: Tensor, rr: Tensor, scope: str, process_group: Any) -> Dots:
    """The sums after ``f`` moved; <r, r> is what it was."""
    fr, ff = (torch_backend.block_dot(arena, f, x, scope) for x in (r, f))
    if process_group is not None:
        packed = torch.stack([fr, ff])
        torch.distributed.all_reduce(packed, group=process_group)
        fr, ff = packed
    return Dots(fr=fr, rr=rr, ff=ff)


def _clean(d: Dots, mask: Tensor, first: Dots) -> Tensor:
    floor = 1e-14 * first.ff.sum()
    small = d.fr.abs() <= TOLERANCE * (d.ff * d.rr).sqrt()
    return ~mask | small | (d.ff <= floor) | (d.rr == 0)


def _whole(d: Dots) -> tuple[float, float, float]:
    return float(d.fr.sum()), float(d.rr.sum()), float(d.ff.sum())


def _cosine(fr: float, rr: float, ff: float) -> float:
    return fr / math.sqrt(rr * ff) if rr > 0 and ff > 0 else 0.0


def _stats(
    before: tuple[float, float, float], after: tuple[float, float, float], segments: int, conflicts: int
) -> ProjectionStats:
    ff, ff_after = before[2], after[2]
    return ProjectionStats(
        cos_before=_cosine(*before),
        cos_after=_cosine(*after),
        norm_f=math.sqrt(ff),
        norm_r=math.sqrt(before[1]),
        norm_fperp=math.sqrt(ff_after),
        removed=1.0 - ff_after / ff if ff > 0 else 0.0,
        segments=segments,
        conflicting_segments=conflicts,
    )
