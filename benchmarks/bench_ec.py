"""EC on a small network where everything can be retrained: digits, classes 3 and 8 forgotten, W8A8, three seeds.

    python benchmarks/bench_ec.py [--seeds 0 1 2] [--out benchmarks/results]

Compares with the network retrained without the two classes: forget accuracy, accuracy on the kept classes' test
samples, debiased CKA to the original (mean over layers) on forget and retain samples, and a new linear head on frozen
features (recovery), with the verdicts of the audits `cka` and `recovery`. Controls: `second retrained` must not fail;
`original` with one code moved, and `head only`, which changes the last layer alone, must fail for too little; `random`,
an untrained network, must fail. Erasing too much: EC with `lam` 1, without stop rule, and with one whose reference card
knows a network trained without another class. Then EC inside other methods against the same method without it, at the
same settings (no tuning). Writes ``ec.json`` and ``ec.md``. Everything is read from the fake-quantized network.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qunlearn import quant, tasks
from qunlearn.audit import AUDITS, AuditContext, TorchPredictor
from qunlearn.audit.layers import features
from qunlearn.audit.recovery import fit_head, probe_sets
from qunlearn.data import sources
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits, training_samples
from qunlearn.errors import QunlearnError
from qunlearn.quant import QuantModel
from qunlearn.tasks.similarity import cka
from qunlearn.unlearn import METHODS, ReferenceCard, plug_ec
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.ec import EC
from qunlearn.unlearn.representation import layers_of, similarity

TASK = tasks.get("classification")
FORGOTTEN = [3, 8]
REQUEST = Request("class", tuple(map(str, FORGOTTEN)))
OTHER = "class=1"
"""What the network behind the reference card never saw."""
DEFAULT, LARGE = "ec retain, lam .1 (default form)", "ec retain, lam 1"
SHOWN = ("cka", "recovery")
Rows = dict[str, dict[str, Any]]
"""Figures by row; ``error`` where the run was refused."""
RUN: dict[str, Any] = {"epochs": 10, "batch_size": 64, "weight_decay": 0.0, "lr": 0.02}
ROWS: dict[str, EC] = {
    "ec retain, lam .1 (default form)": EC(**RUN),
    "ec retain, lam .3": EC(**RUN, lam=0.3),
    "ec retain, lam 1": EC(**RUN, lam=1.0),
    "ec retain, lam 1, stop rule": EC(**RUN, lam=1.0, stop_rule=True, eval_every=5, probe=300),
    "ec retain, lam 1, lr .05": EC(**{**RUN, "lr": 0.05}, lam=1.0),
    "ec forget, lam .3": EC(**RUN, contrast="forget", lam=0.3),
    "ec forget, lam 1": EC(**RUN, contrast="forget", lam=1.0),
    "no contrast": EC(**RUN, contrast="none"),
    "no deep supervision": EC(**RUN, deep_ce=False),
    "last stage only": EC(**RUN, stages="last"),
    "uniform weights": EC(**RUN, weights="uniform"),
    "reverse weights": EC(**RUN, weights="reverse"),
    "tau .1": EC(**RUN, tau=0.1),
    "tau 1": EC(**RUN, tau=1.0),
    "lam .03": EC(**RUN, lam=0.03),
}
BASES: dict[str, dict[str, Any]] = {
    "ga": {"lr": 3e-3, "epochs": 3, "batch_size": 64, "weight_decay": 0.0},
    "rl": {"lr": 5e-3, "epochs": 3, "batch_size": 64, "weight_decay": 0.0, "bn": "frozen"},
    "salun": {"lr": 5e-3, "epochs": 3, "batch_size": 64, "weight_decay": 0.0, "bn": "frozen"},
    "oeu": {"lr": 5e-3, "max_steps": 40, "stop_rule": False, "loss": "e2"},
}
CONTROLS = ("original", "retrained", "second retrained", "head only", "random")
ORDER = (*CONTROLS, *ROWS, *(name for base in BASES for name in (base, f"{base} + ec")))
"""Rows of the table."""


class Net(nn.Module):
    """64-128-128-64-10; ``stages`` are its hidden layers."""

    stages = ("hidden.1", "hidden.3", "hidden.5")

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, 128, 128, 64)
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.flatten, self.hidden, self.head = nn.Flatten(), nn.Sequential(*layers), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.hidden(self.flatten(x)))
        return out


def fresh(seed: int, example: torch.Tensor) -> QuantModel:
    torch.manual_seed(seed)
    return quant.prepare(Net(), quant.QuantSpec(), example)


def trained(samples: Any, seed: int) -> QuantModel:
    model = fresh(seed, torch.from_numpy(samples.inputs(np.arange(64))))
    return quant.train(model, TASK, samples, quant.Recipe(epochs=20, batch_size=64, lr=0.05), seed=seed)


def head_only(model: QuantModel) -> QuantModel:
    """The biases of the forgotten classes lowered by 30: their answers are gone, the features are the original's."""
    out = copy.deepcopy(model)
    with torch.no_grad():
        out.get_submodule("head").bias[FORGOTTEN] -= 30
    return out


def nudged(model: QuantModel) -> QuantModel:
    """One code of the head moved by one: doing nothing, in a form that an audit looks at."""
    out = copy.deepcopy(model)
    step = next(s for s in out.steps if s.module == "head")
    with torch.no_grad():
        out.get_submodule("head").weight[0, 0] += 1.01 * out.weight_quantizer_of(step).scale.flatten()[0]
    return out


def card_of(original: QuantModel, splits: Splits, seed: int) -> ReferenceCard:
    """How far features differ from the original's in a network that was trained without another class."""
    data = splits.retain.dataset
    other = trained(make_splits(data, Request.parse(OTHER), seed=seed).retain, seed + 3000)
    found = similarity(TASK, original, other, (splits.forget, splits.retain), size=300, seed=seed)
    return ReferenceCard(groups={}, similarity={OTHER: found}, model_digest=quant.state_digest(original), seed=seed)


def verdicts(
    model: QuantModel, original: QuantModel, retrained: QuantModel, splits: Splits, seed: int
) -> dict[str, str]:
    """Verdict and failing side of both audits, in one word or two."""
    after, before, reference = (TorchPredictor(m) for m in (model, original, retrained))
    ctx = AuditContext(before=before, after=after, reference=reference, splits=splits, task=TASK, seed=seed)
    results = {name: AUDITS[name]()(ctx) for name in SHOWN}
    return {name: " ".join(w for w in (r.verdict, r.failure_side) if w != "none") for name, r in results.items()}


def figures(model: QuantModel, original: QuantModel, splits: Splits, seed: int) -> dict[str, Any]:
    """FA, kept-class test accuracy, CKA to the original on forget and retain data, recovery of a linear probe."""
    p, o = TorchPredictor(model), TorchPredictor(original)

    def accuracy(samples: Any) -> float:
        return float((p.on(samples).argmax(1) == samples.targets()).mean())

    rng = np.random.default_rng(seed)
    out = {"fa": accuracy(splits.forget), "test": accuracy(splits.test)}
    names = layers_of(original)
    for role in ("forget", "retain"):
        samples = getattr(splits, role)
        samples = samples.take(np.sort(rng.permutation(len(samples))[:500]))
        a, b = (features(x, samples, names) for x in (p, o))
        out[f"cka_{role}"] = float(np.mean([cka(a[n], b[n]) for n in names]))
    sets = probe_sets(splits, shots=20, retained=800, seed=seed)
    shots, judged = (features(p, s, ("penultimate",))["penultimate"].astype(float) for s in (sets.shots, sets.judged))
    center, spread = shots.mean(0), np.maximum(shots.std(0), 1e-6)
    x, q = (shots - center) / spread, (judged - center) / spread
    right = []
    for head in range(3):
        w = fit_head(x, sets.shots.targets(), 10, seed=seed * 10 + head, epochs=40, lr=0.01, batch=64)
        right.append(float(((q @ w[:-1] + w[-1]).argmax(1) == sets.judged.targets()).mean()))
    return {**out, "probe": statistics.fmean(right)}


def one_seed(seed: int) -> Rows:
    data = sources.load("digits")
    splits = make_splits(data, REQUEST, seed=seed)
    original = trained(training_samples(data), seed)
    retrained = trained(splits.retain, seed + 1000)
    card = card_of(original, splits, seed)
    out: Rows = {}

    def add(name: str, model: QuantModel, seconds: float = 0.0) -> None:
        out[name] = {**figures(model, original, splits, seed), "seconds": seconds}
        if name != "retrained":
            judged = nudged(model) if name == "original" else model
            out[name] |= verdicts(judged, original, retrained, splits, seed)
        print(seed, name, out[name], flush=True)

    add("original", original)
    add("retrained", retrained)
    add("second retrained", trained(splits.retain, seed + 2000))
    add("head only", head_only(original))
    add("random", fresh(seed + 5, torch.from_numpy(splits.retain.inputs(np.arange(64)))))
    runs: list[tuple[str, Unlearner]] = list(ROWS.items())
    for name, settings in BASES.items():
        base = METHODS[name](**settings)
        runs += [(name, base), (f"{name} + ec", plug_ec(base, EC(batch_size=64)))]
    for name, method in runs:
        started = time.process_time()
        try:
            own = card if name.endswith("stop rule") else None
            result = method(original, splits, TASK, request_kind="class", seed=seed, card=own)
        except QunlearnError as err:
            out[name] = {"error": f"{type(err).__name__}: {err.message.split(':')[0]}"}
            print(seed, name, out[name], flush=True)
            continue
        add(name, result.model, time.process_time() - started)
    return out


def having(values: Iterable[Rows], *names: str) -> list[Rows]:
    """The seeds in which none of these rows was refused."""
    return [v for v in values if all("error" not in v[n] for n in names)]


def table(values: Mapping[Any, Rows]) -> str:
    """Means over seeds (least, largest): per cent for accuracies; verdicts counted."""
    head = [
        "model",
        "forget",
        "test, kept classes",
        "CKA forget",
        "CKA retain",
        "probe",
        "CKA gap to retrained",
        *SHOWN,
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in ORDER:
        own = having(values.values(), name)
        lost = len(values) - len(own)
        label = name + (f", {lost} of {len(values)} runs refused" if lost else "")
        if not own:
            lines.append(f"| {label} |{' - |' * (len(head) - 1)}")
            continue
        cells = []
        for key, scale in (("fa", 100), ("test", 100), ("cka_forget", 1), ("cka_retain", 1), ("probe", 100)):
            found = [scale * v[name][key] for v in own]
            digits = 1 if scale == 100 else 2
            cells.append(f"{statistics.fmean(found):.{digits}f} ({min(found):.{digits}f} to {max(found):.{digits}f})")
        gaps = [v[name]["cka_forget"] - v["retrained"]["cka_forget"] for v in own]
        cells.append(f"{statistics.fmean(gaps):+.2f}")
        for audit in SHOWN:
            said = [v[name].get(audit, "-") for v in own]
            cells.append(", ".join(w if w == "-" else f"{said.count(w)} {w}" for w in dict.fromkeys(said)))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def away(v: Rows, name: str) -> float:
    """Distance of a row's CKA on forget data to the retrained network's."""
    return float(abs(v[name]["cka_forget"] - v["retrained"]["cka_forget"]))


def expected(values: Mapping[Any, Rows]) -> dict[str, list[bool]]:
    """What the specification expects, seed by seed; a seed in which a row was refused does not count for it."""
    every = list(values.values())
    checks = {
        "forget accuracy <= 10 %": [v[DEFAULT]["fa"] <= 0.1 for v in every],
        "kept classes fall by <= 3 points": [v["original"]["test"] - v[DEFAULT]["test"] <= 0.03 for v in every],
        "CKA gap to retrained <= .15": [away(v, DEFAULT) <= 0.15 for v in every],
        "probe nearer to the retrained than the original's": [
            abs(v[DEFAULT]["probe"] - v["retrained"]["probe"]) < abs(v["original"]["probe"] - v["retrained"]["probe"])
            for v in every
        ],
        "probe: original > retrained > random": [
            v["original"]["probe"] > v["retrained"]["probe"] > v["random"]["probe"] for v in every
        ],
        "probe: head only within a point of the original's": [
            abs(v["original"]["probe"] - v["head only"]["probe"]) <= 0.01 for v in every
        ],
        "cka and recovery fail doing nothing and head only, for under": [
            all(v[name][a] == "fail under" for name in ("original", "head only") for a in SHOWN) for v in every
        ],
        "cka and recovery fail random": [all(v["random"][a].startswith("fail") for a in SHOWN) for v in every],
        "neither audit fails another retrained network": [
            not any(v["second retrained"][a].startswith("fail") for a in SHOWN) for v in every
        ],
        "lam .3 erases more than retraining": [
            v["ec retain, lam .3"]["cka_forget"] < v["retrained"]["cka_forget"] - 0.1 for v in every
        ],
        "lam 1 without stop rule: cka fails it for over": [
            v[LARGE]["cka"] == "fail over" for v in having(every, LARGE)
        ],
        "lam 1: smaller CKA gap with the stop rule": [
            away(v, f"{LARGE}, stop rule") < away(v, LARGE) for v in having(every, LARGE, f"{LARGE}, stop rule")
        ],
    }
    for base in BASES:
        checks[f"{base}: EC lowers the CKA gap"] = [
            away(v, f"{base} + ec") < away(v, base) for v in having(every, base, f"{base} + ec")
        ]
    return checks


def bars(values: Mapping[Any, Rows]) -> str:
    """Cost of EC inside a base, and what is expected, in how many seeds it holds."""
    pairs = [(v[f"{b} + ec"], v[b]) for b in BASES for v in having(values.values(), b, f"{b} + ec")]
    times = f"{statistics.median(a['seconds'] / b['seconds'] for a, b in pairs):.1f} times its base's time"
    lines = [f"A base with EC took {times} (median; processor time, modules included).", ""]
    lines += ["| expected | seeds where it holds |", "|---|---|"]
    lines += [f"| {name} | {sum(found)} of {len(found)} |" for name, found in expected(values).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    values = {seed: one_seed(seed) for seed in args.seeds}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ec.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    text = f"{table(values)}\n\n{bars(values)}\n"
    (args.out / "ec.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
