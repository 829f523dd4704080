"""What quantization after unlearning brings back, against unlearning inside quantization.

    python benchmarks/bench_quant_after.py [--data digits kws] [--seeds 0 1 2] [--out benchmarks/results]

From one trained quantized network, each method runs twice with the same settings and the same stop rule: `inside`, on
the fake-quantized network as always here, and `after`, with all quantizers off (the same latent weights, in float) and
rounded to the same grid afterwards. Both end as integers on one grid. Printed: forget accuracy in float and as integers
(the difference is what rounding brings back), codes changed against the network before, and the share of weights whose
update was lost to rounding. Digits: networks trained for every seed, w8a8 and w4a4. Keyword spotter: the networks that
travel with the package, w8a8; seeds are those of unlearning. Figures are of the fake-quantized network. Writes
``quant_after.json`` and ``quant_after.md``; data sets that are not asked for keep their rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qunlearn import quant, tasks
from qunlearn.bench.recipes import build_model, recipe_for, reference_seed
from qunlearn.cli import artefact, journey
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits, training_samples
from qunlearn.errors import QunlearnError
from qunlearn.quant import QuantModel, code_changes
from qunlearn.unlearn import METHODS, ReferenceCard, Unlearner, group_values

TASK = tasks.get("classification")
BITS = {"digits": ("w8a8", "w4a4"), "kws": ("w8a8",)}
TASKS = {"digits": ("resnet8@8", "class=3"), "kws": ("dscnn", "group=theo")}
WATCHED: dict[str, Any] = {"stop_rule": True, "eval_every": 2, "probe": 150}
OEU = METHODS["oeu"].from_settings({**journey.METHOD, "diag_every": "1000"})
METHOD: dict[str, dict[str, Unlearner]] = {
    "digits": {
        "oeu": METHODS["oeu"](lr=0.01, max_steps=80, batch_size=32, diag_every=1000, **WATCHED),
        "ga": METHODS["ga"](lr=3e-3, epochs=5, batch_size=32, **WATCHED),
        "rl": METHODS["rl"](lr=0.01, epochs=2, batch_size=64, bn="frozen", **WATCHED),
    },
    "kws": {
        "oeu": OEU,
        "ga": METHODS["ga"](lr=1e-3, epochs=5, batch_size=32, **WATCHED),
        "rl": METHODS["rl"](lr=5e-3, epochs=2, batch_size=64, bn="frozen", **WATCHED),
    },
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """One trained network, its request, a network that never saw the request's samples, and a seed."""

    data: str
    bits: str
    seed: int
    original: QuantModel
    retrained: QuantModel
    splits: Splits

    @property
    def card(self) -> ReferenceCard | None:
        """Where a network without the group stands, for the stop rule."""
        if self.splits.request_kind != "group":
            return None
        values = group_values(self.retrained, TASK, self.splits.forget)
        return ReferenceCard(groups=values, model_digest=quant.state_digest(self.original))


def fit(dataset: Dataset, source: str, bits: str, samples: Samples, seed: int) -> QuantModel:
    """A network trained by the source's recipe."""
    model = build_model(TASKS[source][0], dataset, quant.QuantSpec.parse(bits), seed=seed)
    return quant.train(model, TASK, samples, recipe_for(dataset, source), seed=seed)


def places(source: str, seeds: Sequence[int]) -> Iterator[Place]:
    """All places of one data set."""
    dataset, request = sources.load(source), Request.parse(TASKS[source][1])
    for bits in BITS[source]:
        for seed in seeds:
            if source == "kws":
                nets = journey.shipped(dataset)
                pair = nets.base, artefact.open_run(nets.retrained[request.values[0]])[0]
            else:
                pair = (
                    fit(dataset, source, bits, training_samples(dataset, None, seed), seed),
                    fit(dataset, source, bits, training_samples(dataset, request, seed), reference_seed(seed)),
                )
            splits = make_splits(dataset, request, seed=seed)
            yield Place(data=source, bits=bits, seed=seed, original=pair[0], retrained=pair[1], splits=splits)


def accuracy(model: QuantModel, samples: Samples) -> float:
    """Fraction, evaluation mode."""
    return float((TASK.predict(model, samples).argmax(1) == samples.targets()).mean())


def figures(model: QuantModel, splits: Splits) -> dict[str, float]:
    """Forget, retain and test accuracy."""
    sets = {"forget": splits.forget, "retain": splits.retain, "test": splits.test}
    return {name: accuracy(model, s) for name, s in sets.items()}


def unquantized(model: QuantModel) -> QuantModel:
    """A copy with all quantizers off."""
    out = copy.deepcopy(model)
    out.set_enabled(False)
    return out


def run(at: Place, name: str, way: str) -> dict[str, Any]:
    """One method one way; a run that fails is a row with ``error``."""
    start = at.original if way == "inside" else unquantized(at.original)
    row: dict[str, Any] = {"data": at.data, "bits": at.bits, "seed": at.seed, "method": name, "way": way}
    try:
        result = METHOD[at.data][name](
            start, at.splits, TASK, request_kind=at.splits.request_kind, card=at.card, seed=at.seed
        )
    except QunlearnError as err:
        return row | {"error": f"{type(err).__name__}: {err.message}"}
    end = copy.deepcopy(result.model)
    end.set_enabled(False)
    row["float"] = figures(end, at.splits)
    end.set_enabled(True)
    row["integer"] = figures(end, at.splits)
    changes = code_changes(at.original, end)
    return row | {
        "codes_changed": changes.share,
        "latents_moved": changes.latent_changed / changes.codes,
        "lost_to_rounding": changes.lost / changes.codes,
        "stop_reason": result.fields["stop_reason"],
        "steps": result.fields.get("chosen_step"),
        "passes": result.passes,
    }


def fixed(at: Place) -> list[dict[str, Any]]:
    """The network before and the retrained one, in float and as integers."""
    rows = []
    for name, model in (("original", at.original), ("retrained", at.retrained)):
        values = {"float": figures(unquantized(model), at.splits), "integer": figures(model, at.splits)}
        rows.append({"data": at.data, "bits": at.bits, "seed": at.seed, "method": name, "way": "-", **values})
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in per cent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} +- {100 * deviation:.1f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per data set, bit width, method and way: means over seeds."""
    head = ("data", "bits", "method", "unlearned", "FA in float", "FA as integers", "brought back", "RA as integers",
            "TA as integers", "codes changed", "lost to rounding", "runs")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for key in dict.fromkeys((r["data"], r["bits"], r["method"], r["way"]) for r in rows):
        own = [r for r in rows if (r["data"], r["bits"], r["method"], r["way"]) == key]
        good = [r for r in own if "error" not in r]
        if not good:
            lines.append(f"| {' | '.join(key)} |{' - |' * 7} all {len(own)} failed |")
            continue
        after = key[3] == "after"
        cells = [spread([r["float"]["forget"] for r in good]) if after or key[3] == "-" else "-"]
        cells.append(spread([r["integer"]["forget"] for r in good]))
        back = [r["integer"]["forget"] - r["float"]["forget"] for r in good]
        cells.append(spread(back) if after else "-")
        cells += [spread([r["integer"][k] for r in good]) for k in ("retain", "test")]
        for k in ("codes_changed", "lost_to_rounding"):
            cells.append(f"{100 * statistics.fmean(r[k] for r in good):.1f}" if k in good[0] else "-")
        failed = len(own) - len(good)
        lines.append(f"| {' | '.join([*key, *cells, f'{len(good)}' + (f' ({failed} failed)' if failed else '')])} |")
    return "\n".join(lines) + "\n"


def save(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Both files; called after every place, so that what is done is kept."""
    settings = {s: {n: m.config() for n, m in METHOD[s].items()} for s in TASKS}
    value = {"settings": settings, "requests": TASKS, "rows": rows}
    (out / "quant_after.json").write_text(json.dumps(value, indent=2) + "\n")
    intro = "Per cent, mean +- standard deviation over seeds. `after`: unlearned with quantizers off, then rounded."
    (out / "quant_after.md").write_text(f"`python benchmarks/bench_quant_after.py`\n\n{intro}\n\n{table(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=sorted(TASKS), default=["digits", "kws"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "quant_after.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [r for r in rows if r["data"] not in args.data]
    started = time.perf_counter()
    for source in args.data:
        for at in places(source, args.seeds):
            rows += fixed(at)
            for name in METHOD[source]:
                for way in ("inside", "after"):
                    rows.append(run(at, name, way))
                    print(f"{time.perf_counter() - started:6.0f} s", json.dumps(rows[-1]), flush=True)
            save(args.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
