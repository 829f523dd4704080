"""The two terms that EC adds at every stage: supervision of retain data, contrast of forget data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qunlearn.errors import ConfigError
from qunlearn.tasks.base import Batch
from qunlearn.unlearn.auxiliary import Auxiliary, Stages
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.contrastive import forget_form, retain_form
from qunlearn.unlearn.modes import set_mode


def stage_weights(text: str, count: int) -> list[float]:
    """w_s of stages 1..count: ``depth`` s/S, ``uniform`` 1, ``reverse`` (S - s + 1)/S, or numbers such as 0.1,1."""
    named = {
        "depth": [s / count for s in range(1, count + 1)],
        "uniform": [1.0] * count,
        "reverse": [s / count for s in range(count, 0, -1)],
    }
    if text in named:
        return named[text]
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(0 <= v < 1e6 for v in values):
        raise ConfigError(
            f"weights {text!r} do not fit the network's {count} stages.",
            remedy=f"Use depth, uniform, reverse, or {count} numbers, such as {','.join(['1'] * count)}.",
        )
    return values


def chosen_stages(text: str, count: int) -> set[int]:
    """Stages 0..count-1 of ``all``, ``last``, or numbers from 1 such as 2,3."""
    if text == "all":
        return set(range(count))
    if text == "last":
        return {count - 1}
    words = text.split(",")
    if not all(w.strip().isdigit() and 1 <= int(w) <= count for w in words):
        raise ConfigError(
            f"stages {text!r} do not fit the network's {count} stages.", remedy=f"Use all, last, or 1..{count}."
        )
    return {int(w) - 1 for w in words}


@dataclass(kw_only=True)
class Terms:
    """``supervision`` sum_s w_s CE(logits_s(x_r), y_r); ``contrast`` sum_s w_s L_CU(z_s); anchors ``skipped``."""

    supervision: Tensor
    contrast: Tensor
    skipped: int


@dataclass(kw_only=True)
class Erasure:
    """Both terms for a pair of batches. ``head_ce`` adds the network's own training loss (stage S)."""

    ctx: Context
    aux: Auxiliary
    stages: Stages
    weights: Sequence[float]
    chosen: set[int]
    contrast: str
    tau: float
    deep_ce: bool
    head_ce: bool

    def __call__(self, forget: Batch, retain: Batch, bn: str) -> Terms:
        """One concatenated forward in the BatchNorm mode ``bn``; with ``retain_only`` two, since modes differ."""
        self.ctx.count(len(forget) + len(retain))
        n = len(forget)
        if bn == "retain_only":
            parts = [self._features(b.x, bn, role) for b, role in ((forget, "forget"), (retain, "retain"))]
            embedded = [torch.cat(pair) for pair in zip(parts[0][0], parts[1][0], strict=True)]
            logits = [torch.cat(pair) for pair in zip(parts[0][1], parts[1][1], strict=True)]
        else:
            embedded, logits = self._features(torch.cat([forget.x, retain.x]), bn, "retain")
        zero = embedded[-1].new_zeros(())
        supervision, contrast, skipped = zero, zero, 0
        last = len(embedded) - 1
        for s, (e, z) in enumerate(zip(embedded, logits, strict=True)):
            if s not in self.chosen and s != last:
                continue
            weight = self.weights[s]
            if (s == last and self.head_ce) or (s < last and self.deep_ce):
                supervision = supervision + weight * F.cross_entropy(z[n:], retain.y)
            if s in self.chosen and self.contrast != "none":
                unit = F.normalize(e, dim=1)
                if self.contrast == "forget":
                    value, missed = forget_form(unit[:n], forget.y, self.tau)
                else:
                    value, missed = retain_form(unit[:n], forget.y, unit[n:], retain.y, self.tau)
                contrast, skipped = contrast + weight * value, skipped + missed
        return Terms(supervision=supervision, contrast=contrast, skipped=skipped)

    def _features(self, x: Tensor, bn: str, role: str) -> tuple[list[Tensor], list[Tensor]]:
        """(e_s, logits_s) of all stages, the network's own last."""
        set_mode(self.ctx.model, bn, role)
        features, last, logits = self.stages(self.ctx.model, x)
        embedded, scores = self.aux(features)
        return [*embedded, last], [*scores, logits]
