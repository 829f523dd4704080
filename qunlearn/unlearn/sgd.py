"""What the simple methods share: epochs of SGD over shuffled batches. A method says which batches and which loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.quant.model import clamp_scales
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.checkpoint import OptimizerPart, Part, PlainPart
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.loop import Loop, gradient_norm, scheduled

LossFunction = Callable[[int], tuple[Tensor, dict[str, Any]]]
"""``loss(epoch)`` draws the next batches and returns the loss to minimise and values for the trace."""


@dataclass(frozen=True, kw_only=True)
class EpochSGD(Unlearner):
    """SGD with momentum and weight decay, cosine to 0 over the run, all parameters but the scales."""

    epochs: int = hyper(10, low=1, high=1000, unit="epochs", doc="passes over the data", search=(1, 3, 5, 10))
    lr: float | str = hyper(
        0.01, low=0, high=10, low_open=True, choices=("auto",), search=(1e-4, 1e-2), log=True, doc="peak learning rate"
    )
    batch_size: int = hyper(256, low=2, high=65_536, unit="samples", doc="samples of one batch")
    momentum: float = hyper(0.9, low=0, high=0.999, doc="momentum of SGD")
    weight_decay: float = hyper(5e-4, low=0, high=1, doc="L2 penalty on everything trained, as in the sources")
    schedule: str = hyper("cosine", choices=("cosine", "constant"), doc="learning rate over the run")

    @abstractmethod
    def plan(self, ctx: Context) -> tuple[int, dict[str, Part], LossFunction]:
        """(steps per epoch, state of the loaders, loss function)."""

    def run(self, ctx: Context) -> None:
        """The loop of DESIGN's base class with this method's loss."""
        parameters = ctx.trainable()
        optimizer = torch.optim.SGD(
            list(parameters.values()), lr=float(self.lr), momentum=self.momentum, weight_decay=self.weight_decay
        )
        per_epoch, parts, loss_of = self.plan(ctx)
        total = self.epochs * per_epoch

        def step(t: int) -> dict[str, Any]:
            lr = scheduled(float(self.lr), self.schedule, t, total)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            epoch = (t - 1) // per_epoch
            loss, row = loss_of(epoch)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = gradient_norm(parameters)
            optimizer.step()
            if self.train_scales:
                clamp_scales(ctx.model)
            return {"epoch": epoch + 1, "lr": lr, "loss": float(loss.detach()), "grad_norm": norm, **row}

        Loop(ctx, self, total=total, parts={"optimizer": OptimizerPart(optimizer), **parts}).run(step)


def plain(**items: Any) -> dict[str, Part]:
    """Loaders as parts of a checkpoint."""
    return {name: PlainPart(item) for name, item in items.items()}
