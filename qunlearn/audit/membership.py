"""Attacks beside SMI, each with the share it implies: loss threshold, LiRA, RMIA, and LiRA on unlearned shadows.

Every attack gives a member score a(x). A_ab is the AUC of a for set a against set b; AUC is linear in a mixture, so
that under F_u = pi F_n + (1 - pi) F_m every score has its own estimate pi = (A_mn - A_un) / (A_mn - 1/2) [our algebra].
An AUC of u below 1/2 gives pi > 1: over-forgotten, not a success. Sets and class weights are those of SMI.

Sources: loss arXiv 1709.01604; LiRA arXiv 2112.03570; RMIA arXiv 2312.03262; shadows that are trained and unlearned
arXiv 2403.01218. Our choices: how shadow models share out the samples (reference.py); one variance for all samples
below 16 models a side; p_y clipped to 1e-7 from 0 and 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qunlearn.audit import intervals, matching, mixture, scores
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.intervals import Estimate
from qunlearn.audit.kernels_mmd import Float, resampled
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.reference import Shadow, ShadowPool
from qunlearn.audit.smi_sets import AuditSets, audit_sets
from qunlearn.audit.verdict import Measurement
from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError, DataError
from qunlearn.hyper import hyper

CLIP = 1e-7
POWER = 0.02
SHARED_BELOW = 16
FPR, FPR_MIN_N = 0.01, 1000


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Scores of the three sets (higher: more like a member) and what follows: ``pi``, its ``resamples``, A_mn, A_un."""

    m: Float
    n: Float
    u: Float
    pi: float
    resamples: Float
    a_mn: float
    a_un: float
    power: float
    dropped: float


def attack(m: Float, n: Float, u: Float, sets: AuditSets, *, seed: int, bootstrap: int, level: float) -> Attack:
    """AUCs with class-matched weights, and with ``bootstrap`` resamples of all three sets inside each class.

    ``power`` is the lower end of A_mn - 1/2. The same seed and labels give the same resamples for every model.
    """
    labels = {"m": sets.m.targets(), "n": sets.n.targets(), "u": sets.u.targets()}
    x = matching.match(
        matching.Sets(m=m[:, None], n=n[:, None], u=u[:, None], y_m=labels["m"], y_n=labels["n"], y_u=labels["u"])
    )
    w = {}
    for i, s in enumerate("mnu"):
        base = x.weights(s)[:, None]
        drawn = resampled(x.classes[s], bootstrap, np.random.default_rng([seed, 51, i]))
        w[s] = np.hstack([base, base * drawn])
    if not x.points["m"].shape[1]:
        half = np.full(1 + bootstrap, 0.5)
        a_mn = a_un = half
    else:
        a_mn, a_un = (weighted_auc(x.points[a][:, 0], x.points["n"][:, 0], w[a], w["n"]) for a in "mu")
    with np.errstate(divide="ignore", invalid="ignore"):
        pi = (a_mn - a_un) / (a_mn - 0.5)
    return Attack(
        m=m, n=n, u=u, pi=float(pi[0]), resamples=pi[1:], a_mn=float(a_mn[0]), a_un=float(a_un[0]),
        power=mixture.quantiles(a_mn[1:], level)[0] - 0.5, dropped=x.dropped,
    )  # fmt: skip


def weighted_auc(a: Float, b: Float, w_a: Float, w_b: Float) -> Float:
    """[q]: weighted share of pairs with a > b, ties half, for scores [n_a], [n_b] and weights [n_a, q], [n_b, q]."""
    wins = (a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])
    out: Float = (w_a * (wins @ w_b)).sum(0)
    return out


@dataclass(frozen=True, kw_only=True)
class ScoreAudit(Audit):
    """Base of the attacks: subclasses give the score."""

    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "attack_share"
    higher_side: ClassVar[str] = "over"
    direction: ClassVar[str] = (
        "1 means that the attack sees the forget set as it sees never-trained data, 0 as it sees training data; the "
        "retrained model's share is the target. Above 1 the forget set stands out (over-forgotten)."
    )
    cannot: ClassVar[str] = (
        "One attack's score, averaged over the forget set: a stronger attack, or one aimed at single samples, may find "
        "more. With few shadow models it has little power."
    )

    tol: float = hyper(0.2, low=0, low_open=True, high=1, unit="share", doc="Equivalence margin around the reference.")
    bootstrap: int = hyper(200, low=100, high=10_000, unit="resamples", doc="Resamples of all three sets.")
    level: float = hyper(0.9, low=0.5, high=0.999, doc="The interval holds this share of the resamples, two-sided.")
    max_n: int = hyper(1000, low=50, high=100_000, unit="samples", doc="Most samples of a set.")

    @abstractmethod
    def score(self, ctx: AuditContext, predictor: Predictor, samples: Samples, sets: AuditSets) -> Float:
        """Member score float64 [n] of the samples; higher means more like a member."""

    def pool(self, ctx: AuditContext) -> ShadowPool | None:
        """The shadow models of this attack; None where it needs none."""
        return None

    def run(self, ctx: AuditContext) -> Measurement:
        """Attack before, after and reference on the same samples with the same resamples."""
        sets = audit_sets(ctx.splits, max_n=self.max_n, seed=ctx.seed)
        n = {"members": len(sets.m), "nonmembers": len(sets.n), "forget": len(sets.u)}
        pool = self.pool(ctx)
        try:
            found = {name: self._attack(ctx, p, sets) for name, p in ctx.predictors().items()}
        except DataError:
            return Measurement(value=None, gates=("I-SMI-CLASSES",), n=n, metrics={})
        gates = [
            "I-ATTACK-NO-POWER" if name == "after" else f"I-ATTACK-NO-POWER: {name}"
            for name in ("after", "reference")
            if name in found and (found[name].power <= POWER or not math.isfinite(found[name].pi))
        ]
        gates += ["I-SMI-CLASSES"] if found["after"].dropped > 0.1 else []
        values = {name: self._interval(a.pi, a.resamples) for name, a in found.items()}
        delta = None
        if "reference" in found:
            one, two = found["after"], found["reference"]
            delta = self._interval(one.pi - two.pi, one.resamples - two.resamples)
        return Measurement(
            value=values["after"],
            before=found["before"].pi if values["before"] is not None else None,
            reference=values.get("reference"),
            delta=delta,
            gates=tuple(gates),
            n=n,
            metrics=_metrics(found, values, delta),
            tables={
                "attack": {
                    **{name: {"a_mn": a.a_mn, "a_un": a.a_un, "power": a.power} for name, a in found.items()},
                    "models_trained": 0 if pool is None else pool.trainings,
                    "models_unlearned": 0 if pool is None else pool.unlearnings,
                    "pool": None if pool is None else pool.recipe,
                    **self.more(ctx, sets),
                }
            },
            timings={} if pool is None else {"training_s": pool.seconds},
        )

    def more(self, ctx: AuditContext, sets: AuditSets) -> dict[str, Any]:
        """What else the attack tells, for its table."""
        return {}

    def _attack(self, ctx: AuditContext, predictor: Predictor, sets: AuditSets) -> Attack:
        m, n, u = (self.score(ctx, predictor, s, sets) for s in (sets.m, sets.n, sets.u))
        return attack(m, n, u, sets, seed=ctx.seed, bootstrap=self.bootstrap, level=self.level)

    def _interval(self, value: float, resamples: Float) -> Estimate | None:
        if not math.isfinite(value):
            return None
        low, high = mixture.quantiles(resamples, self.level)
        return Estimate(
            value=value,
            lo=min(value, low) if math.isfinite(low) else value,
            hi=max(value, high) if math.isfinite(high) else value,
            level=self.level,
            method="percentile bootstrap of all three sets",
            n=self.bootstrap,
        )


def _metrics(found: Mapping[str, Attack], values: Mapping[str, Estimate | None], delta: Estimate | None) -> Any:
    shares = {name: v for name, v in {**values, "delta": delta}.items() if v is not None}
    out: dict[str, Any] = {"attack_share": {"forget": intervals.row(**shares)}} if shares else {}
    if min(len(a.n) for a in found.values()) >= FPR_MIN_N:
        out["tpr_at_fpr"] = {
            "forget, nonmembers": intervals.row(
                **{k: intervals.share(scores.tpr_at_fpr(a.u, a.n, FPR)) for k, a in found.items()}
            )
        }
    return out


def log_odds(logits: Any, y: Any) -> Float:
    """log(p_y / (1 - p_y)) float64 [n], p_y clipped to 1e-7 from 0 and 1."""
    p = np.clip(scores.confidence(logits, y), CLIP, 1 - CLIP)
    out: Float = np.log(p) - np.log1p(-p)
    return out


def needed(ctx: AuditContext, name: str, *, cross_kind: bool, key: str = "shadows") -> tuple[ShadowPool, str]:
    """The pool in ``ctx.inputs`` and the artefact kind to read it as; ConfigError without one, or of another kind."""
    pool = ctx.inputs.get(key)
    if not isinstance(pool, ShadowPool):
        raise ConfigError(
            f"audit {name!r} needs shadow models.",
            remedy=f"qunlearn audit RUN --audit {name} trains them; in Python pass {key!r} in inputs.",
        )
    if (pool.data, pool.seed) != (ctx.splits.digest(), ctx.seed):
        raise ConfigError(
            "the shadow models were made for other splits or another seed.", remedy="Make them anew for this audit."
        )
    if ctx.kind in pool.kinds:
        return pool, ctx.kind
    if cross_kind and pool.kinds:
        return pool, pool.kinds[0]
    raise ConfigError(
        f"the shadow models are {', '.join(pool.kinds)}, the target is {ctx.kind}.",
        remedy="That is a different attack: make them alike, or set cross_kind=true.",
    )


def tables(pool: ShadowPool, kind: str, samples: Samples) -> list[tuple[Shadow, Any]]:
    """Every shadow model with its logits [n, C] on the samples."""
    return [(s, s.logits[kind][samples.index]) for s in pool.shadows]
