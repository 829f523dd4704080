"""The demo's claim, over all speakers and several seeds: OEU against FT, GA, NegGrad+ and RL at equal tuning budgets.

    python benchmarks/bench_demo.py [--seeds 0 1 2] [--budget 6] [--work runs/bench_demo] [--out benchmarks/results]

Networks (one base and one retrained per speaker and seed) are trained into ``--work`` once and reused. Every method
gets the same number of configurations, drawn with one seed from declared ranges, the same stop rule with the same
reference card, and is tuned on a network of its own seed (100) and two speakers, on held-out data only; a run
that computes more than 20 % of retraining's sample gradients counts as failed (wall time on a shared machine would
make the choice depend on the neighbours; it is reported). Then every speaker and seed is forgotten with the
configuration chosen.
All figures are read from the int8 ONNX files. Results: ``demo_cells.jsonl`` (one line a cell, resumable),
``demo.json`` and ``demo.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qunlearn import tasks
from qunlearn.audit.predictor import OnnxPredictor
from qunlearn.audit.summary import gap, summary
from qunlearn.bench.recipes import RECIPES
from qunlearn.cli import assess, journey
from qunlearn.cli import workspace as ws
from qunlearn.cli.common import Settings
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import QunlearnError
from qunlearn.unlearn import METHODS

TUNE_SEED, TUNE_GROUPS, DRAW_SEED = 100, ("lucas", "george"), 7
EPOCHS = (1, 2, 3)
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "oeu": {"lr": (2e-3, 1e-2), "lam": (0.5, 4.0)},
    "ft": {"lr": (1e-3, 1e-1)},
    "ga": {"lr": (1e-6, 1e-4)},
    "neggrad_plus": {"lr": (1e-4, 1e-2)},
    "rl": {"lr": (1e-4, 1e-2)},
}
"""Log-uniform: two decades of lr around each method's default. OEU's are narrower, and its other settings fixed, after
exploring it on the tuning network; the other methods were not explored beforehand. The budget counts draws only."""
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {"oeu": {"batch_size": ("32", "64")}}
COMMON = {"stop_rule": "true", "probe": "150", "eval_every": "6"}
OEU_FIXED = {"loss": "e1", "clip": "2.5", "max_steps": "90", "diag_every": "1000"}
COST_SHARE = 0.2
RETRAIN_PASSES = RECIPES[journey.SOURCE]["epochs"]
_FIXED: dict[tuple[int, str, bool], dict[str, Any]] = {}
SETS = ("forget_accuracy", "retain_accuracy", "heldout_accuracy", "test_accuracy", "mia")


def draw(method: str, budget: int) -> list[dict[str, str]]:
    """The configurations of one method."""
    rng = np.random.default_rng([DRAW_SEED, *method.encode()])
    out: list[dict[str, str]] = []
    while len(out) < budget:
        config = dict(COMMON)
        for name, (lo, hi) in RANGES[method].items():
            config[name] = f"{math.exp(rng.uniform(math.log(lo), math.log(hi))):.3g}"
        for name, words in CHOICES.get(method, {}).items():
            config[name] = str(rng.choice(words))
        if method == "oeu":
            config |= OEU_FIXED | {"retain_batch_size": config["batch_size"]}
        else:
            config["epochs"] = str(rng.choice(EPOCHS))
        out.append(config)
    return out


def networks(settings: Settings, work: Path, seed: int) -> journey.Networks:
    """Base and references of one seed, trained once into ``work``."""
    dataset = ws.load_data(settings, journey.SOURCE)
    folder = work / f"seed{seed}"
    if not (folder / "base" / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        journey.from_scratch(settings, dataset, folder, seed=seed)
    return journey.shipped(dataset, folder)


def figures(model: Any, config: Any, splits: Splits, seed: int, *, closed: bool) -> dict[str, Any]:
    """The plain numbers of the exported file; ``closed`` keeps the test part shut (tuning)."""
    with tempfile.TemporaryDirectory() as folder:
        subject = assess.from_run(model, config, Path(folder) / "m.onnx")
        names = ("forget", "retain", "heldout") if closed else ("forget", "retain", "heldout", "test")
        return summary(
            OnnxPredictor(subject.file),
            splits,
            tasks.get("classification"),
            seed,
            nonmembers="heldout" if closed else "test",
            sets=names,
        )


def run_cell(
    settings: Settings,
    nets: journey.Networks,
    seed: int,
    group: str,
    method: str,
    config: dict[str, str],
    *,
    closed: bool,
) -> dict[str, Any]:
    """Forget one group with one configuration; figures of base, retrained and unlearned file, or the error."""
    dataset = ws.load_data(settings, journey.SOURCE)
    splits = make_splits(dataset, Request("group", (group,)), seed=seed)
    reference, reference_config = journey.artefact.open_run(nets.retrained[group])
    cell: dict[str, Any] = {"seed": seed, "group": group, "method": method, "config": config}
    key = (seed, group, closed)
    if key not in _FIXED:
        _FIXED[key] = {
            "retrained": figures(reference, reference_config, splits, seed, closed=closed),
            "base": figures(nets.base, nets.config, splits, seed, closed=closed),
        }
    cell |= _FIXED[key]
    start = time.perf_counter()
    try:
        result = METHODS[method].from_settings(config)(
            nets.base, splits, tasks.get("classification"), request_kind="group", card=nets.card, seed=seed
        )
    except QunlearnError as err:
        return cell | {"error": f"{type(err).__name__}: {err.message}", "seconds": time.perf_counter() - start}
    cell["unlearned"] = figures(result.model, nets.config, splits, seed, closed=closed)
    cell["seconds"], cell["retrain_seconds"] = result.seconds, nets.seconds[group]
    cell["passes"], cell["codes_changed"] = result.passes, result.changes.share
    cell["stop_reason"] = result.fields.get("stop_reason")
    return cell


def score(cell: dict[str, Any], *, closed: bool) -> float:
    """Average gap to the retrained file; infinite for failed runs and, in tuning, for runs that cost too much."""
    if "error" in cell:
        return math.inf
    if closed:
        if cell["passes"] > COST_SHARE * RETRAIN_PASSES:
            return math.inf
        keys = ("forget_accuracy", "retain_accuracy", "heldout_accuracy", "mia")
        u, r = cell["unlearned"], cell["retrained"]
        return statistics.fmean(abs((u[k] or 0.0) - (r[k] or 0.0)) for k in keys)
    value = gap(cell["unlearned"], cell["retrained"])
    return math.inf if value is None else value


def cells(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tune(settings: Settings, work: Path, budget: int, log: Path) -> dict[str, dict[str, str]]:
    """The best configuration of every method on the tuning network."""
    nets = networks(settings, work, TUNE_SEED)
    chosen = {}
    for method in RANGES:
        tried = []
        for config in draw(method, budget):
            scores = []
            for group in TUNE_GROUPS:
                key = (TUNE_SEED, group, method, config)
                known = [c for c in cells(log) if (c["seed"], c["group"], c["method"], c["config"]) == key]
                if not known:
                    known = [run_cell(settings, nets, TUNE_SEED, group, method, config, closed=True)]
                    with log.open("a") as f:
                        f.write(json.dumps(known[0]) + "\n")
                scores.append(score(known[0], closed=True))
            tried.append((statistics.fmean(scores), config))
            settings.say(f"tuning {method} {config}: {tried[-1][0]:.4f}")
        chosen[method] = min(tried, key=lambda t: t[0])[1]
    return chosen


def row(name: str, values: Iterable[dict[str, Any]], key: str) -> dict[str, Any]:
    """Means and spreads over cells of one method (or of the base, ``key="base"``)."""
    items = [c for c in values if key in c]
    out: dict[str, Any] = {"name": name, "cells": len(items)}
    for s in SETS:
        out[s] = statistics.fmean(c[key][s] for c in items)
        out[f"d_{s}"] = statistics.fmean(abs(c[key][s] - c["retrained"][s]) for c in items)
    gaps = [g for c in items if (g := gap(c[key], c["retrained"])) is not None]
    out["gap"], out["gap_sd"] = statistics.fmean(gaps), statistics.pstdev(gaps)
    if key == "unlearned":
        out["time_share"] = statistics.median(c["seconds"] / c["retrain_seconds"] for c in items)
        out["passes"] = statistics.fmean(c["passes"] for c in items)
        out["retain_drop"] = statistics.fmean(c["base"]["retain_accuracy"] - c[key]["retain_accuracy"] for c in items)
        out["test_drop"] = statistics.fmean(c["base"]["test_accuracy"] - c[key]["test_accuracy"] for c in items)
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """One line a method; cost is sample gradients in passes over the retain set, and their share of retraining's."""
    head = "| method | forget (off by) | retain | held-out | test | MIA | gap to retrained | cost | cells |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        first = f"{100 * r['forget_accuracy']:.1f} ({100 * r['d_forget_accuracy']:.1f})"
        numbers = " | ".join([first, *(f"{100 * r[s]:.1f}" for s in SETS[1:])])
        cost = f"{r['passes']:.1f} ({100 * r['passes'] / RETRAIN_PASSES:.0f} %)" if "passes" in r else "-"
        gaps = f"{100 * r['gap']:.1f} +- {100 * r['gap_sd']:.1f}"
        lines.append(f"| {r['name']} | {numbers} | {gaps} | {cost} | {r['cells']} |")
    return "\n".join(lines)


def bars(rows: list[dict[str, Any]]) -> str:
    """The claims that the demo is held to, with what was measured."""
    oeu = next(r for r in rows if r["name"] == "oeu")
    best = min(r["gap"] for r in rows if r["name"] != "oeu")
    found = (
        ("retain accuracy falls by at most 2 points", oeu["retain_drop"], 0.02),
        ("test accuracy falls by at most 2 points", oeu["test_drop"], 0.02),
        ("forget accuracy within 10 points of the retrained file", oeu["d_forget_accuracy"], 0.10),
        ("smaller gap than every other method", oeu["gap"], best),
        ("at most 10 % of the cost of retraining", oeu["passes"] / RETRAIN_PASSES, 0.10),
    )
    lines = ["| OEU, mean over cells | measured | bar | reached |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {100 * v:.1f} | {100 * bar:.1f} | {'yes' if v <= bar else '**no**'} |" for what, v, bar in found
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=6)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_demo"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--train-only", action="store_true", help="train the networks of --seeds and stop")
    parser.add_argument("--report-only", action="store_true", help="write the tables of the cells that are there")
    args = parser.parse_args()
    settings = Settings()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.train_only:
        for seed in args.seeds:
            networks(settings, args.work, seed)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "demo_cells.jsonl"
    chosen = tune(settings, args.work, args.budget, log)
    dataset = ws.load_data(settings, journey.SOURCE)
    for seed in [] if args.report_only else args.seeds:
        nets = networks(settings, args.work, seed)
        for group in dataset.group_names:
            for method, config in chosen.items():
                key = (seed, group, method, config)
                if any((c["seed"], c["group"], c["method"], c["config"]) == key for c in cells(log)):
                    continue
                cell = run_cell(settings, nets, seed, group, method, config, closed=False)
                settings.say(f"seed {seed} {group} {method}: gap {score(cell, closed=False):.4f}")
                with log.open("a") as f:
                    f.write(json.dumps(cell) + "\n")
    report = [c for c in cells(log) if c["seed"] in args.seeds and c["config"] == chosen[c["method"]]]
    rows = [row("base (do nothing)", [c for c in report if c["method"] == "oeu"], "base")]
    rows += [row(m, [c for c in report if c["method"] == m], "unlearned") for m in chosen]
    rows.sort(key=lambda r: r["gap"])
    retrained = [c for c in report if c["method"] == "oeu"]
    target = {s: statistics.fmean(c["retrained"][s] for c in retrained) for s in SETS}
    failed = {m: sum("error" in c for c in report if c["method"] == m) for m in chosen}
    value = {
        "seeds": args.seeds,
        "budget": args.budget,
        "chosen": chosen,
        "retrained": target,
        "rows": rows,
        "failed": failed,
    }
    (args.out / "demo.json").write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    numbers = " | ".join(f"{100 * target[s]:.1f}" for s in SETS)
    goal = f"| retrained (target) | {numbers} | 0 | {RETRAIN_PASSES} (100 %) | {len(retrained)} |"
    text = f"{table(rows)}\n{goal}\n\n{bars(rows)}\n"
    (args.out / "demo.md").write_text(text)
    print(text)
    print("configurations:", json.dumps(chosen))


if __name__ == "__main__":
    main()
