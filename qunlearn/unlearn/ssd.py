"""SSD, selective synaptic dampening: shrink the parameters that matter more for the forget set than for all data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.data.dataset import Samples
from qunlearn.hyper import hyper
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.loop import Loop
from qunlearn.unlearn.sgd import mean_loss


def dampening(own: Tensor, everything: Tensor, alpha: float, lam: float) -> Tensor:
    """Factor of every coordinate: `min(1, lam I_D / I_F)` where `I_F > alpha I_D`, else 1 (also where I_F = 0)."""
    factor = torch.ones_like(own)
    selected = own > alpha * everything
    factor[selected] = (lam * everything[selected] / own[selected]).clamp(max=1.0)
    return factor


@dataclass(frozen=True, kw_only=True)
class SSD(Unlearner):
    """Multiply parameters by `min(1, lam I_D / I_F)` where `I_F > alpha I_D`; no training.

    `I` is the diagonal importance (mean squared gradient) on the forget set (F) and on the whole training set (D), at
    the original parameters. `importance="sample"` squares the gradient of every sample (our default: it does not depend
    on the batch size); `"batch"` that of batch means, as the authors' code does.
    """

    name: ClassVar[str] = "ssd"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = "Foster et al. 2024 (arXiv 2308.07707); importance per sample is our own choice"

    alpha: float = hyper(10.0, low=0, high=1e6, low_open=True, search=(1.0, 100.0), log=True, doc="selection threshold")
    lam: float = hyper(1.0, low=0, high=1e6, low_open=True, search=(0.1, 10.0), log=True, doc="strength of dampening")
    importance: str = hyper(
        "sample", choices=("sample", "batch"), doc="squared gradients of samples, or of batch means"
    )
    batch_size: int = hyper(32, low=1, high=65_536, unit="samples", doc="samples of a batch of importance=batch")
    samples: int | None = hyper(
        None, low=16, high=10_000_000, unit="samples", doc="seeded part of the training set that stands for it"
    )

    def run(self, ctx: Context) -> None:
        """One step: both importances, then the dampening."""
        parameters = ctx.trainable()

        def step(t: int) -> dict[str, Any]:
            own = self.importances(ctx, [(ctx.data.forget, np.arange(len(ctx.data.forget)))])
            whole = self.importances(ctx, self._training_rows(ctx))
            moved = 0
            with torch.no_grad():
                for name, p in parameters.items():
                    factor = dampening(own[name], whole[name], self.alpha, self.lam)
                    moved += int((factor < 1).sum())
                    p.mul_(factor.to(p.dtype))
            return {"dampened": moved, "share": moved / sum(p.numel() for p in parameters.values())}

        Loop(ctx, self, total=1, parts={}).run(step)

    def _training_rows(self, ctx: Context) -> list[tuple[Samples, NDArray[np.int64]]]:
        """The whole training set, or a seeded part of it, as rows of the forget and of the retain set."""
        n, m = len(ctx.data.forget), len(ctx.data.retain)
        rows = np.arange(n + m)
        if self.samples is not None and self.samples < n + m:
            rows = np.sort(ctx.rng("importance").permutation(n + m)[: self.samples])
        return [(ctx.data.forget, rows[rows < n]), (ctx.data.retain, rows[rows >= n] - n)]

    def importances(self, ctx: Context, sets: list[tuple[Samples, NDArray[np.int64]]]) -> dict[str, Tensor]:
        """Mean squared gradient per coordinate (float64) over the rows of these sets, evaluation mode."""
        parameters = ctx.trainable()
        size = 1 if self.importance == "sample" else self.batch_size
        total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
        count = 0
        for samples, rows in sets:
            for start in range(0, len(rows), size):
                loss = mean_loss(ctx, samples, rows[start : start + size], "frozen", "forget")
                grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, g in zip(parameters, grads, strict=True):
                    if g is not None:
                        total[name] += g.double().square()
                count += 1
        return {n: t / max(1, count) for n, t in total.items()}
