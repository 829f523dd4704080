"""OEU with and without projection, compared where they have forgotten equally much.

    python benchmarks/bench_oeu_matched.py [--seeds 0 1 2] [--groups lucas] [--work runs/bench]
                                           [--out benchmarks/results]

For every seed one DS-CNN (spoken digits, w8a8) and the network retrained without the speaker are taken from
``--work``, and trained there if absent (the folder that ``bench_methods.py`` fills). Then OEU forgets one speaker
with scope global, layer and none, each under the same settings. The middle of the target band is the accuracy on that
speaker of the network retrained without it. All forget samples are evaluated every few steps; an evaluation within
two points of the middle is *matched*, and for it the accuracy on the whole retain set is taken. Compared are the best
matched evaluations: all settings of one scope against all settings of another. The settings were fixed after pilot
runs on these seeds and on seed 100, so that runs reach the window, and are tuned for no scope; ``e2-slow`` was added
when ``e2`` had left cases without a match.

Results, written after every run and resumed from there: ``oeu_matched.json`` and ``oeu_matched.md``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bench_methods import GRIDS

from qunlearn import tasks
from qunlearn.bench.grid import read_grid
from qunlearn.bench.networks import load_dataset
from qunlearn.bench.scene import Scene, Spot, scene
from qunlearn.errors import DivergedError
from qunlearn.quant.state import load_tensors
from qunlearn.unlearn import METHODS, checkpoint
from qunlearn.unlearn.probe import Probe

SCOPES = ("none", "global", "layer")
COMMON: dict[str, Any] = {"batch_size": 32, "retain_batch_size": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "e2": {"loss": "e2", "lam": 1.0, "lr": 2e-3},
    "e2-slow": {"loss": "e2", "lam": 1.5, "lr": 1e-3},
    "e1": {"loss": "e1", "lam": 2.0, "lr": 1e-3},
}
STEPS, EVERY = 96, 3
COLUMNS = {**{s: (s,) for s in SCOPES}, "either": ("global", "layer")}
"""What is compared with ``none``; ``either`` is the better of both projections, from twice as many runs."""
WINDOW = 0.02
ALL = 1_000_000


def run(at: Scene, cell: Mapping[str, Any]) -> dict[str, Any]:
    """One run: forget accuracy along the trajectory, retain accuracy where it is matched."""
    task = tasks.get("classification")
    assert at.card is not None
    middle, splits = at.card.groups[cell["group"]].accuracy, at.splits
    forget = Probe(task, splits.forget, size=ALL, seed=0, purpose="forget")
    retain = Probe(task, splits.retain, size=ALL, seed=0, purpose="retain")
    model = copy.deepcopy(at.original.model)
    evaluations: list[dict[str, Any]] = []
    ended, start = "steps", time.process_time()
    with tempfile.TemporaryDirectory() as folder:

        def watch(step: int, total: int, row: Mapping[str, Any]) -> None:
            if step % EVERY:
                return
            tensors, _ = load_tensors(Path(folder) / checkpoint.NAME)
            own = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
            checkpoint.fill(model, own)
            a_f = forget(model).accuracy
            matched = abs(a_f - middle) <= WINDOW
            evaluations.append({"step": step, "a_f": a_f, "a_r": retain(model).accuracy if matched else None})

        method = METHODS["oeu"](
            **COMMON,
            **cell["settings"],
            scope=cell["scope"],
            max_steps=STEPS,
            diag_every=10 * STEPS,
            stop_rule=False,
        )
        try:
            method(
                at.original.model,
                splits,
                task,
                request_kind="group",
                seed=cell["seed"],
                run_dir=folder,
                checkpoint_every=EVERY,
                progress=watch,
            )
        except DivergedError as err:
            ended = err.message
    return {
        **cell,
        "middle": middle,
        "evaluations": evaluations,
        "ended": ended,
        "seconds": time.process_time() - start,
    }


def matched(runs: list[dict[str, Any]], **where: Any) -> list[dict[str, Any]]:
    """Matched evaluations of the runs that have these values, in the order of runs and steps."""
    mine = [r for r in runs if all(r[k] == v for k, v in where.items())]
    return [{**e, "setting": r["setting"]} for r in mine for e in r["evaluations"] if e["a_r"] is not None]


def compare(runs: list[dict[str, Any]], cases: list[tuple[int, str]], settings: list[str]) -> list[dict[str, Any]]:
    """Per case and column: best, mean and earliest matched evaluation over ``settings``."""
    rows = []
    for seed, group in cases:
        middle = next(r["middle"] for r in runs if (r["seed"], r["group"]) == (seed, group))
        row: dict[str, Any] = {"seed": seed, "group": group, "middle": middle}
        for column, scopes in COLUMNS.items():
            hits = [e for scope in scopes for e in matched(runs, seed=seed, group=group, scope=scope)]
            found = [e for e in hits if e["setting"] in settings]
            if found:
                best = max(found, key=lambda e: e["a_r"])
                row[column] = {
                    "best": best["a_r"],
                    "a_f": best["a_f"],
                    "step": best["step"],
                    "setting": best["setting"],
                    "mean": statistics.fmean(e["a_r"] for e in found),
                    "first_step": min(e["step"] for e in found),
                    "first": min(found, key=lambda e: e["step"])["a_r"],
                    "count": len(found),
                }
        rows.append(row)
    return rows


def differences(rows: list[dict[str, Any]], column: str, key: str) -> list[float]:
    """A column minus ``none``, where both have a matched evaluation."""
    return [r[column][key] - r["none"][key] for r in rows if column in r and "none" in r]


def render(runs: list[dict[str, Any]], cases: list[tuple[int, str]], seconds: float) -> str:
    """The tables as Markdown, and what they say."""
    groups = ", ".join(dict.fromkeys(g for _, g in cases))
    seeds = ", ".join(str(s) for s in dict.fromkeys(s for s, _ in cases))
    settings = "; ".join(f"{name}: lr {s['lr']:g}, lam {s['lam']:g}" for name, s in SETTINGS.items())
    lines = [
        "# Retain accuracy at matched forgetting, with and without projection",
        "",
        f"Spoken digits, DS-CNN w8a8, speaker {groups} forgotten, seeds {seeds}; plain SGD, batches of "
        f"{COMMON['batch_size']} ({settings}), at most {STEPS} steps, evaluated every {EVERY}. Matched: accuracy on "
        f"the speaker within {100 * WINDOW:.0f} points of the network retrained without it. Accuracy on the whole "
        "retain set, per cent. In brackets: setting and step of the best; mean over all matched evaluations and their "
        "number. All scopes run the same settings, tuned for none of them; few matched evaluations make a weak figure. "
        "*either*: the better of global and layer, from twice as many runs.",
    ]
    chosen = [("All settings", list(SETTINGS)), *((f"Only {n}", [n]) for n in SETTINGS)]
    for title, names in chosen:
        rows = compare(runs, cases, names)
        lines += [
            "",
            f"## {title}",
            "",
            "| seed | speaker | retrained | none | global | layer |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            cells = []
            for scope in SCOPES:
                v = row.get(scope)
                cells.append(
                    f"{100 * v['best']:.2f} ({v['setting']}, {v['step']}; {100 * v['mean']:.2f} of {v['count']})"
                    if v
                    else "never matched"
                )
            lines.append(f"| {row['seed']} | {row['group']} | {100 * row['middle']:.1f} | {' | '.join(cells)} |")
        lines.append("")
        lines += [words(rows, column) for column in COLUMNS if column != "none"]
    lines += ["", f"{seconds:.0f} s of one core, torch {torch.__version__}."]
    return "\n".join(lines) + "\n"


def kept(known: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of an earlier call that this one has not come to yet, so that stopping it loses nothing."""
    return [r for r in known if r not in runs]


def words(rows: list[dict[str, Any]], column: str) -> str:
    """One sentence for one column: differences to no projection, win or loss."""
    parts = []
    for key, name in (("best", "best"), ("mean", "mean"), ("first", "earliest")):
        gains = differences(rows, column, key)
        if not gains:
            return f"- {column} against none: no case in which both were matched."
        wins = sum(g > 0 for g in gains)
        span = f"{100 * min(gains):+.2f} to {100 * max(gains):+.2f}"
        parts.append(f"{name} {100 * statistics.median(gains):+.2f} points ({span}), better in {wins} of {len(gains)}")
    return f"- {column} against none, median over seeds (smallest to largest): {'; '.join(parts)}."


def main() -> int:
    """Run what is missing and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", default=["lucas"])
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    grid = read_grid(GRIDS / "kws.toml")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "oeu_matched.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    dataset = load_dataset(grid, None)
    facts = {"steps": STEPS, "every": EVERY, "common": COMMON}
    cases = [(seed, group) for seed in args.seeds for group in args.groups]
    runs: list[dict[str, Any]] = []
    for (name, chosen), (seed, group) in itertools.product(SETTINGS.items(), cases):
        spot = Spot(model=grid.models[0], bits=grid.bits[0], request=f"group={group}", seed=seed)
        at = scene(grid, dataset, spot, args.work / "kws")
        for scope in SCOPES:
            cell = {"seed": seed, "group": group, "scope": scope, "setting": name, "settings": chosen, **facts}
            same = [r for r in known if {k: r[k] for k in cell} == cell]
            runs.append(same[0] if same else run(at, cell))
            hits = [e for e in runs[-1]["evaluations"] if e["a_r"] is not None]
            best = max((f"{e['a_r']:.4f}" for e in hits), default="none")
            print(f"{name} seed {seed} {group} {scope}: {len(hits)} matched, best {best}", flush=True)
            done = [c for c in cases if any((r["seed"], r["group"]) == c for r in runs)]
            value = {"rows": compare(runs, done, list(SETTINGS)), "runs": runs + kept(known, runs)}
            path.write_text(json.dumps(value, sort_keys=True) + "\n")
    path.write_text(json.dumps({"rows": compare(runs, cases, list(SETTINGS)), "runs": runs}, sort_keys=True) + "\n")
    text = render(runs, cases, sum(r["seconds"] for r in runs))
    (args.out / "oeu_matched.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
