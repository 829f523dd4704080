"""Fine-tuning with an L1 penalty on the weights that fades out: sparsity makes forgetting easier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.sgd import Plan


@dataclass(frozen=True, kw_only=True)
class L1Sparse(FT):
    """Minimise `CE(B_r) + a_e |weights|_1` with `a_e = alpha (1 - e / (epochs - plain_epochs))`, then 0.

    The penalty covers the weights of convolutions and linear layers only, never BatchNorm or biases (our choice).
    """

    name: ClassVar[str] = "l1_sparse"
    source: ClassVar[str] = "Jia et al. 2023 (arXiv 2304.04934): penalty and schedule; size of alpha is our own choice"

    alpha: float = hyper(1e-5, low=0, high=1, search=(1e-7, 1e-3), log=True, doc="weight of the penalty in epoch 0")
    plain_epochs: int = hyper(0, low=0, high=1000, unit="epochs", doc="epochs without penalty at the end")

    def problems(self) -> list[str]:
        """Besides the ranges: some epoch must carry the penalty."""
        wrong = self.plain_epochs >= self.epochs
        return super().problems() + (["plain_epochs must be less than epochs"] if wrong else [])

    def penalty(self, epoch: int) -> float:
        """a_e of epoch 0..epochs-1."""
        return self.alpha * max(0.0, 1 - epoch / (self.epochs - self.plain_epochs))

    def plan(self, ctx: Context) -> Plan:
        """Fine-tuning with the penalty added."""
        base = super().plan(ctx)
        weights = [p for p in ctx.trainable().values() if p.ndim > 1]

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            value, row = base.loss(epoch, i)
            norm = torch.stack([w.abs().sum() for w in weights]).sum()
            return value + self.penalty(epoch) * norm, {**row, "alpha": self.penalty(epoch), "l1": float(norm.detach())}

        return replace(base, loss=loss)
