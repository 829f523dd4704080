"""What commands do with runs: find the data, read and write run folders, train with the right recipe. Needs torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qunlearn import quant, tasks
from qunlearn.bench.recipes import build_model, reference_seed
from qunlearn.cli.common import Settings
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, training_samples
from qunlearn.errors import ArtefactError, DataError
from qunlearn.unlearn import GroupValue, ReferenceCard, checkpoint, group_values
from qunlearn.unlearn.representation import similarity
from qunlearn_export.files import write_atomic

RESULT, CARD = "result.json", "card.json"

CARD_SAMPLES = 500
"""Samples of each set that a reference card compares features on, at most."""


def load_data(settings: Settings, source: str) -> Dataset:
    """The data set that ``source`` names. The division of a set without its own parts does not depend on run seeds."""
    return sources.load(source, data_dir=settings.data_dir, seed=0)


def data_of_run(settings: Settings, config: quant.RunConfig) -> Dataset:
    """The data set a run was trained on; DataError when what is found now is not that data set."""
    dataset = load_data(settings, config.data)
    known = config.provenance.get("dataset_digest")
    same = known is None or (known == dataset.digest() and config.preprocess == dataset.preprocess.to_json())
    if not same:
        raise DataError(
            f"the data of {config.data!r} are not those that the run was trained on.",
            remedy="Give the original data by --data-dir.",
        )
    return dataset


def train_model(
    model: quant.QuantModel,
    samples: Samples,
    recipe: quant.Recipe,
    *,
    seed: int,
    label: str,
    settings: Settings,
    state_file: Path | None = None,
    resume: bool = False,
) -> float:
    """Train in place with progress on stderr; returns the seconds of this call."""
    start = time.perf_counter()
    with settings.progress(label) as update:
        quant.train(
            model,
            tasks.get("classification"),
            samples,
            recipe,
            seed=seed,
            state_file=state_file,
            resume=resume,
            on_epoch=lambda epoch, loss: update(epoch, recipe.epochs, f"epochs, loss {loss:.3f}"),
        )
    return time.perf_counter() - start


def metrics_of(model: quant.QuantModel, samples: Samples) -> dict[str, float]:
    """Accuracy, confidence and loss of the fake-quantized network."""
    task = tasks.get("classification")
    logits = torch.from_numpy(task.predict(model, samples))
    return task.metrics(logits, task.batch(samples, np.arange(len(samples))))


def reference_card(
    settings: Settings,
    dataset: Dataset,
    name: str,
    spec: quant.QuantSpec,
    recipe: quant.Recipe,
    *,
    seed: int,
    folder: Path,
    resume: bool,
    base: quant.QuantModel,
    keep: Callable[[str, quant.QuantModel, float], None] | None = None,
) -> ReferenceCard:
    """Train one network per group without that group and record its values on the group left out.

    Data without groups: one network without the last class, for the similarity of features alone. ``keep(group, model,
    seconds)`` receives every such network: it is the retrained reference for that group.
    """
    task = tasks.get("classification")
    values: dict[str, GroupValue] = {}
    alike: dict[str, dict[str, tuple[float, float]]] = {}
    kind, names = ("group", dataset.group_names) if dataset.group_names else ("class", dataset.class_names[-1:])
    for i, name_out in enumerate(names):
        done, state = folder / f"card.{i}.json", folder / f"card.{i}.state"
        key = f"{kind}={name_out}"
        if resume and done.exists() and keep is None:
            known = read_json(done)
            alike[key] = {layer: (pair[0], pair[1]) for layer, pair in known["similarity"].items()}
            if known["value"] is not None:
                values[name_out] = GroupValue(**known["value"])
            continue
        request = Request(kind, (name_out,))
        rest = training_samples(dataset, request, seed)
        model = build_model(name, dataset, spec, seed=reference_seed(seed))
        seconds = train_model(
            model,
            rest,
            recipe,
            seed=reference_seed(seed),
            label=f"reference {i + 1} of {len(names)}",
            settings=settings,
            state_file=state,
            resume=resume,
        )
        left_out = Samples(dataset, request.select(dataset, seed))
        alike[key] = similarity(task, base, model, (left_out, rest), size=CARD_SAMPLES, seed=seed)
        if kind == "group":
            values |= group_values(model, task, left_out)
        value = asdict(values[name_out]) if name_out in values else None
        write_json(done, {"value": value, "similarity": alike[key]})
        state.unlink(missing_ok=True)
        if keep is not None:
            keep(name_out, model, seconds)
    for i in range(len(names)):
        (folder / f"card.{i}.json").unlink(missing_ok=True)
    return ReferenceCard(groups=values, model_digest=quant.state_digest(base), seed=seed, similarity=alike)


def accuracies(model: quant.QuantModel, splits: Splits) -> dict[str, float]:
    """Accuracy of the fake-quantized network on forget, retain and held-out data (the test part stays closed)."""
    sets = {"forget": splits.forget, "retain": splits.retain, "heldout": splits.heldout}
    return {name: metrics_of(model, samples)["accuracy"] for name, samples in sets.items()}


def step_progress(update: Callable[[int, int, str], None]) -> Callable[[int, int, Mapping[str, Any]], None]:
    """Adapt a progress display to the callback of an unlearning run."""

    def report(step: int, total: int, row: Mapping[str, Any]) -> None:
        loss = row.get("L_f", row.get("loss"))
        update(step, total, "steps at most" + (f", loss {loss:.3f}" if isinstance(loss, float) else ""))

    return report


def unlearn_text(value: Mapping[str, Any], folder: Path) -> str:
    """The result of an unlearning run for the terminal."""
    before, after, changes = value["before"], value["after"], value["changes"]
    lines = [f"{value['method']}: {value['request']['text']}, {value['seconds']:.1f} s, {value['passes']:.2f} passes"]
    lines += [f"  {n:<8} {100 * before[n]:6.1f} % -> {100 * after[n]:6.1f} %" for n in before]
    share = f"{100 * changes['share']:.2f} %"
    lines.append(f"  codes changed: {changes['codes_changed']:,} of {changes['codes']:,} ({share})")
    shown = ("guarantee", "stop_reason", "stop_verdict")
    lines += [f"  {k}: {v}" for k, v in value["fields"].items() if k in shown]
    lines += [f"  warning: {w}" for w in value["warnings"]]
    errors = [f for f in value["degenerate"] if f["level"] == "error"]
    lines += [f"  error: {f['code']} {f['where']}: {f['message']}" for f in errors]
    return "\n".join([*lines, f"run {folder}"])


def drop_state(folder: Path) -> None:
    """Remove the files that only an interrupted run needs."""
    for name in (checkpoint.NAME, checkpoint.LAST_GOOD):
        (folder / name).unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented JSON, written whole."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder; ArtefactError when it is not one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as err:
        raise ArtefactError(f"cannot read {path}: {err}.", remedy="Make the run anew.") from err
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} does not hold an object.", remedy="Make the run anew.")
    return value


def load_card(run: Path, model: quant.QuantModel) -> ReferenceCard | None:
    """The run's reference card, where it has one; ArtefactError when it belongs to another network."""
    path = run / CARD
    if not path.exists():
        return None
    card = ReferenceCard.load(path)
    if card.model_digest and card.model_digest != quant.state_digest(model):
        raise ArtefactError(
            f"{path} belongs to another network.", remedy="Remove it, or train the run anew with --reference-card."
        )
    return card


def with_provenance(config: quant.RunConfig, **facts: Any) -> quant.RunConfig:
    """A copy of ``config`` with facts added to its provenance."""
    return replace(config, provenance={**config.provenance, **facts})
