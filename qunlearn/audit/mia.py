"""The confidence membership attack with a support vector classifier, as tables of the field use it.

Source: evaluation protocol of SalUn and Q-MUL. Feature: p_y, one number a sample. Members: as many retain samples as
there are non-members; classifier: RBF, C = 3, gamma = 1; value: share of the forget set called non-member. The target
is the retrained model's value: neither 0 nor 1 is good in itself.

Our own choices: members are drawn by seed and balanced over classes, from samples sorted by id, so that the order of
the data cannot matter; at most ``max_n`` a side; the interval also holds the spread over ``refits`` of the attack on
resampled members and non-members; an attack that tells nothing apart is flagged as degenerate and never decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import intervals, scores
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.intervals import Estimate
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import need
from qunlearn.audit.verdict import Measurement
from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.errors import DataError, MissingDependencyError
from qunlearn.hyper import hyper

SVC_C, SVC_GAMMA = 3.0, 1.0
MAX_N = 1000
FPR, FPR_MIN_N = 0.01, 1000
_FLAT = 1e-12


def draw_balanced(samples: Samples, n: int, seed: int, purpose: int) -> Samples:
    """``n`` samples sorted by id, balanced over classes as far as they last, whatever the order of ``samples``.

    Every class is shuffled by seed; then each round takes one sample of every class that has any left.
    """
    if not 0 < n <= len(samples):
        raise DataError(f"cannot draw {n} of {len(samples)} samples.", remedy="Check that no set is empty.")
    order = np.argsort(samples.ids)
    y = samples.targets()[order]
    rng = np.random.default_rng([seed, purpose])
    rounds = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        rounds[rows] = rng.permutation(rows.size)
    chosen = np.lexsort((rng.permutation(len(y)), rounds))[:n]
    return samples.take(order[np.sort(chosen)])


@dataclass(frozen=True, kw_only=True)
class AttackSets:
    """The samples of one attack: as many members as non-members, and the forget set."""

    members: Samples
    nonmembers: Samples
    forget: Samples


def attack_sets(splits: Splits, *, nonmembers: str, seed: int, max_n: int = MAX_N) -> AttackSets:
    """Members from ``retain``, non-members from the set named ``nonmembers`` (``heldout`` or ``test``).

    The side with fewer samples, and ``max_n``, set the number. Classes and groups that are forgotten as a whole are no
    non-members (see :mod:`qunlearn.audit.sets`).
    """
    out = need(splits, nonmembers)
    retain = need(splits, "retain")
    n = min(len(out), len(retain), max_n)
    if n < 2:
        raise DataError("the membership attack needs two members and two non-members.", remedy="Use more data.")
    return AttackSets(
        members=draw_balanced(retain, n, seed, 1), nonmembers=draw_balanced(out, n, seed, 2), forget=splits.forget
    )


def called_nonmember(
    members: NDArray[Any], nonmembers: NDArray[Any], forget: NDArray[Any]
) -> tuple[NDArray[np.bool_], bool]:
    """Fit the classifier on the confidences of members and non-members; apply it to ``forget`` (all float64 [n]).

    Returns which forget samples are called non-member, bool [n_forget], and whether the attack is degenerate: the
    confidences are all equal, or every training sample gets the same answer.
    """
    try:
        from sklearn.svm import SVC
    except ImportError as err:
        raise MissingDependencyError(
            "the membership attack needs scikit-learn.", remedy='pip install "qunlearn[workstation]"'
        ) from err
    x = np.concatenate([members, nonmembers])[:, None]
    y = np.concatenate([np.ones(len(members), np.int64), np.zeros(len(nonmembers), np.int64)])
    model = SVC(C=SVC_C, gamma=SVC_GAMMA, kernel="rbf").fit(x, y)
    degenerate = bool(np.ptp(x) <= _FLAT) or np.unique(model.predict(x)).size < 2
    return np.asarray(model.predict(np.asarray(forget)[:, None]) == 0), degenerate


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One fitted attack: confidences (float64 [n]) of the three sets, ``calls`` = forget samples called non-member."""

    members: NDArray[np.float64]
    nonmembers: NDArray[np.float64]
    forget: NDArray[np.float64]
    calls: NDArray[np.bool_]
    degenerate: bool

    def refit(self, rows_m: NDArray[np.int64], rows_n: NDArray[np.int64]) -> float:
        """Share of the forget set called non-member by an attack fitted on resampled members and non-members."""
        return float(called_nonmember(self.members[rows_m], self.nonmembers[rows_n], self.forget)[0].mean())


def attack(predictor: Predictor, sets: AttackSets) -> Attack:
    """Run the attack on one predictor."""
    m, n, f = (scores.confidence(predictor.on(s), s.targets()) for s in (sets.members, sets.nonmembers, sets.forget))
    calls, degenerate = called_nonmember(m, n, f)
    return Attack(members=m, nonmembers=n, forget=f, calls=calls, degenerate=degenerate)


@dataclass(frozen=True, kw_only=True)
class Mia(Audit):
    """Share of the forget set that a confidence attack takes for never-trained data, against the retrained model's."""

    name: ClassVar[str] = "mia"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "mia"
    higher_side: ClassVar[str] = "over"
    sets: ClassVar[tuple[str, ...]] = ("forget", "retain", "heldout", "test")
    direction: ClassVar[str] = (
        "The retrained model's share is the target; below it forget samples still look like training data "
        "(under-forgotten), above it they stand out more than never-trained data do (over-forgotten)."
    )
    cannot: ClassVar[str] = (
        "It is a simple attack on one number a sample. An attack with shadow models, or one that targets single "
        "samples, may find more."
    )

    nonmembers: str = hyper(
        "heldout", choices=("heldout", "test"), doc="Non-members: heldout (audits, tuning) or test (tables)."
    )
    max_n: int = hyper(MAX_N, low=50, high=100_000, unit="samples", doc="Most members, and non-members, in the attack.")
    refits: int = hyper(
        20, low=5, high=1000, unit="refits", doc="Refits on resampled members and non-members, for the interval."
    )

    def run(self, ctx: AuditContext) -> Measurement:
        """Attack before, after and reference on the same samples."""
        columns = ctx.predictors()
        sets = attack_sets(ctx.splits, nonmembers=self.nonmembers, seed=ctx.seed, max_n=self.max_n)
        attacks = {name: attack(p, sets) for name, p in columns.items()}
        value, delta = self._estimates(attacks, ctx.seed)
        degenerate = [name for name in ("after", "reference") if name in attacks and attacks[name].degenerate]
        reference = intervals.share(attacks["reference"].calls) if "reference" in attacks else None
        metrics = _metrics(columns, attacks, sets)
        metrics["mia"]["forget"].update(intervals.row(after=value, delta=delta))
        return Measurement(
            value=value,
            before=float(attacks["before"].calls.mean()),
            reference=reference,
            delta=delta,
            gates=("I-MIA-DEGENERATE",) if degenerate else (),
            warnings=tuple(f"W-MIA-DEGENERATE: {d}" for d in degenerate),
            n={"members": len(sets.members), "nonmembers": len(sets.nonmembers), "forget": len(sets.forget)},
            metrics=metrics,
            tables={"attack": {"nonmembers": self.nonmembers, "degenerate": sorted(degenerate), "fpr": FPR}},
        )

    def _estimates(self, attacks: Mapping[str, Attack], seed: int) -> tuple[Estimate, Estimate | None]:
        """Value, and value - reference, each widened by the spread of the attack's own fit (same rows for both)."""
        after, reference = attacks["after"], attacks.get("reference")
        rng = np.random.default_rng([seed, 3])
        n = len(after.members)
        values, deltas = [], []
        for _ in range(self.refits):
            rows_m, rows_n = rng.integers(0, n, n), rng.integers(0, n, n)
            values.append(after.refit(rows_m, rows_n))
            if reference is not None:
                deltas.append(values[-1] - reference.refit(rows_m, rows_n))
        note = f"sd of {self.refits} refits"
        value = intervals.share(after.calls).widened(float(np.std(values, ddof=1)), note, floor=0.0, ceiling=1.0)
        if reference is None:
            return value, None
        delta = intervals.share_difference(after.calls, reference.calls)
        return value, delta.widened(float(np.std(deltas, ddof=1)), note, floor=-1.0, ceiling=1.0)


def _metrics(columns: Mapping[str, Predictor], attacks: Mapping[str, Attack], sets: AttackSets) -> dict[str, Any]:
    """The table of the attack and of the scores it could have used, per column."""
    y = sets.forget.targets()
    z = {name: p.on(sets.forget) for name, p in columns.items()}
    out: dict[str, Any] = {
        "mia": {"forget": intervals.row(**{k: intervals.share(a.calls) for k, a in attacks.items()})},
        "attack_auc": {
            "forget, nonmembers": intervals.row(
                **{k: intervals.auc(a.forget, a.nonmembers) for k, a in attacks.items()}
            )
        },
        "attack_power": {
            "members, nonmembers": intervals.row(
                **{k: intervals.auc(a.members, a.nonmembers) for k, a in attacks.items()}
            )
        },
        "confidence": {"forget": intervals.row(**{k: intervals.mean(a.forget) for k, a in attacks.items()})},
        "entropy": {"forget": intervals.row(**{k: intervals.mean(scores.entropy(v)) for k, v in z.items()})},
        "modified_entropy": {
            "forget": intervals.row(**{k: intervals.mean(scores.modified_entropy(v, y)) for k, v in z.items()})
        },
        "max_probability": {
            "forget": intervals.row(**{k: intervals.mean(scores.max_probability(v)) for k, v in z.items()})
        },
    }
    if len(sets.nonmembers) >= FPR_MIN_N:
        out["tpr_at_fpr"] = {
            "forget, nonmembers": intervals.row(
                **{k: intervals.share(scores.tpr_at_fpr(a.forget, a.nonmembers, FPR)) for k, a in attacks.items()}
            )
        }
    if "reference" in z:
        out["kl_to_reference"] = {"forget": intervals.row(after=intervals.mean(scores.kl(z["reference"], z["after"])))}
    return out
