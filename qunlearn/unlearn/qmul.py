"""Q-MUL: similar labels for forget samples, and weights that balance the two gradients; made for quantized networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.labels import random_labels, relabelled, union_batch
from qunlearn.unlearn.mask import holder, saliency, top_share
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn.unlearn.sgd import EpochSGD, Plan, counted, mean_loss, plain

SWITCHES = ("label_shuffle", "index_shift", "logit_distance", "train_bn", "rl_input_drop")
DROP = (0.04, 0.06)


def similar_labels(logits: Tensor, y: Tensor, *, logit_distance: bool = False, index_shift: bool = False) -> Tensor:
    """The class other than ``y`` whose probability is nearest to that of ``y`` (int64 [n]); ties: lowest index.

    ``logit_distance`` compares logits with the probability of ``y``; ``index_shift`` forgets that the true class was
    taken out before the search, so that results from ``y`` on are one too low: both as in the released code.
    """
    p = torch.softmax(logits.double(), 1)
    own = p.gather(1, y[:, None])
    away = ((logits.double() if logit_distance else p) - own).abs()
    found = away.scatter(1, y[:, None], torch.inf).argmin(1)
    return found - (found > y).long() if index_shift else found


def balance(forget: float, retain: float) -> tuple[float, float]:
    """(w_f, w_r) from the mean gradient norms G_f and G_r: each loss is weighted by the other's share."""
    total = forget + retain
    return (retain / total, forget / total) if total > 0 else (0.5, 0.5)


class _EpochTable:
    """Labels and weights of the running epoch; part of the checkpoint."""

    def __init__(self) -> None:
        self.labels: NDArray[np.int64] = np.empty(0, np.int64)
        self.weights = (0.5, 0.5)

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"labels": torch.from_numpy(self.labels)}, {"weights": list(self.weights)}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        self.labels = tensors["labels"].numpy().copy()
        self.weights = (float(facts["weights"][0]), float(facts["weights"][1]))


@dataclass(frozen=True, kw_only=True)
class QMUL(EpochSGD):
    """Minimise the mean of `w_i CE_i` over both sets, forget samples with their similar label; weights anew each epoch.

    The similar label is the other class whose probability is nearest to the true class; `w_f = G_r / (G_f + G_r)` and
    `w_r = G_f / (G_f + G_r)`, where G is the mean over batches of the sum of the gradient norms of the tensors.
    `variant="as_released"` turns on all deviations of the released code, each of which is a switch of its own.
    """

    name: ClassVar[str] = "qmul"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    source: ClassVar[str] = (
        "Q-MUL (arXiv 2503.13917): idea; label and gradient passes in evaluation mode and labels kept with their "
        "samples are our own choice; as_released after a description of the public code"
    )

    bn: str = hyper("train", choices=("frozen", "retain_only", "train"), doc="BatchNorm statistics; as in the source")
    variant: str = hyper("paper", choices=("paper", "as_released"), doc="as_released turns on all five switches")
    label_shuffle: bool = hyper(False, doc="labels computed over a shuffled loader, written back in data set order")
    index_shift: bool = hyper(False, doc="the index of the similar label is not corrected for the removed true class")
    logit_distance: bool = hyper(False, doc="logits are compared with a probability")
    train_bn: bool = hyper(False, doc="label and gradient passes in the BatchNorm mode of training from epoch 2 on")
    rl_input_drop: bool = hyper(False, doc="labels=random loses 4 to 6 % of its input pixels")
    labels: str = hyper("similar", choices=("similar", "random"), doc="random: the random-label baseline of the code")
    order: str = hyper("union", choices=("union", "forget_first"), doc="shuffled union, or all forget batches first")
    ratio: float | None = hyper(
        None, low=0, high=1, low_open=True, doc="share of coordinates that may move (SalUn mask)"
    )

    def problems(self) -> list[str]:
        """Besides the ranges: a mask needs frozen scales."""
        masked = ["train_scales would move the codes of masked weights"] if self.ratio and self.train_scales else []
        return super().problems() + masked

    def on(self, switch: str) -> bool:
        """Whether one of SWITCHES is in effect."""
        return self.variant == "as_released" or bool(getattr(self, switch))

    def forget_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy to the similar label of each sample; with random labels, its expectation is not offered."""
        if self.labels != "similar":
            return super().forget_loss(logits, y)
        return F.cross_entropy(logits, similar_labels(logits.detach(), y))

    def plan(self, ctx: Context) -> Plan:
        """Labels and weights at the start of every epoch, then batches of the union (or forget batches first)."""
        n, m = len(ctx.data.forget), len(ctx.data.retain)
        ctx.fields["switches"] = [s for s in SWITCHES if self.on(s)]
        table = _EpochTable()
        after = None if self.ratio is None else holder(ctx, top_share(saliency(ctx, self.batch_size), self.ratio))
        union = Pass(n + m, self.batch_size, seed=ctx.seed, purpose="union")
        forget = Pass(n, self.batch_size, seed=ctx.seed, purpose="forget")
        retain = Pass(m, self.batch_size, seed=ctx.seed, purpose="retain")
        mixed = self.order == "union"

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            if i == 0:
                table.labels = self.label_table(ctx, epoch)
                table.weights = self.gradient_balance(ctx, epoch, table.labels)
            w_f, w_r = table.weights
            row = {"w_f": w_f, "w_r": w_r}
            if mixed:
                batch, own = union_batch(ctx, union.next(), table.labels)
                batch = replace(batch, x=self._dropped(ctx, batch.x, epoch, i, own))
                batch, logits = counted(ctx, batch, self.bn, "retain")
                weight = torch.full((len(batch),), w_r, dtype=logits.dtype, device=logits.device)
                weight[:own] = w_f
                return (weight * ctx.task.loss(logits, batch, reduction="none")).mean(), row
            if i < forget.count:
                batch = relabelled(ctx, forget.next(), table.labels)
                batch = replace(batch, x=self._dropped(ctx, batch.x, epoch, i, len(batch)))
                batch, logits = counted(ctx, batch, self.bn, "forget")
                return w_f * ctx.task.loss(logits, batch), row
            return w_r * mean_loss(ctx, ctx.data.retain, retain.next(), self.bn, "retain"), row

        length = union.count if mixed else forget.count + retain.count
        loaders = plain(union=union) if mixed else plain(forget=forget, retain=retain)
        return Plan(lengths=(length,) * self.epochs, loss=loss, parts={**loaders, "table": table}, after=after)

    def label_table(self, ctx: Context, epoch: int) -> NDArray[np.int64]:
        """One label int64 for every forget sample, by position, from the parameters of now."""
        truth = ctx.data.forget.targets()
        if self.labels == "random":
            rng = ctx.rng(f"qmul.random.{epoch}")
            return random_labels(truth, ctx.data.forget.num_classes, rng)
        parts = []
        with torch.no_grad():
            for start in range(0, len(truth), self.batch_size):
                rows = np.arange(start, min(start + self.batch_size, len(truth)))
                batch = to_device(ctx.task.batch(ctx.data.forget, rows), device_of(ctx.model))
                set_mode(ctx.model, self._mode(epoch), "forget")
                found = similar_labels(
                    ctx.task.logits(ctx.model, batch),
                    batch.y,
                    logit_distance=self.on("logit_distance"),
                    index_shift=self.on("index_shift"),
                )
                parts.append(found.cpu().numpy())
        out: NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
        return ctx.rng(f"qmul.shuffle.{epoch}").permutation(out) if self.on("label_shuffle") else out

    def gradient_balance(self, ctx: Context, epoch: int, labels: NDArray[np.int64]) -> tuple[float, float]:
        """(w_f, w_r) from one pass over all batches of both sets at the parameters of now."""
        return balance(self._mean_norm(ctx, epoch, "forget", labels), self._mean_norm(ctx, epoch, "retain", labels))

    def _mean_norm(self, ctx: Context, epoch: int, role: str, labels: NDArray[np.int64]) -> float:
        samples = getattr(ctx.data, role)
        parameters = list(ctx.trainable().values())
        norms = []
        for start in range(0, len(samples), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(samples)))
            batch = relabelled(ctx, rows, labels) if role == "forget" else ctx.task.batch(samples, rows)
            batch, logits = counted(ctx, batch, self._mode(epoch), role)
            grads = torch.autograd.grad(ctx.task.loss(logits, batch), parameters, allow_unused=True)
            norms.append(sum(float(g.norm()) for g in grads if g is not None))
        return float(np.mean(norms))

    def _mode(self, epoch: int) -> str:
        return self.bn if self.on("train_bn") and epoch > 0 else "frozen"

    def _dropped(self, ctx: Context, x: Tensor, epoch: int, i: int, own: int) -> Tensor:
        """The first ``own`` inputs without 4 to 6 % of their pixels, where the switch asks for it."""
        if not own or self.labels != "random" or not self.on("rl_input_drop"):
            return x
        rng = ctx.rng(f"qmul.drop.{epoch}.{i}")
        lost = torch.from_numpy(rng.random((own, 1, *x.shape[2:])) < rng.uniform(*DROP, (own, 1, 1, 1)))
        return torch.cat([torch.where(lost, torch.zeros_like(x[:own]), x[:own]), x[own:]])
