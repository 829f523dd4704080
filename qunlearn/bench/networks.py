"""Networks of a benchmark: trained once per seed and request, kept in a work folder."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from qunlearn import fingerprint, models, quant, tasks
from qunlearn.bench.grid import Grid
from qunlearn.bench.recipes import build_model, recipe_for, run_config
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset
from qunlearn.data.partition import stratified_part
from qunlearn.data.request import Request
from qunlearn.data.splits import training_samples
from qunlearn.errors import ConfigError
from qunlearn_export.files import write_atomic

SECOND = 2000
"""Added to the seed of the second retrained network, the noise floor of a table."""


def load_dataset(grid: Grid, data_dir: Path | None) -> Dataset:
    """The grid's data; with ``subset``, its training part cut to a seeded choice balanced over classes."""
    dataset = sources.load(grid.data, data_dir=data_dir, seed=0)
    if grid.subset is None:
        return dataset
    train = dataset.where("train")
    if grid.subset > len(train):
        raise ConfigError(f"subset {grid.subset} is more than {len(train)} samples.", remedy="Take fewer.")
    cells = [(int(dataset.y[i]), "" if dataset.group is None else str(dataset.group[i])) for i in train]
    hashes = [dataset.hashes[i] for i in train]
    chosen = stratified_part(hashes, cells, grid.subset / len(train), seed=0, purpose="bench.subset")
    rows = np.sort(np.concatenate([train[chosen], dataset.where("heldout"), dataset.where("test")]))
    group = None if dataset.group is None else dataset.group[rows]
    names = {n: getattr(dataset, n)[rows] for n in ("x", "y", "ids", "part")}
    return replace(dataset, **names, group=group)


def most_passes(grid: Grid, dataset: Dataset) -> float:
    """What a run may cost, in sample gradients over the size of the retain set: a share of retraining's epochs."""
    return grid.cost * recipe_for(dataset, grid.data, **grid.train).epochs


@dataclass(frozen=True, kw_only=True)
class Key:
    """One network: ``request`` is what it never saw, or empty; ``seed`` that of its training."""

    model: str
    bits: str
    seed: int
    request: str = ""
    split_seed: int = 0

    @property
    def folder(self) -> str:
        """A folder name that tells networks of one grid apart."""
        kept = {k: v for k, v in asdict(self).items() if k != "split_seed" or self.request.startswith("random")}
        return f"{self.model.replace(':', '_')}-{self.bits}-{self.seed}-{fingerprint.config_digest(kept)[:12]}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network with the seconds and the processor seconds that its training took."""

    model: quant.QuantModel
    config: quant.RunConfig
    seconds: float
    processor: float


def network(grid: Grid, dataset: Dataset, key: Key, work: Path) -> Trained:
    """From the work folder, or trained into it. A folder made by another recipe or other data is a ConfigError."""
    folder = work / "networks" / key.folder
    recipe = recipe_for(dataset, grid.data, **grid.train)
    spec = quant.QuantSpec.parse(key.bits, grid=models.grid_for(key.model))
    facts = {"key": asdict(key), "spec": spec.to_json(), "recipe": asdict(recipe), "data": dataset.digest()}
    digest = fingerprint.config_digest(facts)
    note = folder / "bench.json"
    if note.exists():
        known = json.loads(note.read_text())
        if known["digest"] != digest:
            raise ConfigError(
                f"{folder} was trained by another recipe or on other data.", remedy="Use another work folder."
            )
        model, config = quant.load_run(folder)
        return Trained(model=model, config=config, seconds=known["seconds"], processor=known["processor"])
    model = build_model(key.model, dataset, spec, seed=key.seed)
    request = Request.parse(key.request) if key.request else None
    samples = training_samples(dataset, request, key.split_seed)
    started, busy = time.perf_counter(), time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    quant.train(
        model, tasks.get("classification"), samples, recipe, seed=key.seed,
        state_file=folder / "train.state", resume=True,
    )  # fmt: skip
    seconds, processor = time.perf_counter() - started, time.process_time() - busy
    config = run_config(key.model, dataset, grid.data, spec, {"command": "bench", **asdict(key)})
    quant.save_run(folder, model, config)
    value = {"digest": digest, "seconds": seconds, "processor": processor}
    write_atomic(note, (json.dumps(value, indent=2) + "\n").encode())
    (folder / "train.state").unlink(missing_ok=True)
    return Trained(model=model, config=config, seconds=seconds, processor=processor)
