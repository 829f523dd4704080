"""The forget vector made orthogonal to a retain reference: one batch, a running mean with it, or a subspace.

All projections run through :mod:`qunlearn_kernels`. A reference of several rows is orthonormalised per segment of the
scope, current retain gradient first, so that the result is orthogonal to it whatever else is in the span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import project

DROP = 1e-6
"""A row whose part outside the earlier rows is smaller than this share of it is left out."""


def dot(a: Tensor, b: Tensor) -> float:
    """<a, b> of two flat vectors, accumulated in float64."""
    return float(torch.dot(a.double(), b.double()))


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one parameter lies in a flat vector."""

    name: str
    start: int
    shape: torch.Size
    segment: int

    def of(self, flat: Tensor) -> Tensor:
        """The parameter's part of ``flat``, as a view of its shape."""
        return flat[self.start : self.start + self.shape.numel()].view(self.shape)


class Layout:
    """Names, places and segments of the parameters in the rows of an arena."""

    def __init__(self, arena: GradientArena, parameters: Mapping[str, nn.Parameter], segments: Sequence[str]) -> None:
        row = arena.row("forget")
        order = {s: i for i, s in enumerate(dict.fromkeys(segments))}
        self.segments = list(order)
        self.slots = []
        for (name, p), view, segment in zip(parameters.items(), arena.views("forget"), segments, strict=True):
            start = view.storage_offset() - row.storage_offset()
            self.slots.append(Slot(name=name, start=start, shape=p.shape, segment=order[segment]))
        self.size = row.numel()

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view a parameter, in the order of the parameters."""
        return [slot.of(flat) for slot in self.slots]

    def dots(self, a: Tensor, b: Tensor) -> Tensor:
        """<a, b> per segment, float64 [segments]."""
        out = torch.zeros(len(self.segments), dtype=torch.float64, device=a.device)
        for slot in self.slots:
            out[slot.segment] += torch.dot(slot.of(a).flatten().double(), slot.of(b).flatten().double())
        return out

    def where(self, keep: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``a`` in the segments where ``keep`` (bool [segments]) holds, ``b`` elsewhere."""
        out = b.clone()
        for slot in self.slots:
            if bool(keep[slot.segment]):
                slot.of(out).copy_(slot.of(a))
        return out


class Reference:
    """Keeps what ``retain_ref`` needs over time and projects vectors; a part of the checkpoint."""

    def __init__(
        self,
        arena: GradientArena,
        layout: Layout,
        scratch: GradientArena,
        *,
        kind: str,
        scope: str,
        when: str,
        k: int,
        beta: float,
        ema_only: bool,
        eps: float,
    ) -> None:
        self.arena, self.layout, self.scratch = arena, layout, scratch
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

    def project(self, vector: Tensor, r: Tensor, weight: Tensor | None = None) -> Tensor:
        """The part of ``vector`` orthogonal to the reference, as a new flat vector.

        ``weight`` multiplies all vectors first (the root of a diagonal metric); the result is in those coordinates.
        """
        f = vector if weight is None else vector * weight
        if self.scope == "none":
            return f.clone()
        rows = self._span(r) if weight is None else [row * weight for row in self._span(r)]
        if len(rows) == 1:
            return self._once(f, rows[0], self.when)
        basis: list[Tensor] = []
        for row in rows:
            q = row
            for _ in range(2):
                for other in basis:
                    q = self._once(q, other, "always")
            before, after = self.layout.dots(row, row), self.layout.dots(q, q)
            basis.append(self.layout.where(after > DROP**2 * before, q, torch.zeros_like(q)))
        out = f
        for _ in range(2):
            for q in basis:
                out = self._once(out, q, "always")
        if self.when == "conflict":
            out = self.layout.where(self.layout.dots(f, rows[0]) < 0, out, f)
        return out

    def span(self, r: Tensor) -> list[Tensor]:
        """The raw reference vectors of this step (for checks)."""
        return [] if self.scope == "none" else self._span(r)

    def _span(self, r: Tensor) -> list[Tensor]:
        if self.kind == "ema":
            return [self.rows[0]] if self.ema_only else [r, self.rows[0]]
        if self.kind == "subspace":
            return [r, *reversed(self.rows[:-1])]
        return [r]

    def _once(self, f: Tensor, r: Tensor, when: str) -> Tensor:
        self.scratch.row("forget").copy_(f)
        self.scratch.row("retain").copy_(r)
        project(self.scratch, scope=self.scope, when=when, eps=self.eps)
        return self.scratch.row("forget").clone()

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Rows by number."""
        return {f"{i:03d}": row for i, row in enumerate(self.rows)}, {}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Put them back."""
        self.rows = [tensors[name] for name in sorted(tensors)]
