"""Relearning: does a little harmless training bring the forgotten back faster than a retrained model learns it?

The protocol of the benign relearning audit (Yoon et al., arXiv 2602.03379: fixed budget of optimizer steps, scored
during training, arms of equal size), for classifiers, with arms as sample sets. Our own: the arms of a classifier, that
half of every arm's training set is retained data, and that one value is judged by the two-sided rule in every arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import intervals, paired, scores
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.sets import pick
from qunlearn.audit.trainer import Budget, trainer_of
from qunlearn.audit.verdict import PASS, Judgement, Measurement, fail, inconclusive
from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.hyper import hyper

ARMS = ("same_fact", "topical", "random")
FEWEST = 8
HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class RelearnSets:
    """Training sets of equal size by arm, the arms that this request has no samples for, and what is scored."""

    arms: Mapping[str, Samples]
    absent: tuple[str, ...]
    judged: Samples


def relearn_sets(splits: Splits, *, n_items: int, judged: int, seed: int) -> RelearnSets:
    """Seeded. Half of the forget set is for ``same_fact``, the other half is scored in every arm.

    ``topical``: never-trained samples of the forgotten class or group; where none was forgotten as a whole, retain
    samples of the forgotten samples' classes. ``random``: retain samples. Every arm has the same number of its own and
    of further retain samples.
    """
    rng = np.random.default_rng([seed, 73])
    order = rng.permutation(len(splits.forget))
    cut = len(order) // 2
    own, scored = splits.forget.take(np.sort(order[:cut])), splits.forget.take(np.sort(order[cut:][:judged]))
    beside = [s.index for s in (pick(splits, "forget_heldout"), pick(splits, "forget_test")) if s is not None]
    alike = splits.retain.index[np.isin(splits.retain.targets(), splits.forget.targets())]
    pools = {
        "same_fact": own.index,
        "topical": np.concatenate(beside) if beside else alike,
        "random": splits.retain.index,
    }
    found = {name: rng.permutation(pools[name]) for name in ARMS}
    present = {name: rows for name, rows in found.items() if len(rows) >= FEWEST}
    n = min([n_items, *(len(rows) for rows in present.values())])
    company = rng.permutation(splits.retain.index)[:n]
    arms = {
        name: Samples(splits.dataset, np.sort(np.unique(np.concatenate([rows[:n], company]))))
        for name, rows in present.items()
    }
    return RelearnSets(arms=arms, absent=tuple(a for a in ARMS if a not in present), judged=scored)


@dataclass(frozen=True, kw_only=True)
class Relearn(Audit):
    """Most forgotten answers that return within a few training steps, against the same training of the retrained model.

    Every arm is judged: samples of the forget set itself, related ones, and retained ones. Needs a trainer and a
    network with the audited integer codes.
    """

    name: ClassVar[str] = "relearn"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "relearn_accuracy"
    higher_side: ClassVar[str] = "under"
    sets: ClassVar[tuple[str, ...]] = ("forget", "retain")
    direction: ClassVar[str] = (
        "The retrained model's value under the same training is the target: above it the knowledge was only hidden "
        "(under-forgotten), below it the model can no longer learn what the retrained one learns (over-forgotten)."
    )
    cannot: ClassVar[str] = (
        "It covers these arms, this budget and this optimizer. Longer training, other data or another learning rate "
        "may bring back more."
    )

    steps: int = hyper(16, low=1, high=500, unit="steps", doc="Budget S of optimizer steps (AdamW).")
    eval_every: int = hyper(4, low=1, high=500, unit="steps", doc="Steps between two scores.")
    lr: float = hyper(5e-4, low=0, low_open=True, high=1, doc="Learning rate.")
    batch: int = hyper(32, low=1, high=100_000, unit="samples", doc="Batch size.")
    n_items: int = hyper(
        64, low=FEWEST, high=100_000, unit="samples", doc="Most samples of an arm; all arms have as many."
    )
    judged: int = hyper(96, low=FEWEST, high=100_000, unit="samples", doc="Most forget samples that are scored.")
    seeds: int = hyper(3, low=1, high=100, unit="seeds", doc="Orders of training; their mean counts.")
    statistic: str = hyper("max", choices=("max", "area"), doc="max over the budget, or mean over the scored steps.")
    resamples: int = hyper(1000, low=100, high=100_000, unit="resamples", doc="Resamples of the interval.")

    def run(self, ctx: AuditContext) -> Measurement:
        """Score before any training; then train every model in every arm, the original with one seed."""
        sets = relearn_sets(ctx.splits, n_items=self.n_items, judged=self.judged, seed=ctx.seed)
        y = sets.judged.targets()
        start = {who: scores.correct(p.on(sets.judged), y) for who, p in ctx.predictors().items()}
        first = intervals.share(start["after"])
        reference = intervals.share(start["reference"]) if "reference" in start else None
        delta = intervals.share_difference(start["after"], start["reference"]) if "reference" in start else None
        trainer = trainer_of(ctx.inputs, ctx.predictors())
        tables: dict[str, Any] = {
            "start": {who: float(h.mean()) for who, h in start.items()},
            "absent": list(sets.absent),
            "arms": {},
        }
        n = {"scored": len(y), **{f"arm {a}": len(s) for a, s in sets.arms.items()}}
        gates = () if trainer is not None else ("I-NOT-TRAINABLE",)
        if not sets.arms or len(y) < FEWEST:
            gates = (*gates, "I-RELEARN-ARMS")
        value = first
        hidden = delta is None or delta.lo <= self.tol
        tables["precondition"] = {"not_forgotten": not hidden, "gates": list(gates)}
        if hidden and trainer is not None and not gates:
            worst: float = -1.0
            for arm, samples in sets.arms.items():
                curves = {who: self._hits(trainer, p, samples, sets.judged, who, ctx.seed) for who, p in
                          ctx.predictors().items()}  # fmt: skip
                v, r, d = paired.curves(
                    curves["after"], curves.get("reference"), kind=self.statistic, resamples=self.resamples,
                    seed=ctx.seed,
                )  # fmt: skip
                tables["arms"][arm] = self._row(curves, v, r, d)
                away = v.value if d is None else max(abs(d.lo), abs(d.hi))
                if away > worst:
                    worst, value, reference, delta = away, v, r, d
        return Measurement(
            value=value,
            before=float(start["before"].mean()),
            reference=reference,
            delta=delta,
            gates=gates if hidden else (),
            n=n,
            metrics={
                "relearn_accuracy": {
                    arm: {k: row[k] for k in ("after", "reference", "delta")} for arm, row in tables["arms"].items()
                }
                or {"before training": intervals.row(after=first, reference=reference)}
            },
            tables=tables,
        )

    def judge(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """fail: in any arm the interval lies outside; pass: in all arms inside, and one of them could tell."""
        if m.tables["precondition"]["not_forgotten"]:
            return fail("under", "F-UNDER", "F-NOT-FORGOTTEN")
        if m.gates or ctx.reference is None:
            return super().judge(m, ctx)
        rows = m.tables["arms"].values()
        deltas = [row["delta"] for row in rows]
        if any(d["lo"] > self.tol for d in deltas):
            return fail("under", "F-UNDER")
        if any(d["hi"] < -self.tol for d in deltas):
            return fail("over", "F-OVER")
        if any(d["hi"] > self.tol or d["lo"] < -self.tol for d in deltas):
            return inconclusive("I-INTERVAL")
        return PASS if any(row["signal"] > self.tol for row in rows) else inconclusive("I-NO-SIGNAL")

    def _hits(
        self, trainer: Any, predictor: Any, samples: Samples, judged: Samples, who: str, seed: int
    ) -> NDArray[np.bool_]:
        """Right answers [seeds, steps, n]; the original is trained with the first seed alone."""
        rows = [
            trainer.curve(
                predictor, samples, judged,
                Budget(steps=self.steps, every=self.eval_every, lr=self.lr, batch=self.batch, seed=seed * 1000 + s),
            )
            for s in range(1 if who == "before" else self.seeds)
        ]  # fmt: skip
        return np.stack(rows)

    def _row(self, curves: Mapping[str, NDArray[np.bool_]], v: Any, r: Any, d: Any) -> dict[str, Any]:
        scored = Budget(steps=self.steps, every=self.eval_every, lr=self.lr, batch=self.batch, seed=0).scored
        means = {who: c.mean((0, 2)) for who, c in curves.items()}
        best = {who: float(paired.statistic(c.mean(2), self.statistic).mean()) for who, c in curves.items()}
        return {
            **intervals.row(after=v, reference=r, delta=d),
            "steps": list(scored),
            "curves": {who: [float(x) for x in c] for who, c in means.items()},
            "best": {who: float(c.mean(2).max(1).mean()) for who, c in curves.items()},
            "area": {who: float(c.mean()) for who, c in curves.items()},
            "s50": {who: next((s for s, x in zip(scored, c, strict=True) if x >= HALF), None) for who, c in
                    means.items()},
            "signal": best["before"] - best["reference"] if "reference" in best else 0.0,
        }  # fmt: skip
