"""Recovery: can a fresh head on the frozen features bring back what was forgotten?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import intervals
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.layers import PENULTIMATE, channels_of, chosen, features, shows
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.scores import log_softmax
from qunlearn.audit.sets import pick
from qunlearn.audit.trainer import Budget, trainer_of
from qunlearn.audit.verdict import Measurement
from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.hyper import hyper

LOGITS = "logits"
NEIGHBOURS = 5
ADAM = (0.9, 0.999, 1e-8)
FEWEST = 20
Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProbeSets:
    """``shots``: few forgotten and many retained training samples; ``judged``: never-trained samples of the forgotten
    kind, or for requests that have none, forget samples that are not among the shots."""

    shots: Samples
    judged: Samples


def probe_sets(splits: Splits, *, shots: int, retained: int, seed: int) -> ProbeSets:
    """Seeded: ``shots`` forget samples a class and up to ``retained`` retain samples; shots and judged share none."""
    rng = np.random.default_rng([seed, 51])
    y = splits.forget.targets()
    few = np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == c))[:shots] for c in np.unique(y)]))
    rest = np.setdiff1d(np.arange(len(y)), few)
    kept = np.sort(rng.permutation(len(splits.retain))[:retained])
    index = np.concatenate([splits.forget.index[few], splits.retain.index[kept]])
    beside = [s for s in (pick(splits, "forget_heldout"), pick(splits, "forget_test")) if s is not None]
    judged = np.concatenate([s.index for s in beside]) if beside else splits.forget.index[rest]
    return ProbeSets(shots=Samples(splits.dataset, index), judged=Samples(splits.dataset, np.sort(judged)))


def fit_head(x: Float, y: NDArray[np.int64], classes: int, *, seed: int, epochs: int, lr: float, batch: int) -> Float:
    """Weights [d + 1, C] of a softmax head on features [n, d], by Adam from a random start; the last step is taken."""
    rng = np.random.default_rng([seed, 52])
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    w = rng.normal(0, 1 / np.sqrt(x.shape[1]), (x.shape[1], classes))
    first, second, t = np.zeros_like(w), np.zeros_like(w), 0
    b1, b2, eps = ADAM
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            p = np.exp(log_softmax(x[rows] @ w))
            p[np.arange(len(rows)), y[rows]] -= 1
            g = x[rows].T @ p / len(rows)
            t += 1
            first = b1 * first + (1 - b1) * g
            second = b2 * second + (1 - b2) * g * g
            w -= lr * (first / (1 - b1**t)) / (np.sqrt(second / (1 - b2**t)) + eps)
    return w


def nearest(x: Float, y: NDArray[np.int64], q: Float, classes: int) -> NDArray[np.int64]:
    """Class of each query [m, d] by 5 nearest neighbours in cosine similarity; ties go to the lower class."""
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (x, q)]
    order = np.argsort(-(unit[1] @ unit[0].T), axis=1, kind="stable")[:, :NEIGHBOURS]
    votes = np.stack([np.bincount(row, minlength=classes) for row in y[order]])
    out: NDArray[np.int64] = votes.argmax(1)
    return out


def _read(
    predictor: Predictor, samples: Samples, names: tuple[str, ...], pooled: Mapping[str, int]
) -> Mapping[str, NDArray[np.float32]]:
    """The named features, or the logits of a predictor that shows none."""
    return {LOGITS: predictor.on(samples)} if names == (LOGITS,) else features(predictor, samples, names, pooled)


@dataclass(frozen=True, kw_only=True)
class Recovery(Audit):
    """Accuracy on the forgotten kind of a new linear head on frozen features, against the same probe of the retrained.

    The head is trained on a few forgotten and many retained samples and judged among all classes. The retrained
    network's features recover some of it too: its value is the target, not 0. Beside it: nearest neighbours, earlier
    layers averaged over space and, given a trainer, the network's own head retrained, all of it fine-tuned, and the
    same probe on random features, the other end of the scale.
    """

    name: ClassVar[str] = "recovery"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "recovery_accuracy"
    higher_side: ClassVar[str] = "under"
    sets: ClassVar[tuple[str, ...]] = ("forget", "retain")
    direction: ClassVar[str] = (
        "The retrained model's probe is the target: above it the features kept what the answers hide "
        "(under-forgotten), below it they were damaged further than never having seen the data does."
    )
    cannot: ClassVar[str] = (
        "These probes, with this many samples, recovered so much; a probe with more samples, or a deeper one, may "
        "recover more."
    )

    layer: str = hyper(PENULTIMATE, doc="Features of the probe that decides; others are in the table.")
    stages: bool = hyper(True, doc="Also probe the layers before, for the table.")
    shots: int = hyper(20, low=1, high=10_000, unit="samples a class", doc="Forgotten training samples of the probe.")
    retained: int = hyper(800, low=10, high=100_000, unit="samples", doc="Retained training samples of the probe.")
    epochs: int = hyper(40, low=1, high=10_000, unit="epochs", doc="Training of the head.")
    lr: float = hyper(0.01, low=0, low_open=True, high=1, doc="Learning rate of Adam.")
    batch: int = hyper(64, low=1, high=100_000, unit="samples", doc="Batch of the head's training.")
    steps: int = hyper(10, low=1, high=10_000, unit="steps", doc="Steps of all parameters (table; at a tenth of lr).")
    heads: int = hyper(3, low=1, high=100, unit="heads", doc="Heads from different starts; their mean counts.")

    def run(self, ctx: AuditContext) -> Measurement:
        """Probe every model on the same samples; hits are averaged over heads, sample by sample."""
        sets = probe_sets(ctx.splits, shots=self.shots, retained=self.retained, seed=ctx.seed)
        names = tuple(dict.fromkeys([self.layer, *(chosen(ctx.before, "") if self.stages else ())]))
        reads = self.layer if shows(ctx.before) else LOGITS
        names = names if shows(ctx.before) else (LOGITS,)
        pooled = channels_of(ctx.before, names)
        linear: dict[str, dict[str, Float]] = {}
        neighbours: dict[str, Float] = {}
        for who, p in ctx.predictors().items():
            shots, judged = (_read(p, s, names, pooled) for s in (sets.shots, sets.judged))
            linear[who] = {n: self._hits(shots[n], judged[n], sets, ctx.seed) for n in names}
            found = nearest(
                shots[reads].astype(float), sets.shots.targets(), judged[reads].astype(float),
                sets.shots.num_classes,
            )  # fmt: skip
            neighbours[who] = (found == sets.judged.targets()).astype(float)
        hits = {who: rows[reads] for who, rows in linear.items()}
        trained = self._trained(ctx, sets)
        random = self._random(ctx, sets, reads)
        value = intervals.mean(hits["after"])
        reference = intervals.mean(hits["reference"]) if "reference" in hits else None
        delta = intervals.mean(hits["after"] - hits["reference"]) if "reference" in hits else None
        return Measurement(
            value=value,
            before=float(hits["before"].mean()),
            reference=reference,
            delta=delta,
            warnings=() if shows(ctx.before) else ("W-NO-FEATURES",),
            gates=() if len(sets.judged) >= FEWEST else ("I-RECOVERY-FEW",),
            n={"shots": len(sets.shots), "judged": len(sets.judged)},
            metrics={
                "recovery_accuracy": {"forgotten": intervals.row(**{w: intervals.mean(h) for w, h in hits.items()})},
                "recovery_neighbours": {
                    "forgotten": intervals.row(**{w: intervals.mean(h) for w, h in neighbours.items()})
                },
                **(
                    {}
                    if random is None
                    else {"recovery_random": {"forgotten": intervals.row(before=intervals.mean(random))}}
                ),
                **{
                    f"recovery_{kind}": {"forgotten": intervals.row(**{w: intervals.mean(h) for w, h in by.items()})}
                    for kind, by in trained.items()
                },
            },
            tables={
                "trained": sorted(trained),
                "order": list(names),
                "layers": {n: {who: float(rows[n].mean()) for who, rows in linear.items()} for n in names},
            },
        )

    def _trained(self, ctx: AuditContext, sets: ProbeSets) -> dict[str, dict[str, Float]]:
        """Right answers [m] of the network with its own head drawn anew and retrained on the shots (``head``), and
        after ``steps`` steps of all parameters (``finetune``); empty where there is no trainer."""
        trainer = trainer_of(ctx.inputs, ctx.predictors())
        if trainer is None:
            return {}
        whole = self.epochs * max(1, round(len(sets.shots) / self.batch))
        head = Budget(
            steps=whole, every=whole, lr=self.lr, batch=self.batch, seed=ctx.seed, part="head", fresh=True
        )  # fmt: skip
        tuned = replace(head, steps=self.steps, every=self.steps, lr=self.lr / 10, part="all", fresh=False)
        budgets = {"head": head, "finetune": tuned}
        return {
            kind: {who: trainer.curve(p, sets.shots, sets.judged, b)[-1].astype(float)
                   for who, p in ctx.predictors().items()}
            for kind, b in budgets.items()
        }  # fmt: skip

    def _random(self, ctx: AuditContext, sets: ProbeSets, layer: str) -> Float | None:
        """Hits [m] of the same probe on the original with shuffled weights: features that never learnt. None without a
        trainer, or where its network shows no such layer."""
        trainer = trainer_of(ctx.inputs, ctx.predictors())
        if trainer is None:
            return None
        p = trainer.shuffled(ctx.before, ctx.seed)
        if layer != LOGITS and not shows(p):
            return None
        pooled = channels_of(p, (layer,))
        shots, judged = (_read(p, s, (layer,), pooled)[layer] for s in (sets.shots, sets.judged))
        return self._hits(shots, judged, sets, ctx.seed)

    def _hits(self, shots: NDArray[np.float32], judged: NDArray[np.float32], sets: ProbeSets, seed: int) -> Float:
        """Share of heads that are right on each judged sample [m]; features are standardised by the shots."""
        center, spread = shots.mean(0), np.maximum(shots.std(0), 1e-6)
        x, q = ((v - center) / spread for v in (shots.astype(float), judged.astype(float)))
        q = np.concatenate([q, np.ones((len(q), 1))], axis=1)
        right = []
        for head in range(self.heads):
            w = fit_head(
                x, sets.shots.targets(), sets.shots.num_classes, seed=seed * 1000 + head, epochs=self.epochs,
                lr=self.lr, batch=self.batch,
            )  # fmt: skip
            right.append((q @ w).argmax(1) == sets.judged.targets())
        out: Float = np.mean(right, axis=0)
        return out
