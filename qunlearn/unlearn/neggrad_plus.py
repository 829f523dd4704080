"""Descent on retain and ascent on forget batches at once: NegGrad+, and gradient difference with free weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.unlearn.checkpoint import Part
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.pairing import Pairs
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn.unlearn.sgd import EpochSGD, LossFunction, plain


@dataclass(frozen=True, kw_only=True)
class Difference(EpochSGD):
    """``w_r CE(B_r) - w_f CE(B_f)`` on pairs of batches; an epoch is one pass over the longer loader."""

    @abstractmethod
    def weights(self) -> tuple[float, float]:
        """(w_r, w_f)."""

    def plan(self, ctx: Context) -> tuple[int, dict[str, Part], LossFunction]:
        """One retain and one forget batch a step, the shorter loader cycled."""
        w_r, w_f = self.weights()
        pairs = Pairs(len(ctx.data.forget), len(ctx.data.retain), self.batch_size, self.batch_size, seed=ctx.seed)

        def loss(epoch: int) -> tuple[Tensor, dict[str, Any]]:
            rows_f, rows_r = pairs.next()
            values = []
            for role, samples, rows in (("retain", ctx.data.retain, rows_r), ("forget", ctx.data.forget, rows_f)):
                batch = to_device(ctx.task.batch(samples, rows), device_of(ctx.model))
                ctx.count(len(batch))
                set_mode(ctx.model, self.bn, role)
                values.append(ctx.task.loss(ctx.task.logits(ctx.model, batch), batch))
            l_r, l_f = values
            return w_r * l_r - w_f * l_f, {"L_r": float(l_r.detach()), "L_f": float(l_f.detach())}

        return pairs.steps_per_epoch, plain(pairs=pairs), loss


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(Difference):
    """Minimise ``beta CE(B_r) - (1 - beta) CE(B_f)``."""

    name: ClassVar[str] = "neggrad_plus"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = "Kurmanji et al. 2023 (arXiv 2302.09880) for the form; beta .95 is a public default"

    beta: float = hyper(0.95, low=0.5, high=0.999, search=(0.5, 0.999), doc="weight of the retain loss")

    def weights(self) -> tuple[float, float]:
        """(beta, 1 - beta)."""
        return self.beta, 1 - self.beta


@dataclass(frozen=True, kw_only=True)
class GradDiff(Difference):
    """Minimise ``w_r CE(B_r) - w_f CE(B_f)``, both weights 1 by default; unbounded, hence the small lr (our choice)."""

    name: ClassVar[str] = "graddiff"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = "gradient difference; the form of Kurmanji et al. 2023 (arXiv 2302.09880), weights (1, 1)"

    lr: float | str = hyper(
        1e-3, low=0, high=10, low_open=True, choices=("auto",), search=(1e-5, 1e-3), log=True, doc="peak learning rate"
    )
    retain_weight: float = hyper(1.0, low=0, high=100, doc="w_r")
    forget_weight: float = hyper(1.0, low=0, high=100, low_open=True, doc="w_f")

    def weights(self) -> tuple[float, float]:
        """(retain_weight, forget_weight)."""
        return self.retain_weight, self.forget_weight
