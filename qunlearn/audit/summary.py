"""The plain numbers of one model: what a demo prints and a benchmark tabulates. No verdict, no intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qunlearn.audit import scores
from qunlearn.audit.mia import MAX_N, attack, attack_sets
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import available
from qunlearn.data.splits import Splits
from qunlearn.errors import UnsupportedError

if TYPE_CHECKING:
    from qunlearn.tasks.base import Task

SETS = ("forget", "retain", "heldout", "test", "forget_heldout", "forget_test")


def summary(
    predictor: Predictor,
    splits: Splits,
    task: Task,
    seed: int,
    *,
    nonmembers: str = "test",
    sets: Sequence[str] = SETS,
    max_n: int = MAX_N,
) -> dict[str, Any]:
    """Fractions by glossary key: ``<set>_accuracy`` for every set that holds samples, ``mia``.

    Beside them ``mia_degenerate`` (bool), ``n`` (samples per set), ``kind`` and ``digest`` of what was read. With
    ``sets`` and ``nonmembers="heldout"`` a tuner keeps the test split closed: a set that is not named is not touched.
    Logits that are not finite count as wrong answers and give ``mia`` = None. UnsupportedError for other tasks.
    """
    if task.name != "classification":
        raise UnsupportedError(f"no plain metrics for the task {task.name!r}.", remedy="Use the task's own audits.")
    found = available(splits, tuple(sets))
    out: dict[str, Any] = {"kind": predictor.kind, "digest": predictor.digest}
    for name, samples in found.items():
        z = predictor.on(samples)
        hits = scores.correct(z, samples.targets()) & scores.finite(z)
        out[f"{name}_accuracy"] = float(hits.mean())
    chosen = attack_sets(splits, nonmembers=nonmembers, seed=seed, max_n=max_n)
    if all(scores.finite(predictor.on(s)).all() for s in (chosen.members, chosen.nonmembers, chosen.forget)):
        a = attack(predictor, chosen)
        out["mia"], out["mia_degenerate"] = float(a.calls.mean()), a.degenerate
    else:
        out["mia"], out["mia_degenerate"] = None, True
    out["n"] = {**{name: len(s) for name, s in found.items()}, "mia_per_side": len(chosen.members)}
    return out


def gap(value: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    """Avg Gap = mean(|dFA|, |dRA|, |dTA|, |dMIA|) of two summaries; None where one of the eight numbers is missing."""
    keys = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia")
    pairs = [(value.get(k), reference.get(k)) for k in keys]
    if any(a is None or b is None for a, b in pairs):
        return None
    return sum(abs(float(a) - float(b)) for a, b in pairs if a is not None and b is not None) / len(keys)
