"""Fine-tuning on the retain set: forgetting by not being reminded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.sgd import EpochSGD, Plan, mean_loss, plain


@dataclass(frozen=True, kw_only=True)
class FT(EpochSGD):
    """Minimise the training loss on retain batches only."""

    name: ClassVar[str] = "ft"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = "baseline; epochs and lr as in Unlearn-Sparse (Jia et al. 2023, arXiv 2304.04934)"

    bn: str = hyper("train", choices=("frozen", "retain_only", "train"), doc="BatchNorm statistics; as in the source")

    def plan(self, ctx: Context) -> Plan:
        """One retain batch a step."""
        loader = Pass(len(ctx.data.retain), self.batch_size, seed=ctx.seed, purpose="retain")

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            value = mean_loss(ctx, ctx.data.retain, loader.next(), self.bn, "retain")
            return value, {"L_r": float(value.detach())}

        return Plan(lengths=(loader.count,) * self.epochs, loss=loss, parts=plain(retain=loader))
