"""What the simple methods share: epochs of steps over shuffled batches. A method says which batches and which loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.data.dataset import Samples
from qunlearn.hyper import hyper
from qunlearn.quant.model import clamp_scales
from qunlearn.tasks.base import Batch
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.checkpoint import OptimizerPart, Part, PlainPart
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.loop import Loop, Observer, gradient_norm, scheduled
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.probe import device_of, to_device

LossFunction = Callable[[int, int], tuple[Tensor, dict[str, Any]]]
"""``loss(epoch, i)`` of step ``i`` of an epoch, both from 0: draws the next batches, returns loss and trace values."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``lengths`` steps of every epoch; ``parts`` the state of loaders and tables; ``loss`` what a step minimises.

    ``after()`` is called after every optimizer step, ``finish()`` after the last; ``extra`` parameters are trained
    along and not part of the network; ``representation`` adds to the stop rule's objective.
    """

    lengths: tuple[int, ...]
    loss: LossFunction
    parts: Mapping[str, Part] = field(default_factory=dict)
    after: Callable[[], None] | None = None
    extra: tuple[nn.Parameter, ...] = ()
    finish: Callable[[], None] | None = None
    representation: Observer | None = None


@dataclass(frozen=True, kw_only=True)
class Epochs(Unlearner):
    """Epochs of optimizer steps on all parameters but the scales."""

    epochs: int = hyper(10, low=1, high=1000, unit="epochs", doc="passes over the data", search=(1, 3, 5, 10))
    lr: float | str = hyper(
        0.01, low=0, high=10, low_open=True, choices=("auto",), search=(1e-4, 1e-2), log=True, doc="peak learning rate"
    )
    batch_size: int = hyper(256, low=2, high=65_536, unit="samples", doc="samples of one batch")
    weight_decay: float = hyper(5e-4, low=0, high=1, doc="L2 penalty on everything trained, as in the sources")
    schedule: str = hyper("cosine", choices=("cosine", "constant"), doc="learning rate over the run")

    @abstractmethod
    def plan(self, ctx: Context) -> Plan:
        """What is minimised in which steps; called once, on the original parameters, also when a run is resumed."""

    @abstractmethod
    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""

    def run(self, ctx: Context) -> None:
        """The loop of DESIGN's base class with this method's loss."""
        self.drive(ctx, self.plan(ctx), owner=self)

    def drive(self, ctx: Context, plan: Plan, *, owner: Unlearner) -> None:
        """All steps of ``plan``; ``owner`` is the method whose stop rule and checkpoints these are."""
        parameters = ctx.trainable()
        optimizer = self.optimizer([*parameters.values(), *plan.extra])
        ends = list(accumulate(plan.lengths))
        even = len(set(plan.lengths)) == 1 and not owner.stop_rule
        earlier = ctx.gradients

        def step(t: int) -> dict[str, Any]:
            lr = scheduled(float(self.lr), self.schedule, t, ends[-1])
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            epoch = next(e for e, end in enumerate(ends) if t <= end)
            loss, row = plan.loss(epoch, t - 1 - (ends[epoch] - plan.lengths[epoch]))
            loss.backward()  # type: ignore[no-untyped-call]
            norm = gradient_norm(parameters)
            optimizer.step()
            if self.train_scales:
                clamp_scales(ctx.model)
            if plan.after is not None:
                plan.after()
            if even and t == ends[0]:
                ctx.foresee(earlier + len(ends) * (ctx.gradients - earlier))
            return {"epoch": epoch + 1, "lr": lr, "loss": float(loss.detach()), "grad_norm": norm, **row}

        parts = {"optimizer": OptimizerPart(optimizer), **plan.parts}
        loop = Loop(ctx, owner, total=ends[-1], parts=parts, representation=plan.representation)
        loop.run(step, finish=plan.finish)


@dataclass(frozen=True, kw_only=True)
class EpochSGD(Epochs):
    """SGD with momentum and weight decay, cosine to 0 over the run."""

    momentum: float = hyper(0.9, low=0, high=0.999, doc="momentum of SGD")

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(parameters, lr=float(self.lr), momentum=self.momentum, weight_decay=self.weight_decay)


def plain(**items: Any) -> dict[str, Part]:
    """Loaders as parts of a checkpoint."""
    return {name: PlainPart(item) for name, item in items.items()}


def counted(ctx: Context, batch: Batch, bn: str, role: str) -> tuple[Batch, Tensor]:
    """(batch on the model's device, its logits) for a backward pass: counted, BatchNorm in the mode of ``role``."""
    batch = to_device(batch, device_of(ctx.model))
    ctx.count(len(batch))
    set_mode(ctx.model, bn, role)
    return batch, ctx.task.logits(ctx.model, batch)


def mean_loss(ctx: Context, samples: Samples, rows: NDArray[np.int64], bn: str, role: str) -> Tensor:
    """The task's mean loss on these rows, for a backward pass."""
    batch, logits = counted(ctx, ctx.task.batch(samples, rows), bn, role)
    return ctx.task.loss(logits, batch)
