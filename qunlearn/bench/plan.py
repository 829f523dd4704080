"""Which cells a grid has, and which configuration its tuning chose."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qunlearn.bench.cell import identity
from qunlearn.bench.draw import draw, plain
from qunlearn.bench.grid import Grid
from qunlearn.bench.networks import most_passes
from qunlearn.bench.scene import ROWS, Spot
from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.errors import ConfigError

TUNED_ON = ("forget_accuracy", "retain_accuracy", "heldout_accuracy", "mia")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell to compute."""

    spot: Spot
    method: str
    config: Mapping[str, Any]
    tuning: bool

    def id(self, grid: Grid) -> str:
        """Its identity in the results."""
        return identity(grid, self.spot, self.method, self.config, tuning=self.tuning)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one configuration is chosen for: a network, a bit width and a kind of request."""

    model: str
    bits: str
    kind: str


def expanded(requests: Iterable[str], dataset: Dataset) -> list[str]:
    """Inline requests, with ``group=*`` and ``class=*`` written out."""
    every = {"group=*": dataset.group_names, "class=*": dataset.class_names}
    out: list[str] = []
    for text in requests:
        if text in every:
            if not every[text]:
                raise ConfigError(f"{text}: the data set {dataset.name!r} has none.", remedy="Name other requests.")
            out += [f"{text[:-2]}={name}" for name in every[text]]
        else:
            out.append(text)
    return out


def spots(grid: Grid, dataset: Dataset, *, tuning: bool) -> list[Spot]:
    """All spots of the tuning or of the report, in the order of their seeds."""
    requests = grid.tune_requests or grid.requests if tuning else grid.requests
    return [
        Spot(model=model, bits=bits, request=request, seed=seed)
        for seed in (grid.tune_seeds if tuning else grid.seeds)
        for model in grid.models
        for bits in grid.bits
        for request in expanded(requests, dataset)
    ]


def targets(grid: Grid, dataset: Dataset) -> list[Target]:
    """Every choice that is to be made."""
    kinds = dict.fromkeys(Request.parse(r).kind for r in expanded(grid.requests, dataset))
    return [Target(model=m, bits=b, kind=k) for m in grid.models for b in grid.bits for k in kinds]


def tuning_spots(grid: Grid, dataset: Dataset, target: Target) -> list[Spot]:
    """Where the configurations of a target are tried."""
    own = [
        s
        for s in spots(grid, dataset, tuning=True)
        if (s.model, s.bits, Request.parse(s.request).kind) == (target.model, target.bits, target.kind)
    ]
    if not own and grid.budget > 1:
        raise ConfigError(
            f"no tuning request is of the kind {target.kind}.", remedy="Add one to tune_requests, or set budget = 1."
        )
    return own


def tuning_jobs(grid: Grid, dataset: Dataset) -> Iterator[Job]:
    """All cells that tuning needs; none with a budget of 1, where the first draw is taken."""
    if grid.budget == 1:
        return
    for target in targets(grid, dataset):
        for spot in tuning_spots(grid, dataset, target):
            for method in grid.rows:
                for config in draw(grid, method):
                    yield Job(spot=spot, method=method, config=config, tuning=True)


def score(grid: Grid, dataset: Dataset, cell: Mapping[str, Any]) -> tuple[int, float]:
    """(rank, gap): smaller is better. Failed or too costly runs rank last, then those that fail the utility gate.

    ``tune_by = "no_reference"`` ranks by the stop rule's own utility and J instead, which know no retrained network.
    """
    if "error" in cell or cell["passes"] > most_passes(grid, dataset):
        return 2, math.inf
    if grid.tune_by == "no_reference":
        return (2, math.inf) if cell["J"] is None else (int(not cell["J_utility"]), cell["J"])
    found = tuning_gap(cell)
    return (2, math.inf) if found is None else (int(bool(cell["utility"])), found)


def tuning_gap(cell: Mapping[str, Any]) -> float | None:
    """Mean distance of a tuning cell to the retrained network, a fraction; None where a figure is not finite."""
    u, r = cell["onnx"], cell["retrained"]
    if any(u[k] is None or r[k] is None for k in TUNED_ON):
        return None
    return statistics.fmean(abs(u[k] - r[k]) for k in TUNED_ON)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The configuration of a method for a target; ``score`` its mean gap, ``gate`` whether utility held everywhere."""

    target: Target
    method: str
    config: Mapping[str, Any]
    score: float
    gate: bool
    tried: int
    failed: int
    seconds: float


def choose(grid: Grid, dataset: Dataset, cells: Mapping[str, Mapping[str, Any]]) -> list[Choice]:
    """For every target and method the configuration with the best worst rank, then the least mean gap."""
    out = []
    for target in targets(grid, dataset):
        where = tuning_spots(grid, dataset, target) if grid.budget > 1 else []
        for method in grid.rows:
            configs = draw(grid, method)
            tried = []
            for i, config in enumerate(configs):
                jobs = [Job(spot=s, method=method, config=config, tuning=True) for s in where]
                found = [score(grid, dataset, cells[j.id(grid)]) for j in jobs]
                rank = max((r for r, _ in found), default=0)
                mean = statistics.fmean(g for _, g in found) if found and rank < 2 else math.inf
                tried.append((rank, mean, i))
            rank, mean, best = min(tried)
            all_jobs = [Job(spot=s, method=method, config=c, tuning=True) for s in where for c in configs]
            out.append(
                Choice(
                    target=target, method=method, config=configs[best], score=mean, gate=rank == 0,
                    tried=len(configs), failed=sum(r == 2 for r, _, _ in tried),
                    seconds=sum(cells[j.id(grid)]["seconds"] for j in all_jobs),
                )
            )  # fmt: skip
    return out


def report_jobs(grid: Grid, dataset: Dataset, choices: Iterable[Choice]) -> Iterator[Job]:
    """All cells of the report: the fixed rows and every method at its configuration."""
    by_target: dict[Target, list[Choice]] = {}
    for choice in choices:
        by_target.setdefault(choice.target, []).append(choice)
    for spot in spots(grid, dataset, tuning=False):
        for row in ROWS:
            yield Job(spot=spot, method=row, config={}, tuning=False)
        target = Target(model=spot.model, bits=spot.bits, kind=Request.parse(spot.request).kind)
        for choice in by_target.get(target, []):
            yield Job(spot=spot, method=choice.method, config=choice.config, tuning=False)


def described(choice: Choice) -> dict[str, Any]:
    """A choice as plain data."""
    t = choice.target
    return {
        "model": t.model, "bits": t.bits, "kind": t.kind, "method": choice.method, "config": plain(choice.config),
        "score": None if math.isinf(choice.score) else choice.score, "gate": choice.gate, "tried": choice.tried,
        "failed": choice.failed, "seconds": choice.seconds,
    }  # fmt: skip
