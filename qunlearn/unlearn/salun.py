"""SalUn: random labels, restricted to the coordinates that matter most for the forget set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qunlearn.hyper import hyper
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.mask import holder, saliency, top_share
from qunlearn.unlearn.rl import RL
from qunlearn.unlearn.sgd import Plan


@dataclass(frozen=True, kw_only=True)
class SalUn(RL):
    """Minimise CE(B_f, random label) + CE(B_r) over the `ratio` of all coordinates with the largest forget gradient.

    All other coordinates keep their value bit for bit; the scales are frozen too (our choice), so that their integer
    codes stay.
    """

    name: ClassVar[str] = "salun"
    source: ClassVar[str] = "Fan et al. 2024 (arXiv 2310.12508); frozen scales and ties by index are our own choice"

    ratio: float = hyper(0.5, low=0, high=1, low_open=True, search=(0.1, 1.0), doc="share of coordinates that may move")

    def problems(self) -> list[str]:
        """Besides the ranges: scales must stay frozen."""
        wrong = ["train_scales would move the codes of masked weights"] if self.train_scales else []
        return super().problems() + wrong

    def plan(self, ctx: Context) -> Plan:
        """Random labels, with everything outside the mask restored after each step."""
        masks = top_share(saliency(ctx, self.batch_size), self.ratio)
        ctx.fields["mask_share"] = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
        return replace(super().plan(ctx), after=holder(ctx, masks))
