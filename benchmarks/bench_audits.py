"""Can the audits be trusted? Their verdicts on networks of which it is known what they have forgotten.

    python benchmarks/bench_audits.py [--seeds 0,1,2,3,4] [--audits smi,loss,...] [--shadows 8] [--trials 60]
        [--processes 1] [--work runs/audits] [--out benchmarks/results]

Data: scikit-learn's digits by four simulated writers (plain, bold, faint, turned by 25 degrees). Requests: the writer
``turned``, and the class 3. Network: an MLP 64-128-64-10, W8A8, read as the fake-quantized network, the int8 ONNX file
and the C generated from it. Networks of known truth, all judged against one retrained network:

    retrained    another network trained without the data            all forgotten; the only one that should pass
    original     the network before unlearning, slightly moved       nothing forgotten
    half         trained without half of the data (writer only)      half forgotten
    collapsed    the retrained one with its last layer set to zero   useless
    flipped      trained to give wrong labels to as many forget samples as the retrained network gets wrong
    head only    the same, with the last layer alone (class only: this head cannot single a writer out)

``lira``, ``rmia`` and ``u_lira`` have ``--shadows`` shadow models a seed and request, of one recipe and bits, read as
the same artefact. None of these networks was made by an unlearning method; the shadow models of ``u_lira`` unlearn by
``rl``, which is nearest to how ``flipped`` is made.

``eve`` needs a crafted request, which these networks have not seen. It has networks of its own: those of
``bench_eve.py``, a calibration of ``--trials`` trials a seed, and one more request, of which it is known what drove the
update: ``crafted`` unlearned the request and is the only one that should pass; the others are the arms of a calibration
(nothing done, other samples, wrong labels, samples not altered by the request) and ``collapsed``.

Results: ``audits.json`` and ``audits.md``, with the rates of false passes and false failures and their 90 % Wilson
intervals, and the pairs of networks that an audit gave the same verdict in all seeds. Only what is missing is run;
verdicts that the file holds are kept, and the networks are made again by their seeds: they must have the kept values of
``accuracy``. Written after every seed and request. Shadow models and trials are kept in ``--work``. Some minutes a seed
on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_eve import CONFIG, ERASE, calibrator
from numpy.typing import NDArray
from torch import nn

from qunlearn import quant, tasks
from qunlearn.audit import (
    AUDITS,
    AuditContext,
    AuditResult,
    FirmwarePredictor,
    OnnxPredictor,
    Predictor,
    TorchPredictor,
    TorchTrainer,
    intervals,
)
from qunlearn.audit.attacks import ShadowAudit
from qunlearn.audit.eve_arms import Trial, answers
from qunlearn.audit.eve_calibrate import EveCalibrate, confidences, rest_of
from qunlearn.audit.eve_calibration import ARMS, TREATMENT, Calibration, pooled
from qunlearn.audit.reference import Make, shadow_pool
from qunlearn.audit.result import worst
from qunlearn.audit.trainer import TRAINER
from qunlearn.bench import gaussians
from qunlearn.cli.assess import SUITES
from qunlearn.cli.shadows import unlearned
from qunlearn.data.arrays import from_arrays
from qunlearn.data.builtin import digits
from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.data.eve import split_eve
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits, training_samples
from qunlearn.quant.tune import tuned
from qunlearn.tasks.base import Batch, Task
from qunlearn.tasks.classification import Classification
from qunlearn.unlearn import METHODS
from qunlearn.unlearn.base import Unlearner
from qunlearn_export import writer
from qunlearn_export.files import write_atomic
from qunlearn_export.parity import parity

Rows = list[dict[str, Any]]

WRITERS = ("plain", "bold", "faint", "turned")
TRUE = "retrained"
ORDER = {
    "group=turned": (TRUE, "original", "half", "collapsed", "flipped"),
    "class=3": (TRUE, "original", "collapsed", "flipped", "head only"),
}
EVE = "crafted request"
CRAFTED = "crafted"
EVERY = ORDER | {EVE: (CRAFTED, *(a for a in ARMS if a != TREATMENT), "collapsed")}
"""Networks by request; the first is the only one that should pass, the second has forgotten nothing."""
ATTACKS = ("loss", "lira", "rmia", "u_lira")
ALL = (*SUITES["strict"], *ATTACKS, "eve")
SEEDS = range(5)
REQUEST_SEED = 500
"""Draws the request that ``eve`` judges; trials of the calibration are drawn by other seeds."""
KINDS = ("torch-fq", "onnx-all", "c-host")
FILE = "onnx-all"
RECIPE = quant.Recipe(epochs=40, batch_size=64, lr=0.1, weight_decay=0.0)
FAKED: Mapping[str, Any] = {"steps": 1200, "every": 20, "lr": 3e-3, "batch": 128}
UNLEARNER: Mapping[str, Any] = {"epochs": 5, "lr": 0.02}
"""Settings of ``rl`` for the shadow models of ``u_lira``."""
CHUNK = 10
"""Trials of a calibration that are kept together."""


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


def shadow_maker(splits: Splits, method: Unlearner) -> Make:
    """A function that trains one shadow model and, where asked, unlearns a part of what it saw."""
    task = tasks.get("classification")

    def make(samples: Samples, forget: Samples | None, seed: int) -> Mapping[str, Predictor]:
        model = network(samples, task, seed)
        if forget is not None:
            model = unlearned(method, model, splits, samples, forget, task, seed=seed)
        return read(model, writer.serialize(quant.lower(model)))

    return make


def pools(splits: Splits, names: tuple[str, ...], seed: int, shadows: int, work: Path) -> dict[str, Any]:
    """The shadow models that the attacks among ``names`` need, by input name."""
    method = METHODS["rl"](**UNLEARNER)
    facts = {"network": "MLP 64-128-64-10", "bits": "w8a8", "recipe": asdict(RECIPE)}
    out = {}
    for key in sorted({a.key for a in map(AUDITS.get, names) if a is not None and issubclass(a, ShadowAudit)}):
        unlearn = key == "unlearned_shadows"
        out[key] = shadow_pool(
            shadow_maker(splits, method), splits, models=shadows, seed=seed, kinds=KINDS, unlearn=unlearn, cache=work,
            recipe={**facts, "method": method.config() if unlearn else None},
            say=lambda text: print(f"seed {seed} {text}", flush=True),
        )  # fmt: skip
    return out


def row(request: str, seed: int, kind: str, model: str, r: AuditResult, seconds: float) -> dict[str, Any]:
    """What is kept of one verdict."""
    return {
        "request": request, "seed": seed, "kind": kind, "model": model, "audit": r.audit, "verdict": r.verdict,
        "side": r.failure_side, "reasons": list(r.reasons), "value": r.value, "reference": r.reference["value"],
        "seconds": seconds,
    }  # fmt: skip


def same_network(kept: Rows, request: str, seed: int, kind: str, model: str, value: float | None) -> None:
    """ValueError where a network that was made again has not the ``accuracy`` that was kept of it."""
    at = (request, seed, kind, model, "accuracy")
    for r in kept:
        if tuple(r[k] for k in ("request", "seed", "kind", "model", "audit")) == at and r["value"] != value:
            raise ValueError(
                f"{request} seed {seed} {kind} {model}: accuracy {value}, kept {r['value']}: another network. "
                "New verdicts cannot stand beside the kept ones: give another folder as --out."
            )


def judge(
    data: Dataset, request: str, before: quant.QuantModel, seed: int, names: tuple[str, ...], *, kept: Rows,
    shadows: int, work: Path,
) -> Rows:  # fmt: skip
    """One row a network, artefact kind and audit."""
    splits = make_splits(data, Request.parse(request), seed=seed)
    task = tasks.get("classification")
    models = models_of(splits, data, before, seed, ORDER[request])
    inputs = {TRAINER: TorchTrainer(models.values(), task), **pools(splits, names, seed, shadows, work)}
    graphs = {n: quant.lower(m) for n, m in models.items()}
    files = {n: writer.serialize(g) for n, g in graphs.items()}
    tested = splits.test.inputs()
    made = {n: read(m, files[n]) for n, m in models.items()}
    reports = {
        n: parity(graphs[n], files[n], tested, torch_column=quant.TorchColumn(models[n])) for n in ORDER[request]
    }
    rows = []
    for kind in KINDS:
        for name in ORDER[request]:
            ctx = AuditContext(
                before=made["before"][kind], after=made[name][kind], reference=made["reference"][kind], splits=splits,
                task=task, seed=seed, inputs=inputs, parity=None if kind == KINDS[0] else reports[name],
            )  # fmt: skip
            same_network(kept, request, seed, kind, name, AUDITS["accuracy"]()(ctx).value)
            rows += verdicts(ctx, request, seed, name, names)
    return rows


def verdicts(ctx: AuditContext, request: str, seed: int, model: str, names: tuple[str, ...]) -> Rows:
    """The rows of one network read as one artefact kind."""
    rows = []
    for audit in names:
        start = time.perf_counter()
        result = AUDITS[audit]()(ctx)
        rows.append(row(request, seed, ctx.kind, model, result, time.perf_counter() - start))
    shown = ", ".join(f"{x['audit']} {x['verdict']}" for x in rows)
    print(f"{request} seed {seed} {ctx.kind} {model}: {shown}", flush=True)
    return rows


def calibrated(cal: EveCalibrate, model: quant.QuantModel, data: Dataset, seed: int, work: Path) -> Calibration:
    """The calibration of one network; its trials are kept in ``work``."""
    total, parts = cal.craft.config.trials, []
    for first in range(0, total, CHUNK):
        count = min(CHUNK, total - first)
        own = f"{quant.codes_digest(model)[:12]}-{cal.unlearning.digest[:12]}-{cal.craft.config.digest()[:12]}"
        file = work / f"eve-{own}-{first}-{count}.json"
        if not file.exists():
            found = cal(model, data, n_erase=ERASE, seed=1000 + first, trials=count)
            work.mkdir(parents=True, exist_ok=True)
            found.save(file)
        parts.append(Calibration.load(file))
        print(f"{EVE} seed {seed}: trial {first + count} of {total}", flush=True)
    return pooled(parts)


def judge_eve(seed: int, *, trials: int, work: Path) -> Rows:
    """One row an arm and artefact kind: the verdict of ``eve`` on one request to a calibrated network."""
    data = gaussians.data(seed)
    model = gaussians.trained(data, seed=seed)
    cal = calibrator(replace(CONFIG, trials=trials))
    calibration = calibrated(cal, model, data, seed, work)
    split = split_eve(
        data, ERASE, CONFIG.n_targets, CONFIG.n_bystanders, REQUEST_SEED, confidence=confidences(model, data),
        wanted=CONFIG.target_confidence,
    )  # fmt: skip
    heldout = rest_of(data.samples("heldout"), split)
    request = cal.craft(model, split, heldout=heldout, seed=REQUEST_SEED, read=[answers(model, k) for k in KINDS])
    networks = arms_of(cal.trial(model, data, n_erase=ERASE, seed=REQUEST_SEED))
    inputs = {"eve_request": request, "eve_calibration": calibration}
    rows = []
    for kind in KINDS:
        before = answers(model, kind)
        for name in EVERY[EVE]:
            after = networks[name]
            file = OnnxPredictor(writer.serialize(quant.lower(after)))
            report = parity(quant.lower(after), file.data, request.probe_x, torch_column=quant.TorchColumn(after))
            ctx = AuditContext(
                before=before, after=answers(after, kind), reference=None, reference_kind="calibration",
                splits=request.splits(), task=tasks.get("classification"), seed=0, inputs=inputs,
                parity=None if kind == KINDS[0] else report,
            )  # fmt: skip
            rows += verdicts(ctx, EVE, seed, name, ("eve",))
    return rows


def arms_of(trial: Trial) -> dict[str, quant.QuantModel]:
    """The networks of one request by the names of ``EVERY``: what each arm of a trial left, and a useless one."""
    crafted = trial.models[TREATMENT]
    return {CRAFTED: crafted, "collapsed": collapsed(crafted), **trial.models}


def of_seed(
    seed: int, request: str, names: tuple[str, ...], *, kept: Rows, shadows: int, trials: int, work: Path
) -> Rows:
    """All new rows of one seed and request."""
    torch.set_num_threads(1)
    if request == EVE:
        return judge_eve(seed, trials=trials, work=work)
    data = written()
    before = network(training_samples(data), tasks.get("classification"), 10 * seed)
    return judge(data, request, before, seed, names, kept=kept, shadows=shadows, work=work)


def requests_of(audit: str) -> tuple[str, ...]:
    """The requests whose networks an audit judges."""
    return (EVE,) if audit == "eve" else tuple(ORDER)


def missing(rows: Rows, seeds: Iterable[int], audits: Iterable[str]) -> list[tuple[int, str, tuple[str, ...]]]:
    """What is left to run: seed, request and the audits of which any verdict lacks; ``eve`` comes last."""
    have: dict[tuple[Any, ...], int] = {}
    for r in rows:
        at = (r["seed"], r["request"], r["audit"])
        have[at] = have.get(at, 0) + 1
    audits = tuple(audits)
    out = []
    for request in (*ORDER, EVE):
        full = len(KINDS) * len(EVERY[request])
        for seed in seeds:
            names = tuple(a for a in audits if request in requests_of(a) and have.get((seed, request, a), 0) != full)
            if names:
                out.append((seed, request, names))
    return sorted(out, key=lambda x: (x[1] == EVE, x[0]))


def merged(rows: Rows, new: Rows) -> Rows:
    """Rows with new ones in their order; a new row stands in place of an old one of the same cell."""
    cells = {cell_of(r): r for r in [*rows, *new]}
    return sorted(cells.values(), key=lambda r: place_of(*cell_of(r)))


def cell_of(r: Mapping[str, Any]) -> tuple[int, str, str, str, str]:
    """What a row is about."""
    return r["seed"], r["request"], r["kind"], r["model"], r["audit"]


def place_of(seed: int, request: str, kind: str, model: str, audit: str) -> tuple[int, ...]:
    """Where a cell stands in the file."""
    of_request = (list(EVERY).index(request), KINDS.index(kind), EVERY[request].index(model))
    return seed, *of_request, ALL.index(audit)


def alike(rows: Rows, audits: Iterable[str]) -> Iterator[str]:
    """Per request, the pairs of networks (one of them its first or second) that an audit tells apart in no seed."""
    for request, models in EVERY.items():
        for audit in audits:
            if request not in requests_of(audit):
                continue
            of = {m: overall(rows, (audit,), request, m, FILE) for m in models}
            pairs = [p for p in combinations(models, 2) if {*p} & {*models[:2]}]
            found = [f"{a} and {b}" for a, b in pairs if of[a] == of[b]]
            if found:
                yield f"- {request}, `{audit}`: {'; '.join(found)}"


def overall(rows: Rows, members: tuple[str, ...], request: str, model: str, kind: str) -> list[str]:
    """The verdict of some audits together, a seed that all of them have: the worst of them."""
    where = (request, model, kind)
    found = [r for r in rows if (r["request"], r["model"], r["kind"]) == where and r["audit"] in members]
    by = {s: [r["verdict"] for r in found if r["seed"] == s] for s in sorted({r["seed"] for r in found})}
    return [worst(v) for v in by.values() if len(v) == len(members)]


def complete(rows: Rows) -> Rows:
    """Without the audits of a seed of which a network or an artefact kind lacks, for any request."""
    seeds = sorted({r["seed"] for r in rows})
    lacking = {(seed, a) for seed, _, names in missing(rows, seeds, ALL) for a in names}
    return [r for r in rows if (r["seed"], r["audit"]) not in lacking]


def counts(verdicts: list[str]) -> str:
    """pass / inconclusive / fail."""
    return " / ".join(str(verdicts.count(v)) for v in ("pass", "inconclusive", "fail"))


def rate(hits: list[bool]) -> str:
    """A share with its interval, per cent."""
    if not hits:
        return "-"
    e = intervals.share(np.array(hits))
    return f"{100 * e.value:.0f} [{100 * e.lo:.0f}, {100 * e.hi:.0f}] of {len(hits)}"


def blocked(rows: Rows, audits: Iterable[str]) -> Iterator[str]:
    """Per request and audit, why the network that should pass did not, by the reasons' codes and how often."""
    for request, models in EVERY.items():
        for audit in audits:
            own = [
                r for r in rows
                if (r["request"], r["model"], r["kind"], r["audit"]) == (request, models[0], FILE, audit)
                and r["verdict"] != "pass"
            ]  # fmt: skip
            codes = Counter(c for r in own for c in dict.fromkeys(x.split(":")[0] for x in r["reasons"]))
            if own:
                yield f"- {request}, `{audit}`: {', '.join(f'`{c}` {n}' for c, n in sorted(codes.items()))}"


def table(rows: Rows, seeds: Iterable[int]) -> str:
    """Verdicts per audit and model, and the rates; what lacks of ``seeds`` is named."""
    left = missing(rows, seeds, ALL)
    rows = complete(rows)
    audits = [a for a in ALL if any(r["audit"] == a for r in rows)]
    suites = [s for s, members in SUITES.items() if set(members) <= set(audits)]
    of = {a: len({r["seed"] for r in rows if r["audit"] == a}) for a in audits}
    most = max(of.values())
    lines = [
        "`python benchmarks/bench_audits.py`. Digits by four simulated writers; MLP 64-128-64-10, W8A8.",
        f"{most} seeds; cells: how many pass / inconclusive / fail. Only `retrained` should pass.", "",
    ]  # fmt: skip
    for request, kind in ((q, k) for q in EVERY for k in KINDS):
        own = [a for a in audits if request in requests_of(a)]
        if not own:
            continue
        together = suites if request != EVE else []
        if request == EVE and kind == KINDS[0]:
            lines += [
                "`eve` is not in the tables above: it verifies a crafted request, which those networks have not seen. "
                "Below, the networks of `bench_eve.py`, each calibrated; only `crafted` should pass.", "",
            ]  # fmt: skip
        lines += [f"**{request}, {kind}**", "", f"| model | {' | '.join([*own, *(f'**{s}**' for s in together)])} |"]
        lines.append("|---" * (1 + len(own) + len(together)) + "|")
        for model in EVERY[request]:
            where = (request, model, kind)
            cells = [counts(overall(rows, (a,), *where)) for a in own]
            cells += [counts(overall(rows, SUITES[s], *where)) for s in together]
            lines.append(f"| {model} | {' | '.join(cells)} |")
        lines.append("")
    kind = FILE
    lines += [f"**Rates on {kind}, all requests, per cent, 90 % interval**", ""]
    lines += ["| audits | false pass | false fail | the one that should pass does |", "|---|---|---|---|"]
    groups = {a: (a,) for a in audits} | {"accuracy and mia": ("accuracy", "mia")} | {s: SUITES[s] for s in suites}
    for title, members in groups.items():
        every = [(q, m, kind) for q in requests_of(members[0]) for m in EVERY[q]]
        found = {c: overall(rows, members, *c) for c in every}
        bad = [v == "pass" for c in every if c[1] != EVERY[c[0]][0] for v in found[c]]
        good = [v for c in every if c[1] == EVERY[c[0]][0] for v in found[c]]
        lines.append(
            f"| {title} | {rate(bad)} | {rate([v == 'fail' for v in good])} | {rate([v == 'pass' for v in good])} |"
        )
    lines += [
        "",
        "A rate of false passes means nothing where the network that should pass does not either (last column).",
    ]
    lines += ["", f"**Why the network that should pass did not** (reasons and how many seeds, {FILE})", ""]
    lines += blocked(rows, audits)
    lines += ["", f"**Told apart in no seed** (the same verdicts, {FILE})", "", *alike(rows, audits)]
    by = {cell_of(r): r["verdict"] for r in rows}
    cells = {(s, q, m, a) for s, q, _, m, a in by}
    same = [len({by[s, q, k, m, a] for k in KINDS}) == 1 for s, q, m, a in cells]
    lines += ["", f"Verdicts on {', '.join(KINDS)} are one in {rate(same)} cells.", ""]
    if left:
        lacking = {a: sorted({s for s, _, names in left if a in names}) for a in ALL}
        text = "; ".join(f"`{a}`, seeds {', '.join(map(str, s))}" for a, s in lacking.items() if s)
        lines += [f"Not run yet, and not counted: {text}.", ""]
    return "\n".join(lines)


def names_of(text: str) -> tuple[str, ...]:
    """Audits by comma-separated names, in the order of the table."""
    asked = {n.strip() for n in text.split(",")}
    if unknown := sorted(asked - {*ALL}):
        raise SystemExit(f"no audit {', '.join(unknown)}; known: {', '.join(ALL)}")
    return tuple(a for a in ALL if a in asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--audits", type=names_of, default=ALL, help="what to run where it is missing (default all)")
    parser.add_argument("--shadows", type=int, default=8, help="shadow models a seed and request")
    parser.add_argument("--trials", type=int, default=60, help="trials of a calibration of eve")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/audits"), help="keeps shadow models and trials")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "audits.json"
    rows: Rows = json.loads(file.read_text()) if file.exists() else []
    left = missing(rows, [int(s) for s in args.seeds.split(",")], args.audits)
    common = {"kept": rows, "shadows": args.shadows, "trials": args.trials, "work": args.work}
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(of_seed, *cell, **common) for cell in left]):
            rows = merged(rows, job.result())
            write_atomic(file, (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode())
            write_atomic(args.out / "audits.md", table(rows, SEEDS).encode())
    text = table(rows, SEEDS)
    write_atomic(args.out / "audits.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
