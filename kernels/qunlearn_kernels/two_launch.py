"""The projection on a device in two launches: sums of every tile, then the update that finishes them for itself.

The second launch also measures what it left, so that one copy of the tile sums to the host gives the statistics and
tells whether rounding left a cosine above the tolerance; then the second launch is repeated with factors from the
host. Sums of unit totals that several processes share are all-reduced on the host's side between the two launches.
Passes and tolerances are shared with :func:`qunlearn_kernels.projection.project`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qunlearn_export.errors import ConfigError
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.tiles import TilePlan, plan
from qunlearn_kernels.torch_backend import FF, FR, RPF, RPR, RR

TOLERANCE = 5e-7
"""Largest cosine that a pass may leave in a unit."""

PASSES = 4
DROP = 1e-6
"""A unit, or a basis row, of which no more than this share is left counts as nothing."""

PER_PROCESSOR = 8
"""Programs that a launch starts for each multiprocessor; each works through several tiles."""

ROWS = 16
"""Basis rows that one pair of launches takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A parameter step that the update carries out: p <- p - lr (share_r r + lam (f_new - share_old f_old)).

    ``where`` int64 [2, tiles]: address of the parameter's entry at the tile's start, number of entries (0: none).
    """

    where: Tensor
    aligned: bool
    lr: float
    lam: float
    share_r: float = 1.0
    share_old: float = 0.0


class Launcher(Protocol):
    """What a device backend gives: four launches, all on the current stream, none waited for.

    Rows are float32 [N_pad]; ``sums`` float64 [3 or 5, tiles] (5 with ``metric``) in the columns' order of
    :mod:`qunlearn_kernels.torch_backend`; ``given`` float64 [2, units] holds what to keep of f and the factor of r.
    """

    def dots(self, tiles: TilePlan, f: Tensor, r: Tensor, metric: Tensor | None, sums: Tensor) -> None:
        """The sums of every tile."""

    def update(
        self,
        tiles: TilePlan,
        f: Tensor,
        r: Tensor,
        metric: Tensor | None,
        sums: Tensor,
        after: Tensor,
        *,
        eps: float,
        conflict: bool,
        given: Tensor | None,
        step: Step | None,
    ) -> None:
        """f <- keep f - factor r per unit, with factors from ``sums`` or ``given``; sums of the result to ``after``.

        Without ``given`` nothing moves and ``after`` stays unwritten where :func:`refused` is true.
        """

    def basis_dots(self, tiles: TilePlan, f: Tensor, q: Tensor, sums: Tensor) -> None:
        """<q_j, f> of every tile to ``sums`` float64 [tiles, power of two]; ``q`` [1 to 16, N_pad]."""

    def basis_update(self, tiles: TilePlan, f: Tensor, q: Tensor, sums: Tensor, after: Tensor) -> None:
        """f <- f - Q'(Q f) per unit from ``sums``; <q_j, f> of the result to ``after``."""


def default_programs(device: torch.device) -> int:
    """The grid of a launch on ``device``; results do not depend on it."""
    count = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0
    return max(4, count * PER_PROCESSOR)


def per_unit(tiles: TilePlan, sums: Tensor) -> Tensor:
    """Tile sums [3 or 5, tiles] on the CPU added up: float64 [units, 5]."""
    out = torch.zeros(tiles.units, 5, dtype=torch.float64)
    return out.index_add_(0, tiles.unit, torch.nn.functional.pad(sums, (0, 0, 0, 5 - len(sums))).T)


def refused(sums: Tensor) -> bool:
    """Whether the second launch moves nothing: a sum is not finite, or a tile's <r, P r> is negative."""
    return not bool(sums.isfinite().all()) or (len(sums) == 5 and bool((sums[RPR] < 0).any()))


def project(
    launcher: Launcher,
    arena: GradientArena,
    f: Tensor,
    r: Tensor,
    scope: str,
    *,
    conflict: bool = False,
    metric: Tensor | None = None,
    eps: float = 1e-12,
    process_group: Any = None,
    step: Step | None = None,
) -> tuple[Tensor, Tensor]:
    """Remove from ``f`` its part along ``r``, in place; the sums before and after, float64 [units, 5] on the CPU.

    Sums that are not finite come back as they are and nothing has moved: the caller names the tensor. A negative sum
    <r, P r> is a ConfigError. ``step`` is carried out too, unless the sums are not finite.
    """
    own, r, metric = f, _aligned(r), None if metric is None else _aligned(metric)
    f = _aligned(f)
    try:
        return _project(launcher, arena, f, r, scope, conflict, metric, eps, process_group, step)
    finally:
        if f is not own:
            own.copy_(f)


def _project(
    launcher: Launcher,
    arena: GradientArena,
    f: Tensor,
    r: Tensor,
    scope: str,
    conflict: bool,
    metric: Tensor | None,
    eps: float,
    process_group: Any,
    step: Step | None,
) -> tuple[Tensor, Tensor]:
    tiles = plan(arena, scope)
    before, after = _buffer(tiles, metric, f.device), _buffer(tiles, metric, f.device)
    if not tiles.tiles:
        nothing = torch.zeros(tiles.units, 5, dtype=torch.float64)
        return nothing, nothing
    launcher.dots(tiles, f, r, metric, before)
    shared = process_group is not None
    if not shared and scope != "none":
        launcher.update(tiles, f, r, metric, before, after, eps=eps, conflict=conflict, given=None, step=step)
    host = before.cpu()
    first = _reduced(per_unit(tiles, host), f.device, process_group)
    along, norm = (FR, RR) if metric is None else (RPF, RPR)
    if not bool(first.isfinite().all()):
        return first, first
    if bool((first[:, norm] < 0).any()):
        raise ConfigError("the metric has negative entries.", remedy="Give a positive diagonal.")
    if scope == "none":
        return first, first
    mask = first[:, norm] > 0
    if conflict:
        mask &= first[:, FR] < 0
    sharp = mask & (first[:, norm] > eps)
    keep = torch.ones(tiles.units, dtype=torch.float64)
    if shared or refused(host):
        factor = torch.where(mask, first[:, along] / (first[:, norm] + eps), 0.0)
        given = torch.stack([keep, factor]).to(f.device)
        launcher.update(tiles, f, r, metric, before, after, eps=eps, conflict=conflict, given=given, step=step)
    now = _reduced(per_unit(tiles, after.cpu()), f.device, process_group)
    for left in range(PASSES - 1, -1, -1):
        empty = sharp & (now[:, FF] <= DROP**2 * first[:, FF]) & (now[:, FF] > 0)
        todo = sharp & ~empty & (now[:, along].abs() > TOLERANCE * (now[:, FF] * first[:, norm]).sqrt())
        if not bool(empty.any()) and not (left and bool(todo.any())):
            break
        factor = torch.where(todo, now[:, along] / first[:, norm], 0.0)
        given = torch.stack([torch.where(empty, 0.0, keep), factor]).to(f.device)
        later = _correction(step)
        launcher.update(tiles, f, r, metric, before, after, eps=eps, conflict=conflict, given=given, step=later)
        now = _reduced(per_unit(tiles, after.cpu()), f.device, process_group)
    return first, now


def project_k(launcher: Launcher, arena: GradientArena, f: Tensor, q: Tensor, scope: str) -> None:
    """f <- f - Q'(Q f) in place, twice; ``q`` [k, N_pad] with rows orthonormal in every unit of the scope."""
    tiles = plan(arena, scope)
    groups = [q[i : i + ROWS] for i in range(0, len(q), ROWS)] if tiles.tiles else []
    out = _aligned(f)
    for rows in groups:
        width = max(2, 1 << (len(rows) - 1).bit_length())
        here, left = torch.zeros(2, tiles.tiles, width, dtype=torch.float64, device=f.device)
        launcher.basis_dots(tiles, out, rows, here)
        launcher.basis_update(tiles, out, rows, here, left)
        launcher.basis_update(tiles, out, rows, left, here)
    if out is not f:
        f.copy_(out)


def _aligned(vector: Tensor) -> Tensor:
    """The vector, or a copy where it does not start at a multiple of 16 bytes: the kernels' loads are that wide."""
    return vector if vector.data_ptr() % 16 == 0 else vector.clone()


def _correction(step: Step | None) -> Step | None:
    """The step of a later pass: only what that pass changes of f still has to reach the parameters."""
    if step is None:
        return None
    return Step(where=step.where, aligned=step.aligned, lr=step.lr, lam=step.lam, share_r=0.0, share_old=1.0)


def _buffer(tiles: TilePlan, metric: Tensor | None, device: torch.device) -> Tensor:
    return torch.empty(3 if metric is None else 5, tiles.tiles, dtype=torch.float64, device=device)


def _reduced(totals: Tensor, device: torch.device, process_group: Any) -> Tensor:
    """Unit sums added over the processes of a group."""
    if process_group is None:
        return totals
    there = totals.to(device)
    torch.distributed.all_reduce(there, group=process_group)
    return there.cpu()
