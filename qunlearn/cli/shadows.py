"""Shadow models for ``qunlearn audit --audit lira,rmia,u_lira``: the audited run's own recipe, bits and method."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from qunlearn import quant, tasks
from qunlearn.audit import Audit, Predictor
from qunlearn.audit.attacks import ShadowAudit
from qunlearn.audit.reference import Make, shadow_pool
from qunlearn.bench import recipes
from qunlearn.cli import assess
from qunlearn.cli import workspace as ws
from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError
from qunlearn.tasks.base import Task
from qunlearn.unlearn import METHODS
from qunlearn.unlearn.base import Unlearner


def recipe_of(config: quant.RunConfig, splits: Splits) -> quant.Recipe:
    """The recipe that the run was trained by, or the one that its data set has."""
    known = config.provenance.get("recipe")
    return quant.Recipe(**known) if isinstance(known, dict) else recipes.recipe_for(splits.dataset, config.data)


def method_of(run: Path) -> Unlearner:
    """The method and settings that made an unlearned run; ConfigError for another folder."""
    facts = ws.read_json(run / ws.RESULT) if (run / ws.RESULT).exists() else {}
    settings = dict(facts.get("config") or {})
    name = settings.pop("method", None)
    settings.pop("version", None)
    if name not in METHODS:
        raise ConfigError(
            f"{run} does not say by which method it was unlearned.",
            remedy="u_lira needs the run folder that `qunlearn unlearn` wrote.",
        )
    return METHODS[name](**settings)


def maker(
    config: quant.RunConfig, splits: Splits, recipe: quant.Recipe, kinds: Sequence[str], method: Unlearner | None = None
) -> Make:
    """A function that trains one network as the audited one was trained and, where asked, unlearns part of it."""
    task = tasks.get(config.task)

    def make(samples: Samples, forget: Samples | None, seed: int) -> Mapping[str, Predictor]:
        model = recipes.build_model(config.model, splits.dataset, config.spec, seed=seed)
        quant.train(model, task, samples, recipe, seed=seed)
        if forget is not None and method is not None:
            model = unlearned(method, model, splits, samples, forget, task, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            subject = assess.from_run(model, config, Path(folder) / "shadow.onnx")
            return {kind: assess.predictor_of(subject, kind) for kind in kinds}

    return make


def unlearned(
    method: Unlearner, model: quant.QuantModel, splits: Splits, seen: Samples, forget: Samples, task: Task, *, seed: int
) -> quant.QuantModel:
    """A network trained on ``seen`` after unlearning ``forget``; what it saw is left out of held-out data."""
    parts = replace(
        splits,
        forget=forget,
        retain=Samples(splits.dataset, np.setdiff1d(seen.index, forget.index)),
        heldout_audit=Samples(splits.dataset, np.setdiff1d(splits.heldout_audit.index, seen.index)),
        request_kind="ids",
    )
    return method(model, parts, task, request_kind="ids", seed=seed).model


def pools(
    audits: Sequence[Audit],
    config: quant.RunConfig,
    splits: Splits,
    *,
    run: Path | None,
    kinds: Sequence[str],
    models: int,
    seed: int,
    cache: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What the attacks among ``audits`` need, by input name: nothing is trained for the others."""
    recipe = recipe_of(config, splits)
    facts: dict[str, Any] = {
        "model": config.model,
        "spec": config.spec.to_json(),
        "data": config.data,
        "recipe": asdict(recipe),
    }
    out: dict[str, Any] = {}
    for key in sorted({a.key for a in audits if isinstance(a, ShadowAudit)}):
        unlearn = key == "unlearned_shadows"
        if unlearn and run is None:
            raise ConfigError(
                "a file does not say by which method it was unlearned.", remedy="u_lira needs the run folder."
            )
        method = method_of(run) if unlearn and run is not None else None
        out[key] = shadow_pool(
            maker(config, splits, recipe, kinds, method),
            splits,
            models=models,
            seed=seed,
            recipe={**facts, "method": None if method is None else method.config()},
            kinds=kinds,
            unlearn=unlearn,
            cache=cache,
            say=say,
        )
    return out
