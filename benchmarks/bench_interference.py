"""What projection saves at one step in float and in quantized form, and how well ``rho2`` estimates batch noise.

    python benchmarks/bench_interference.py [--seeds 0 1 2 3 4 5] [--out benchmarks/results]

**Interference** I = |L_r(theta + u_r + u_f) - L_r(theta + u_r)| on the retain batch of the step, for the forget part
u_f of a plain SGD step: projected (scope global), not projected, and projected against a random vector in place of the
retain gradient (the control: it should save nothing). An MLP 64-128-128-10 on scikit-learn's digits, 10 % of the
training samples to forget, in float, W8A8 and W4A4, one forget step away from the trained network; medians of 12
batches.

**rho2**, the trace's estimate of cos^2(r, mu) from two half batches, against cos^2(r, mu) with mu the gradient over the
whole retain set, over 50 steps: on the same MLP, and on the shipped keyword spotter (there mu every fifth step).

Results: ``interference.json`` and ``interference.md``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qunlearn import quant, tasks
from qunlearn.cli import journey
from qunlearn.cli import workspace as ws
from qunlearn.cli.common import Settings
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.unlearn.compose import Composer, Update
from qunlearn.unlearn.diagnostics import actual_changes, half_batches
from qunlearn.unlearn.entropy import entropy_loss
from qunlearn.unlearn.orthogonal import Reference, add, dot
from qunlearn.unlearn.pairing import Pairs
from qunlearn_kernels.arena import GradientArena

TASK = tasks.get("classification")
FORMS, RATES, CASES = ("float", "w8a8", "w4a4"), (1e-3, 1e-2, 1e-1), ("none", "global", "random")
BATCHES, BATCH, STEPS, AWAY = 12, 64, 50, 0.03
RHO_RATES = (1e-3, 3e-3, 1e-2)
KWS_GROUPS, KWS_RATE, KWS_EVERY = ("george", "jackson", "lucas"), 1e-3, 5


class Toy:
    """A network at some parameters, with the pieces of an OEU step."""

    def __init__(self, model: quant.QuantModel, splits: Splits, *, seed: int) -> None:
        self.model, self.splits = copy.deepcopy(model).eval(), splits
        scales = quant.scale_parameter_names(self.model)
        named = [(n, p) for n, p in sorted(self.model.named_parameters()) if n not in scales]
        layers = quant.layer_of(self.model)
        self.arena = GradientArena(named, groups={n: layers[n] for n, _ in named})
        self.pairs = Pairs(len(splits.forget), len(splits.retain), BATCH, BATCH, seed=seed)

    def gradient(self, part: str, rows: Any) -> Tensor:
        """Flat gradient of the retain loss or of the entropy loss (e2) on these rows."""
        batch = TASK.batch(getattr(self.splits, part), rows)
        logits = TASK.logits(self.model, batch)
        loss = TASK.loss(logits, batch) if part == "retain" else entropy_loss(logits)
        return self.arena.flatten(torch.autograd.grad(loss, self.arena.params))

    def composer(self, scope: str) -> Composer:
        reference = Reference(
            self.arena, kind="batch", scope=scope, when="always", k=1, beta=0.9, ema_only=False, eps=1e-12
        )
        return Composer(
            self.arena, reference, optimizer="sgd", project_at="gradient", lam=1.0, momentum=0.0, weight_decay=0.0,
            clip=None,
        )  # fmt: skip

    def move(self, update: Tensor) -> None:
        add(self.arena.params, self.arena.split(update))


def mlp(splits: Splits, bits: str, seed: int) -> quant.QuantModel:
    """64-128-128-10, trained with quantization on forget and retain samples."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = (64, 128, 128, 10)
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
        net = nn.Sequential(nn.Flatten(), *layers)
    both = splits.retain.dataset.samples("train")
    model = quant.prepare(net, quant.QuantSpec.parse(bits), torch.from_numpy(both.inputs(np.arange(64))))
    return quant.train(model, TASK, both, quant.Recipe(epochs=30, lr=0.05), seed=seed)


def interference(model: quant.QuantModel, splits: Splits, seed: int) -> dict[str, list[float]]:
    """Per case the median I at every learning rate, all on the same batches."""
    toy, noise = Toy(model, splits, seed=seed), torch.Generator().manual_seed(seed)
    toy.move(-AWAY * toy.gradient("forget", toy.pairs.next()[0]))
    values: dict[str, list[list[float]]] = {case: [] for case in CASES}
    for _ in range(BATCHES):
        rows_f, rows_r = toy.pairs.next()
        r, f = toy.gradient("retain", rows_r), toy.gradient("forget", rows_f)
        batch = TASK.batch(splits.retain, rows_r)
        other = torch.where(r != 0, torch.randn(r.shape, generator=noise), torch.zeros(()))

        def loss(batch: Any = batch) -> float:
            return float(TASK.loss(TASK.logits(toy.model, batch).double(), batch))

        vectors = {
            "none": f,
            "global": toy.composer("global").reference.project(f, r),
            "random": toy.composer("global").reference.project(f, other),
        }
        for case, v in vectors.items():
            values[case].append([_change(toy, loss, r, v, lr) for lr in RATES])
    return {case: [float(x) for x in np.median(np.array(rows), axis=0)] for case, rows in values.items()}


@torch.no_grad()
def _change(toy: Toy, loss: Callable[[], float], r: Tensor, v: Tensor, lr: float) -> float:
    update = Update(retain=-lr * r, forget=-lr * v, unprojected=v, projected=v, against=r)
    return abs(actual_changes(loss, toy.arena, update, 0.0)["dLr_forget_actual"])


def noise(model: quant.QuantModel, splits: Splits, *, seed: int, lr: float, every: int, away: bool) -> dict[str, float]:
    """``rho2`` over ``STEPS`` steps of OEU, and the mean of cos^2(r, mu) at every ``every``-th of them."""
    toy = Toy(model, splits, seed=seed)
    if away:
        toy.move(-AWAY * toy.gradient("forget", toy.pairs.next()[0]))
    composer, window, truth = toy.composer("global"), [], []
    for t in range(STEPS):
        rows_f, rows_r = toy.pairs.next()
        half = len(rows_r) // 2
        halves = [TASK.batch(splits.retain, rows) for rows in (rows_r[:half], rows_r[half : 2 * half])]
        window.append(half_batches(TASK, toy.model, toy.arena.params, halves, len(splits.retain)))
        r = toy.gradient("retain", rows_r)
        if t % every == 0:
            parts = np.array_split(np.arange(len(splits.retain)), -(-len(splits.retain) // 256))
            mu = sum((toy.gradient("retain", p) * (len(p) / len(splits.retain)) for p in parts), torch.zeros_like(r))
            truth.append(dot(r, mu) ** 2 / (dot(r, r) * dot(mu, mu)))
        update = composer(r, toy.gradient("forget", rows_f), lr)
        toy.move(update.retain + update.forget)
    estimate = sum(a for a, _ in window) / sum(b for _, b in window)
    return {"estimate": estimate, "truth": statistics.fmean(truth)}


def render(value: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    seeds = value["seeds"]
    lines = [
        "# Interference of one forget step with the retain loss, and batch noise",
        "",
        f"MLP 64-128-128-10 on scikit-learn's digits, seeds {', '.join(map(str, seeds))}, plain SGD, loss e2, lam 1, "
        f"batches of {BATCH}; median over {BATCHES} batches, then over seeds. Ratio: not projected / projected, median "
        "(smallest to largest seed); control: a random vector in place of the retain gradient.",
        "",
        "| form | lr | not projected | projected | ratio | control |",
        "|---|---|---|---|---|---|",
    ]
    for form in FORMS:
        for i, lr in enumerate(RATES):
            rows = [value["interference"][f"{form}/{s}"] for s in seeds]
            i_none, i_global, i_random = ([row[c][i] for row in rows] for c in CASES)
            ratio, control = (
                [a / b for a, b in zip(i_none, other, strict=True)] for other in (i_global, i_random)
            )  # fmt: skip
            lines.append(
                f"| {form} | {lr:g} | {statistics.median(i_none):.1e} | {statistics.median(i_global):.1e} "
                f"| {statistics.median(ratio):.1f} ({min(ratio):.1f} to {max(ratio):.1f}) "
                f"| {statistics.median(control):.2f} |"
            )
    lines += [
        "",
        f"`rho2` over {STEPS} steps against cos^2(r, mu) on the whole retain set (W8A8):",
        "",
        "| network | lr | rho2, mean | cos^2, mean | off by | single runs off by |",
        "|---|---|---|---|---|---|",
    ]
    for name, lr, runs in value["noise"]:
        est, true = (statistics.fmean(r[k] for r in runs) for k in ("estimate", "truth"))
        single = [100 * (r["estimate"] / r["truth"] - 1) for r in runs]
        lines.append(
            f"| {name} | {lr:g} | {est:.3f} | {true:.3f} | {100 * (est / true - 1):+.0f} % "
            f"| {min(single):+.0f} to {max(single):+.0f} % |"
        )
    lines += ["", f"{value['seconds']:.0f} s of one core, torch {torch.__version__}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure both and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, settings = time.process_time(), Settings()
    splits = make_splits(ws.load_data(settings, "digits"), Request.parse("random=10%"), seed=0)
    value: dict[str, Any] = {"seeds": args.seeds, "interference": {}, "noise": []}
    trained = {(bits, s): mlp(splits, bits, s) for bits in ("w8a8", "w4a4") for s in args.seeds}
    for (bits, seed), model in trained.items():
        value["interference"][f"{bits}/{seed}"] = interference(model, splits, seed)
        if bits == "w8a8":
            plain = copy.deepcopy(model)
            plain.set_enabled(False)
            value["interference"][f"float/{seed}"] = interference(plain, splits, seed)
        settings.say(f"interference {bits} seed {seed} ({time.process_time() - start:.0f} s)")
    for lr in RHO_RATES:
        runs = [noise(trained["w8a8", s], splits, seed=s, lr=lr, every=1, away=True) for s in args.seeds]
        value["noise"].append(("MLP", lr, runs))
    dataset = ws.load_data(settings, journey.SOURCE)
    base, runs = journey.shipped(dataset).base, []
    for seed, group in enumerate(KWS_GROUPS):
        own = make_splits(dataset, Request("group", (group,)), seed=seed)
        runs.append(noise(base, own, seed=seed, lr=KWS_RATE, every=KWS_EVERY, away=False))
        settings.say(f"rho2, spoken digits, {group}: {runs[-1]} ({time.process_time() - start:.0f} s)")
    value["noise"].append((f"DS-CNN, {', '.join(KWS_GROUPS)}", KWS_RATE, runs))
    value["seconds"] = time.process_time() - start
    text = render(value)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "interference.json").write_text(json.dumps(value, sort_keys=True) + "\n")
    (args.out / "interference.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
