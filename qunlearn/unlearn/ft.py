"""Fine-tuning on the retain set: forgetting by not being reminded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.unlearn.checkpoint import Part
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn.unlearn.sgd import EpochSGD, LossFunction, plain


@dataclass(frozen=True, kw_only=True)
class FT(EpochSGD):
    """Minimise the training loss on retain batches only."""

    name: ClassVar[str] = "ft"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = "baseline; epochs and lr as in Unlearn-Sparse (Jia et al. 2023, arXiv 2304.04934)"

    bn: str = hyper("train", choices=("frozen", "retain_only", "train"), doc="BatchNorm statistics; as in the source")

    def plan(self, ctx: Context) -> tuple[int, dict[str, Part], LossFunction]:
        """One retain batch a step."""
        loader = Pass(len(ctx.data.retain), self.batch_size, seed=ctx.seed, purpose="retain")

        def loss(epoch: int) -> tuple[Tensor, dict[str, Any]]:
            batch = to_device(ctx.task.batch(ctx.data.retain, loader.next()), device_of(ctx.model))
            ctx.count(len(batch))
            set_mode(ctx.model, self.bn, "retain")
            value = ctx.task.loss(ctx.task.logits(ctx.model, batch), batch)
            return value, {"L_r": float(value.detach())}

        return loader.count, plain(retain=loader), loss
