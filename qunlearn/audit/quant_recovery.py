"""Fewer bits and back: does forgotten knowledge return when the weights are quantized more coarsely?

Small updates can hide inside the rounding cells of a coarser grid, where quantizing undoes them. Our own: the form for
classifiers. Every weight goes to b bits, per output channel, and back onto the network's own grid; knowledge is a right
answer on the forget set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import intervals, paired, scores, utility
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import need
from qunlearn.audit.trainer import Coarse, trainer_of
from qunlearn.audit.verdict import PASS, Judgement, Measurement, fail, inconclusive
from qunlearn.errors import ConfigError
from qunlearn.hyper import hyper

LEAST_LOST = 0.05
BROKEN = 0.10
"""Largest drop of accuracy at which a width still says something (the utility floor of language models, 0.9)."""


@dataclass(frozen=True, kw_only=True)
class QuantRecovery(Audit):
    """Forgotten answers that return on fewer weight bits, beyond what the retrained model gains by the same.

    The value is that of the width with the largest gain. Needs a trainer and a network with the audited integer codes.
    """

    name: ClassVar[str] = "quant_recovery"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "quant_recovery"
    higher_side: ClassVar[str] = "under"
    sets: ClassVar[tuple[str, ...]] = ("forget", "retain")
    direction: ClassVar[str] = (
        "What the retrained model gains is the target, about 0: above it quantizing brings forgotten answers back "
        "(under-forgotten); answers that fall below the coarse retrained model's are over-forgotten."
    )
    cannot: ClassVar[str] = (
        "It covers plain rounding of weights to these widths. Other quantizers, pruning or distillation may bring "
        "back more."
    )

    bits: str = hyper("6,5,4", doc="Widths, comma-separated, each in 2..7.")
    resamples: int = hyper(2000, low=100, high=100_000, unit="resamples", doc="Resamples of the interval.")

    def validate(self) -> list[str]:
        """Widths must be whole numbers in 2..7."""
        try:
            self.widths()
        except ConfigError as err:
            return [err.message.rstrip(".")]
        return []

    def widths(self) -> tuple[int, ...]:
        """The widths, in the order given."""
        parts = [p.strip() for p in self.bits.split(",")]
        if not all(p in ("2", "3", "4", "5", "6", "7") for p in parts):
            raise ConfigError(f"bits {self.bits!r} are not widths in 2..7.", remedy="Give for example 6,5,4.")
        return tuple(dict.fromkeys(int(p) for p in parts))

    def run(self, ctx: AuditContext) -> Measurement:
        """Right answers on the forget set of every model at every width, and how many codes are the original's."""
        forget = need(ctx.splits, "forget")
        y = forget.targets()
        hits = {who: scores.correct(p.on(forget), y).astype(float) for who, p in ctx.predictors().items()}
        trainer = trainer_of(ctx.inputs, ctx.predictors())
        excess = intervals.share_difference(hits["after"] > 0, hits["reference"] > 0) if "reference" in hits else None
        side = "" if excess is None else "under" if excess.lo > self.tol else "over" if excess.hi < -self.tol else ""
        gates = () if trainer is not None else ("I-NOT-TRAINABLE",)
        rows: dict[str, dict[str, Any]] = {}
        if trainer is not None and not side:
            for bits in self.widths():
                coarse = {who: trainer.coarse(p, bits) for who, p in ctx.predictors().items()}
                rows[f"{bits} bits"] = self._row(ctx, coarse, hits, y)
            if not any(row["usable"] for row in rows.values()):
                gates = ("I-QUANT-NONE",)
        usable = {k: row for k, row in rows.items() if row["usable"]}
        top = max(usable.values(), key=lambda row: float(row["delta"].hi), default=None)
        none = intervals.mean(np.zeros(len(y)))
        gained = none if top is None else top["gain"]
        reference = (none if top is None else top["reference"]) if "reference" in hits else None
        delta = (excess if top is None else top["delta"]) if "reference" in hits else None
        return Measurement(
            value=gained,
            before=float(hits["before"].mean() - hits["after"].mean()),
            reference=reference,
            delta=delta,
            gates=() if side else gates,
            n={"forget": len(y)},
            metrics={
                "quant_recovery": {k: intervals.row(after=r["gain"], reference=r["reference"], delta=r["delta"])
                                   for k, r in rows.items()}
                or {"no width": intervals.row(after=None)}
            },
            tables={
                "widths": {k: {n: v for n, v in r.items() if not isinstance(v, intervals.Estimate)}
                           for k, r in rows.items()},
                "full": {who: float(h.mean()) for who, h in hits.items()},
                "precondition": side or None,
            },
        )  # fmt: skip

    def judge(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """The precondition first; then fail if any width brings too much back, or gives the original's codes."""
        side = m.tables["precondition"]
        if side:
            return fail(side, "F-UNDER", "F-NOT-FORGOTTEN") if side == "under" else fail("over", "F-OVER")
        rows = m.tables["widths"]
        same = [k for k, r in rows.items() if r["same"]]
        if not m.gates and same:
            return fail("under", *(f"F-QUANT-SAME: {k}" for k in same))
        if m.gates or ctx.reference is None:
            return super().judge(m, ctx)
        found = [r for k, r in m.metrics["quant_recovery"].items() if rows[k]["usable"]]
        if any(r["delta"]["lo"] > self.tol for r in found):
            return fail("under", "F-UNDER")
        if any(r["below"] for r in rows.values() if r["usable"]):
            return fail("over", "F-OVER")
        if any(r["delta"]["hi"] > self.tol for r in found) or not all(
            r["useful"] for r in rows.values() if r["usable"]
        ):
            return inconclusive("I-INTERVAL")
        return PASS if m.before is not None and m.before > self.tol else inconclusive("I-NO-SIGNAL")

    def _row(
        self, ctx: AuditContext, coarse: dict[str, Coarse], full: dict[str, NDArray[np.float64]], y: NDArray[np.int64]
    ) -> dict[str, Any]:
        forget = need(ctx.splits, "forget")
        low = {who: scores.correct(c.predictor.on(forget), y).astype(float) for who, c in coarse.items()}
        gains = {who: low[who] - full[who] for who in low}
        beyond = gains["after"] - gains.get("reference", 0.0)
        ours, theirs = coarse["after"].codes, coarse["before"].codes
        alike = {layer: float((ours[layer] == theirs[layer]).mean()) for layer in ours}
        total = sum(c.size for c in ours.values())
        lost = max(float(low["before"].mean() - full["after"].mean()), LEAST_LOST)
        below = False
        if "reference" in low:
            below = intervals.share_difference(low["after"] > 0, low["reference"] > 0).hi < -self.tol
        return {
            "gain": paired.mean(gains["after"], resamples=self.resamples, seed=ctx.seed),
            "reference": paired.mean(gains["reference"], resamples=self.resamples, seed=ctx.seed)
            if "reference" in gains
            else None,
            "delta": paired.mean(beyond, resamples=self.resamples, seed=ctx.seed),
            "accuracy": {who: float(h.mean()) for who, h in low.items()},
            "right": {who: int(h.sum()) for who, h in low.items()},
            "rho": float(np.clip((low["after"].mean() - full["after"].mean()) / lost, -1, 1)),
            "overlap": sum(alike[layer] * ours[layer].size for layer in ours) / total,
            "overlap_by_layer": alike,
            "same": all(share == 1 for share in alike.values()),
            "usable": self._useful(ctx.before, coarse["before"].predictor, ctx),
            "useful": self._useful(ctx.after, coarse["after"].predictor, ctx),
            "below": below,
        }

    def _useful(self, before: Predictor, after: Predictor, ctx: AuditContext) -> bool:
        """Whether retained and held-out accuracy are still within ten points: at too few bits any network breaks."""
        for name in ("retain", utility.HELDOUT):
            samples = need(ctx.splits, name)
            y = samples.targets()
            drop = scores.correct(before.on(samples), y).mean() - scores.correct(after.on(samples), y).mean()
            if drop > BROKEN:
                return False
        return True
