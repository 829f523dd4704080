"""Orthogonal projection of one flat gradient against others, behind one call for every backend.

    dots      a = <f, r>,  b = <r, r>,  c = <f, f>       per segment, summed over the scope
    project   f <- f - (a / (b + eps)) r                 scope global | layer | tensor; when always | conflict (a < 0)
    metric    f <- f - (<r, P f> / (<r, P r> + eps)) r   with a diagonal preconditioner P
    basis     rows orthonormal by Gram-Schmidt, twice;   f <- f - Q'(Q f)

Sums are taken in two stages, over pieces of fixed length and then in float64 over pieces, so that the result does not
depend on the number of threads. Source: oeu specification 2.3 to 2.5; piece length and second pass are our choice.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from qunlearn_export.errors import ConfigError, DivergedError
from qunlearn_kernels import torch_backend, two_launch
from qunlearn_kernels.arena import ALIGN, GradientArena
from qunlearn_kernels.backends import choose_backend, launcher
from qunlearn_kernels.torch_backend import FF, FR, RPF, RPR, RR
from qunlearn_kernels.two_launch import DROP, PASSES, TOLERANCE

SCOPES = ("global", "layer", "tensor", "none")
WHENS = ("always", "conflict")
SHALLOW = 0.25


@dataclass(frozen=True, kw_only=True)
class ProjectionStats:
    """Over the whole vector: cosines of f and r before and after, norms, ``removed`` = 1 - |f_perp|^2 / |f|^2,
    ``segments`` of the scope and how many of them conflicted (<f, r> < 0).

    What ``project`` reports after a shallow projection is foreseen from the sums before it and the factor that was
    applied, which saves a pass over memory; after a steep one it is measured. Shallow means that the part removed is
    at most half as long as what stays (|cos| <= 0.447).
    """

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


def dots(arena: GradientArena, f: Tensor, r: Tensor, *, scope: str = "global", process_group: Any = None) -> Dots:
    """The three sums of two rows; all-reduced over ``process_group`` where the rows are shards."""
    _known(scope, "always")
    out = _sums(arena, f, r, scope, None, process_group)
    return Dots(fr=out[:, FR], rr=out[:, RR], ff=out[:, FF])


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
    |cos| <= 1e-6 in every unit of the scope: further passes clear what rounding left, and a unit whose remainder is
    below 1e-6 of it becomes exactly zero. ``eps`` damps only where <r, r> <= eps, or <r, P r>.
    ``r = 0`` leaves ``f`` untouched; a non-finite entry, or a square that overflows, is a DivergedError.
    """
    chosen = choose_backend(backend, arena.device)
    f, r, weight = rows(arena, forget, retain, metric, scope, when)
    if chosen != "torch":
        run, conflicts = launcher(chosen, arena.device), when == "conflict"
        totals = two_launch.project(
            run, arena, f, r, scope, conflict=conflicts, metric=weight, eps=eps, process_group=process_group
        )
        return statistics(arena, f, r, weight, totals)
    if torch_backend.unit_count(arena, scope) == 1:
        return _one_unit(arena, f, r, weight, scope == "none", when == "conflict", eps, process_group)
    first = _sums(arena, f, r, scope, weight, process_group)
    if not bool(first.isfinite().all()):
        raise _not_finite(arena, {"forget": f, "retain": r, "metric": weight})
    along, norm = (FR, RR) if weight is None else (RPF, RPR)
    if bool((first[:, norm] < 0).any()):
        raise _negative()
    conflict = first[:, FR] < 0
    mask = first[:, norm] > 0
    if when == "conflict":
        mask &= conflict
    current = first
    if bool(mask.any()):
        damped = first[:, norm] + torch.where(first[:, norm] > eps, 0.0, eps)
        factor = torch.where(mask, first[:, along] / damped, 0.0).float().double()
        current = first.clone()
        current[:, FR], current[:, FF] = _foresee(first[:, FR], first[:, RR], first[:, FF], factor)
        steep = mask if weight is not None else mask & ~_shallow(current[:, FR], first[:, RR], current[:, FF], factor)
        if bool(steep.any()):
            _polish(arena, f, r, scope, weight, first, current, factor, steep, eps, process_group)
        else:
            torch_backend.subtract(arena, f, r, factor, scope)
    return _unit_stats(first, current)


def _polish(
    arena: GradientArena,
    f: Tensor,
    r: Tensor,
    scope: str,
    weight: Tensor | None,
    first: Tensor,
    current: Tensor,
    factor: Tensor,
    steep: Tensor,
    eps: float,
    process_group: Any,
) -> None:
    """Apply ``factor``, measure the ``steep`` units, project these until they are orthogonal, correct ``current``.

    Where they are less than half of the row, later passes work on a copy of their blocks: often a few short tensors.
    """
    along, norm = (FR, RR) if weight is None else (RPF, RPR)
    table = arena.units(scope)
    blocks = steep[table.of].nonzero()[:, 0]
    x, y, w = f, r, weight
    change: Tensor | None = factor
    if 2 * len(blocks) < arena.blocks:
        torch_backend.subtract(arena, f, r, factor, scope)
        table, change = table.only(steep, blocks), None
        x, y = (v.view(-1, ALIGN)[blocks].flatten() for v in (f, r))
        w = None if weight is None else weight.view(-1, ALIGN)[blocks].flatten()
    sharp = steep & (first[:, norm] > eps)
    for attempt in range(PASSES):
        now = _shared(torch_backend.unit_sums(table, x, y, metric=w, factor=change), process_group)
        nothing = sharp & (now[:, FF] <= DROP**2 * first[:, FF]) & (now[:, FF] > 0)
        if bool(nothing.any()):
            torch_backend.unit_scale(table, x, (~nothing).double())
            for column in (FR, FF, along):
                now[nothing, column] = 0.0
        todo = sharp & (now[:, along].abs() > TOLERANCE * (now[:, FF] * first[:, norm]).sqrt())
        if attempt == PASSES - 1 or not bool(todo.any()):
            break
        change = torch.where(todo, now[:, along] / first[:, norm], 0.0)
    current[steep] = now[steep]
    if x is not f:
        f.view(-1, ALIGN)[blocks] = x.view(-1, ALIGN)


def _one_unit(
    arena: GradientArena,
    f: Tensor,
    r: Tensor,
    weight: Tensor | None,
    measure_only: bool,
    only_conflict: bool,
    eps: float,
    process_group: Any,
) -> ProjectionStats:
    """The same passes for one unit, in plain numbers: small networks would spend their time on tiny tensors."""
    start = _row_sums(f, r, weight, process_group)
    if not all(math.isfinite(v) for v in start):
        raise _not_finite(arena, {"forget": f, "retain": r, "metric": weight})
    along, norm = (FR, RR) if weight is None else (RPF, RPR)
    square, now = start[norm], start
    if square < 0:
        raise _negative()
    moves = square > 0 and (start[FR] < 0 or not only_conflict) and not measure_only
    passes = PASSES if moves else 0
    damped = square if square > eps else square + eps
    if moves and weight is None:
        factor = ctypes.c_float(start[FR] / damped).value
        fr, ff = _foresee(start[FR], start[RR], start[FF], factor)
        if _shallow(fr, start[RR], ff, factor):
            torch_backend.move(f, r, factor)
            now, passes = [fr, start[RR], ff, 0.0, 0.0], 0
    for _ in range(passes):
        factor = now[along] / damped
        now = _row_sums(f, r, weight, process_group, factor=factor)
        if square <= eps:
            break
        if now[FF] <= DROP**2 * start[FF]:
            f.zero_()
            now = [0.0] * len(now)
            break
        if abs(now[along]) <= TOLERANCE * math.sqrt(now[FF] * square):
            break
    return _stats(start, now, 1, int(start[FR] < 0))


Number = TypeVar("Number", float, Tensor)


def _foresee(fr: Number, rr: Number, ff: Number, factor: Number) -> tuple[Number, Number]:
    """<f', r> and <f', f'> of f' = f - factor r, without a look at f'."""
    return fr - factor * rr, ff - 2 * factor * fr + factor * factor * rr


def _shallow(fr: Number, rr: Number, ff: Number, factor: Number) -> Any:
    """Whether the part removed, factor r, is at most half as long as what stays, and the foreseen sums are orthogonal.

    Then they need no measurement. The sums of blocks err by less than 1e-6 of |f||r| and |r|^2, even where all entries
    are equal and roundings add up (a BLAS that adds 16 products at a time; 3e-7 with 64); of that at most half becomes
    part of the cosine, and rounding the update to float32 adds 2^-24 (1 + 1/2).
    """
    return (factor * factor * rr <= SHALLOW * ff) & (fr * fr <= TOLERANCE**2 * ff * rr)


def _negative() -> ConfigError:
    return ConfigError("the metric has negative entries.", remedy="Give a positive diagonal.")


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
        arena, scope = self.arena, self.scope
        out: list[Tensor] = []
        for raw in reversed(self.raw):
            q = raw.clone()
            found = torch_backend.products(arena, q, [*out, raw], scope)
            size = left = found[:, -1]
            if out:
                found = torch_backend.products(arena, q, out, scope, minus=out, factors=found[:, :-1])
                left = torch_backend.products(arena, q, [q], scope, minus=out, factors=found)[:, 0]
            keep = left > DROP**2 * size
            if bool(keep.any()):
                scale = torch.where(keep, left.clamp_min(1e-300).rsqrt(), torch.zeros_like(left))
                torch_backend.scale(arena, q, scale, scope)
                out.append(q)
        return out


def project_k(
    arena: GradientArena,
    basis: Basis,
    *,
    forget: str | Tensor = "forget",
    retain: str | Tensor = "retain",
    backend: str = "auto",
) -> ProjectionStats:
    """Remove from ``forget`` its part in the span of ``basis``, in place; the statistics are against ``retain``."""
    chosen = choose_backend(backend, arena.device)
    f, r = _row(arena, forget), _row(arena, retain)
    first = _sums(arena, f, r, basis.scope, None, None)
    if not bool(first.isfinite().all()):
        raise _not_finite(arena, {"forget": f, "retain": r})
    rows = basis.rows()
    if chosen != "torch" and rows:
        two_launch.project_k(launcher(chosen, arena.device), arena, f, torch.stack(rows), basis.scope)
    if chosen == "torch" and rows:
        found = torch_backend.products(arena, f, rows, basis.scope)
        left = torch_backend.products(arena, f, [*rows, f], basis.scope, minus=rows, factors=found)
        if bool((left[:, :-1].square().sum(dim=1) > TOLERANCE**2 * left[:, -1]).any()):
            torch_backend.products(arena, f, [f], basis.scope, minus=rows, factors=left[:, :-1])
    after = _sums(arena, f, r, basis.scope, None, None)
    return _unit_stats(first, after)


def step(
    arena: GradientArena, *, lr: float, lam: float, forget: str | Tensor = "forget", retain: str | Tensor = "retain"
) -> None:
    """``p <- p - lr (r + lam f)`` for every parameter that requires a gradient, in place."""
    f, r = _row(arena, forget), _row(arena, retain)
    with torch.no_grad():
        updates = arena.split(torch.add(r, f, alpha=lam))
        moving = [(p, u) for p, u in zip(arena.params, updates, strict=True) if p.requires_grad]
        plain = [(p, u) for p, u in moving if p.dtype == torch.float32]
        if plain:
            torch._foreach_add_([p for p, _ in plain], [u for _, u in plain], alpha=-lr)
        for p, u in moving:
            if p.dtype != torch.float32:
                p.sub_(u.to(p.dtype), alpha=lr)


def rows(
    arena: GradientArena, forget: str | Tensor, retain: str | Tensor, metric: Tensor | None, scope: str, when: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The checked rows [N_pad] of a projection; ConfigError for what :func:`project` refuses."""
    _known(scope, when)
    f, r = _row(arena, forget), _row(arena, retain)
    if f.data_ptr() == r.data_ptr() and f.numel():
        raise ConfigError("forget and retain are one vector.", remedy="Give two rows.")
    return f, r, None if metric is None else _row(arena, metric)


def statistics(
    arena: GradientArena, f: Tensor, r: Tensor, metric: Tensor | None, totals: tuple[Tensor, Tensor]
) -> ProjectionStats:
    """From float64 sums [units, 5] before and after; DivergedError naming the tensor where they are not finite."""
    if not bool(totals[0].isfinite().all()):
        raise _not_finite(arena, {"forget": f, "retain": r, "metric": metric})
    return _unit_stats(*totals)


def _row(arena: GradientArena, what: str | Tensor) -> Tensor:
    if isinstance(what, str):
        if what == arena.bound:
            arena.collect()
        return arena.row(what)
    if what.shape != (arena.size,) or what.dtype != torch.float32 or not what.is_contiguous():
        raise ConfigError(
            f"a {what.dtype} vector of shape {tuple(what.shape)} is not laid out like a row.", remedy="Use flatten()."
        )
    return what


def _known(scope: str, when: str) -> None:
    if scope not in SCOPES or when not in WHENS:
        raise ConfigError(
            f"scope {scope!r} with when {when!r} is unknown.", remedy=f"Use {', '.join(SCOPES)}; {', '.join(WHENS)}."
        )


def _sums(arena: GradientArena, f: Tensor, r: Tensor, scope: str, metric: Tensor | None, process_group: Any) -> Tensor:
    """Torch's sums per unit, added over the processes."""
    return _shared(torch_backend.sums(arena, f, r, scope, metric=metric), process_group)


def _shared(sums: Tensor, process_group: Any) -> Tensor:
    if process_group is not None:
        torch.distributed.all_reduce(sums, group=process_group)
    return sums


def _row_sums(
    f: Tensor,
    r: Tensor,
    metric: Tensor | None,
    process_group: Any,
    *,
    factor: float | None = None,
) -> list[float]:
    """The same for one unit, as numbers; with ``factor`` after ``f -= factor r``."""
    out = torch_backend.row_sums(f, r, metric=metric, factor=factor)
    if process_group is None:
        return out
    numbers: list[float] = _shared(torch.tensor(out, dtype=torch.float64, device=f.device), process_group).tolist()
    return numbers


def _not_finite(arena: GradientArena, vectors: Mapping[str, Tensor | None]) -> DivergedError:
    """The error for sums that are not finite, naming the tensor where an entry is at fault."""
    for what, vector in vectors.items():
        if vector is not None:
            arena.check_finite(vector, what)
    return DivergedError(
        "the gradients are finite here, but their squares overflow float32 or another process is not finite.",
        remedy="Use a smaller lr.",
    )


def _unit_stats(before: Tensor, after: Tensor) -> ProjectionStats:
    """Statistics from sums per unit [units, 5]."""
    conflicts = int((before[:, FR] < 0).sum())
    return _stats(before.sum(dim=0).tolist(), after.sum(dim=0).tolist(), len(before), conflicts)


def _cosine(fr: float, rr: float, ff: float) -> float:
    return fr / math.sqrt(rr * ff) if rr > 0 and ff > 0 else 0.0


def _stats(before: Sequence[float], after: Sequence[float], segments: int, conflicts: int) -> ProjectionStats:
    rr, ff, ff_after = before[RR], before[FF], after[FF]
    return ProjectionStats(
        cos_before=_cosine(before[FR], rr, ff),
        cos_after=_cosine(after[FR], rr, ff_after),
        norm_f=math.sqrt(ff),
        norm_r=math.sqrt(rr),
        norm_fperp=math.sqrt(ff_after),
        removed=1.0 - ff_after / ff if ff > 0 else 0.0,
        segments=segments,
        conflicting_segments=conflicts,
    )
