"""SCRUB: move away from the original network on the forget set, stay with it on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.sgd import EpochSGD, Plan, counted, plain
from qunlearn.unlearn.teacher import distillation, original


@dataclass(frozen=True, kw_only=True)
class SCRUB(EpochSGD):
    """Maximise KL(f0 || f) on forget in the first epochs; minimise gamma CE + alpha KL(f0 || f) on retain in all.

    Each of the first `max_epochs` epochs begins with a pass of ascent over the forget set. The paper's rewinding
    ("SCRUB+R") is the stop rule that every method here has.
    """

    name: ClassVar[str] = "scrub"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = "Kurmanji et al. 2023 (arXiv 2302.09880); one learning rate over both phases"

    bn: str = hyper("train", choices=("frozen", "retain_only", "train"), doc="BatchNorm statistics; as in the source")
    epochs: int = hyper(5, low=1, high=1000, unit="epochs", doc="passes over the retain set", search=(1, 3, 5, 10))
    lr: float | str = hyper(
        5e-4, low=0, high=10, low_open=True, choices=("auto",), search=(5e-5, 5e-3), log=True, doc="peak learning rate"
    )
    batch_size: int = hyper(128, low=2, high=65_536, unit="samples", doc="retain samples of one batch")
    forget_batch_size: int = hyper(32, low=2, high=65_536, unit="samples", doc="forget samples of one batch")
    max_epochs: int = hyper(3, low=0, high=1000, unit="epochs", doc="epochs that begin with a pass of ascent")
    temperature: float = hyper(4.0, low=0, high=100, low_open=True, doc="T of both distillation terms")
    alpha: float = hyper(0.5, low=0, high=10, search=(1e-3, 1.0), log=True, doc="weight of KL on the retain set")
    gamma: float = hyper(1.0, low=0, high=10, doc="weight of the training loss on the retain set")

    def plan(self, ctx: Context) -> Plan:
        """A pass over the forget set first, in the epochs that have one, then a pass over the retain set."""
        forget = Pass(len(ctx.data.forget), self.forget_batch_size, seed=ctx.seed, purpose="forget")
        retain = Pass(len(ctx.data.retain), self.batch_size, seed=ctx.seed, purpose="retain")
        ascents = [forget.count if epoch < self.max_epochs else 0 for epoch in range(self.epochs)]
        teacher = original(ctx)

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            away = i < ascents[epoch]
            role, loader = ("forget", forget) if away else ("retain", retain)
            batch = ctx.task.batch(getattr(ctx.data, role), loader.next())
            batch, logits = counted(ctx, batch, self.bn, role)
            kl = distillation(teacher(batch), logits, self.temperature)
            row = {"phase": "max" if away else "min", "kl": float(kl.detach())}
            if away:
                return -kl, row
            return self.gamma * ctx.task.loss(logits, batch) + self.alpha * kl, row

        return Plan(
            lengths=tuple(a + retain.count for a in ascents), loss=loss, parts=plain(forget=forget, retain=retain)
        )
