"""How far the features have moved from the original's, and from where a retrained network's would stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qunlearn.data.dataset import Samples
from qunlearn.quant import QuantModel
from qunlearn.tasks.base import Task
from qunlearn.tasks.similarity import cka
from qunlearn.unlearn.auxiliary import penultimate
from qunlearn.unlearn.card import ReferenceCard
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import rng_for
from qunlearn.unlearn.probe import device_of, to_device

FEWEST = 50
BATCH = 256


def layers_of(model: QuantModel) -> tuple[str, ...]:
    """Every stage, the penultimate feature, the logits: names of steps, in order."""
    return tuple(dict.fromkeys([*model.stages, penultimate(model), model.steps[-1].name]))


@torch.no_grad()
def features(task: Task, model: QuantModel, samples: Samples, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Float32 [n, d] of every layer, evaluation mode; the mode is restored."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in layers_of(model)}
    try:
        for start in range(0, len(rows), BATCH):
            batch = to_device(task.batch(samples, rows[start : start + BATCH]), device_of(model))
            values = model.activations(batch.x)
            for name, part in parts.items():
                part.append(values[name].flatten(1).cpu().numpy())
    finally:
        for module, mode in modes:
            module.training = mode
    return {name: np.concatenate(part) for name, part in parts.items()}


def target(card: ReferenceCard | None, kind: str, forget: Samples) -> dict[str, tuple[float, float]] | None:
    """CKA (on forget, on retain data) of every layer between the original and a retrained network, from the card.

    For a group request the card's own entry; for a class request the mean over the classes that the card left out.
    """
    if card is None:
        return None
    if kind == "group" and forget.group is not None:
        keys = [f"group={g}" for g in np.unique(forget.group)]
    elif kind == "class":
        keys = [key for key in card.similarity if key.startswith("class=")]
    else:
        keys = []
    entries = [card.similarity[k] for k in keys if k in card.similarity]
    if not keys or len(entries) < len(keys):
        return None
    return {n: tuple(np.mean([e[n] for e in entries], axis=0)) for n in entries[0]}


def similarity(
    task: Task, base: QuantModel, other: QuantModel, sets: tuple[Samples, Samples], *, size: int, seed: int
) -> dict[str, tuple[float, float]]:
    """CKA of every layer between two networks on two sample sets, at most ``size`` seeded samples of each."""
    values = []
    for samples in sets:
        rows = np.sort(rng_for(seed, "cka.card").permutation(len(samples))[:size])
        a, b = (features(task, model, samples, rows) for model in (base, other))
        values.append({name: cka(a[name], b[name]) for name in a})
    first, second = values
    return {n: (first[n], second[n]) for n in first if not (math.isnan(first[n]) or math.isnan(second[n]))}


class Representation:
    """CKA to the original on fixed probes of at most ``size`` samples; calling it gives (what J grows by, trace row).

    The term is the mean over layers of |CKA_f - target_f| plus max(0, target_r - CKA_r); 0 where there is no target.
    """

    def __init__(self, ctx: Context, size: int) -> None:
        self.ctx = ctx
        self.target = target(ctx.card, ctx.request_kind, ctx.data.forget)
        self.sets: list[tuple[Samples, NDArray[np.int64], Mapping[str, NDArray[Any]]]] = []
        for role in ("forget", "retain"):
            samples: Samples = getattr(ctx.data, role)
            rows = np.sort(rng_for(ctx.seed, f"cka.{role}").permutation(len(samples))[:size])
            self.sets.append((samples, rows, features(ctx.task, ctx.before, samples, rows)))
        self.offered = all(len(rows) >= FEWEST for _, rows, _ in self.sets)

    def __call__(self) -> tuple[float, dict[str, Any]]:
        if not self.offered:
            return 0.0, {}
        pairs = {}
        now = [features(self.ctx.task, self.ctx.model, samples, rows) for samples, rows, _ in self.sets]
        for name in layers_of(self.ctx.model):
            pairs[name] = [cka(new[name], old[name]) for new, (_, _, old) in zip(now, self.sets, strict=True)]
        row = {
            f"cka_{role}": float(np.nanmean([pair[i] for pair in pairs.values()]))
            for i, role in enumerate(("forget", "retain"))
            if not all(math.isnan(pair[i]) for pair in pairs.values())
        }
        if self.target is None:
            return 0.0, row
        away = []
        for name, (f, r) in pairs.items():
            if name in self.target and not (math.isnan(f) or math.isnan(r)):
                goal_f, goal_r = self.target[name]
                away.append(abs(f - goal_f) + max(0.0, goal_r - r))
        gap = float(np.mean(away)) if away else 0.0
        return gap, {**row, "cka_gap": gap}
