"""Gradient ascent on the forget set. Unbounded: it destroys a network quickly, and is here as the baseline it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.sgd import EpochSGD, Plan, mean_loss, plain


@dataclass(frozen=True, kw_only=True)
class GA(EpochSGD):
    """Maximise the training loss on forget batches; retain data are not used."""

    name: ClassVar[str] = "ga"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = "baseline; epochs and lr as in Unlearn-Sparse (Jia et al. 2023, arXiv 2304.04934)"

    epochs: int = hyper(5, low=1, high=1000, unit="epochs", doc="passes over the forget set", search=(1, 3, 5, 10))
    lr: float | str = hyper(
        1e-4, low=0, high=10, low_open=True, choices=("auto",), search=(1e-5, 1e-3), log=True, doc="peak learning rate"
    )

    def forget_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Minus cross-entropy."""
        return -F.cross_entropy(logits, y)

    def plan(self, ctx: Context) -> Plan:
        """One forget batch a step."""
        loader = Pass(len(ctx.data.forget), self.batch_size, seed=ctx.seed, purpose="forget")

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            value = mean_loss(ctx, ctx.data.forget, loader.next(), self.bn, "forget")
            return -value, {"L_f": float(value.detach())}

        return Plan(lengths=(loader.count,) * self.epochs, loss=loss, parts=plain(forget=loader))
