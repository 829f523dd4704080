"""Where one method stands among the others, request by request, and what the variants of a grid change."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qunlearn.bench.plan import tuning_gap
from qunlearn.bench.scene import ORIGINAL, RETRAINED, ROWS, SECOND_RETRAINED

Cell = Mapping[str, Any]
Measure = Callable[[Cell, Cell], float | None]
MEDIAN = "time, share of retraining"
"""Compared by its median, as in the tables."""


def _off(key: str) -> Measure:
    return lambda cell, target: abs(cell["onnx"][key] - target["onnx"][key])


def _apart(key: str) -> Measure:
    def distance(cell: Cell, target: Cell) -> float | None:
        a, b = cell.get(key), target.get(key)
        return None if a is None or b is None else abs(a - b)

    return distance


MEASURES: dict[str, tuple[Measure, int]] = {
    "Avg Gap": (lambda cell, target: cell["gap"], 100),
    "forget accuracy, off by": (_off("forget_accuracy"), 100),
    "retain accuracy, off by": (_off("retain_accuracy"), 100),
    "test accuracy, off by": (_off("test_accuracy"), 100),
    "MIA, off by": (_off("mia"), 100),
    "CKA to the original, off by": (_apart("cka"), 1),
    "entropy on the forget set, off by": (_apart("entropy"), 1),
    "KL to the retrained file, forget set": (lambda cell, target: cell.get("kl_forget"), 1),
    "KL to the retrained file, test set": (lambda cell, target: cell.get("kl_test"), 1),
    "codes changed": (lambda cell, target: cell.get("codes_changed"), 100),
    MEDIAN: (lambda cell, target: cell["processor"] / target["processor"], 100),
    "passes": (lambda cell, target: cell["passes"], 1),
}
"""What is compared, less is better: (figure of a cell and of the retrained cell of its spot, 100 for per cent)."""


def spot(cell: Cell) -> tuple[str, int]:
    """Request and seed of a cell."""
    return cell["request"], cell["seed"]


def sound(cells: Sequence[Cell]) -> dict[str, dict[tuple[str, int], Cell]]:
    """Cells that have a gap, by method and spot."""
    out: dict[str, dict[tuple[str, int], Cell]] = {}
    for cell in cells:
        if "error" not in cell and cell.get("gap") is not None:
            out.setdefault(cell["method"], {})[spot(cell)] = cell
    return out


def means(cells: Sequence[Cell], measure: str) -> dict[str, float]:
    """Mean over cells by method (of times the median); methods that lack a cell of the grid are left out."""
    have = sound(cells)
    every, figure = set(have[RETRAINED]), MEASURES[measure][0]
    middle = statistics.median if measure == MEDIAN else statistics.fmean
    out = {}
    for method, own in have.items():
        found = [v for at, c in own.items() if (v := figure(c, have[RETRAINED][at])) is not None]
        if set(own) == every and len(found) == len(every):
            out[method] = float(middle(found))
    return out


def standing(cells: Sequence[Cell], method: str) -> list[dict[str, Any]]:
    """For every measure: the method's mean, its place among the methods, the best other one, and the two fixed rows.

    Less is better. A method that failed in a cell has no place.
    """
    out = []
    for name, (_, scale) in MEASURES.items():
        found = means(cells, name)
        ranked = sorted((m for m in found if m not in ROWS), key=lambda m: found[m])
        if method not in ranked:
            continue
        best = next((m for m in ranked if m != method), None)
        out.append({
            "measure": name, "scale": scale, "value": found[method], "place": ranked.index(method) + 1,
            "of": len(ranked), "best": best, "best_value": None if best is None else found[best],
            "original": found.get(ORIGINAL), "floor": found.get(SECOND_RETRAINED),
        })  # fmt: skip
    return out


def by_request(cells: Sequence[Cell], method: str) -> list[dict[str, Any]]:
    """For every request, means over seeds: gap of the method, of the best other one, of nothing done, noise floor."""
    out = []
    for request in sorted({c["request"] for c in cells}):
        found = means([c for c in cells if c["request"] == request], "Avg Gap")
        others = {m: v for m, v in found.items() if m not in (*ROWS, method)}
        if method not in found or not others:
            continue
        best = min(others, key=lambda m: others[m])
        out.append({
            "request": request, "value": found[method], "best": best, "best_value": others[best],
            "original": found[ORIGINAL], "floor": found.get(SECOND_RETRAINED),
        })  # fmt: skip
    return out


def parts(cells: Sequence[Cell], base: str, variants: Sequence[str]) -> list[dict[str, Any]]:
    """What every variant changes against ``base``, over the cells that both have; only counts where there is none.

    ``ahead`` is by how much the base's gap is smaller: mean and standard deviation of the pairs, and in how many.
    """
    have = sound(cells)
    out = []
    for name in (base, *variants):
        pairs = [(own, have[base][at]) for at, own in have.get(name, {}).items() if at in have.get(base, {})]
        failed = sum(c["method"] == name for c in cells) - len(have.get(name, {}))
        row: dict[str, Any] = {"name": name, "cells": len(pairs), "failed": failed}
        if pairs:
            own = [v for v, _ in pairs]
            ahead = [v["gap"] - b["gap"] for v, b in pairs]
            off = [_apart("cka")(v, have[RETRAINED][spot(v)]) for v in own]
            row |= {
                "gap": statistics.fmean(v["gap"] for v in own),
                "ahead": statistics.fmean(ahead),
                "spread": statistics.stdev(ahead) if len(ahead) > 1 else 0.0,
                "nearer": sum(a > 0 for a in ahead),
                "forget_accuracy": statistics.fmean(v["onnx"]["forget_accuracy"] for v in own),
                "test_accuracy": statistics.fmean(v["onnx"]["test_accuracy"] for v in own),
                "cka_off": None if None in off else statistics.fmean(v for v in off if v is not None),
                "codes_changed": statistics.fmean(v["codes_changed"] for v in own),
                "passes": statistics.fmean(v["passes"] for v in own),
                "unuseful": sum(bool(v["utility"]) for v in own),
            }
        out.append(row)
    return out


def gated(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What the utility gate decided, from the tuning cells of one target.

    A row a method: ``kept``, the least mean gap of the configurations whose files all pass the gate, and ``lost``, that
    of the others, with the ``reasons`` there; None where there is no such configuration.
    """
    tried: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        tried.setdefault(cell["method"], {}).setdefault(json.dumps(cell["config"], sort_keys=True), []).append(cell)
    out = []
    for method, configs in sorted(tried.items()):
        row: dict[str, Any] = {"method": method, "kept": None, "lost": None, "reasons": ()}
        for own in configs.values():
            gaps = [None if "error" in c else tuning_gap(c) for c in own]
            if None in gaps:
                continue
            gap = statistics.fmean(g for g in gaps if g is not None)
            key = "lost" if any(c["utility"] for c in own) else "kept"
            if row[key] is None or gap < row[key]:
                row[key] = gap
                if key == "lost":
                    row["reasons"] = tuple(sorted({r for c in own for r in c["utility"]}))
        out.append(row)
    return out
