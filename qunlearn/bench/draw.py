"""Equal budgets: the same number of configurations for every method, drawn by seed from declared ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qunlearn.bench.grid import Grid
from qunlearn.hyper import Hyper, hypers
from qunlearn.unlearn import METHODS

DRAW_SEED = 7


def ranges(grid: Grid, method: str) -> dict[str, tuple[Hyper, tuple[Any, ...]]]:
    """What is drawn for a method: its declared search ranges, those of the grid in their place."""
    known = hypers(METHODS[method])
    own = {n: (h, tuple(h.search)) for n, h in known.items() if h.search}
    own |= {n: (known[n], tuple(v)) for n, v in grid.search.get(method, {}).items()}
    fixed = fixed_settings(grid, method)
    return {n: v for n, v in own.items() if n not in fixed or n in grid.search.get(method, {})}


def fixed_settings(grid: Grid, method: str) -> dict[str, Any]:
    """Settings that are not drawn: shared ones that the method has, its own, stop rule and BatchNorm mode."""
    known = hypers(METHODS[method])
    out: dict[str, Any] = {n: v for n, v in grid.shared.items() if n in known}
    out["stop_rule"] = grid.stop_rule
    if grid.bn == "frozen":
        out["bn"] = "frozen"
    return out | dict(grid.settings.get(method, {}))


def draw(grid: Grid, method: str) -> list[dict[str, Any]]:
    """``budget`` configurations: two numbers are a range (log-uniform where declared so), anything else is a choice.

    The draw of one method depends on no other, and a smaller budget is a part of a larger one.
    """
    rng = np.random.default_rng([DRAW_SEED, *method.encode()])
    drawn = ranges(grid, method)
    out = []
    for _ in range(grid.budget):
        config = fixed_settings(grid, method)
        for name, (h, values) in drawn.items():
            config[name] = _one(rng, h, values)
        out.append(config)
    return out


def _one(rng: np.random.Generator, h: Hyper, values: Sequence[Any]) -> Any:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if len(values) == 2 and numbers:
        lo, hi = float(values[0]), float(values[1])
        x = math.exp(rng.uniform(math.log(lo), math.log(hi))) if h.log else rng.uniform(lo, hi)
        return round(x) if h.types == (int,) else float(f"{x:.3g}")
    value = values[int(rng.integers(len(values)))]
    return None if value == "none" else value


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sorted, as it stands in results."""
    return dict(sorted(config.items()))
