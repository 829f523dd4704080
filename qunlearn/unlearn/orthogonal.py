"""The forget vector made orthogonal to a retain reference: one batch, a running mean with it, or a subspace.

All projections run through :mod:`qunlearn_kernels`. A reference of several rows is orthonormalised per unit of the
scope, current retain gradient first, so that the result is orthogonal to it whatever else is in the span.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import Basis, dots, project, project_k

PIECE = 1 << 16
"""Values that the inner products convert to float64 at a time on a CPU."""


def gram(vectors: Sequence[Tensor]) -> list[list[float]]:
    """All inner products of flat vectors of one length, accumulated in float64, in one pass over memory."""
    n = vectors[0].numel()
    step = max(1, min(PIECE, n) if vectors[0].device.type == "cpu" else n)
    distinct = {(v.data_ptr(), v.stride()): v.detach() for v in vectors}
    place = {key: i for i, key in enumerate(distinct)}
    work = torch.empty(len(distinct), step, dtype=torch.float64, device=vectors[0].device)
    total = work.new_zeros(len(distinct), len(distinct))
    for start in range(0, n, step):
        piece = work[:, : min(step, n - start)]
        for row, v in zip(piece, distinct.values(), strict=True):
            row.copy_(v[start : start + step])
        total += piece @ piece.T
    numbers = total.tolist()
    index = [place[v.data_ptr(), v.stride()] for v in vectors]
    return [[numbers[i][j] for j in index] for i in index]


def dot(a: Tensor, b: Tensor) -> float:
    """<a, b> of two tensors with as many values, accumulated in float64."""
    return gram([a.flatten(), b.flatten()])[0][1]


@torch.no_grad()
def add(parameters: Iterable[Tensor], vectors: Iterable[Tensor]) -> None:
    """Add one vector to each parameter, in place."""
    for p, vector in zip(parameters, vectors, strict=True):
        p.add_(vector.to(p.dtype))


class Reference:
    """Keeps what ``retain_ref`` needs over time and projects vectors; a part of the checkpoint."""

    def __init__(
        self,
        arena: GradientArena,
        *,
        kind: str,
        scope: str,
        when: str,
        k: int,
        beta: float,
        ema_only: bool,
        eps: float,
    ) -> None:
        self.arena = arena
        self.kind, self.scope, self.when, self.eps = kind, scope, when, eps
        self.k, self.beta, self.ema_only = k, beta, ema_only
        self.rows: list[Tensor] = []

    def see(self, r: Tensor) -> None:
        """Take the current retain gradient in; called once a step, before :meth:`project`."""
        if self.kind == "ema":
            e = self.rows[0] if self.rows else torch.zeros_like(r)
            self.rows = [e.mul(self.beta).add_(r, alpha=1 - self.beta)]
        elif self.kind == "subspace":
            self.rows = [*self.rows, r.clone()][-self.k :]

    def span(self, r: Tensor) -> list[Tensor]:
        """The raw reference vectors of this step, current retain gradient first unless ``ema_only``."""
        if self.scope == "none":
            return []
        if self.kind == "ema":
            return [self.rows[0]] if self.ema_only else [r, self.rows[0]]
        if self.kind == "subspace":
            return [r, *reversed(self.rows[:-1])]
        return [r]

    def project(self, vector: Tensor, r: Tensor, weight: Tensor | None = None) -> Tensor:
        """The part of ``vector`` orthogonal to the reference, as a new flat vector.

        ``weight`` multiplies all vectors first (the root of a diagonal metric); the result is in those coordinates.
        """
        out = vector.clone() if weight is None else vector * weight
        rows = self.span(r) if weight is None else [row * weight for row in self.span(r)]
        if len(rows) == 1:
            project(self.arena, forget=out, retain=rows[0], scope=self.scope, when=self.when, eps=self.eps)
        elif rows:
            start = out.clone()
            basis = Basis(self.arena, len(rows), scope=self.scope)
            for row in reversed(rows):
                basis.push(row)
            project_k(self.arena, basis, forget=out, retain=rows[0])
            if self.when == "conflict":
                self._restore(out, start, dots(self.arena, start, rows[0], scope=self.scope).fr >= 0)
        return out

    def _restore(self, out: Tensor, start: Tensor, agree: Tensor) -> None:
        """Units that do not conflict get their unprojected vector back."""
        views = zip(self.arena.split(out), self.arena.split(start), strict=True)
        for i, (view, old) in enumerate(views):
            unit = {"tensor": i, "layer": int(self.arena.segment_group[i])}.get(self.scope, 0)
            if bool(agree[unit]):
                view.copy_(old)

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Rows by number."""
        return {f"{i:03d}": row for i, row in enumerate(self.rows)}, {}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Put them back."""
        self.rows = [tensors[name] for name in sorted(tensors)]
