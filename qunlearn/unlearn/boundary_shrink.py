"""Boundary shrink: hand every forget sample to the class just behind the nearest decision boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.labels import relabelled
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn.unlearn.sgd import EpochSGD, Plan, counted, plain


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(EpochSGD):
    """Minimise CE(B_f, y'), y' the original's class of `clip(x + e sign(grad_x CE))`; retain data are not used.

    `x` is clipped to the range of the network's input grid, whatever the normalisation (our choice). Where the attack
    leaves the class unchanged, y' is the runner-up at `x + ...` (our choice; else the sample would be trained in).
    """

    name: ClassVar[str] = "boundary_shrink"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    source: ClassVar[str] = "Chen et al. 2023 (arXiv 2303.11570); clipping to the input grid is our own choice"

    lr: float | str = hyper(
        1e-3, low=0, high=10, low_open=True, choices=("auto",), search=(1e-5, 1e-3), log=True, doc="peak learning rate"
    )
    step: float = hyper(0.1, low=0, high=1, low_open=True, unit="input range", doc="e, as a share of the input grid")

    def plan(self, ctx: Context) -> Plan:
        """One relabelled forget batch a step; the labels are made once, from the original network."""
        labels, kept = self.neighbours(ctx)
        ctx.fields["attack_failed"] = kept
        loader = Pass(len(ctx.data.forget), self.batch_size, seed=ctx.seed, purpose="forget")

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            batch, logits = counted(ctx, relabelled(ctx, loader.next(), labels), self.bn, "forget")
            return ctx.task.loss(logits, batch), {}

        return Plan(lengths=(loader.count,) * self.epochs, loss=loss, parts=plain(forget=loader))

    def neighbours(self, ctx: Context) -> tuple[NDArray[np.int64], int]:
        """(y' of every forget sample int64 [n], number of samples whose class the attack did not change)."""
        grid = ctx.model.quantizer_of("input")
        zero, scale = int(grid.zero_point), float(grid.scale.detach())
        lo, hi = (grid.lo - zero) * scale, (grid.hi - zero) * scale
        set_mode(ctx.model, "frozen", "forget")
        labels, kept = [], 0
        for start in range(0, len(ctx.data.forget), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(ctx.data.forget)))
            batch = to_device(ctx.task.batch(ctx.data.forget, rows), device_of(ctx.model))
            ctx.count(len(batch))
            x = batch.x.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(ctx.model(x), batch.y)
            (slope,) = torch.autograd.grad(loss, x)
            with torch.no_grad():
                logits = ctx.model((x + self.step * (hi - lo) * slope.sign()).clamp(lo, hi))
                failed = logits.argmax(1) == batch.y
                other = logits.scatter(1, batch.y[:, None], -torch.inf).argmax(1)
            kept += int(failed.sum())
            labels.append(torch.where(failed, other, logits.argmax(1)).cpu().numpy())
        return np.concatenate(labels).astype(np.int64), kept
