"""EC on a convolutional network: inside other methods, erasing too much, memory, and whether network and file agree.

    python benchmarks/bench_ec_cnn.py [--seeds 0 1 2] [--work runs/ec_cnn] [--out benchmarks/results]

Data, network and request of ``grids/ablation_ec.toml`` (Fashion-MNIST, ResNet-8, W8A8, classes 3 and 8). Every method
runs with and without EC at the same settings, tuned for neither, without stop rule. From the audits `cka` and
`recovery`, on the fake-quantized network and on the int8 file: both verdicts, and of the file the mean over layers of
|gap|, the gap being CKA to the original less the retrained network's. Erasing too much: EC with a large weight for two
epochs (a larger rate diverges here), without stop rule, and with one whose reference card knows a network trained
without another class. Memory: the largest resident size of the process during the run. Writes ``ec_cnn.json`` and
``ec_cnn.md`` after every seed; seeds that are there already are not run again. A seed takes about four minutes of one
core.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qunlearn import quant, tasks
from qunlearn.audit import AUDITS, AuditContext, Predictor, TorchPredictor
from qunlearn.bench import read_grid
from qunlearn.bench.cell import Bench, file_of
from qunlearn.bench.networks import Key, load_dataset, network
from qunlearn.bench.scene import Scene, Spot
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import QunlearnError
from qunlearn.unlearn import METHODS, ReferenceCard, plug_ec
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.ec import EC
from qunlearn.unlearn.representation import similarity
from qunlearn_export.parity import ParityReport, parity

HERE = Path(__file__).parent
TASK = tasks.get("classification")
OTHER = "class=1"
"""What the network behind the reference card never saw."""
SAMPLES = 128
"""Test samples on which file and network are compared; every answer of theirs is judged besides."""
SHARED: dict[str, Any] = {"batch_size": 128, "stop_rule": False}
BASES: dict[str, Unlearner] = {
    "ga": METHODS["ga"](lr=2e-4, epochs=1, **SHARED),
    "rl": METHODS["rl"](lr=1e-3, epochs=1, bn="frozen", **SHARED),
    "salun": METHODS["salun"](lr=1e-3, epochs=1, bn="frozen", **SHARED),
    "oeu": METHODS["oeu"](lr=5e-3, max_steps=40, loss="e2", diag_every=1000, retain_batch_size=128, **SHARED),
}
PLUG = EC(aux_epochs=1, batch_size=128)
LARGE: dict[str, Any] = {"lam": 1.0, "lr": 0.005, "epochs": 2, "aux_epochs": 1, "batch_size": 128}
METHODS_OF: dict[str, Unlearner] = {
    "ec": EC(epochs=1, lr=0.005, aux_epochs=1, batch_size=128),
    **{n: m for name, base in BASES.items() for n, m in ((name, base), (f"{name} + ec", plug_ec(base, PLUG)))},
    "ec lam 1": EC(**LARGE),
    "ec lam 1, stop rule": EC(**LARGE, stop_rule=True, eval_every=2, probe=300),
}


def peak() -> float:
    """Largest resident size of this process since the last :func:`reset`, MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("the largest resident size is read from /proc, which this system lacks")
    return int(found[1]) / 1024


def reset() -> None:
    """Let the largest resident size start anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def judged(
    at: Scene, after: Predictor, before: Predictor, reference: Predictor, report: ParityReport | None
) -> dict[str, Any]:
    """Verdicts of both audits on one artefact kind, and CKA gaps layer by layer. A file needs its parity report."""
    ctx = AuditContext(
        before=before, after=after, reference=reference, splits=at.splits, task=TASK, seed=at.spot.seed, parity=report
    )
    out: dict[str, Any] = {}
    for name in ("cka", "recovery"):
        result = AUDITS[name]()(ctx)
        out[name] = {"verdict": result.verdict, "side": result.failure_side, "value": result.value}
        if name == "cka":
            rows = result.tables["layers"]["forget"]
            out["gaps"] = {n: row["gap"] for n, row in rows.items()}
    return out


def accuracies(at: Scene, file: Predictor) -> dict[str, float]:
    """Of a file on the forget set (``fa``) and on the kept classes' test samples (``ta``), fractions."""
    sets = {"fa": at.splits.forget, "ta": at.splits.test}
    return {n: float((file.on(s).argmax(1) == s.targets()).mean()) for n, s in sets.items()}


def card_of(bench: Bench, at: Scene) -> ReferenceCard:
    """How far features differ from the original's in a network that was trained without another class."""
    grid, data = bench.grid, bench.dataset
    gone = Key(model=at.spot.model, bits=at.spot.bits, seed=at.spot.seed + 3000, request=OTHER, split_seed=at.spot.seed)
    other = network(grid, data, gone, bench.work).model
    splits = make_splits(data, Request.parse(OTHER), seed=at.spot.seed)
    found = similarity(TASK, at.original.model, other, (splits.forget, splits.retain), size=300, seed=at.spot.seed)
    return ReferenceCard(
        groups={}, similarity={OTHER: found}, model_digest=quant.state_digest(at.original.model), seed=at.spot.seed
    )


def one_seed(bench: Bench, spot: Spot) -> dict[str, Any]:
    at = bench.scene(spot)
    card = card_of(bench, at)
    config = at.original.config
    networks = {"original": at.original.model, "retrained": at.retrained.model}
    files = {n: file_of(m, config) for n, m in networks.items()}
    out: dict[str, Any] = {n: accuracies(at, file) for n, file in files.items()}
    print(spot.seed, out, flush=True)
    for name, method in METHODS_OF.items():
        reset()
        started = time.perf_counter()
        try:
            result = method(
                at.original.model, at.splits, TASK, request_kind="class", seed=spot.seed,
                card=card if name.endswith("stop rule") else None,
            )  # fmt: skip
        except QunlearnError as err:
            out[name] = {"error": f"{type(err).__name__}: {err.message}"}
            print(spot.seed, name, out[name], flush=True)
            continue
        seconds, memory = time.perf_counter() - started, peak()
        shipped = file_of(result.model, config)
        inputs, column = at.splits.test.inputs()[:SAMPLES], quant.TorchColumn(result.model)
        report = parity(quant.lower(result.model), shipped.data, inputs, torch_column=column)
        torch_nets = [TorchPredictor(m) for m in (result.model, at.original.model, at.retrained.model)]
        found = {
            "onnx": judged(at, shipped, files["original"], files["retrained"], report),
            "torch": judged(at, *torch_nets, None),
        }
        out[name] = {**accuracies(at, shipped), "seconds": seconds, "memory": memory, **found}
        row = out[name]
        print(spot.seed, name, f"fa {row['fa']:.3f} ta {row['ta']:.3f} gap {mean_gap(row):.3f}", flush=True)
    return out


def mean_gap(row: Mapping[str, Any]) -> float:
    """Mean over layers of |gap| on the file."""
    return statistics.fmean(abs(g) for g in row["onnx"]["gaps"].values() if g is not None)


def agree(row: Mapping[str, Any]) -> bool:
    """Whether both audits give network and file the same verdict, for the same side."""
    return all(row["onnx"][a][k] == row["torch"][a][k] for a in ("cka", "recovery") for k in ("verdict", "side"))


def having(values: Sequence[Mapping[str, Any]], *names: str) -> list[Mapping[str, Any]]:
    """The seeds in which none of these rows was refused."""
    return [v for v in values if all("error" not in v[n] for n in names)]


def expected(values: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    """What is expected, seed by seed; a seed in which a row was refused does not count for what that row shows."""
    pairs = {b: having(values, b, f"{b} + ec") for b in BASES}
    checks = {
        f"{b}: EC lowers the mean CKA gap": [mean_gap(v[f"{b} + ec"]) < mean_gap(v[b]) for v in own]
        for b, own in pairs.items()
    }
    large = [v["ec lam 1"]["onnx"]["cka"] for v in having(values, "ec lam 1")]
    checks["ec lam 1 without stop rule: the audit cka fails it for over"] = [
        (r["verdict"], r["side"]) == ("fail", "over") for r in large
    ]
    checks["ec lam 1: smaller gap with the stop rule"] = [
        mean_gap(v["ec lam 1, stop rule"]) < mean_gap(v["ec lam 1"])
        for v in having(values, "ec lam 1", "ec lam 1, stop rule")
    ]
    checks["memory of a base with EC at most twice the base's"] = [
        v[f"{b} + ec"]["memory"] <= 2 * v[b]["memory"] for b, own in pairs.items() for v in own
    ]
    checks["network and file have the same verdicts, all rows"] = [
        all(agree(row) for row in v.values() if "onnx" in row) for v in values
    ]
    return checks


def text(values: Sequence[Mapping[str, Any]]) -> str:
    """Both tables, means over seeds."""
    head = ("method", "forget", "test, kept classes", "mean CKA gap", "cka", "recovery", "seconds", "MiB")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in ("original", "retrained"):
        values_of = [f"{100 * statistics.fmean(v[name][k] for v in values):.1f}" for k in ("fa", "ta")]
        lines.append(f"| {name} | {' | '.join(values_of)} |{' - |' * 5}")
    for name in METHODS_OF:
        rows = [v[name] for v in values if "error" not in v[name]]
        if not rows:
            lines.append(f"| {name} |{' - |' * 6} refused |")
            continue
        cells = [f"{100 * statistics.fmean(r[k] for r in rows):.1f}" for k in ("fa", "ta")]
        cells.append(f"{statistics.fmean(map(mean_gap, rows)):.3f}")
        for audit in ("cka", "recovery"):
            said = [
                " ".join(w for w in (r["onnx"][audit]["verdict"], r["onnx"][audit]["side"]) if w != "none")
                for r in rows
            ]
            cells.append(", ".join(f"{said.count(w)} {w}" for w in dict.fromkeys(said)))
        cells += [f"{statistics.fmean(r[k] for r in rows):.{d}f}" for k, d in (("seconds", 1), ("memory", 0))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    pairs = [(v[f"{b} + ec"], v[b]) for b in BASES for v in having(values, b, f"{b} + ec")]
    times, memory = ([a[k] / b[k] for a, b in pairs] or [float("nan")] for k in ("seconds", "memory"))
    lines += ["", f"A base with EC took {statistics.median(times):.1f} times its base's time (median; modules included)"
              f" and at most {max(memory):.2f} times its memory.", ""]  # fmt: skip
    lines += ["| expected | holds in |", "|---|---|"]
    lines += [f"| {name} | {sum(found)} of {len(found)} |" for name, found in expected(values).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/ec_cnn"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    grid = replace(read_grid(HERE / "grids" / "ablation_ec.toml"), seeds=tuple(args.seeds))
    bench = Bench(grid, load_dataset(grid, None), args.work)
    where = {"model": grid.models[0], "bits": grid.bits[0], "request": grid.requests[0]}
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "ec_cnn.json"
    values = json.loads(file.read_text()) if file.exists() else {}
    for seed in args.seeds:
        if str(seed) not in values:
            values[str(seed)] = one_seed(bench, Spot(**where, seed=seed))
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        (args.out / "ec_cnn.md").write_text(text(list(values.values())))
    print(text(list(values.values())))


if __name__ == "__main__":
    main()
