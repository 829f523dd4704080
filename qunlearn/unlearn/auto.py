"""``lr="auto"``: a learning rate from short pilots, chosen by the stop rule's J alone (own choice).

A pilot is the beginning of the very run that would follow: same seed, settings and schedule, ended after a quarter of
its steps or as soon as the stop rule ends it. Pilots stand a decade apart over the method's declared range, then half a
decade beside the best. No retrained network, no test sample and no other part of the splits than a run's own is read.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError, DivergedError, InvariantError
from qunlearn.hyper import hypers
from qunlearn.quant import QuantModel
from qunlearn.tasks.base import Task
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.card import ReferenceCard
from qunlearn.unlearn.objective import Objective

SHARE = 4
"""A pilot takes one step in so many of the run's."""
LEAST_STEPS = 12
LEAST_EVALUATIONS = 2


class _EnoughError(Exception):
    """Ends a pilot; never seen outside."""


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """One learning rate: the best ``J`` among evaluations that kept utility (else among all), and what it cost."""

    lr: float
    J: float | None
    usable: bool
    steps: int
    passes: float
    note: str = ""

    def rank(self) -> tuple[bool, float, float]:
        """Smaller is better; of equals the smaller rate."""
        return not self.usable, math.inf if self.J is None else self.J, self.lr


@dataclass(frozen=True, kw_only=True)
class Settled:
    """``method`` with a number for ``lr``; ``start`` the J of doing nothing; what all ``pilots`` cost together."""

    method: Unlearner
    pilots: tuple[Pilot, ...]
    start: float
    passes: float
    seconds: float

    @property
    def lr(self) -> float:
        """The rate that was chosen."""
        return min(self.pilots, key=Pilot.rank).lr

    def to_json(self) -> dict[str, Any]:
        """Everything but the method, as plain data."""
        pilots = [dataclasses.asdict(p) for p in self.pilots]
        return {"lr": self.lr, "pilots": pilots, "start": self.start, "passes": self.passes, "seconds": self.seconds}


def settle_lr(
    method: Unlearner,
    model: QuantModel,
    splits: Splits,
    task: Task,
    *,
    request_kind: str,
    card: ReferenceCard | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Settled:
    """The method with a learning rate in place of ``auto``; equal inputs give an equal rate.

    ConfigError when nothing tells where to stop, or when no pilot came closer to the target than doing nothing without
    losing utility; the text has the table.
    """
    started = time.perf_counter()
    method.validate()
    objective = Objective(
        model, splits, task, request_kind=request_kind, card=card, probe=method.probe, floor=method.utility_floor,
        tol=method.tol, declared_accuracy=method.target_accuracy, declared_confidence=method.target_confidence,
        seed=seed,
    )  # fmt: skip
    start, _ = objective(model)
    if start is None:
        raise ConfigError(
            "lr=auto needs a target, and nothing tells where a retrained network would stand.",
            remedy="Give a reference card (`train --reference-card`), target_accuracy, or a number for lr.",
        )
    low, high = (float(v) for v in hypers(type(method))["lr"].search)
    pilots: list[Pilot] = []

    def attempt(lr: float) -> None:
        lr = float(f"{lr:.3g}")
        if low <= lr <= high * 1.0001 and all(p.lr != lr for p in pilots):
            found = _pilot(with_lr(method, lr), model, splits, task, request_kind, card, seed)
            pilots.append(found)
            if say is not None:
                say(f"lr {line(found)}")

    for i in range(round(math.log10(high / low)) + 1):
        attempt(low * 10.0**i)
    best = min(pilots, key=Pilot.rank).lr
    for factor in (10**-0.5, 10**0.5):
        attempt(best * factor)
    chosen = min(pilots, key=Pilot.rank)
    if chosen.J is None or not chosen.usable or start <= chosen.J:
        table = "; ".join(line(p) for p in sorted(pilots, key=lambda p: p.lr))
        raise ConfigError(
            f"lr=auto: no learning rate came closer to the target than doing nothing (J {start:.3f}) with utility "
            f"kept: {table}.",
            remedy="Give a number for lr, more epochs or steps, or another method.",
        )
    return Settled(
        method=with_lr(method, chosen.lr),
        pilots=tuple(sorted(pilots, key=lambda p: p.lr)),
        start=start,
        passes=sum(p.passes for p in pilots),
        seconds=time.perf_counter() - started,
    )


def with_lr(method: Unlearner, lr: float) -> Unlearner:
    """The same method with this learning rate."""
    changed: dict[str, Any] = {"lr": lr}
    return dataclasses.replace(method, **changed)


def line(p: Pilot) -> str:
    """One pilot in words."""
    value = "no evaluation" if p.J is None else f"J {p.J:.3f}" + ("" if p.usable else ", utility lost")
    return f"{p.lr:g}: {value}" + (f", {p.note}" if p.note else "")


def _pilot(
    method: Unlearner,
    model: QuantModel,
    splits: Splits,
    task: Task,
    request_kind: str,
    card: ReferenceCard | None,
    seed: int,
) -> Pilot:
    last: dict[str, Any] = {"step": 0, "passes": 0.0}
    found: list[tuple[bool, float]] = []

    def watch(step: int, total: int, row: Mapping[str, Any]) -> None:
        last.update(step=step, passes=row["passes"])
        if "J" in row:
            found.append((not row["utility_ok"], float(row["J"])))
        if step >= length(total, method.eval_every):
            raise _EnoughError

    note = ""
    try:
        method(model, splits, task, request_kind=request_kind, card=card, seed=seed, progress=watch)
    except _EnoughError:
        pass
    except DivergedError:
        found, note = [], f"diverged after {last['step']} steps"
    except InvariantError as err:
        note = err.message.partition(":")[0].partition(" (")[0]
    unusable, value = min(found) if found else (True, None)
    return Pilot(
        lr=float(getattr(method, "lr", 0.0)), J=value, usable=not unusable, steps=last["step"],
        passes=last["passes"], note=note,
    )  # fmt: skip


def length(total: int, eval_every: int) -> int:
    """Steps of a pilot: a quarter of the run, to the next evaluation, but enough to see something."""
    steps = max(LEAST_STEPS, math.ceil(total / SHARE), LEAST_EVALUATIONS * eval_every)
    return min(total, math.ceil(steps / eval_every) * eval_every)
