"""Auxiliary heads at every stage of a network: float, alive during unlearning only, never exported."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn.quant import QuantModel
from qunlearn.quant.model import WEIGHTED
from qunlearn.quant.state import load_tensors, save_tensors, state_digest
from qunlearn.unlearn.checkpoint import fill
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.probe import device_of, to_device

PRETRAIN_LR, PRETRAIN_BATCH = 0.1, 128


def _separable(c_in: int, c_out: int) -> nn.Sequential:
    """Depthwise 3x3 with stride 2, pointwise, then depthwise 3x3 and pointwise to ``c_out``; BatchNorm and ReLU."""

    def depthwise(stride: int) -> nn.Conv2d:
        return nn.Conv2d(c_in, c_in, 3, stride=stride, padding=1, groups=c_in, bias=False)

    return nn.Sequential(
        depthwise(2), nn.Conv2d(c_in, c_in, 1, bias=False), nn.BatchNorm2d(c_in), nn.ReLU(),
        depthwise(1), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
    )  # fmt: skip


def _projector(shape: tuple[int, ...], distance: int, width: int) -> nn.Module:
    """From a stage output of ``shape`` (without batch) to [n, width]; ``distance`` stages before the last."""
    if len(shape) == 1:
        return nn.Linear(shape[0], width)
    layers, c = [], shape[0]
    for i in range(distance):
        c_out = width if i == distance - 1 else min(2 * c, width)
        layers.append(_separable(c, c_out))
        c = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Auxiliary(nn.Module):
    """A_s and C_s for the stages before the last; ``shapes`` are the stages' output shapes, ``width`` the last's."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], width: int, classes: int) -> None:
        super().__init__()
        count = len(shapes)
        self.project = nn.ModuleList(_projector(s, count - i, width) for i, s in enumerate(shapes))
        self.classify = nn.ModuleList(nn.Linear(width, classes) for _ in shapes)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(e_s [n, width], logits [n, classes]) of every stage before the last."""
        own = [a(h) for a, h in zip(self.project, features, strict=True)]
        return own, [c(e) for c, e in zip(self.classify, own, strict=True)]


def penultimate(model: QuantModel) -> str:
    """Name of the step that the classifier reads."""
    return next(s for s in reversed(model.steps) if s.kind in WEIGHTED).inputs[0]


class Stages:
    """The stage outputs of a network: ``names`` of the steps before the last stage, the penultimate feature."""

    def __init__(self, model: QuantModel) -> None:
        self.last = penultimate(model)
        self.names = tuple(n for n in model.stages[:-1] if n != self.last)
        self.output = model.steps[-1].name

    def __call__(self, model: QuantModel, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """(stage outputs before the last, penultimate feature [n, d], logits [n, K]) of one forward pass."""
        values = model.activations(x)
        return [values[n] for n in self.names], values[self.last].flatten(1), values[self.output]


def build(ctx: Context, stages: Stages) -> Auxiliary:
    """Fresh modules for the run's network, initialised from its seed."""
    batch = to_device(ctx.task.batch(ctx.data.retain, np.arange(1)), device_of(ctx.before))
    with torch.no_grad():
        features, last, logits = stages(ctx.before, batch.x)
    torch.manual_seed(int(ctx.rng("auxiliary").integers(2**31)))  # inside the base class's forked generator
    return Auxiliary([tuple(h.shape[1:]) for h in features], last.shape[1], logits.shape[1]).to(batch.x.device)


def pretrained(ctx: Context, stages: Stages, *, epochs: int, cache: str) -> tuple[Auxiliary, Path | None]:
    """Modules trained on the whole training set with the backbone frozen, and the file that holds them, if any.

    With ``cache`` (a folder) they are kept under the backbone's digest and taken from there: one set serves every
    request, but it has seen the forget data.
    """
    aux = build(ctx, stages)
    path = Path(cache) / f"auxiliary-{state_digest(ctx.before)[:32]}-{epochs}.safetensors" if cache else None
    if path is not None and path.exists():
        tensors, _ = load_tensors(path)
        fill(aux, tensors)
        return aux.eval(), path
    _pretrain(ctx, aux, stages, epochs)
    if path is not None:
        os.makedirs(path.parent, exist_ok=True)
        save_tensors(path, aux.state_dict(), {"epochs": epochs})
    return aux.eval(), path


def _pretrain(ctx: Context, aux: Auxiliary, stages: Stages, epochs: int) -> None:
    n, m = len(ctx.data.forget), len(ctx.data.retain)
    loader = Pass(n + m, PRETRAIN_BATCH, seed=ctx.seed, purpose="auxiliary")
    optimizer = torch.optim.SGD(aux.parameters(), lr=PRETRAIN_LR, momentum=0.9)
    total = epochs * loader.count
    model = ctx.before
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    aux.train()
    try:
        for t in range(total):
            optimizer.param_groups[0]["lr"] = PRETRAIN_LR * 0.5 * (1 + math.cos(math.pi * t / total))
            rows = loader.next()
            parts = [(ctx.data.forget, rows[rows < n]), (ctx.data.retain, rows[rows >= n] - n)]
            batches = [to_device(ctx.task.batch(s, r), device_of(model)) for s, r in parts if len(r)]
            x, y = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
            with torch.no_grad():
                features, _, _ = stages(model, x)
            ctx.count(len(y))
            loss = torch.stack([F.cross_entropy(z, y) for z in aux(features)[1]]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    finally:
        for module, mode in modes:
            module.training = mode


class AuxiliaryPart:
    """The modules in a checkpoint; gone from it once they are purged."""

    def __init__(self, aux: Auxiliary) -> None:
        self.aux: Auxiliary | None = aux

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The modules' tensors, or that they are gone."""
        if self.aux is None:
            return {}, {"purged": True}
        return dict(self.aux.state_dict()), {"purged": False}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Put them back."""
        if facts["purged"]:
            self.aux = None
        elif self.aux is not None:
            fill(self.aux, tensors)
