"""SMI and the attacks beside it on a network that memorises, where the truth is known.

    python benchmarks/bench_smi.py [--seeds 0,1,2] [--shadows 4] [--epochs 30] [--noise 0.8] [--out benchmarks/results]
    python benchmarks/bench_smi.py --world patterns [--seeds 0,1,2] [--shadows 4] [--out benchmarks/results]

Data: the 8x8 digits, divided anew (600 training samples, 800 held out), with 80 % of all labels drawn at random, so
that a network can fit its training labels only by memory. A random third of the training samples is forgotten. A
ResNet-8 (w8a8) is trained on all of it (original) and twice without the forget set (retrained, and the reference);
controls that must not pass are made of the retrained one: one class always on top, head permuted, weights drowned in
noise. Every audit reads torch and the int8 ONNX file and, for SMI, the generated C. Shadow models have the same recipe
and bits.
Results: ``smi.json``, ``smi.md`` (verdicts) and ``smi_cost.md`` (side by side).

``--world patterns``: about 200 samples a set are few. Images of :mod:`qunlearn.bench.patterns` can be drawn at will:
1,000 samples a set, half of the training samples forgotten, a small convolutional network, all else as above. The size
of the images was raised until membership showed in the features. Results: ``smi_patterns.json``, ``smi_patterns.md``
and ``smi_patterns_cost.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qunlearn import quant, tasks
from qunlearn.audit import AUDITS, AuditContext, AuditResult, Predictor, Smi, side_by_side
from qunlearn.audit.reference import shadow_pool
from qunlearn.bench import networks, patterns
from qunlearn.cli import assess
from qunlearn.cli.shadows import maker
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits, training_samples
from qunlearn.quant.model import scale_parameter_names
from qunlearn_export.parity import parity

MODEL, BITS, SOURCE = "resnet8@8", "w8a8", "digits"
KINDS = ("torch-fq", "onnx-all")
TRAIN, HELDOUT = 600, 800


def memorising(seed: int, noise: float) -> Dataset:
    """Digits with random labels on a part, and a small training part."""
    plain = sources.load(SOURCE)
    rng = np.random.default_rng([seed, 7])
    y = plain.y.copy()
    noisy = rng.permutation(len(y))[: round(noise * len(y))]
    y[noisy] = rng.integers(0, plain.num_classes, len(noisy))
    part = np.full(len(y), "test", dtype="<U7")
    order = rng.permutation(len(y))
    part[order[:TRAIN]] = "train"
    part[order[TRAIN : TRAIN + HELDOUT]] = "heldout"
    return replace(plain, y=y, part=part)


@dataclass(frozen=True, kw_only=True)
class World:
    """One seed: splits, how its networks are trained, and the three that are known."""

    splits: Splits
    config: quant.RunConfig
    recipe: quant.Recipe
    models: Mapping[str, quant.QuantModel]
    seconds: Mapping[str, float]


def world(name: str, seed: int, epochs: int, noise: float) -> World:
    """Train original, retrained and reference."""
    if name == "patterns":
        dataset, request, recipe = patterns.data(seed), Request.parse("random=50%"), patterns.RECIPE
        net, source = f"{patterns.__name__}:network", f"{patterns.__name__}:data"
    else:
        dataset, request, net, source = memorising(seed, noise), Request.parse("random=33%"), MODEL, SOURCE
        recipe = quant.Recipe(epochs=epochs, batch_size=64, lr=0.05, weight_decay=0.0)
    splits = make_splits(dataset, request, seed=seed)
    spec = quant.QuantSpec.parse(BITS, grid="exact")
    task = tasks.get("classification")
    models, seconds = {}, {}
    for role, excluded, offset in (("original", None, 0), ("retrained", request, 500), ("reference", request, 700)):
        model = networks.build_model(net, dataset, spec, seed=seed + offset)
        started = time.perf_counter()
        samples = training_samples(dataset, excluded, seed)
        models[role] = quant.train(model, task, samples, recipe, seed=seed + offset)
        seconds[role] = time.perf_counter() - started
    config = networks.run_config(net, dataset, source, spec, {"recipe": asdict(recipe), "seed": seed})
    return World(splits=splits, config=config, recipe=recipe, models=models, seconds=seconds)


def controls(w: World, seed: int) -> dict[str, quant.QuantModel]:
    """Networks that must not pass: one class on top, a permuted head, weights with noise; made from the retrained."""
    out = {}
    for name in ("collapsed", "head permuted"):
        model = copy.deepcopy(w.models["retrained"])
        head = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        with torch.no_grad():
            if name == "collapsed" and head.bias is not None:
                head.bias[2] += 50
            else:
                head.weight.copy_(head.weight.roll(1, 0))
        out[name] = model.eval()
    noisy = copy.deepcopy(w.models["retrained"])
    spared = scale_parameter_names(noisy) if w.config.data != SOURCE else set()  # on digits scales get noise too
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in noisy.named_parameters():
            if p.ndim > 1 and name not in spared:
                p.add_(0.5 * p.std() * torch.randn_like(p))
    out["noise"] = noisy.eval()
    return out


def predictors(w: World, model: quant.QuantModel, kinds: tuple[str, ...]) -> tuple[dict[str, Predictor], Any]:
    """The network as every kind, and its parity report."""
    with tempfile.TemporaryDirectory() as folder:
        subject = assess.from_run(model, w.config, Path(folder) / "m.onnx")
        inputs = w.splits.test.inputs()[:128]
        report = parity(subject.graph, subject.file, inputs, torch_column=quant.TorchColumn(model))
        return {k: assess.predictor_of(subject, k) for k in kinds}, report


def line(kind: str, name: str, r: AuditResult) -> dict[str, Any]:
    """What the table shows of one result."""
    tests = r.tables.get("tests", {}).get("after", {})
    return {
        "kind": kind, "model": name, "audit": r.audit, "value": r.value,
        "interval": None if r.interval is None else [r.interval["lo"], r.interval["hi"]],
        "reference": r.reference["value"], "verdict": r.verdict, "side": r.failure_side, "reasons": list(r.reasons),
        "identifiable": tests.get("identifiable"), "mixture": tests.get("mixture"), "phi": r.tables.get("phi"),
        "checks": {k: v["pi"] for k, v in r.tables.get("self_checks", {}).items()}, "seconds": r.timings["audit_s"],
    }  # fmt: skip


def run(world_name: str, seed: int, epochs: int, shadows: int, noise: float, c_host: bool) -> dict[str, Any]:
    """All results of one seed."""
    w = world(world_name, seed, epochs, noise)
    kinds = (*KINDS, "c-host") if c_host else KINDS
    known = {name: predictors(w, m, kinds) for name, m in w.models.items()}
    known |= {name: predictors(w, m, kinds) for name, m in controls(w, seed).items()}
    names = [n for n in known if n != "reference"]
    rows = []
    task = tasks.get("classification")

    def context(kind: str, name: str, **inputs: Any) -> AuditContext:
        found, report = known[name]
        return AuditContext(
            before=known["original"][0][kind], after=found[kind], reference=known["reference"][0][kind],
            splits=w.splits, task=task, seed=seed, subject="baseline" if name == "original" else "unlearned",
            parity=None if kind == "torch-fq" else report, inputs=inputs,
        )  # fmt: skip

    for kind in kinds:
        for name in names:
            for phi in ("logits", "penultimate") if kind != "c-host" else ("logits",):
                rows.append(line(kind, name, Smi(phi=phi)(context(kind, name))))
    pool = shadow_pool(
        maker(w.config, w.splits, w.recipe, KINDS), w.splits, models=shadows, seed=seed, recipe=asdict(w.recipe),
        kinds=KINDS,
    )  # fmt: skip
    beside = {}
    for name in ("original", "retrained"):
        results = [AUDITS[a]()(context("onnx-all", name, shadows=pool)) for a in ("smi", "loss", "lira", "rmia")]
        rows += [line("onnx-all", name, r) for r in results[1:]]
        beside[name] = [list(r) for r in side_by_side.rows(results)]
    accuracy = {n: {s: _accuracy(p[0]["onnx-all"], getattr(w.splits, s)) for s in ("forget", "retain", "heldout_audit")}
                for n, p in known.items()}  # fmt: skip
    return {
        "seed": seed, "counts": w.splits.counts(), "train_seconds": dict(w.seconds), "pool_seconds": pool.seconds,
        "accuracy": accuracy, "rows": rows, "side_by_side": beside,
    }  # fmt: skip


def _accuracy(p: Predictor, samples: Samples) -> float:
    return float((p.on(samples).argmax(1) == samples.targets()).mean())


def table(found: list[dict[str, Any]]) -> str:
    """One line a seed, model and feature: SMI. Artefacts that print the same share it."""
    lines = [
        "| seed | artefact | features | model | pi | interval | T0 p | T3 p | verdict | reasons |",
        "|" + "---|" * 10,
    ]
    for f in found:
        alike: dict[tuple[str, ...], list[str]] = {}
        for r in f["rows"]:
            if r["audit"] != "smi":
                continue
            cells = ["-" if r["value"] is None else f"{r['value']:.3f}"]
            cells.append("-" if r["interval"] is None else f"{r['interval'][0]:.2f} to {r['interval'][1]:.2f}")
            cells += ["-" if r[k] is None else f"{r[k]:.3f}" for k in ("identifiable", "mixture")]
            verdict = r["verdict"] if r["side"] == "none" else f"{r['verdict']} ({r['side']})"
            line = (r["phi"], r["model"], *cells, verdict, "; ".join(r["reasons"]) or "-")
            alike.setdefault(line, []).append(r["kind"])
        lines += [f"| {f['seed']} | {', '.join(kinds)} | {' | '.join(line)} |" for line, kinds in alike.items()]
    return "\n".join(lines) + "\n"


def cost(found: list[dict[str, Any]]) -> str:
    """SMI and the attacks side by side, seconds as measured."""
    lines = [f"| seed | model | {' | '.join(side_by_side.HEAD)} |", "|" + "---|" * (2 + len(side_by_side.HEAD))]
    for f in found:
        for name, rows in f["side_by_side"].items():
            lines += [f"| {f['seed']} | {name} | {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("digits", "patterns"), default="digits")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--shadows", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--noise", type=float, default=0.8, help="share of the labels that are random")
    parser.add_argument("--merge", help="comma-separated folders with smi.json of single seeds; trains nothing")
    parser.add_argument("--no-c", action="store_true", help="leave the generated C out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"threads": 1, "torch": torch.__version__, "shadows": args.shadows}
    facts |= {"epochs": args.epochs, "noise": args.noise} if args.world == "digits" else {"world": args.world}
    name = "smi" if args.world == "digits" else f"smi_{args.world}"
    found = []
    if args.merge:
        parts = [json.loads((Path(p) / f"{name}.json").read_text()) for p in args.merge.split(",")]
        facts = {k: v for k, v in parts[0].items() if k != "seeds"}
        found = [f for p in parts for f in p["seeds"]]
    else:
        for s in map(int, args.seeds.split(",")):
            found.append(run(args.world, s, args.epochs, args.shadows, args.noise, not args.no_c))
    text = json.dumps({**facts, "seeds": found}, indent=1, sort_keys=True)
    (args.out / f"{name}.json").write_text(text + "\n")
    (args.out / f"{name}.md").write_text(table(found))
    (args.out / f"{name}_cost.md").write_text(cost(found))
    print(table(found), cost(found), sep="\n")


if __name__ == "__main__":
    main()
