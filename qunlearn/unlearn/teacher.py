"""Teachers of distillation methods: the frozen original, an incompetent one, and the loss that compares."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from qunlearn.quant import QuantModel
from qunlearn.tasks.base import Batch
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.probe import device_of, to_device

CALIBRATION_BATCHES = 8


def distillation(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) of logits [n, C]: summed over classes, mean over the batch."""
    log_t = torch.log_softmax(teacher / temperature, dim=-1)
    log_s = torch.log_softmax(student / temperature, dim=-1)
    kl = (log_t.exp() * (log_t - log_s)).sum(-1)
    return temperature**2 * kl.mean()


class Teacher:
    """A frozen network in evaluation mode that gives logits without a graph."""

    def __init__(self, ctx: Context, model: QuantModel) -> None:
        self._ctx = ctx
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        return self._ctx.task.logits(self.model, batch)


def original(ctx: Context) -> Teacher:
    """The network before unlearning."""
    return Teacher(ctx, copy.deepcopy(ctx.before))


def incompetent(ctx: Context, batch_size: int) -> Teacher:
    """A random network of the same architecture, in float (fake quantization off), its BatchNorm calibrated.

    An uncalibrated one, or one behind ranges of the trained network, would give the same logits for every input. The
    initialisation depends on the run's seed only; calibration reads retain samples only. Both are our own choice.
    """
    model = copy.deepcopy(ctx.before)
    model.set_enabled(False)
    torch.manual_seed(int(ctx.rng("teacher").integers(2**31)))  # inside the base class's forked generator
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative mean over the calibration batches
            module.train()
    loader = Pass(len(ctx.data.retain), batch_size, seed=ctx.seed, purpose="teacher")
    with torch.no_grad():
        for _ in range(min(CALIBRATION_BATCHES, loader.count)):
            ctx.task.logits(model, to_device(ctx.task.batch(ctx.data.retain, loader.next()), device_of(model)))
    return Teacher(ctx, model)
