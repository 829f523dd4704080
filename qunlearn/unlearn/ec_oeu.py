"""EC inside OEU, whose two gradients are projected: which term of EC joins which gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qunlearn.tasks.base import Batch
from qunlearn.unlearn.checkpoint import OptimizerPart
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.oeu import OEU
from qunlearn.unlearn.oeu_run import OEURun
from qunlearn.unlearn.probe import device_of, to_device

if TYPE_CHECKING:
    from qunlearn.unlearn.ec import EC


class ErasingOEU(OEURun):
    """OEU with EC: the contrast joins the forget loss, the deep supervision the retain loss, before the projection."""

    def __init__(self, cfg: OEU, ctx: Context, ec: EC) -> None:
        super().__init__(cfg, ctx, owner=ec)
        along = ec.alongside(ctx)
        self.ec, self.erasure = ec, along.erasure
        self.optimizer = torch.optim.SGD(along.erasure.aux.parameters(), lr=float(cfg.lr), momentum=0.9)
        self.more |= {**along.parts, "auxiliary optimizer": OptimizerPart(self.optimizer)}
        self.representation, self.finish = along.representation, along.finish

    def step(self, t: int) -> dict[str, Any]:
        """OEU's step, and one of the auxiliary modules on the same gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        row = super().step(t)
        self.optimizer.step()
        return row

    def retain_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """OEU's, and the supervision of every stage."""
        loss, row = super().retain_loss(batch)
        terms = self.erasure(self._partner("forget", len(batch)), batch, self.ec.bn)
        return loss + self.ec.gamma * terms.supervision, row

    def forget_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """OEU's, and the contrast of every stage."""
        loss, row = super().forget_loss(batch)
        terms = self.erasure(batch, self._partner("retain", len(batch)), self.ec.bn)
        self.ctx.fields["skipped_anchors"] += terms.skipped
        return loss + self.ec.gamma * self.ec.lam * terms.contrast, row

    def _partner(self, role: str, count: int) -> Batch:
        rows = self.rows[role][:count] if role == "forget" else self.rows[role]
        return to_device(self.ctx.task.batch(getattr(self.ctx.data, role), rows), device_of(self.ctx.model))
