"""Accuracy and confidence on a fixed, seeded part of a sample set, made cheap by preparing its batches once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.data.dataset import Samples
from qunlearn.tasks.base import Batch, Task
from qunlearn.unlearn.card import GroupValue
from qunlearn.unlearn.entropy import normalized_entropy
from qunlearn.unlearn.pairing import rng_for

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Value:
    """``accuracy``, mean true-class probability and its variance over samples, mean entropy / log C, samples."""

    accuracy: float
    confidence: float
    confidence_variance: float
    entropy: float
    samples: int


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with all its tensors on ``device``."""
    if batch.index.device == device:
        return batch
    moved = {
        f.name: getattr(batch, f.name).to(device)
        for f in dataclasses.fields(batch)
        if isinstance(getattr(batch, f.name), Tensor)
    }
    return dataclasses.replace(batch, **moved)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters live."""
    return next(model.parameters()).device


class Probe:
    """At most ``size`` samples chosen by ``seed``; calling it with a model gives a :class:`Value`."""

    def __init__(self, task: Task, samples: Samples, *, size: int, seed: int, purpose: str) -> None:
        rows: NDArray[np.int64] = np.arange(len(samples), dtype=np.int64)
        if len(rows) > size:
            rows = np.sort(rng_for(seed, f"probe.{purpose}").permutation(len(rows))[:size])
        self.task = task
        self.rows = rows
        self._batches = [task.batch(samples, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Value:
        modes = [(m, m.training) for m in model.modules()]
        model.eval()
        device = device_of(model)
        hits, entropy, confidences = 0.0, 0.0, []
        try:
            for prepared in self._batches:
                batch = to_device(prepared, device)
                logits = self.task.logits(model, batch)
                hits += self.task.metrics(logits, batch)["accuracy"] * len(batch)
                entropy += float(normalized_entropy(logits.double(), getattr(batch, "mask", None))) * len(batch)
                confidences.append(torch.exp(-self.task.loss(logits, batch, reduction="none").double()))
        finally:
            for module, mode in modes:
                module.training = mode
        p = torch.cat(confidences)
        return Value(
            accuracy=hits / len(self.rows),
            confidence=float(p.mean()),
            confidence_variance=float(p.var(correction=0)),
            entropy=entropy / len(self.rows),
            samples=len(self.rows),
        )


def value_of(task: Task, logits: NDArray[np.float32], samples: Samples, rows: NDArray[np.int64]) -> Value:
    """Values of the ``rows`` of ``samples`` whose ``logits`` [len(samples), C] are known already."""
    batch = task.batch(samples, rows)
    z = torch.from_numpy(logits[rows])
    p = torch.exp(-task.loss(z, batch, reduction="none").double())
    return Value(
        accuracy=task.metrics(z, batch)["accuracy"],
        confidence=float(p.mean()),
        confidence_variance=float(p.var(correction=0)),
        entropy=float(normalized_entropy(z.double(), getattr(batch, "mask", None))),
        samples=len(rows),
    )


def group_values(model: nn.Module, task: Task, samples: Samples) -> dict[str, GroupValue]:
    """What ``model`` does on each group of ``samples``; empty where the data have no groups.

    Used for a reference card: train without one group, then take that group's entry.
    """
    if samples.group is None or not len(samples):
        return {}
    logits, groups = task.predict(model, samples), samples.group
    out = {}
    for name in np.unique(groups):
        v = value_of(task, logits, samples, np.flatnonzero(groups == name))
        out[str(name)] = GroupValue(accuracy=v.accuracy, confidence=min(1.0, v.confidence), samples=v.samples)
    return out


@torch.no_grad()
def confidence_quantile(model: nn.Module, task: Task, samples: Samples, q: float) -> float:
    """The ``q``-quantile of the true-class probability over ``samples``; leaves the model in evaluation mode."""
    model.eval()
    device, parts = device_of(model), []
    for start in range(0, len(samples), BATCH):
        batch = to_device(task.batch(samples, np.arange(start, min(start + BATCH, len(samples)))), device)
        parts.append(torch.exp(-task.loss(task.logits(model, batch), batch, reduction="none")))
    return float(torch.quantile(torch.cat(parts).double(), q))
