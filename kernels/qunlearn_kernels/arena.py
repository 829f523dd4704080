"""The gradient arena: one contiguous float32 buffer per role, with a view for every parameter.

Autograd accumulates straight into the views, so that projecting a gradient of the whole network needs no copy.
Segments start at multiples of 1 KiB; the padding between them stays zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qunlearn_export.errors import ConfigError, DivergedError, InvariantError

ALIGN = 256
"""Floats in a block (1 KiB): segments start at multiples of it, so a block of the first reduction stage holds one
tensor only, and every segment is aligned to 64 bytes and more."""

ROW = 4 * ALIGN
"""The length of a row is a multiple of this: sums over whole rows take blocks that long."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One parameter's place in a row: ``offset`` and ``numel`` in floats, ``group`` its layer."""

    name: str
    offset: int
    numel: int
    group: str


@dataclass(frozen=True, kw_only=True)
class Units:
    """The units of a scope: ``of`` [blocks] the unit of every block, ``count`` [units] how many blocks each has,
    ``order`` [blocks] the blocks sorted by unit, or None where they lie so already."""

    of: Tensor
    count: Tensor
    order: Tensor | None

    def only(self, chosen: Tensor, blocks: Tensor) -> Units:
        """The table of some ``blocks`` (indices, ascending): all those of the units that ``chosen`` [units] names."""
        of = self.of[blocks]
        order = None if self.order is None else torch.argsort(of, stable=True)
        return Units(of=of, count=torch.where(chosen, self.count, 0), order=order)


class GradientArena:
    """Rows [N_pad] float32, one per role, over the parameters that were given.

    ``params`` are (name, parameter) pairs or parameters; a parameter that occurs twice (tied) owns one segment.
    ``groups`` maps names to layers for scope ``layer`` (default: the name up to its last dot).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[tuple[str, nn.Parameter]],
        *,
        roles: Sequence[str] = ("forget", "retain"),
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self.params: list[nn.Parameter] = []
        self.segments: list[Segment] = []
        seen: set[int] = set()
        names: set[str] = set()
        offset = 0
        for i, item in enumerate(params):
            name, p = item if isinstance(item, tuple) else (f"p{i}", item)
            if id(p) in seen:
                continue
            seen.add(id(p))
            if name in names:
                raise ConfigError(f"two parameters are called {name!r}.", remedy="Name every parameter once.")
            names.add(name)
            group = groups[name] if groups is not None else name.rpartition(".")[0] or name
            self.segments.append(Segment(name=name, offset=offset, numel=p.numel(), group=group))
            self.params.append(p)
            offset += -(-p.numel() // ALIGN) * ALIGN
        if not self.params:
            raise ConfigError("the arena got no parameters.", remedy="Give the trainable parameters.")
        if len(set(roles)) != len(roles) or not roles:
            raise ConfigError(f"roles {list(roles)} are empty or repeated.", remedy="Name every row once.")
        devices = {p.device for p in self.params}
        if len(devices) > 1:
            raise ConfigError("the parameters are on several devices.", remedy="Make one arena per device.")
        self.size = -(-offset // ROW) * ROW
        self.blocks = self.size // ALIGN
        self.device = self.params[0].device
        self.roles = tuple(roles)
        buffer = torch.zeros(len(roles), self.size, device=self.device)
        self._rows: dict[str, Tensor] = dict(zip(self.roles, buffer, strict=True))
        self._views = {role: self.split(row) for role, row in self._rows.items()}
        self.bound: str | None = None
        self.plans: dict[str, object] = {}
        """Tables that a device backend made for this arena, by scope."""
        self.group_names = list(dict.fromkeys(s.group for s in self.segments))
        starts = torch.tensor([*(s.offset for s in self.segments), self.size], device=self.device)
        count = starts.diff() // ALIGN
        index = torch.arange(len(count), device=self.device)
        self.block_segment = torch.repeat_interleave(index, count)
        self.block_count = count
        position = {g: i for i, g in enumerate(self.group_names)}
        self.segment_group = torch.tensor([position[s.group] for s in self.segments], device=self.device)
        self._units: dict[str, Units] = {}

    @property
    def names(self) -> list[str]:
        """Parameter names in arena order."""
        return [s.name for s in self.segments]

    def row(self, role: str) -> Tensor:
        """The whole row [N_pad] of a role; writing to it changes the gradients it holds."""
        if role not in self._rows:
            raise ConfigError(f"the arena has no row {role!r}.", remedy=f"Its rows are {', '.join(self.roles)}.")
        return self._rows[role]

    def views(self, role: str) -> list[Tensor]:
        """The row cut into parameter-shaped views, in arena order."""
        self.row(role)
        return list(self._views[role])

    def units(self, scope: str) -> Units:
        """Which blocks belong together under scope ``tensor`` or ``layer``; under any other, all of them."""
        if scope not in self._units:
            of = self.block_segment
            count, order = self.block_count, None
            if scope == "layer":
                of = self.segment_group[of]
                count = torch.bincount(of, minlength=len(self.group_names))
                order = None if bool((of.diff() >= 0).all()) else torch.argsort(of, stable=True)
            elif scope != "tensor":
                of, count = torch.zeros_like(of), torch.tensor([self.blocks], device=self.device)
            self._units[scope] = Units(of=of, count=count, order=order)
        return self._units[scope]

    def split(self, vector: Tensor) -> list[Tensor]:
        """Parameter-shaped views of any vector laid out like a row."""
        return [
            vector[s.offset : s.offset + s.numel].view(p.shape) for s, p in zip(self.segments, self.params, strict=True)
        ]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """A new row [N_pad] filled from parameter-shaped tensors."""
        out = torch.zeros(self.size, device=self.device)
        for view, tensor in zip(self.split(out), tensors, strict=True):
            view.copy_(tensor)
        return out

    def bind(self, role: str) -> None:
        """Zero the row and make every parameter's ``.grad`` its view, so that ``backward`` fills it.

        Parameters of another type than float32 get no view: :meth:`collect` adds their own gradient to the row.
        """
        self.row(role).zero_()
        for p, view in zip(self.params, self._views[role], strict=True):
            p.grad = view if p.dtype == torch.float32 and p.requires_grad else None
        self.bound = role

    def collect(self) -> None:
        """Call after ``backward``: adds low-precision gradients to the bound row and checks that no view was replaced.

        InvariantError when ``zero_grad(set_to_none=True)`` or an assignment cut a parameter off its view; a gradient
        that autograd put there afterwards is never silently lost.
        """
        if self.bound is None:
            raise InvariantError("no row is bound.", remedy="Call bind(role) before backward.")
        for p, view, s in zip(self.params, self._views[self.bound], self.segments, strict=True):
            if p.dtype != torch.float32:
                if p.grad is not None:
                    view.add_(p.grad.to(torch.float32))
                    p.grad = None
            elif p.requires_grad and (p.grad is None or p.grad.data_ptr() != view.data_ptr()) and p.numel():
                raise InvariantError(
                    f"the gradient of {s.name} left the arena.",
                    remedy="Use arena.bind(role) in place of zero_grad, and do not assign .grad.",
                )

    def release(self) -> None:
        """Take the views away from the parameters."""
        for p in self.params:
            p.grad = None
        self.bound = None

    def check_finite(self, vector: Tensor, what: str) -> None:
        """DivergedError naming the first tensors of ``vector`` that hold NaN or infinity."""
        bad = [s.name for s, v in zip(self.segments, self.split(vector), strict=True) if not bool(v.isfinite().all())]
        if bad:
            raise DivergedError(
                f"the {what} gradient is not finite in {', '.join(bad[:4])}{' and others' if len(bad) > 4 else ''}.",
                remedy="Use a smaller lr.",
            )
