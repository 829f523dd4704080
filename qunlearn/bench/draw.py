"""Equal budgets: the same number of configurations for every method, drawn by seed from declared ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qunlearn.bench.grid import REMEDY, Grid
from qunlearn.errors import ConfigError
from qunlearn.hyper import Hyper, hypers
from qunlearn.unlearn import METHODS

DRAW_SEED = 7


def ranges(grid: Grid, row: str) -> dict[str, tuple[Hyper, tuple[Any, ...]]]:
    """What is drawn for a method: its declared search ranges, those of the grid and of the variant in their place."""
    method = grid.base(row)
    known = hypers(METHODS[method])
    given = {**grid.search.get(method, {}), **_variant(grid, row, "search")}
    own = {n: (h, tuple(h.search)) for n, h in known.items() if h.search}
    own |= {n: (known[n], tuple(v)) for n, v in given.items()}
    fixed = fixed_settings(grid, method)
    return {n: v for n, v in own.items() if n not in fixed or n in given}


def fixed_settings(grid: Grid, method: str) -> dict[str, Any]:
    """Settings that are not drawn: shared ones that the method has, its own, stop rule and BatchNorm mode."""
    known = hypers(METHODS[method])
    out: dict[str, Any] = {n: v for n, v in grid.shared.items() if n in known}
    out["stop_rule"] = grid.stop_rule
    if grid.bn == "frozen":
        out["bn"] = "frozen"
    return out | dict(grid.settings.get(method, {}))


def draw(grid: Grid, row: str) -> list[dict[str, Any]]:
    """``budget`` configurations: two numbers are a range (log-uniform where declared so), anything else is a choice.

    The draw of one method depends on no other, and a smaller budget is a part of a larger one. A variant has the draw
    of its method, with its own settings put over it.
    """
    method = grid.base(row)
    rng = np.random.default_rng([DRAW_SEED, *method.encode()])
    drawn = ranges(grid, row)
    known = hypers(METHODS[method])
    own = {n: none_of(known[n], v) for n, v in _variant(grid, row, "settings").items()}
    out = []
    for _ in range(grid.budget):
        config = fixed_settings(grid, method)
        for name, (h, values) in drawn.items():
            config[name] = _one(rng, h, values)
        out.append(config | own)
    return out


def check(grid: Grid) -> None:
    """ConfigError for the variants whose settings do not go together, before anything is computed."""
    bad = []
    for name in grid.variants:
        found = {p for config in draw(grid, name) for p in METHODS[grid.base(name)](**config).problems()}
        bad += [f"variant {name!r}: {p}" for p in sorted(found)]
    if bad:
        raise ConfigError(f"{'; '.join(bad)}.", remedy=f"See `qunlearn methods` for the settings; {REMEDY}")


def none_of(h: Hyper, value: Any) -> Any:
    """TOML has no null: the word ``none`` stands for it, where a setting may be None and has no choice of that name."""
    return None if value == "none" and type(None) in h.types and "none" not in h.choices else value


def _variant(grid: Grid, row: str, key: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = grid.variants.get(row, {}).get(key, {})
    return found


def _one(rng: np.random.Generator, h: Hyper, values: Sequence[Any]) -> Any:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if len(values) == 2 and numbers:
        lo, hi = float(values[0]), float(values[1])
        x = math.exp(rng.uniform(math.log(lo), math.log(hi))) if h.log else rng.uniform(lo, hi)
        return round(x) if h.types == (int,) else float(f"{x:.3g}")
    return none_of(h, values[int(rng.integers(len(values)))])


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sorted, as it stands in results."""
    return dict(sorted(config.items()))
