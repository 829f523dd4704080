"""Tables of a grid's results: means and spreads over seeds and requests, marks, and bold only where it is earned."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qunlearn.bench.runner import CHOSEN, GRID
from qunlearn.bench.scene import ORIGINAL, RETRAINED, ROWS, SECOND_RETRAINED
from qunlearn.bench.store import Store
from qunlearn.data.request import Request
from qunlearn.errors import ArtefactError

SHOWN = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia")
HEADS = {"forget_accuracy": "FA", "retain_accuracy": "RA", "test_accuracy": "TA", "mia": "MIA"}
NO_REFERENCE = "Configurations were chosen by the stop rule's J alone: no retrained network was looked at.\n"
DISAGREE = 0.005
"""Torch and file columns further apart than this are marked."""
LEAST_FALL, MOST_LOST = 0.2, 0.03
"""A forgotten class whose accuracy falls by less is marked, and so is a loss of retain accuracy above the second."""
BESIDE = {
    "forget_test_accuracy": "FA test",
    "entropy": "entropy",
    "max_probability": "max p",
    "kl_forget": "KL forget",
    "kl_test": "KL test",
    "tpr_at_fpr": "TPR at FPR 1 %",
    "latents_moved": "moved",
    "lost_to_rounding": "lost",
    "dead": "dead",
}
"""What stands beside the headline, by key of a row."""
PER_CENT = ("forget_test_accuracy", "tpr_at_fpr", "latents_moved", "lost_to_rounding")


def load(folder: Path) -> dict[str, Any]:
    """Grid, choices and report cells of a results folder."""
    try:
        grid = json.loads((folder / GRID).read_text())
        chosen = json.loads((folder / CHOSEN).read_text())
    except (OSError, ValueError) as err:
        raise ArtefactError(
            f"{folder} holds no finished grid: {err}.", remedy="Run `qunlearn bench run` first."
        ) from err
    configs = {(c["model"], c["bits"], c["kind"], c["method"]): c["config"] for c in chosen}
    cells = []
    for cell in Store(folder):
        if cell["tuning"]:
            continue
        key = (cell["model"], cell["bits"], Request.parse(cell["request"]).kind, cell["method"])
        if cell["method"] in ROWS or configs.get(key) == cell["config"]:
            cells.append(cell)
    return {"grid": grid, "chosen": chosen, "cells": cells}


def sections(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """Cells by network, bit width and kind of request."""
    out: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        out.setdefault((cell["model"], cell["bits"], Request.parse(cell["request"]).kind), []).append(cell)
    return out


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def rows_of(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a method, sorted by gap. ArtefactError without the row of the original: no table without it."""
    methods = dict.fromkeys(str(c["method"]) for c in cells)
    if ORIGINAL not in methods or RETRAINED not in methods:
        raise ArtefactError(
            "the rows `original` and `retrained` are missing: doing nothing can score well.",
            remedy="Finish the grid with `qunlearn bench run`.",
        )
    at = {(c["request"], c["seed"], c["method"]): c for c in cells}
    out = []
    for method in methods:
        own = [c for c in cells if c["method"] == method]
        good = [c for c in own if "error" not in c and c.get("gap") is not None]
        row: dict[str, Any] = {"method": method, "cells": len(own), "failed": len(own) - len(good), "bold": False}
        row["marks"] = []
        if good:
            for key in SHOWN:
                row[key] = _spread([c["onnx"][key] for c in good])
            row["gap"] = _spread([c["gap"] for c in good])
            row["gaps"] = {f"{c['request']}/{c['seed']}": c["gap"] for c in good}
            for key in ("seconds", "processor", "passes", "codes_changed", "cka", *BESIDE):
                values = [v for c in good if (v := c.get(key, c["onnx"].get(key))) is not None]
                if values:
                    row[key] = statistics.fmean(values)
            cost = [c["processor"] / at[c["request"], c["seed"], RETRAINED]["processor"] for c in good]
            row["time_share"] = statistics.median(cost)
            row["marks"] = _marks(method, good, at)
        out.append(row)
    out.sort(key=lambda r: (r["method"] == RETRAINED, "gap" not in r, r.get("gap", (0,))[0]))
    _embolden(out)
    return out


def _marks(method: str, good: Sequence[Mapping[str, Any]], at: Mapping[tuple[str, int, str], Any]) -> list[str]:
    if method in ROWS:
        return []
    marks = []
    before = [at[c["request"], c["seed"], ORIGINAL] for c in good]
    nothing = statistics.fmean(c["gap"] for c in good) >= statistics.fmean(b["gap"] for b in before)
    if Request.parse(good[0]["request"]).kind == "class":
        nothing |= _fall(good, before, "forget_accuracy") < LEAST_FALL
    if nothing:
        marks.append("no effect")
    failing = sum(bool(c["utility"]) for c in good) * 2 > len(good)
    if failing or _fall(good, before, "retain_accuracy") > MOST_LOST:
        marks.append("utility")
    if any(c["onnx"]["mia_degenerate"] for c in good):
        marks.append("degenerate attack")
    if any(abs(c["onnx"][k] - c["torch"][k]) > DISAGREE for c in good for k in SHOWN[:3]):
        marks.append("torch differs")
    return marks


def _fall(cells: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(b["onnx"][key] - c["onnx"][key] for c, b in zip(cells, before, strict=True))


def _embolden(rows: Sequence[dict[str, Any]]) -> None:
    """Bold: the best method, if its paired difference to the runner-up is larger than the noise floor, >= 3 seeds."""
    methods = [r for r in rows if r["method"] not in ROWS and "gaps" in r and not r["failed"]]
    floor = next((r for r in rows if r["method"] == SECOND_RETRAINED and "gaps" in r), None)
    able = [r for r in methods if "degenerate attack" not in r["marks"] and "no effect" not in r["marks"]]
    if len(able) < 2 or floor is None:
        return
    best, second = able[0], able[1]
    shared = sorted(set(best["gaps"]) & set(second["gaps"]) & set(floor["gaps"]))
    seeds = {key.rsplit("/", 1)[1] for key in shared}
    if len(seeds) < 3:
        return
    ahead = statistics.fmean(second["gaps"][k] - best["gaps"][k] for k in shared)
    best["bold"] = ahead > statistics.fmean(floor["gaps"][k] for k in shared)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table: per cent, mean +- standard deviation over requests and seeds."""
    head = ["method", *HEADS.values(), "Avg Gap", "CKA", "codes changed", "passes", "time", "cells", "remarks"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for r in rows:
        if "gap" not in r:
            lines.append(f"| {r['method']} |{' - |' * (len(head) - 3)} {r['cells']} | all failed |")
            continue
        name = f"**{r['method']}**" if r["bold"] else r["method"]
        values = [
            f"{100 * r[k][0]:.1f}" + (f" +- {100 * r[k][1]:.1f}" if r["cells"] > 1 else "") for k in (*SHOWN, "gap")
        ]
        cka = f"{r['cka']:.2f}" if "cka" in r else "-"
        codes = f"{100 * r['codes_changed']:.1f}" if "codes_changed" in r else "-"
        remarks = [*r["marks"], *([f"{r['failed']} failed"] if r["failed"] else [])]
        cells = [name, *values, cka, codes, f"{r['passes']:.1f}", f"{100 * r['time_share']:.0f} %", str(r["cells"])]
        lines.append(f"| {' | '.join(cells)} | {', '.join(remarks)} |")
    return "\n".join(lines)


def figure(row: Mapping[str, Any], key: str) -> str:
    """A figure of ``BESIDE`` as text; a dash where the row has none."""
    value = row.get(key)
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if key in PER_CENT else f"{value:.1f}" if key == "dead" else f"{value:.2f}"


def beside(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What stands beside the headline, as text: ``head`` and ``rows``, one a method that has figures."""
    keys = [k for k in BESIDE if any(k in r for r in rows)]
    found = [[r["method"], *(figure(r, k) for k in keys)] for r in rows if "gap" in r]
    return {"head": ["method", *(BESIDE[k] for k in keys)], "rows": found}


def details(found: Mapping[str, Any]) -> str:
    """What :func:`beside` gave as Markdown: means over cells, entropies and divergences in nats, shares in per cent."""
    lines = [f"| {' | '.join(found['head'])} |", "|" + "---|" * len(found["head"])]
    return "\n".join([*lines, *(f"| {' | '.join(r)} |" for r in found["rows"])])


def tables(folder: Path) -> dict[str, Any]:
    """Everything a page needs: ``grid``, ``chosen`` and the ``sections`` with their rows."""
    found = load(folder)
    parts = []
    for (model, bits, kind), own in sections(found["cells"]).items():
        rows = rows_of(own)
        parts.append({
            "model": model, "bits": bits, "kind": kind, "requests": sorted({c["request"] for c in own}),
            "seeds": sorted({c["seed"] for c in own}), "rows": rows, "beside": beside(rows),
        })  # fmt: skip
    return {"grid": found["grid"], "chosen": found["chosen"], "sections": parts}


def text(value: Mapping[str, Any], *, whole: bool = False) -> str:
    """All tables as Markdown; if ``whole`` each followed by its :func:`details`."""
    parts = [NO_REFERENCE] if value["grid"].get("tune_by") == "no_reference" else []
    for s in value["sections"]:
        seeds = f"seeds {', '.join(map(str, s['seeds']))}" if len(s["seeds"]) > 1 else f"one seed ({s['seeds'][0]})"
        requests = ", ".join(s["requests"])
        parts.append(f"### {s['model']}, {s['bits']}, {s['kind']}: {requests}; {seeds}\n\n{markdown(s['rows'])}\n")
        if whole:
            parts.append(f"{details(s['beside'])}\n")
    return "\n".join(parts)
