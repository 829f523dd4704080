"""Can the audits be trusted? Their verdicts on networks of which it is known what they have forgotten.

    python benchmarks/bench_audits.py [--seeds 0,1,2,3,4] [--processes 1] [--suite strict] [--out benchmarks/results]

Data: scikit-learn's digits by four simulated writers (plain, bold, faint, turned by 25 degrees). Requests: the writer
``turned``, and the class 3. Network: an MLP 64-128-64-10, W8A8, read as the fake-quantized network, the int8 ONNX file
and the C generated from it. Networks of known truth, all judged against one retrained network:

    retrained    another network trained without the data            all forgotten; the only one that should pass
    original     the network before unlearning, slightly moved       nothing forgotten
    half         trained without half of the data (writer only)      half forgotten
    collapsed    the retrained one with its last layer set to zero   useless
    flipped      trained to give wrong labels to as many forget samples as the retrained network gets wrong
    head only    the same, with the last layer alone (class only: this head cannot single a writer out)

Results: ``audits.json`` and ``audits.md``, with the rates of false passes and false failures and their 90 % Wilson
intervals, and the pairs of networks that an audit gave the same verdict in all seeds. Written after every seed; rows of
seeds that are not asked for are kept. Needs some minutes a seed on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qunlearn import quant, tasks
from qunlearn.audit import (
    AUDITS,
    AuditContext,
    FirmwarePredictor,
    OnnxPredictor,
    Predictor,
    TorchPredictor,
    TorchTrainer,
    intervals,
)
from qunlearn.audit.result import worst
from qunlearn.audit.trainer import TRAINER
from qunlearn.cli.assess import SUITES
from qunlearn.data.arrays import from_arrays
from qunlearn.data.builtin import digits
from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits, training_samples
from qunlearn.quant.tune import tuned
from qunlearn.tasks.base import Batch, Task
from qunlearn.tasks.classification import Classification
from qunlearn_export import writer
from qunlearn_export.parity import parity

WRITERS = ("plain", "bold", "faint", "turned")
TRUE = "retrained"
ORDER = {
    "group=turned": (TRUE, "original", "half", "collapsed", "flipped"),
    "class=3": (TRUE, "original", "collapsed", "flipped", "head only"),
}
KINDS = ("torch-fq", "onnx-all", "c-host")
FILE = "onnx-all"
RECIPE = quant.Recipe(epochs=40, batch_size=64, lr=0.1, weight_decay=0.0)
FAKED: Mapping[str, Any] = {"steps": 1200, "every": 20, "lr": 3e-3, "batch": 128}


def written() -> Dataset:
    """The digits by four simulated writers, uint8 [N,1,8,8] in 0..16, divided by a fixed seed."""
    from scipy import ndimage

    plain = digits(None, 0)
    rng = np.random.default_rng(5)
    who = np.array(WRITERS)[rng.permutation(np.arange(len(plain.y)) % len(WRITERS))]
    x = plain.x.astype(np.float64)[:, 0]
    drawn = {
        "plain": lambda v: v,
        "bold": lambda v: np.clip(1.6 * v, 0, 16),
        "faint": lambda v: 0.6 * v,
        "turned": lambda v: ndimage.rotate(v, 25, axes=(2, 1), reshape=False, order=1),
    }
    out = np.empty_like(x)
    for name, draw in drawn.items():
        out[who == name] = draw(x[who == name])
    return from_arrays(
        "written digits",
        {"x": np.rint(np.clip(out, 0, 16)).astype(np.uint8)[:, None], "y": plain.y, "group": who},
        seed=0,
        preprocess=Preprocess((0.5,), (0.5,), 16.0),
    )


def network(samples: Samples, task: Task, seed: int) -> quant.QuantModel:
    """A trained W8A8 network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    example = torch.from_numpy(samples.inputs(np.arange(64)))
    model = quant.prepare(mlp, quant.QuantSpec(grid="exact"), example)
    return quant.train(model, task, samples, RECIPE, seed=seed)


@dataclass
class Mislabelled(Classification):
    """Classification in which some samples of the data set have other labels."""

    labels: Mapping[int, int]
    positions: NDArray[np.int64]

    def batch(self, samples: Samples, index: Any) -> Batch:
        """The batch with the labels of ``labels`` (position in the data set to class)."""
        b = super().batch(samples, index)
        at = samples.index[b.index.numpy()]
        y = [self.labels.get(int(i), int(c)) for i, c in zip(at, b.y, strict=True)]
        return replace(b, y=torch.tensor(y))


def faked(
    original: quant.QuantModel,
    reference: quant.QuantModel,
    splits: Splits,
    *,
    part: str,
    seed: int,
    most: int | None = None,
    keeping: float = 0.0,
    **training: Any,
) -> quant.QuantModel:
    """The original, trained to be as often wrong on the forget set as the reference: some other labels, by seed.

    Also trained on ``most`` retained samples (default all). The nearest network of the run whose accuracy on all of
    these is above ``keeping``; ``training``: steps, every, lr and batch of :func:`tuned`.
    """
    task = tasks.get("classification")
    y, classes = splits.forget.targets(), splits.dataset.num_classes
    target = accuracy(task, reference, splits.forget)
    rng = np.random.default_rng([seed, 9])
    wrong = rng.permutation(len(y))[: round((1 - target) * len(y))]
    labels = {int(splits.forget.index[i]): int((y[i] + rng.integers(1, classes)) % classes) for i in wrong}
    flipped = Mislabelled(labels, splits.forget.index)
    kept = splits.retain.index if most is None else rng.permutation(splits.retain.index)[:most]
    both = Samples(splits.dataset, np.sort(np.concatenate([splits.forget.index, kept])))
    model = copy.deepcopy(original)
    best, found = math.inf, copy.deepcopy(model)
    for _, now in tuned(model, flipped, both, seed=seed, part=part, **training):
        away = abs(accuracy(task, now, splits.forget) - target)
        if away < best and (not keeping or accuracy(task, now, splits.retain) > keeping):
            best, found = away, copy.deepcopy(now)
    return found.eval()


def accuracy(task: Task, model: quant.QuantModel, samples: Samples) -> float:
    """Share of right answers."""
    return float((task.predict(model, samples).argmax(1) == samples.targets()).mean())


def collapsed(model: quant.QuantModel) -> quant.QuantModel:
    """A copy whose last layer is zero."""
    out = copy.deepcopy(model)
    with torch.no_grad():
        for p in list(out.get_submodule(str(out.steps[-1].module)).parameters())[:2]:
            p.zero_()
    return out.eval()


def moved(model: quant.QuantModel, splits: Splits, *, lr: float, seed: int) -> quant.QuantModel:
    """A copy after 20 small steps on retained samples: other codes, the same knowledge."""
    out = copy.deepcopy(model)
    for _ in tuned(out, tasks.get("classification"), splits.retain, steps=20, every=20, lr=lr, batch=64, seed=seed):
        pass
    return out.eval()


def models_of(
    splits: Splits, data: Dataset, before: quant.QuantModel, seed: int, wanted: tuple[str, ...]
) -> dict[str, quant.QuantModel]:
    """Original (``before``), ``reference``, and the networks of known truth."""
    task = tasks.get("classification")
    reference = network(splits.retain, task, 10 * seed + 1)
    second = network(splits.retain, task, 10 * seed + 2)
    rng = np.random.default_rng([seed, 8])
    rest = splits.forget.index[rng.permutation(len(splits.forget))[: len(splits.forget) // 2]]
    half = Samples(data, np.sort(np.concatenate([splits.retain.index, rest])))
    fake = partial(faked, before, reference, splits, seed=seed, keeping=0.975, **FAKED)
    make = {
        TRUE: lambda: second,
        "original": lambda: moved(before, splits, lr=1e-3, seed=seed),
        "half": lambda: network(half, task, 10 * seed + 3),
        "collapsed": lambda: collapsed(second),
        "flipped": lambda: fake(part="all"),
        "head only": lambda: fake(part="head"),
    }
    return {"before": before, "reference": reference, **{n: make[n]() for n in wanted}}


def read(model: quant.QuantModel, file: bytes) -> dict[str, Predictor]:
    """One network as every artefact kind."""
    return dict(zip(KINDS, (TorchPredictor(model), OnnxPredictor(file), FirmwarePredictor(file)), strict=True))


def judge(
    data: Dataset, request: str, before: quant.QuantModel, seed: int, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row a network, artefact kind and audit."""
    splits = make_splits(data, Request.parse(request), seed=seed)
    task = tasks.get("classification")
    models = models_of(splits, data, before, seed, ORDER[request])
    trainer = TorchTrainer(models.values(), task)
    graphs = {n: quant.lower(m) for n, m in models.items()}
    files = {n: writer.serialize(g) for n, g in graphs.items()}
    inputs = splits.test.inputs()
    made = {n: read(m, files[n]) for n, m in models.items()}
    reports = {
        n: parity(graphs[n], files[n], inputs, torch_column=quant.TorchColumn(models[n])) for n in ORDER[request]
    }
    rows = []
    for kind in KINDS:
        for name in ORDER[request]:
            ctx = AuditContext(
                before=made["before"][kind], after=made[name][kind], reference=made["reference"][kind], splits=splits,
                task=task, seed=seed, inputs={TRAINER: trainer}, parity=None if kind == KINDS[0] else reports[name],
            )  # fmt: skip
            for audit in names:
                start = time.perf_counter()
                r = AUDITS[audit]()(ctx)
                rows.append(
                    {
                        "request": request, "seed": seed, "kind": kind, "model": name, "audit": audit,
                        "verdict": r.verdict,
                        "side": r.failure_side, "reasons": list(r.reasons), "value": r.value,
                        "reference": r.reference["value"], "seconds": time.perf_counter() - start,
                    }
                )  # fmt: skip
            shown = ", ".join(f"{x['audit']} {x['verdict']}" for x in rows[-len(names) :])
            print(f"{request} seed {seed} {kind} {name}: {shown}", flush=True)
    return rows


def of_seed(seed: int, suite: str) -> list[dict[str, Any]]:
    """All rows of one seed."""
    torch.set_num_threads(1)
    data = written()
    before = network(training_samples(data), tasks.get("classification"), 10 * seed)
    return [row for request in ORDER for row in judge(data, request, before, seed, SUITES[suite])]


def alike(rows: list[dict[str, Any]], audits: list[str]) -> Iterator[str]:
    """Per request, the pairs of networks (one of them retrained or original) that an audit tells apart in no seed."""
    for request, models in ORDER.items():
        found = {}
        for audit in audits:
            of = {m: overall(rows, (audit,), request, m, FILE) for m in models}
            pairs = [p for p in combinations(models, 2) if {*p} & {TRUE, "original"}]
            found[audit] = [f"{a} and {b}" for a, b in pairs if of[a] == of[b]]
        for audit, pairs in found.items():
            if pairs:
                yield f"- {request}, `{audit}`: {'; '.join(pairs)}"


def overall(rows: list[dict[str, Any]], members: tuple[str, ...], request: str, model: str, kind: str) -> list[str]:
    """The verdict of some audits together, a seed: the worst of them."""
    where = (request, model, kind)
    found = [r for r in rows if (r["request"], r["model"], r["kind"]) == where and r["audit"] in members]
    return [worst([r["verdict"] for r in found if r["seed"] == s]) for s in sorted({r["seed"] for r in found})]


def complete(rows: list[dict[str, Any]], seed: int) -> bool:
    """Whether a seed was read from every artefact kind."""
    return {r["kind"] for r in rows if r["seed"] == seed} == set(KINDS)


def counts(verdicts: list[str]) -> str:
    """pass / inconclusive / fail."""
    return " / ".join(str(verdicts.count(v)) for v in ("pass", "inconclusive", "fail"))


def rate(hits: list[bool]) -> str:
    """A share with its interval, per cent."""
    e = intervals.share(np.array(hits))
    return f"{100 * e.value:.0f} [{100 * e.lo:.0f}, {100 * e.hi:.0f}] of {len(hits)}"


def table(rows: list[dict[str, Any]], suites: tuple[str, ...]) -> str:
    """Verdicts per audit and model, and the rates."""
    seeds = sorted({r["seed"] for r in rows})
    audits = list(dict.fromkeys(r["audit"] for r in rows))
    lines = [
                "`python benchmarks/bench_audits.py`. Digits by four simulated writers; MLP 64-128-64-10, W8A8.",
        f"{len(seeds)} seeds; cells: how many pass / inconclusive / fail. Only `retrained` should pass.", "",
    ]  # fmt: skip
    for request, kind in ((q, k) for q in ORDER for k in KINDS):
        lines += [f"**{request}, {kind}**", "", f"| model | {' | '.join([*audits, *(f'**{s}**' for s in suites)])} |"]
        lines.append("|---" * (1 + len(audits) + len(suites)) + "|")
        for model in ORDER[request]:
            where = (request, model, kind)
            found = [r for r in rows if (r["request"], r["model"], r["kind"]) == where]
            cells = [counts([r["verdict"] for r in found if r["audit"] == a]) for a in audits]
            cells += [counts(overall(rows, SUITES[s], *where)) for s in suites]
            lines.append(f"| {model} | {' | '.join(cells)} |")
        lines.append("")
    kind = FILE
    lines += [f"**Rates on {kind}, both requests, per cent, 90 % interval**", ""]
    lines += ["| audits | false pass | false fail | retrained passes |", "|---|---|---|---|"]
    every = [(q, m, kind) for q in ORDER for m in ORDER[q]]
    groups = {a: (a,) for a in audits} | {"accuracy and mia": ("accuracy", "mia")} | {s: SUITES[s] for s in suites}
    for title, members in groups.items():
        found = {c: overall(rows, members, *c) for c in every}
        bad = [v == "pass" for c in every if c[1] != TRUE for v in found[c]]
        good = [v for c in every if c[1] == TRUE for v in found[c]]
        lines.append(
            f"| {title} | {rate(bad)} | {rate([v == 'fail' for v in good])} | {rate([v == 'pass' for v in good])} |"
        )
    lines += [
        "",
        "A rate of false passes means nothing where the retrained network does not pass either (last column).",
    ]
    lines += ["", f"**Told apart in no seed** (the same verdicts, {FILE})", "", *alike(rows, audits)]
    by = {(r["request"], r["seed"], r["model"], r["audit"], r["kind"]): r["verdict"] for r in rows}
    cells = {key[:4] for key in by}
    same = [len({by[(*c, k)] for k in KINDS}) == 1 for c in cells]
    lines += ["", f"Verdicts on {', '.join(KINDS)} are one in {rate(same)} cells.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--suite", choices=sorted(SUITES), default="strict")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    suites = ("standard", "strict") if args.suite == "strict" else ("standard",)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "audits.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    asked = [int(s) for s in args.seeds.split(",")]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(of_seed, seed, args.suite): seed for seed in asked}
        for job in as_completed(jobs):
            rows = [r for r in rows if r["seed"] != jobs[job]] + job.result()
            rows.sort(key=lambda r: (r["seed"], list(ORDER).index(r["request"]), KINDS.index(r["kind"])))
            file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
            (args.out / "audits.md").write_text(table([r for r in rows if complete(rows, r["seed"])], suites))
    print((args.out / "audits.md").read_text())


if __name__ == "__main__":
    main()
