"""The demo's journey: base network and references (shipped or from scratch), OEU, int8 files, audit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qunlearn import quant, tasks
from qunlearn.bench.recipes import build_model, recipe_for, reference_seed, run_config
from qunlearn.cli import artefact, assess
from qunlearn.cli import workspace as ws
from qunlearn.cli.common import Settings
from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits, training_samples
from qunlearn.errors import ConfigError
from qunlearn.unlearn import METHODS, ReferenceCard, UnlearnResult

ASSETS = Path(__file__).parent / "assets"
SOURCE, MODEL, SEED = "kws", "dscnn", 0
AUDITS = "accuracy,mia"
"""SMI is left out: on this data members and held-out samples of kept speakers cannot be told apart (docs/smi.md)."""
METHOD: Mapping[str, str] = {
    "loss": "e1",
    "lam": "0.3",
    "lr": "0.004",
    "clip": "2.5",
    "batch_size": "32",
    "retain_batch_size": "64",
    "eval_every": "6",
    "probe": "150",
    "max_steps": "90",
}
"""Settings of OEU in the demo, over its defaults: chosen by hand on the tuning network (seed 100) of
``benchmarks/grids/kws.toml``; more and smaller steps than that grid's cap on cost has room for.

Negative entropy (E1) leaves the samples that other speakers explain as they are and pushes the uncertain ones, which is
how a retrained network looks on the forgotten speaker; its gradient starts flat and grows tenfold, hence the clipping.
"""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The trained networks of one seed; ``retrained`` and ``seconds`` by the group left out."""

    base: quant.QuantModel
    config: quant.RunConfig
    retrained: Mapping[str, Path]
    seconds: Mapping[str, float]
    card: ReferenceCard


def shipped(dataset: Dataset, folder: Path = ASSETS) -> Networks:
    """The networks that travel with the package, or those of a folder that :func:`from_scratch` filled."""
    base, config = artefact.open_run(folder / "base")
    facts = ws.read_json(folder / "base" / ws.RESULT)
    return Networks(
        base=base,
        config=config,
        retrained={g: folder / f"without_{g}" for g in dataset.group_names},
        seconds=facts["retrain_seconds"],
        card=ReferenceCard.load(folder / "base" / ws.CARD),
    )


def from_scratch(settings: Settings, dataset: Dataset, folder: Path) -> Networks:
    """Train the base network and, per group, one that never saw it; run folders ``base`` and ``without_<group>``."""
    spec, recipe = quant.QuantSpec(), recipe_for(dataset, SOURCE)
    base = build_model(MODEL, dataset, spec, seed=SEED)
    samples = training_samples(dataset)
    seconds = {"base": ws.train_model(base, samples, recipe, seed=SEED, label="base network", settings=settings)}
    facts = {"command": "demo", "seed": SEED, "recipe": asdict(recipe)}
    config = run_config(MODEL, dataset, SOURCE, spec, facts)
    retrained: dict[str, Path] = {}

    def keep(group: str, model: quant.QuantModel, spent: float) -> None:
        target = folder / f"without_{group}"
        target.mkdir(parents=True, exist_ok=True)
        excluded = Request("group", (group,)).digest(dataset, SEED)
        quant.save_run(target, model, ws.with_provenance(config, seed=reference_seed(SEED), excluded=excluded))
        retrained[group], seconds[group] = target, spent

    card = ws.reference_card(
        settings,
        dataset,
        MODEL,
        spec,
        recipe,
        seed=SEED,
        folder=folder,
        resume=False,
        base=base,
        keep=keep,
    )
    home = folder / "base"
    home.mkdir(exist_ok=True)
    card.save(home / ws.CARD)
    ws.write_json(home / ws.RESULT, {"retrain_seconds": seconds})
    quant.save_run(home, base, config)
    return Networks(base=base, config=config, retrained=retrained, seconds=seconds, card=card)


@dataclass(frozen=True, kw_only=True)
class Journey:
    """What the demo found for one group."""

    result: UnlearnResult
    assessment: assess.Assessment
    splits: Splits
    request: Request
    retrain_seconds: float

    def to_json(self) -> dict[str, Any]:
        """The object that ``demo --json`` prints, less the total time."""
        a = self.assessment
        return {
            "base": a.plain("before"),
            "retrained": a.plain("reference"),
            "unlearned": a.plain("after"),
            "verdict": a.audits.verdict,
            "parity": a.parity.to_json(),
            "code_changes": self.result.changes.to_json(),
        }


def erase(
    settings: Settings,
    networks: Networks,
    dataset: Dataset,
    group: str,
    folder: Path,
) -> Journey:
    """Forget one group with OEU, export all three networks into ``folder``, audit the int8 files."""
    if dataset.group is None or group not in dataset.group_names:
        raise ConfigError(f"unknown group {group!r}.", remedy=f"Groups: {', '.join(dataset.group_names)}.")
    request = Request("group", (group,))
    splits = make_splits(dataset, request, seed=SEED)
    configured = METHODS["oeu"].from_settings(METHOD)
    with settings.progress("unlearning") as update:
        result = configured(
            networks.base,
            splits,
            tasks.get("classification"),
            request_kind="group",
            card=networks.card,
            seed=SEED,
            progress=ws.step_progress(update),
        )
    settings.say("exporting to int8 ONNX, comparing, auditing")
    retrained, retrained_config = artefact.open_run(networks.retrained[group])
    found = assess.assess(
        assess.from_run(networks.base, networks.config, folder / "base.onnx"),
        assess.from_run(result.model, networks.config, folder / "model.onnx"),
        assess.from_run(retrained, retrained_config, folder / "retrained.onnx"),
        splits=splits,
        task_name="classification",
        seed=SEED,
        kinds=("onnx-all",),
        audits=assess.parse_audits(AUDITS),
        inputs=artefact.parity_inputs(dataset, 256),
    )
    return Journey(
        result=result,
        assessment=found,
        splits=splits,
        request=request,
        retrain_seconds=networks.seconds[group],
    )


def move_runs(source: Path, target: Path) -> None:
    """Move the run folders that :func:`from_scratch` made into ``target``, in place of earlier ones."""
    for run in sorted(source.iterdir()):
        if run.is_dir():
            shutil.rmtree(target / run.name, ignore_errors=True)
            shutil.move(run, target / run.name)
