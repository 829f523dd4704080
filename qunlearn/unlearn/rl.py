"""Random labels: train the forget samples towards wrong classes while the retain set is repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.labels import random_labels, relabelled, union_batch
from qunlearn.unlearn.pairing import Pairs, Pass, rng_for
from qunlearn.unlearn.sgd import EpochSGD, Plan, counted, mean_loss, plain

LabelTable = Callable[[int], NDArray[np.int64]]
"""``labels(epoch)``: one label int64 for every forget sample, by its position."""


@dataclass(frozen=True, kw_only=True)
class RL(EpochSGD):
    """Minimise CE(B_f, random label) + CE(B_r).

    ``mix="concat"`` shuffles both sets into one loader (one mean over the batch); ``paired`` draws a batch of each and
    adds the two means.
    """

    name: ClassVar[str] = "rl"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    source: ClassVar[str] = "Golatkar et al. 2020; Graves et al. 2021; excluding the true label is our own choice"

    bn: str = hyper("train", choices=("frozen", "retain_only", "train"), doc="BatchNorm statistics; as in the source")
    exclude_true: bool = hyper(True, doc="never draw the true label (else 1/C of the labels are right)")
    fresh: bool = hyper(True, doc="draw new labels every epoch")
    mix: str = hyper("concat", choices=("concat", "paired"), doc="one shuffled loader, or pairs of batches")

    def forget_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Expected cross-entropy over the labels that may be drawn: all, or all but the true one."""
        log_p = torch.log_softmax(logits, dim=1)
        total = log_p.sum(dim=1)
        if not self.exclude_true or logits.shape[1] < 2:
            return -(total / logits.shape[1]).mean()
        return -((total - log_p.gather(1, y[:, None])[:, 0]) / (logits.shape[1] - 1)).mean()

    def plan(self, ctx: Context) -> Plan:
        """Batches of the union, or pairs, with labels that depend on the seed and the epoch only."""
        ctx.fields["exclude_true"] = self.exclude_true
        labels = self._labels(ctx)
        if self.mix == "paired":
            return self._paired(ctx, labels)
        loader = Pass(len(ctx.data.forget) + len(ctx.data.retain), self.batch_size, seed=ctx.seed, purpose="union")

        def union(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            batch, forget = union_batch(ctx, loader.next(), labels(epoch))
            batch, logits = counted(ctx, batch, self.bn, "retain")
            return ctx.task.loss(logits, batch), {"forget_in_batch": forget}

        return Plan(lengths=(loader.count,) * self.epochs, loss=union, parts=plain(union=loader))

    def _paired(self, ctx: Context, labels: LabelTable) -> Plan:
        pairs = Pairs(len(ctx.data.forget), len(ctx.data.retain), self.batch_size, self.batch_size, seed=ctx.seed)

        def paired(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            rows_f, rows_r = pairs.next()
            l_r = mean_loss(ctx, ctx.data.retain, rows_r, self.bn, "retain")
            batch, logits = counted(ctx, relabelled(ctx, rows_f, labels(epoch)), self.bn, "forget")
            l_f = ctx.task.loss(logits, batch)
            return l_r + l_f, {"L_r": float(l_r.detach()), "L_f": float(l_f.detach())}

        return Plan(lengths=(pairs.steps_per_epoch,) * self.epochs, loss=paired, parts=plain(pairs=pairs))

    def _labels(self, ctx: Context) -> LabelTable:
        truth, classes = ctx.data.forget.targets(), ctx.data.forget.num_classes
        tables: dict[int, NDArray[np.int64]] = {}

        def labels(epoch: int) -> NDArray[np.int64]:
            key = epoch if self.fresh else 0
            if key not in tables:
                tables.clear()
                rng = rng_for(ctx.seed, f"rl.labels.{key}")
                tables[key] = random_labels(truth, classes, rng, exclude_true=self.exclude_true)
            return tables[key]

        return labels
