"""What somebody with the shipped integers can do to them: a few training steps, or fewer bits and back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.quant.calibrate import weight_scale
from qunlearn.quant.lower import latent_scale
from qunlearn.quant.model import WEIGHTED, QuantModel, Step, scale_parameter_names
from qunlearn.quant.train import TrainingTask

PARTS = ("all", "head")
FROZEN_BATCH = 64
"""Samples whose activations of all layers are in memory at once."""


def _steps(model: QuantModel) -> list[Step]:
    return [step for step in model.steps if step.kind in WEIGHTED]


def _weight(model: QuantModel, step: Step) -> Tensor:
    weight = model.get_submodule(str(step.module)).weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def _shipped(model: QuantModel, step: Step) -> Tensor:
    """The weight that the shipped integers stand for, before BatchNorm is folded in."""
    scale = latent_scale(model, step)
    return model.weight_quantizer_of(step).codes(_weight(model, step), scale=scale).to(scale.dtype) * scale


@torch.no_grad()
def decoded(model: QuantModel) -> QuantModel:
    """A copy whose latent weights are the decoded integers: all that a reader of the file has. Same codes, logits."""
    out = copy.deepcopy(model).eval()
    for step in _steps(out):
        _weight(out, step).copy_(_shipped(model, step))
    return out


@torch.no_grad()
def fresh_head(model: QuantModel, seed: int) -> None:
    """Draw the last weighted layer anew, in place: weights of variance 1 / inputs, no bias, the grid refitted."""
    step = _steps(model)[-1]
    weight, q = _weight(model, step), model.weight_quantizer_of(step)
    rng = np.random.default_rng([seed, 61])
    drawn = rng.normal(0, 1 / np.sqrt(weight[0].numel()), tuple(weight.shape))
    weight.copy_(torch.from_numpy(drawn).to(weight))
    bias = model.get_submodule(str(step.module)).bias
    if isinstance(bias, Tensor):
        bias.zero_()
    q.set_grid(weight_scale(weight.flatten(1), q.hi, int(q.bits)))


@torch.no_grad()
def shuffled(model: QuantModel, seed: int) -> QuantModel:
    """A copy whose shipped weights are shuffled within every output channel: random features on the very same grid."""
    out = copy.deepcopy(model).eval()
    for at, step in enumerate(_steps(out)):
        weight = _shipped(model, step)
        rng = np.random.default_rng([seed, 63, at])
        rows = rng.permuted(weight.flatten(1).cpu().numpy(), axis=1).reshape(tuple(weight.shape))
        _weight(out, step).copy_(torch.from_numpy(rows).to(weight))
    return out


def tuned(
    model: QuantModel,
    task: TrainingTask,
    samples: Any,
    *,
    steps: int,
    every: int,
    lr: float,
    batch: int,
    seed: int,
    part: str = "all",
) -> Iterator[tuple[int, QuantModel]]:
    """Train ``model`` in place by AdamW (no decay) and yield it at step 0, at every ``every``-th and at the last step.

    ``part`` is ``all`` or ``head`` (the last weighted layer). Evaluation mode, BatchNorm statistics and all scales
    frozen, fake quantization on. The order of batches depends on ``seed`` and the number of samples alone.
    """
    scales = scale_parameter_names(model)
    head = str(_steps(model)[-1].module) + "."
    chosen = [
        p for name, p in model.named_parameters() if name not in scales and (part == "all" or name.startswith(head))
    ]
    was: dict[nn.Parameter, bool] = {p: p.requires_grad for p in model.parameters()}
    ours = {id(p) for p in chosen}
    for p in was:
        p.requires_grad_(id(p) in ours)
    optimizer = torch.optim.AdamW(chosen, lr=lr, weight_decay=0.0)
    model.eval()
    yield 0, model
    read = _frozen(model, task, samples) if part == "head" else None
    for step, rows in enumerate(_batches(len(samples), batch, steps, seed), start=1):
        b = task.batch(samples, rows)
        logits = task.logits(model, b) if read is None else _from_head(model, read[torch.from_numpy(rows)])
        loss = task.loss(logits, b)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % every == 0 or step == steps:
            yield step, model
    for p, needs in was.items():
        p.requires_grad_(needs)


@torch.no_grad()
def _frozen(model: QuantModel, task: TrainingTask, samples: Any) -> Tensor:
    """What the last weighted layer reads, of all samples [n, d]: all before it is frozen while the head is trained."""
    at = _steps(model)[-1].inputs[0]
    rows = np.arange(len(samples))
    return torch.cat(
        [model.activations(task.batch(samples, r).x)[at] for r in np.array_split(rows, -(-len(rows) // FROZEN_BATCH))]
    )


def _from_head(model: QuantModel, x: Tensor) -> Tensor:
    """The last weighted layer and what follows it."""
    first = model.steps.index(_steps(model)[-1])
    for step in model.steps[first:]:
        x = model.run_step(step, x)
    return x


def _batches(n: int, size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng([seed, 62])
    order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < min(size, n):
            order = np.concatenate([order, rng.permutation(n)])
        yield order[:size]
        order = order[size:]


@torch.no_grad()
def coarse(model: QuantModel, bits: int) -> tuple[QuantModel, dict[str, NDArray[np.int8]]]:
    """(copy, codes): every weight on a ``bits``-bit grid and back on the network's own, and the coarse codes by layer.

    Per output channel the largest magnitude is the last code; biases and activations are left as they are.
    """
    out = copy.deepcopy(model).eval()
    found = {}
    top = 2 ** (bits - 1) - 1
    for step in _steps(out):
        weight = _shipped(model, step)
        like = (-1, *([1] * (weight.ndim - 1)))
        scale = (weight.flatten(1).abs().amax(1) / top).reshape(like)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        q = (weight / scale).round().clamp(-top, top)
        _weight(out, step).copy_(q * scale)
        found[step.name] = q.to(torch.int8).cpu().numpy()
    return out, found
