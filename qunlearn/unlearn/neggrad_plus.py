"""Descent on retain and ascent on forget batches at once: NegGrad+, and gradient difference with free weights."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import Pairs
from qunlearn.unlearn.sgd import EpochSGD, Plan, mean_loss, plain


@dataclass(frozen=True, kw_only=True)
class Difference(EpochSGD):
    """``w_r CE(B_r) - w_f CE(B_f)`` on pairs of batches; an epoch is one pass over the longer loader."""

    @abstractmethod
    def weights(self) -> tuple[float, float]:
        """(w_r, w_f)."""

    def forget_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """``-w_f`` times cross-entropy."""
        return -self.weights()[1] * F.cross_entropy(logits, y)

    def plan(self, ctx: Context) -> Plan:
        """One retain and one forget batch a step, the shorter loader cycled."""
        w_r, w_f = self.weights()
        pairs = Pairs(len(ctx.data.forget), len(ctx.data.retain), self.batch_size, self.batch_size, seed=ctx.seed)

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            rows_f, rows_r = pairs.next()
            l_r = mean_loss(ctx, ctx.data.retain, rows_r, self.bn, "retain")
            l_f = mean_loss(ctx, ctx.data.forget, rows_f, self.bn, "forget")
            return w_r * l_r - w_f * l_f, {"L_r": float(l_r.detach()), "L_f": float(l_f.detach())}

        return Plan(lengths=(pairs.steps_per_epoch,) * self.epochs, loss=loss, parts=plain(pairs=pairs))


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
