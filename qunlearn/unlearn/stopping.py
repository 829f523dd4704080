"""Where to stop: the band in which a retrained network would stand, and the rule that watches for it.

A retrained network scores near the level of *unseen* data on the forget set, not at chance; driven to its optimum, any
forgetting loss over-forgets. So a run is watched, from the first evaluation on, with data that were never trained on
(``splits.heldout_stop``), and it is brought back to its best evaluation, never left at its last step.

Own choices: the sampling error of a band counts both the held-out samples and the forget samples; the counters of
"below the band" and "utility not ok" start anew when the run recovers, because neither is monotone; where a reference
card knows the forgotten groups themselves, their own values give the band, with the sampling error of the forget set;
an evaluation at which the network is much less or more sure of held-out data than before is no usable snapshot, as in
the audits, but does not count towards the end of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError, DataError
from qunlearn.tasks.base import Task
from qunlearn.unlearn.card import ReferenceCard
from qunlearn.unlearn.probe import Probe, group_values, value_of

KINDS = ("random", "ids", "group", "class")
Z = 1.96
CLASS_CONFIDENCE = 0.05
CONFIRM = 2
STRIKES = 3
ENTROPY_SLACK = 0.05
"""Share of log C by which mean entropy on held-out data may always change; with the default ``entropy_drift`` this is
the collapse check of the audits, so that no run is brought back to a state that they refuse."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Inclusive bounds, as fractions, for accuracy and mean true-class probability on the forget set.

    ``source`` says what they rest on: ``heldout``, ``unseen groups``, ``card (own)``, ``card (all)``, ``class``,
    ``declared``. ``note`` is a remark for the report, or empty.
    """

    accuracy: tuple[float, float]
    confidence: tuple[float, float]
    source: str
    note: str = ""

    def distance(self, accuracy: float, confidence: float) -> float:
        """Sum of the distances of both values to their bounds (0 inside)."""
        return _outside(accuracy, self.accuracy) + _outside(confidence, self.confidence)

    def contains(self, accuracy: float, confidence: float) -> bool:
        """Whether both values lie inside."""
        return self.distance(accuracy, confidence) == 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain mapping."""
        return {
            "accuracy": list(self.accuracy),
            "confidence": list(self.confidence),
            "source": self.source,
            "note": self.note,
        }


def _outside(value: float, bounds: tuple[float, float]) -> float:
    return max(0.0, bounds[0] - value, value - bounds[1])


def _bounds(lo: float, hi: float) -> tuple[float, float]:
    return max(0.0, float(lo)), min(1.0, float(hi))


def parse_bounds(text: str, name: str) -> tuple[float, float] | None:
    """``"0.60..0.75"`` to (0.6, 0.75); empty text to None; anything else is a ConfigError."""
    if not text:
        return None
    lo, sep, hi = text.partition("..")
    try:
        bounds = float(lo), float(hi)
    except ValueError:
        bounds = (math.nan, math.nan)
    if not sep or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ConfigError(f"{name} {text!r} is not a range inside 0..1.", remedy="Write it as 0.60..0.75.")
    return bounds


def target_band(
    model: nn.Module,
    task: Task,
    *,
    forget: Samples,
    retain: Samples,
    stop: Samples,
    request_kind: str,
    card: ReferenceCard | None = None,
    tol: float = 0.02,
    declared_accuracy: str = "",
    declared_confidence: str = "",
) -> Band | None:
    """The band for this request, from the original ``model``; None where nothing tells where to stop.

    ``request_kind`` is ``random``, ``ids``, ``group`` or ``class``. A declared band wins; a declared accuracy without a
    declared confidence leaves the confidence free.
    """
    if request_kind not in KINDS:
        raise ConfigError(f"request kind {request_kind!r} is unknown.", remedy=f"Use one of {', '.join(KINDS)}.")
    accuracy = parse_bounds(declared_accuracy, "target_accuracy")
    confidence = parse_bounds(declared_confidence, "target_confidence")
    if accuracy or confidence:
        return Band(accuracy=accuracy or (0.0, 1.0), confidence=confidence or (0.0, 1.0), source="declared")
    if request_kind == "class":
        return Band(accuracy=(0.0, tol), confidence=(0.0, CLASS_CONFIDENCE), source="class")
    if request_kind == "group":
        return _group_band(model, task, forget, retain, stop, card, tol)
    return _random_band(model, task, forget, retain, stop, tol)


def _random_band(
    model: nn.Module, task: Task, forget: Samples, retain: Samples, stop: Samples, tol: float
) -> Band | None:
    logits, y = task.predict(model, stop), stop.targets()
    wanted, counts = np.unique(forget.targets(), return_counts=True)
    rows = {int(c): np.flatnonzero(y == c) for c in wanted}
    known = [(int(c), int(n)) for c, n in zip(wanted, counts, strict=True) if len(rows[int(c)])]
    if not known:
        return None
    total = sum(n for _, n in known)
    means, variances = np.zeros(2), np.zeros(2)
    for c, n in known:
        value = value_of(task, logits, stop, rows[c])
        weight = n / total
        means += weight * np.array([value.accuracy, value.confidence])
        spread = np.array([value.accuracy * (1 - value.accuracy), value.confidence_variance])
        variances += spread * (weight**2 / len(rows[c]) + weight / len(forget))
    half = Z * np.sqrt(variances) + tol
    notes = []
    if len(known) < len(wanted):
        notes.append("classes of the forget set that held-out data lack were left out of the band")
    if len(forget) >= len(retain):
        notes.append("half or more of the data is forgotten: the band is too high, a retrained model has less data")
    return Band(
        accuracy=_bounds(means[0] - half[0], means[0] + half[0]),
        confidence=_bounds(means[1] - half[1], means[1] + half[1]),
        source="heldout",
        note="; ".join(notes),
    )


def _group_band(
    model: nn.Module,
    task: Task,
    forget: Samples,
    retain: Samples,
    stop: Samples,
    card: ReferenceCard | None,
    tol: float,
) -> Band | None:
    if forget.group is None:
        raise DataError("a group request needs data with groups.", remedy="Use the kind ids or random.")
    gone = {str(g) for g in np.unique(forget.group)}
    trained = gone | ({str(g) for g in np.unique(retain.group)} if retain.group is not None else set())
    unseen = {g: v for g, v in group_values(model, task, stop).items() if g not in trained}
    if unseen:
        values = [(v.accuracy, v.confidence) for v in unseen.values()]
        source, half = "unseen groups", np.array([tol, tol])
    elif card is not None and gone <= set(card.groups):
        own = [card.groups[g] for g in sorted(gone)]
        weights = np.array([int((forget.group == g).sum()) for g in sorted(gone)]) / len(forget)
        mean = weights @ np.array([[v.accuracy, v.confidence] for v in own])
        values = [(float(mean[0]), float(mean[1]))]
        source, half = "card (own)", Z * np.sqrt(mean * (1 - mean) / len(forget)) + tol
    elif card is not None:
        values = [(v.accuracy, v.confidence) for v in card.groups.values()]
        source, half = "card (all)", np.array([tol, tol])
    else:
        return None
    table = np.array(values)
    lo, hi = table.min(0) - half, table.max(0) + half
    return Band(accuracy=_bounds(lo[0], hi[0]), confidence=_bounds(lo[1], hi[1]), source=source)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Values of one evaluation: accuracy and confidence on forget, accuracy on retain; accuracy and mean entropy (as a
    share of log C) on held-out, or None."""

    step: int
    forget_accuracy: float
    forget_confidence: float
    retain_accuracy: float
    heldout_accuracy: float | None
    heldout_entropy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain mapping with the names the trace uses."""
        return {
            "a_f": self.forget_accuracy,
            "c_f": self.forget_confidence,
            "a_r": self.retain_accuracy,
            "a_h": self.heldout_accuracy,
            "h_h": self.heldout_entropy,
        }


@dataclass(kw_only=True)
class StopRule:
    """Decides from a sequence of evaluations; holds no tensors and can be saved as JSON (:meth:`state`).

    ``observe`` returns True when this evaluation is the best so far, so that the caller keeps a snapshot; ``reason`` is
    set once the run should end.
    """

    band: Band | None
    start: Evaluation
    utility_floor: float
    entropy_drift: float | None = None
    reason: str | None = None
    best: Evaluation | None = None
    best_objective: float = math.inf
    best_usable: bool = False
    confirmed: int = 0
    below: int = 0
    unusable: int = 0
    last: dict[str, Any] = field(default_factory=dict)

    def utility_ok(self, e: Evaluation) -> bool:
        """Neither retain nor held-out accuracy fell by more than the floor, and held-out entropy stayed near."""
        return self._accurate(e) and self._as_sure(e)

    def _accurate(self, e: Evaluation) -> bool:
        return self._loss(e)[1] <= self.utility_floor + 1e-12

    def _as_sure(self, e: Evaluation) -> bool:
        before, now = self.start.heldout_entropy, e.heldout_entropy
        if self.entropy_drift is None or before is None or now is None:
            return True
        return abs(now - before) <= max(self.entropy_drift * before, ENTROPY_SLACK) + 1e-12

    def _loss(self, e: Evaluation) -> tuple[float, float]:
        drops = [max(0.0, self.start.retain_accuracy - e.retain_accuracy)]
        if e.heldout_accuracy is not None and self.start.heldout_accuracy is not None:
            drops.append(max(0.0, self.start.heldout_accuracy - e.heldout_accuracy))
        return sum(drops), max(drops)

    def objective(self, e: Evaluation) -> float:
        """J: distance to the band plus the losses of retain and held-out accuracy; 0 is perfect."""
        away = self.band.distance(e.forget_accuracy, e.forget_confidence) if self.band else 0.0
        return away + self._loss(e)[0]

    def observe(self, e: Evaluation, extra: float = 0.0) -> bool:
        """Take one evaluation in, ``extra`` added to its J; True if the caller should keep these parameters."""
        usable = self.utility_ok(e)
        inside = self.band is not None and self.band.contains(e.forget_accuracy, e.forget_confidence)
        objective = self.objective(e) + extra
        if self.band is None:
            better = usable or (not self.best_usable and objective < self.best_objective)
        else:
            better = (usable, -objective) > (self.best_usable, -self.best_objective)
        if better:
            self.best, self.best_objective, self.best_usable = e, objective, usable
        self.confirmed = self.confirmed + 1 if inside and usable else 0
        under = self.band is not None and e.forget_accuracy < self.band.accuracy[0]
        self.below = self.below + 1 if under else 0
        self.unusable = 0 if self._accurate(e) else self.unusable + 1
        if self.reason is None:
            if self.confirmed >= CONFIRM:
                self.reason = "target_reached"
            elif self.below >= STRIKES:
                self.reason = "over_forgot"
            elif self.unusable >= STRIKES:
                self.reason = "utility_floor"
        self.last = e.to_json() | {"J": objective, "in_band": inside, "utility_ok": usable, "snapshot": better}
        return better

    def judge(self, e: Evaluation) -> tuple[str, str]:
        """(verdict, failure side) of one state: ``pass``, ``fail`` or ``inconclusive``; ``under``, ``over``, ...

        Without a band nothing can pass: ``inconclusive``, or ``fail`` where utility is lost.
        """
        if not self.utility_ok(e):
            return "fail", "utility"
        if self.band is None:
            return "inconclusive", "none"
        if self.band.contains(e.forget_accuracy, e.forget_confidence):
            return "pass", "none"
        for value, bounds in ((e.forget_accuracy, self.band.accuracy), (e.forget_confidence, self.band.confidence)):
            if value < bounds[0]:
                return "fail", "over"
            if value > bounds[1]:
                return "fail", "under"
        raise DataError("an evaluation holds values that are not numbers.", remedy="Report this defect.")

    def state(self) -> dict[str, Any]:
        """Everything but band, start and floor, as JSON data."""
        names = ("reason", "best_usable", "confirmed", "below", "unusable", "last")
        out = {name: getattr(self, name) for name in names}
        out["best"] = None if self.best is None else [self.best.step, *self.best.to_json().values()]
        out["best_objective"] = None if math.isinf(self.best_objective) else self.best_objective
        return out

    def load(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        for name in ("reason", "best_usable", "confirmed", "below", "unusable", "last"):
            setattr(self, name, state[name])
        self.best = _evaluation(state["best"]) if state["best"] is not None else None
        self.best_objective = math.inf if state["best_objective"] is None else float(state["best_objective"])


def _evaluation(values: Sequence[Any]) -> Evaluation:
    step, a_f, c_f, a_r, a_h, h_h = values
    return Evaluation(
        step=step,
        forget_accuracy=a_f,
        forget_confidence=c_f,
        retain_accuracy=a_r,
        heldout_accuracy=a_h,
        heldout_entropy=h_h,
    )


class Evaluator:
    """Cheap evaluations: batches are prepared once; at most ``size`` seeded samples of each set; evaluation mode."""

    def __init__(
        self,
        task: Task,
        *,
        forget: Samples,
        retain: Samples,
        stop: Samples,
        request_kind: str,
        size: int,
        seed: int,
    ) -> None:
        rows: NDArray[np.int64] = np.arange(len(stop))
        if request_kind == "class":
            rows = np.flatnonzero(~np.isin(stop.targets(), np.unique(forget.targets())))
        self.forget = Probe(task, forget, size=size, seed=seed, purpose="forget")
        self.retain = Probe(task, retain, size=size, seed=seed, purpose="retain")
        self.heldout = Probe(task, stop.take(rows), size=size, seed=seed, purpose="stop") if len(rows) else None

    def __call__(self, model: nn.Module, step: int) -> Evaluation:
        """Values of ``model`` at ``step``; neither its parameters nor its buffers nor its mode change."""
        f, r = self.forget(model), self.retain(model)
        h = self.heldout(model) if self.heldout is not None else None
        return Evaluation(
            step=step,
            forget_accuracy=f.accuracy,
            forget_confidence=f.confidence,
            retain_accuracy=r.accuracy,
            heldout_accuracy=h.accuracy if h is not None else None,
            heldout_entropy=h.entropy if h is not None else None,
        )
