"""From two gradients to one update: which vector is projected, and how an optimizer's state takes part.

``gradient``: project f, then the optimizer sees r + lam f_perp; exact only for plain SGD, because momentum keeps old
f_perp and Adam rescales. ``update``: two optimizer states; what the forget state would add to the parameters is
projected anew each step. ``metric``: the projection is orthogonal in the metric P of a diagonal preconditioner built
from r, which has no first moment.

Own choices: SGD's weight decay is a part of the gradient in mode ``gradient`` and decoupled elsewhere, Adam's is
always decoupled; it belongs to the retain part. The preconditioner is 1 / (sqrt(v) + d) with d = 0.1 times the root
mean square of sqrt(v), so that coordinates without retain gradient cannot explode. ``clip`` bounds the norm of the
composed vector before the learning rate; the whole vector is scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qunlearn.unlearn.orthogonal import Reference
from qunlearn_kernels.arena import GradientArena

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
DAMPING = 0.1


@dataclass(frozen=True, kw_only=True)
class Update:
    """Flat vectors to add to the parameters: the retain part and the forget part (``lam`` included).

    ``unprojected`` and ``projected`` are the vector before and after the projection, in the coordinates it was
    projected in, and ``against`` the current retain gradient in the same coordinates.
    """

    retain: Tensor
    forget: Tensor
    unprojected: Tensor
    projected: Tensor
    against: Tensor


class Composer:
    """Holds the optimizer state of both parts; a part of the checkpoint."""

    def __init__(
        self,
        arena: GradientArena,
        reference: Reference,
        *,
        optimizer: str,
        project_at: str,
        lam: float,
        momentum: float,
        weight_decay: float,
        clip: float | None,
    ) -> None:
        self.arena, self.reference = arena, reference
        self.optimizer, self.project_at = optimizer, project_at
        self.lam, self.momentum, self.weight_decay, self.clip = lam, momentum, weight_decay, clip
        self.state: dict[str, Tensor] = {}
        self.t = 0

    def __call__(self, r: Tensor, f: Tensor, lr: float) -> Update:
        """The update for gradients ``r`` and ``f`` (flat, unprojected, left as they are)."""
        self.t += 1
        self.reference.see(r)
        make = {"gradient": self._gradient, "update": self._update, "metric": self._metric}[self.project_at]
        u = make(r, f, lr)
        if self.clip is None:
            return u
        norm = float((u.retain + u.forget).double().norm())
        factor = min(1.0, self.clip * lr / norm) if norm > 0 else 1.0
        return replace(u, retain=u.retain * factor, forget=u.forget * factor)

    def _gradient(self, r: Tensor, f: Tensor, lr: float) -> Update:
        perp = self.reference.project(f, r)
        if self.optimizer == "sgd":
            own = r if self.weight_decay == 0 else r.add(self._theta(), alpha=self.weight_decay)
            u_r, u_f = self._momentum("r", own).mul(-lr), self._momentum("f", perp).mul(-lr * self.lam)
        else:
            v = self._second("v", r.add(perp, alpha=self.lam))
            scale = -lr / (v.sqrt_().add_(ADAM_EPS))
            u_r, u_f = self._first("r", r).mul_(scale), self._first("f", perp).mul_(scale).mul_(self.lam)
            self._decay(u_r, lr)
        return Update(retain=u_r, forget=u_f, unprojected=f, projected=perp, against=r)

    def _update(self, r: Tensor, f: Tensor, lr: float) -> Update:
        directions = []
        for name, g in (("r", r), ("f", f)):
            if self.optimizer == "sgd":
                directions.append(self._momentum(name, g).mul(-lr))
            else:
                scale = -lr / self._second(f"v{name}", g).sqrt_().add_(ADAM_EPS)
                directions.append(self._first(name, g).mul_(scale))
        u_r, raw = directions
        u_f = self.reference.project(raw, r)
        self._decay(u_r, lr)
        return Update(retain=u_r, forget=u_f * self.lam, unprojected=raw, projected=u_f, against=r)

    def _metric(self, r: Tensor, f: Tensor, lr: float) -> Update:
        root_v = self._second("v", r).sqrt_()
        live = max(1, sum(segment.numel for segment in self.arena.segments))
        damping = DAMPING * float(root_v.double().square().sum() / live) ** 0.5 + 1e-12
        half = (root_v + damping).rsqrt()
        perp = self.reference.project(f, r, half)
        u_r = r.mul(half).mul_(half).mul_(-lr)
        self._decay(u_r, lr)
        return Update(
            retain=u_r, forget=perp * half * (-lr * self.lam), unprojected=f * half, projected=perp, against=r * half
        )

    def _momentum(self, name: str, g: Tensor) -> Tensor:
        if self.momentum == 0:
            return g
        buffer = self.state.get(name)
        self.state[name] = g.clone() if buffer is None else buffer.mul_(self.momentum).add_(g)
        return self.state[name]

    def _first(self, name: str, g: Tensor) -> Tensor:
        m = self.state.setdefault(name, torch.zeros_like(g))
        m.mul_(BETA1).add_(g, alpha=1 - BETA1)
        return m / (1 - BETA1**self.t)

    def _second(self, name: str, g: Tensor) -> Tensor:
        v = self.state.setdefault(name, torch.zeros_like(g))
        v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        return v / (1 - BETA2**self.t)

    def _decay(self, u: Tensor, lr: float) -> None:
        if self.weight_decay:
            u.add_(self._theta(), alpha=-lr * self.weight_decay)

    def _theta(self) -> Tensor:
        return self.arena.flatten([p.detach() for p in self.arena.params])

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Buffers and step count."""
        return dict(self.state), {"t": self.t}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Put them back."""
        self.state, self.t = dict(tensors), int(facts["t"])
