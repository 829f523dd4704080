"""Random labels: train the forget samples towards wrong labels while the retain set is repeated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.hyper import hyper
from qunlearn.tasks.base import Batch
from qunlearn.unlearn.checkpoint import Part
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.pairing import Pairs, Pass, rng_for
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn.unlearn.sgd import EpochSGD, LossFunction, plain


def random_labels(
    y: NDArray[np.int64], classes: int, rng: np.random.Generator, *, exclude_true: bool = True
) -> NDArray[np.int64]:
    """One uniform label in 0..classes-1 for each true label ``y`` int64 [n]; never the true one unless allowed."""
    if not exclude_true or classes < 2:
        return rng.integers(0, classes, len(y))
    out: NDArray[np.int64] = (y + rng.integers(1, classes, len(y))) % classes
    return out


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

    def plan(self, ctx: Context) -> tuple[int, dict[str, Part], LossFunction]:
        """Batches of the union, or pairs, with labels that depend on the seed and the epoch only."""
        forget, retain = ctx.data.forget, ctx.data.retain
        truth = forget.targets()
        ctx.fields["exclude_true"] = self.exclude_true
        tables: dict[int, NDArray[np.int64]] = {}

        def labels(epoch: int) -> NDArray[np.int64]:
            key = epoch if self.fresh else 0
            if key not in tables:
                tables.clear()
                tables[key] = random_labels(
                    truth, forget.num_classes, rng_for(ctx.seed, f"rl.labels.{key}"), exclude_true=self.exclude_true
                )
            return tables[key]

        def forget_batch(rows: NDArray[np.int64], epoch: int) -> Batch:
            return dataclasses.replace(ctx.task.batch(forget, rows), y=torch.from_numpy(labels(epoch)[rows]))

        def value(batch: Batch, role: str) -> Tensor:
            batch = to_device(batch, device_of(ctx.model))
            ctx.count(len(batch))
            set_mode(ctx.model, self.bn, role)
            return ctx.task.loss(ctx.task.logits(ctx.model, batch), batch)

        if self.mix == "paired":
            pairs = Pairs(len(forget), len(retain), self.batch_size, self.batch_size, seed=ctx.seed)

            def paired(epoch: int) -> tuple[Tensor, dict[str, Any]]:
                rows_f, rows_r = pairs.next()
                l_r = value(ctx.task.batch(retain, rows_r), "retain")
                l_f = value(forget_batch(rows_f, epoch), "forget")
                return l_r + l_f, {"L_r": float(l_r.detach()), "L_f": float(l_f.detach())}

            return pairs.steps_per_epoch, plain(pairs=pairs), paired

        loader = Pass(len(forget) + len(retain), self.batch_size, seed=ctx.seed, purpose="union")

        def union(epoch: int) -> tuple[Tensor, dict[str, Any]]:
            rows = loader.next()
            own, other = rows[rows < len(forget)], rows[rows >= len(forget)] - len(forget)
            parts = []
            if len(own):
                parts.append(forget_batch(own, epoch))
            if len(other):
                parts.append(ctx.task.batch(retain, other))
            batch = Batch(**{n: torch.cat([getattr(p, n) for p in parts]) for n in ("x", "y", "index")})
            return value(batch, "retain"), {"forget_in_batch": len(own)}

        return loader.count, plain(union=loader), union
