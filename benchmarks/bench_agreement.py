"""Do audits say the same of torch, of the int8 ONNX file and of generated C?

    python benchmarks/bench_agreement.py [--only kws class=3 ...] [--processes 1] [--work runs/bench] [--out DIR]

One *cell* is one audit of one network under one request; its verdict is read from the fake-quantized network, from the
int8 ONNX file as ONNX Runtime opens it, and from the C generated from that file, compiled for this computer. The bar:
the three verdicts are one in at least 95 % of the cells, and every other cell is explained by what was measured.

``kws``: the networks that travel with the package, one request a speaker. ``cifar10``: ResNet-8 of
``grids/cifar10.toml`` (JPEG copy), seed 100, 10 % at random and class 3. ``cifar10_memorised``: the same network
trained without augmentation on 6,000 images, 17 % at random forgotten, so that members can be told from non-members.
Networks are taken from ``--work`` and trained there if absent. Sets are cut (``CUT``): an image takes 10 ms in the
generated C. Where the request is at random, SMI also reads 3 x 1,000 samples from the int8 file alone.

Audits: the standard suite and ``cka``. ``recovery`` trains its heads anew for every artefact, and ``relearn`` and
``quant_recovery`` train copies of the network with the file's codes, the same for all artefacts: ``--suite strict``
runs them too, at several times the cost. Networks that are judged: unlearned ones, and controls of known truth. Results
are written after every request, the others are kept: ``agreement.json``, ``agreement.md``. About ten minutes of
one core a request.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_audits import FILE, KINDS, collapsed, faked, moved, read
from bench_methods import GRIDS

from qunlearn import quant, tasks
from qunlearn.audit import (
    AUDITS,
    AuditContext,
    AuditResult,
    TorchTrainer,
    intervals,
)
from qunlearn.audit.trainer import TRAINER
from qunlearn.bench.grid import Grid, read_grid
from qunlearn.bench.networks import load_dataset, network
from qunlearn.bench.scene import SECOND_RETRAINED, Spot, keys_of, scene
from qunlearn.cli import artefact, journey
from qunlearn.cli.assess import SUITES
from qunlearn.data import sources
from qunlearn.data.dataset import Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.unlearn import METHODS, ReferenceCard
from qunlearn_export import writer
from qunlearn_export.parity import parity

BAR = 0.95
SEED = 100
MEMORISED = {"epochs": 50, "batch_size": 64, "weight_decay": 0.0, "augment": "none"}
CUT: Mapping[str, Mapping[str, int]] = {
    "kws": {"retain": 600, "test": 130},
    "random": {"forget": 400, "retain": 500, "heldout_stop": 100, "heldout_audit": 800, "test": 130},
    "class": {
        "forget": 300,
        "retain": 500,
        "heldout_stop": 100,
        "heldout_audit": 500,
        "test": 130,
        "forget_heldout": 100,
    },
    "large": {"forget": 1000, "retain": 1000, "heldout_stop": 100, "heldout_audit": 2000, "test": 130},
}
"""Most samples of a set, by seed. ``large``: what SMI takes of itself; half of ``heldout_audit`` is its spare."""
FAKED: Mapping[str, Any] = {"most": 3000, "steps": 200, "every": 50, "lr": 1e-3, "batch": 64}
SMALL = 1e-4
"""Learning rate of the steps that move a network without teaching it."""
AUDITED = (*SUITES["standard"], "cka")
METHOD: Mapping[str, Mapping[str, Any]] = {
    "rl": {"lr": 0.01, "epochs": 1, "batch_size": 128},
    "oeu": {"lr": 0.01, "max_steps": 80, "batch_size": 64, "probe": 300, "eval_every": 10, "diag_every": 1000},
}
"""Settings of the unlearned networks on CIFAR-10: cheap, chosen by hand before any verdict was read, tuned for none."""
Models = dict[str, quant.QuantModel]
TASK = tasks.get("classification")


@dataclass(frozen=True, kw_only=True)
class Place:
    """One request: its splits, network before, reference, and the networks to judge; splits for SMI at full size."""

    splits: Splits
    models: Models
    seed: int
    large: Splits | None = None


def unlearned(
    name: str,
    before: quant.QuantModel,
    splits: Splits,
    settings: Mapping[str, Any],
    card: ReferenceCard | None,
    seed: int,
) -> quant.QuantModel:
    """The network after one method."""
    method = METHODS[name].from_settings({k: str(v) for k, v in settings.items()})
    return method(before, splits, TASK, request_kind=splits.request_kind, card=card, seed=seed).model


def of_speaker(request: str, work: Path) -> Place:
    """Keyword spotter, one speaker: OEU as in the demo, and controls."""
    dataset = sources.load(journey.SOURCE)
    nets, group = journey.shipped(dataset), Request.parse(request).values[0]
    whole = make_splits(dataset, Request.parse(request), seed=journey.SEED)
    splits = cut(whole, "kws")
    names = list(dataset.group_names)
    reference = artefact.open_run(nets.retrained[group])[0]
    other = artefact.open_run(nets.retrained[names[(names.index(group) + 1) % len(names)]])[0]
    models = {
        "before": nets.base,
        "reference": reference,
        "retrained, moved": moved(reference, whole, lr=SMALL, seed=1),
        "oeu": unlearned("oeu", nets.base, whole, journey.METHOD, nets.card, journey.SEED),
        "without another": other,
        "flipped": faked(nets.base, reference, whole, part="all", seed=3, **FAKED),
        "collapsed": collapsed(reference),
    }
    return Place(splits=splits, models=models, seed=journey.SEED)


def cut(splits: Splits, kind: str) -> Splits:
    """The splits with every set cut to ``CUT[kind]``, by seed."""
    rng = np.random.default_rng(SEED)
    small = {}
    for name, most in CUT[kind].items():
        samples = getattr(splits, name)
        if samples is not None and len(samples) > most:
            small[name] = Samples(samples.dataset, np.sort(rng.permutation(samples.index)[:most]))
    return replace(splits, **small)


def of_images(grid: Grid, request: str, work: Path) -> Place:
    """CIFAR-10, one request: a method, and controls; at random with a second retrained network."""
    spot = Spot(model="resnet8", bits="w8a8", request=request, seed=SEED)
    data = load_dataset(grid, None)
    at = scene(grid, data, spot, work)
    before, reference = at.original.model, at.retrained.model
    models: Models = {"before": before, "reference": reference}
    if at.splits.request_kind == "random":
        models["retrained"] = network(grid, data, keys_of(spot)[SECOND_RETRAINED], work).model
        models["rl"] = unlearned("rl", before, at.splits, METHOD["rl"], None, SEED)
        models["original, moved"] = moved(before, at.splits, lr=SMALL, seed=2)
    else:
        models["retrained, moved"] = moved(reference, at.splits, lr=SMALL, seed=1)
        models["oeu"] = unlearned("oeu", before, at.splits, METHOD["oeu"], None, SEED)
        models["head only"] = faked(before, reference, at.splits, part="head", seed=3, **FAKED)
    models["flipped"] = faked(before, reference, at.splits, part="all", seed=3, **FAKED)
    models["collapsed"] = collapsed(reference)
    kind = at.splits.request_kind
    large = cut(at.splits, "large") if kind == "random" else None
    return Place(splits=cut(at.splits, kind), models=models, seed=SEED, large=large)


def _cifar10(request: str, work: Path) -> Place:
    return of_images(read_grid(GRIDS / "cifar10.toml"), request, work / "cifar10")


def _memorised(request: str, work: Path) -> Place:
    grid = replace(read_grid(GRIDS / "cifar10.toml"), subset=6000, train=MEMORISED)
    return of_images(grid, request, work / "cifar10_memorised")


PLACES: Mapping[str, tuple[Callable[[str, Path], Place], tuple[str, ...]]] = {
    "kws": (of_speaker, tuple(f"group={g}" for g in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"))),
    "cifar10": (_cifar10, ("random=10%", "class=3")),
    "cifar10_memorised": (_memorised, ("random=17%",)),
}


def row(r: AuditResult) -> dict[str, Any]:
    """What decided a verdict."""
    delta = r.tables.get("delta")
    tests = r.tables.get("tests", {})
    shown = {"verdict": r.verdict, "side": r.failure_side, "reasons": list(r.reasons), "value": r.value}
    shown["delta"] = None if delta is None else [round(delta[k], 6) for k in ("value", "lo", "hi")]
    shown["tol"] = None if delta is None else delta["tol"]
    if r.audit == "smi" and tests:
        shown["tests"] = {name: {k: tests[name].get(k) for k in ("identifiable", "mixture")} for name in tests}
        shown["interval"] = None if r.interval is None else [r.interval["lo"], r.interval["hi"]]
        shown["n"] = {k: r.n[k] for k in ("members", "nonmembers", "forget", "spare")}
    return shown


def judged(name: str, request: str, work: Path, audits: Sequence[str]) -> list[dict[str, Any]]:
    """One row a cell: all three readings of it."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    place = PLACES[name][0](request, work)
    print(f"{name} {request}: networks after {time.perf_counter() - started:.0f} s, {place.splits}", flush=True)
    graphs = {n: quant.lower(m) for n, m in place.models.items()}
    files = {n: writer.serialize(g) for n, g in graphs.items()}
    fixed = {n: read(place.models[n], files[n]) for n in ("before", "reference")}
    trainer = TorchTrainer(place.models.values(), TASK)
    rows = []
    for model in list(place.models)[2:]:
        column = quant.TorchColumn(place.models[model])
        report = parity(graphs[model], files[model], place.splits.test.inputs()[:128], torch_column=column)
        mine, found = read(place.models[model], files[model]), {}
        for kind in KINDS:
            ctx = AuditContext(
                before=fixed["before"][kind], after=mine[kind], reference=fixed["reference"][kind],
                splits=place.splits, task=TASK, seed=place.seed, inputs={TRAINER: trainer},
                parity=None if kind == KINDS[0] else report,
            )  # fmt: skip
            found[kind] = {a: row(AUDITS[a]()(ctx)) for a in audits}
        logits = [mine[kind].on(place.splits.forget) for kind in KINDS]
        answers = [int((logits[0].argmax(1) != z.argmax(1)).sum()) for z in logits[1:]]
        for audit in audits:
            rows.append(
                {
                    "place": name, "request": request, "model": model, "audit": audit,
                    "kinds": {k: found[k][audit] for k in KINDS}, "forget": len(place.splits.forget),
                    "answers_differ": dict(zip(KINDS[1:], answers, strict=True)),
                    "c_equals_file": bool(np.array_equal(logits[1], logits[2])),
                }
            )  # fmt: skip
        shown = ", ".join(f"{a} {'/'.join(found[k][a]['verdict'] for k in KINDS)}" for a in audits)
        print(f"{name} {request} {model} ({time.perf_counter() - started:.0f} s): {shown}", flush=True)
        if place.large is not None:
            rows.append({"place": name, "request": request, "model": model, "audit": "smi", "kinds": {}, "large": row(
                AUDITS["smi"]()(
                    AuditContext(
                        before=fixed["before"][FILE], after=mine[FILE], reference=fixed["reference"][FILE],
                        splits=place.large, task=TASK, seed=place.seed, parity=report,
                    )
                )
            )})  # fmt: skip
    return rows


def verdicts(r: Mapping[str, Any]) -> list[str]:
    """The three verdicts of a cell."""
    return [r["kinds"][k]["verdict"] for k in KINDS]


def alike(r: Mapping[str, Any]) -> bool:
    """Whether the three are one."""
    return len(set(verdicts(r))) == 1


def gated(r: Mapping[str, Any]) -> bool:
    """Whether utility decided on every artefact, before the audit's own value was looked at."""
    return all(r["kinds"][k]["side"] == "utility" for k in KINDS)


def share(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many cells are alike, with the 90 % interval."""
    if not rows:
        return "-"
    hits = [alike(r) for r in rows]
    e = intervals.share(np.array(hits))
    return f"{sum(hits)} of {len(hits)} ({100 * e.value:.1f} %, {100 * e.lo:.1f} to {100 * e.hi:.1f})"


def apart(r: Mapping[str, Any], one: str, other: str) -> float | None:
    """How far the values read from two artefacts are apart; None where there is none, or nothing to estimate."""
    a, b = (r["kinds"][k]["value"] for k in (one, other))
    no_signal = any("NO-SIGNAL" in code for code in r["kinds"][FILE]["reasons"] if r["audit"] == "smi")
    return None if a is None or b is None or no_signal else abs(a - b)


def most(rows: Sequence[Mapping[str, Any]], one: str, other: str) -> str:
    """The largest such distance in points."""
    found = [d for r in rows if (d := apart(r, one, other)) is not None]
    return f"{100 * max(found):.2f} of {len(found)}" if found else "-"


def why(r: Mapping[str, Any]) -> str:
    """What was measured on each artefact of a cell whose verdicts differ."""
    parts = []
    for kind in KINDS:
        k = r["kinds"][kind]
        text = f"{kind}: {k['verdict']}" + (f" ({', '.join(k['reasons'])})" if k["reasons"] else "")
        if k["delta"] is not None:
            value, lo, hi = (100 * v for v in k["delta"])
            text += f", difference {value:+.2f} [{lo:+.2f}, {hi:+.2f}] against +-{100 * k['tol']:.0f}"
        parts.append(text)
    other = max(r["answers_differ"].values())
    return f"{'; '.join(parts)}. Of {r['forget']} forget samples {other} get another answer than from torch."


def gaps(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Per audit: cells, agreement, and how far values lie apart (SMI: where it can estimate at all)."""
    for audit in dict.fromkeys(r["audit"] for r in rows):
        own = [r for r in rows if r["audit"] == audit]
        measured = [r for r in own if not gated(r)]
        counts = {v: sum(verdicts(r)[1] == v for r in measured) for v in ("pass", "inconclusive", "fail")}
        yield (
            f"| {audit} | {share(own)} | {share(measured)} | {' / '.join(map(str, counts.values()))} | "
            f"{most(measured, *KINDS[:2])} | {most(measured, *KINDS[1:])} |"
        )


def smi_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """SMI where it has 3 x 1,000 samples, on the file."""
    for r in rows:
        k = r["large"]
        if "tests" not in k:
            continue
        pi = "-" if k["value"] is None else f"{k['value']:.2f}"
        lo_hi = "-" if k["interval"] is None else f"{k['interval'][0]:.2f} to {k['interval'][1]:.2f}"
        delta = "-" if k["delta"] is None else f"{k['delta'][0]:+.2f} [{k['delta'][1]:+.2f}, {k['delta'][2]:+.2f}]"
        p = k["tests"]["after"]
        verdict = k["verdict"] if k["side"] == "none" else f"{k['verdict']} ({k['side']})"
        yield (
            f"| {r['place']} {r['request']} | {r['model']} | {pi} | {lo_hi} | {delta} | {p['identifiable']:.3f} | "
            f"{p['mixture']:.3f} | {verdict} | {'; '.join(k['reasons']) or '-'} |"
        )


def table(every_row: Sequence[Mapping[str, Any]]) -> str:
    """The share, every cell that disagrees, the audits, the networks, SMI at 1,000 samples."""
    rows = [r for r in every_row if "large" not in r]
    hits = sum(map(alike, rows)) / len(rows)
    file_and_c = sum(len(set(verdicts(r)[1:])) == 1 for r in rows)
    equal = [r["c_equals_file"] for r in rows if r["audit"] == "accuracy"]
    strict = dict.fromkeys(r["request"] for r in rows if r["audit"] in {*SUITES["strict"]} - {*AUDITED})
    also = f", then `--suite strict --only {' '.join(strict)}`" if strict else ""
    lines = [
        f"`python benchmarks/bench_agreement.py`{also}. Verdicts on torch, int8 ONNX and generated C are one in "
        f"**{share(rows)}** cells (bar: {100 * BAR:.0f} %: {'reached' if hits >= BAR else '**missed**'}); leaving out "
        f"cells that the utility gate decided: {share([r for r in rows if not gated(r)])}. File and C alone: "
        f"{file_and_c} of {len(rows)}; their logits on the forget set are equal bit for bit in "
        f"{sum(equal)} of {len(equal)} networks.",
        "",
        "| audit | all cells | not decided by the utility gate | pass / inconclusive / fail of these (file) | largest "
        "difference of values, torch and file, points, of so many networks with a value | file and C |",
        "|---|---|---|---|---|---|",
        *gaps(rows),
        "",
    ]
    odd = [r for r in rows if not alike(r)]
    lines += ["Cells that disagree, with what explains them:" if odd else "No cell disagrees.", ""]
    lines += [f"- {r['place']} {r['request']}, {r['model']}, `{r['audit']}`: {why(r)}" for r in odd] + [""] * bool(odd)
    lines += ["| place | networks | cells | alike |", "|---|---|---|---|"]
    for place, request in dict.fromkeys((r["place"], r["request"]) for r in rows):
        own = [r for r in rows if (r["place"], r["request"]) == (place, request)]
        names = "; ".join(dict.fromkeys(r["model"] for r in own))
        lines.append(f"| {place} {request} | {names} | {len(own)} | {sum(map(alike, own))} |")
    found = list(smi_rows([r for r in every_row if "large" in r]))
    if found:
        head = "| place | network | pi | interval | difference to the reference | T0 p | T3 p | verdict | reasons |"
        lines += ["", "SMI with 1,000 samples a set, read from the int8 file:", "", head, "|---" * 9 + "|", *found]
    done = {(r["place"], r["request"]) for r in rows}
    missing = [f"{p} {q}" for p, (_, requests) in PLACES.items() for q in requests if (p, q) not in done]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def save(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Both files, rows in the order of ``PLACES``."""
    order = [(p, q) for p, (_, requests) in PLACES.items() for q in requests]
    rows = sorted(rows, key=lambda r: order.index((r["place"], r["request"])))
    settings = {"methods": METHOD, "cut": CUT, "memorised": MEMORISED, "torch": torch.__version__, "threads": 1}
    (out / "agreement.json").write_text(json.dumps({**settings, "rows": rows}, indent=1, sort_keys=True) + "\n")
    (out / "agreement.md").write_text(table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [(p, q) for p, (_, requests) in PLACES.items() for q in requests]
    known = sorted({text for pair in every for text in pair})
    parser.add_argument("--only", nargs="+", choices=known, metavar="PLACE|REQUEST", help=", ".join(known))
    parser.add_argument("--suite", choices=("standard", "strict"), default="standard", help="standard: with cka")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    audits = SUITES["strict"] if args.suite == "strict" else AUDITED
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "agreement.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        chosen = [pair for pair in every if args.only is None or {*pair} & {*args.only}]
        jobs = {pool.submit(judged, *pair, args.work, audits): pair for pair in chosen}
        for job in as_completed(jobs):
            rows = [r for r in rows if (r["place"], r["request"]) != jobs[job]] + job.result()
            save(args.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
