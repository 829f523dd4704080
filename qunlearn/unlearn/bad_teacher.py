"""Bad Teacher: on forget samples imitate a network that knows nothing, on retain samples the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.labels import union_batch
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.sgd import Epochs, Plan, counted, plain
from qunlearn.unlearn.teacher import distillation, incompetent, original


@dataclass(frozen=True, kw_only=True)
class BadTeacher(Epochs):
    """Minimise KL(teacher || f): an incompetent teacher on forget samples, the original on a part of the retain set."""

    name: ClassVar[str] = "bad_teacher"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = (
        "Chundawat et al. 2023 (arXiv 2205.08096), settings as run by Foster et al. 2024; a float teacher with "
        "calibrated BatchNorm and the mean over the batch alone are our own choice"
    )

    epochs: int = hyper(1, low=1, high=1000, unit="epochs", doc="passes over forget set and retain subset")
    lr: float | str = hyper(
        1e-4, low=0, high=10, low_open=True, choices=("auto",), search=(1e-5, 1e-3), log=True, doc="peak lr of Adam"
    )
    weight_decay: float = hyper(0.0, low=0, high=1, doc="L2 penalty on everything trained")
    temperature: float = hyper(1.0, low=0, high=100, low_open=True, doc="T of the distillation")
    retain_share: float = hyper(0.3, low=0, high=1, low_open=True, doc="seeded share of the retain set that is used")

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(parameters, lr=float(self.lr), weight_decay=self.weight_decay)

    def plan(self, ctx: Context) -> Plan:
        """Batches of the union of the forget set and the retain subset."""
        n, m = len(ctx.data.forget), len(ctx.data.retain)
        subset = ctx.rng("retain subset").permutation(m)[: max(1, round(self.retain_share * m))] + n
        loader = Pass(n + len(subset), self.batch_size, seed=ctx.seed, purpose="union")
        good, bad = original(ctx), incompetent(ctx, self.batch_size)
        truth = ctx.data.forget.targets()

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            rows = loader.next()
            own = rows >= n
            rows[own] = subset[rows[own] - n]
            batch, forget = union_batch(ctx, rows, truth)
            batch, logits = counted(ctx, batch, self.bn, "retain")
            targets = good(batch)
            targets[:forget] = bad(batch)[:forget]
            return distillation(targets, logits, self.temperature), {"forget_in_batch": forget}

        return Plan(lengths=(loader.count,) * self.epochs, loss=loss, parts=plain(union=loader))
