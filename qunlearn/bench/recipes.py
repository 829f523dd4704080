"""How a network for a data set is built and trained: one recipe for the command line, the demo and the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qunlearn import fingerprint, models, quant
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.errors import ConfigError

RECIPES: dict[str, dict[str, Any]] = {
    "kws": {"epochs": 16, "batch_size": 64, "lr": 0.05},
    "digits": {"epochs": 20, "batch_size": 64, "lr": 0.05},
    "cifar10": {"epochs": 20, "batch_size": 128, "lr": 0.1},
    "fashion_mnist": {"epochs": 8, "batch_size": 128, "lr": 0.1},
}
"""Training settings per built-in source; other sources use the defaults of :class:`qunlearn.quant.Recipe`."""


def recipe_for(dataset: Dataset, source: str, **given: Any) -> quant.Recipe:
    """The recipe of a source, with the settings ``given`` in place of its own; None stands for not given."""
    settings = {**RECIPES.get(source, {}), "augment": dataset.augment}
    settings |= {n: v for n, v in given.items() if v is not None}
    try:
        return quant.Recipe(**settings)
    except TypeError as err:
        raise ConfigError(f"training settings: {err}.", remedy="Use the fields of qunlearn.quant.Recipe.") from err


def reference_seed(seed: int) -> int:
    """Seed of a retrained network beside an original of ``seed``: another start and another order of the data."""
    return seed + 1000


def build_model(
    name: str, dataset: Dataset, spec: quant.QuantSpec, *, seed: int, init_from: Path | None = None
) -> quant.QuantModel:
    """A prepared, untrained network for the data set, or one that starts from the tensors of another run."""
    net = models.build(name, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=seed)
    rows = dataset.where("train")[:64]
    example = torch.from_numpy(Samples(dataset, rows).inputs())
    model = quant.prepare(net, spec, example)
    if init_from is not None:
        source, config = quant.load_run(init_from)
        if config.in_shape != dataset.in_shape or config.num_classes != dataset.num_classes or config.model != name:
            raise ConfigError(
                f"{init_from} holds {config.model} for {config.in_shape} and {config.num_classes} classes.",
                remedy=f"Give a run of {name} for {dataset.in_shape} and {dataset.num_classes} classes.",
            )
        own = model.state_dict()
        grid = ("tensor_quant.scale", "tensor_quant.zero_point")
        same_bits = config.spec == spec
        own.update({n: t for n, t in source.state_dict().items() if same_bits or not n.endswith(grid)})
        model.load_state_dict(own)
    return model


def run_config(
    name: str, dataset: Dataset, source: str, spec: quant.QuantSpec, provenance: Mapping[str, Any]
) -> quant.RunConfig:
    """The config that a run folder keeps."""
    return quant.RunConfig(
        model=name,
        in_shape=dataset.in_shape,
        num_classes=dataset.num_classes,
        spec=spec,
        data=source,
        task="classification",
        preprocess=dataset.preprocess.to_json(),
        provenance={
            **provenance,
            "dataset": dataset.title or dataset.name,
            "dataset_digest": dataset.digest(),
            "code": fingerprint.code_digest(),
        },
    )
