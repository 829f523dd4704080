"""The four attacks of :mod:`qunlearn.audit.membership`: their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import scores
from qunlearn.audit.base import AuditContext
from qunlearn.audit.kernels_mmd import Float
from qunlearn.audit.membership import SHARED_BELOW, ScoreAudit, log_odds, needed, tables
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.reference import ShadowPool
from qunlearn.audit.smi_sets import AuditSets
from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError
from qunlearn.hyper import hyper

_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Loss(ScoreAudit):
    """The share that the loss alone implies: a sample of low loss looks like a member."""

    name: ClassVar[str] = "loss"

    def score(self, ctx: AuditContext, predictor: Predictor, samples: Samples, sets: AuditSets) -> Float:
        """log p_y."""
        return scores.log_likelihood(predictor.on(samples), samples.targets())

    def more(self, ctx: AuditContext, sets: AuditSets) -> dict[str, Any]:
        """The threshold rule: a sample whose loss lies below the members' mean is called a member."""
        out = {}
        for name, predictor in ctx.predictors().items():
            threshold = float(self.score(ctx, predictor, sets.m, sets).mean())
            called = {s: self.score(ctx, predictor, getattr(sets, s), sets) > threshold for s in "mnu"}
            out[name] = {s: float(c.mean()) for s, c in called.items()}
        return {"called_member": out}


@dataclass(frozen=True, kw_only=True)
class ShadowAudit(ScoreAudit):
    """Base of the attacks with shadow models."""

    key: ClassVar[str] = "shadows"

    cross_kind: bool = hyper(
        False, doc="Accept shadow models of another artefact kind than the target's: a different attack."
    )

    def pool(self, ctx: AuditContext) -> ShadowPool | None:
        """The pool in ``ctx.inputs``."""
        return needed(ctx, self.name, cross_kind=self.cross_kind, key=self.key)[0]

    def read(self, ctx: AuditContext, samples: Samples) -> tuple[NDArray[np.bool_], list[Any]]:
        """Which shadow saw which sample, bool [K, n], and the shadows' logits on the samples."""
        pool, kind = needed(ctx, self.name, cross_kind=self.cross_kind, key=self.key)
        found = tables(pool, kind, samples)
        return np.stack([s.seen[samples.index] for s, _ in found]), [z for _, z in found]


def gaussian(z: Float, chosen: NDArray[np.bool_]) -> tuple[Float, Float]:
    """Mean and standard deviation [n] of ``z`` [K, n] over the chosen models of every sample.

    One deviation for all samples where any sample has fewer than 16 models. A sample without a model is a ConfigError.
    """
    count = chosen.sum(0)
    if (count == 0).any():
        raise ConfigError("some samples have no shadow model on one side.", remedy="Use at least 2 shadow models.")
    mean = np.where(chosen, z, 0).sum(0) / count
    square = np.where(chosen, (z - mean) ** 2, 0).sum(0)
    if count.min() >= SHARED_BELOW:
        return mean, np.maximum(np.sqrt(square / (count - 1)), _FLOOR)
    freedom = max(1, int((count - 1).sum()))
    return mean, np.full(len(mean), max(float(np.sqrt(square.sum() / freedom)), _FLOOR))


def normal_log(z: Float, mean: Float, sd: Float) -> Float:
    """log N(z; mean, sd) without its constant."""
    out: Float = -0.5 * ((z - mean) / sd) ** 2 - np.log(sd)
    return out


@dataclass(frozen=True, kw_only=True)
class Lira(ShadowAudit):
    """The share that LiRA implies: shadow models that saw a sample against those that did not, one by one."""

    name: ClassVar[str] = "lira"

    mode: str = hyper(
        "online", choices=("online", "offline"), doc="online: both sides; offline: only models that did not see it."
    )

    def score(self, ctx: AuditContext, predictor: Predictor, samples: Samples, sets: AuditSets) -> Float:
        """Log likelihood ratio of the target's log odds; offline: its standard score, which orders as Phi of it."""
        seen, logits = self.read(ctx, samples)
        y = samples.targets()
        z, shadows = log_odds(predictor.on(samples), y), np.stack([log_odds(s, y) for s in logits])
        out = gaussian(shadows, ~seen)
        if self.mode == "offline":
            score: Float = (z - out[0]) / out[1]
            return score
        return normal_log(z, *gaussian(shadows, seen)) - normal_log(z, *out)


@dataclass(frozen=True, kw_only=True)
class ULira(Lira):
    """LiRA whose shadow models unlearned what they had seen of the forget set and non-members, by the same method."""

    name: ClassVar[str] = "u_lira"
    key: ClassVar[str] = "unlearned_shadows"


@dataclass(frozen=True, kw_only=True)
class Rmia(ShadowAudit):
    """The share that RMIA implies: how often a sample's likelihood ratio beats that of a population sample."""

    name: ClassVar[str] = "rmia"

    a: float = hyper(0.3, low=0, high=1, doc="Weight of the models that did not see a sample in its prior P(x).")

    def score(self, ctx: AuditContext, predictor: Predictor, samples: Samples, sets: AuditSets) -> Float:
        """Share of the population z (the spare half of held-out, seen by no model) with LR(x, z) > 1."""
        ratio, other = (self._ratio(ctx, predictor, s) for s in (samples, sets.spare))
        out: Float = (ratio[:, None] > other[None, :]).mean(1)
        return out

    def _ratio(self, ctx: AuditContext, predictor: Predictor, samples: Samples) -> Float:
        """p_y(x) / P(x), P = ((1 + a) mean of the models that did not see x + (1 - a)) / 2."""
        seen, logits = self.read(ctx, samples)
        y = samples.targets()
        p = np.stack([scores.confidence(s, y) for s in logits])
        count = (~seen).sum(0)
        if (count == 0).any():
            raise ConfigError("some samples were seen by every shadow model.", remedy="Use at least 2 shadow models.")
        mean = np.where(seen, 0, p).sum(0) / count
        prior = 0.5 * ((1 + self.a) * mean + (1 - self.a))
        out: Float = scores.confidence(predictor.on(samples), y) / prior
        return out
