"""Crafting and calibration for the command line: run, data, method, files. Needs torch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qunlearn.audit.eve_arms import answers
from qunlearn.audit.eve_calibrate import EveCalibrate, confidences, rest_of
from qunlearn.audit.eve_calibration import table
from qunlearn.audit.eve_config import EveConfig
from qunlearn.audit.run import kinds_of
from qunlearn.audit.table import aligned
from qunlearn.bench.watched import Watched, craft_of
from qunlearn.cli import artefact
from qunlearn.cli import workspace as ws
from qunlearn.cli.common import Settings, new_folder
from qunlearn.cli.eve_files import PROBE
from qunlearn.data.eve import split_eve
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import ConfigError
from qunlearn.unlearn import METHODS
from qunlearn.unlearn.base import Unlearner
from qunlearn_export.files import write_atomic
from qunlearn_export.oracle import Oracle


def _method(name: str, settings: Mapping[str, str]) -> Unlearner:
    method = METHODS[name].from_settings(settings)
    method.validate()
    return method


def _kind(name: str) -> str:
    kinds = kinds_of([name])
    if len(kinds) != 1 or kinds[0] == "torch-reloaded":
        raise ConfigError(f"--on {name!r} is not one kind that can be made here.", remedy="Use torch, onnx or c.")
    return kinds[0]


def craft(
    settings: Settings,
    run: Path,
    forget: str,
    method: str,
    assignments: Mapping[str, str],
    eve: Mapping[str, str],
    kind: str,
    seed: int,
    output: str,
) -> tuple[dict[str, Any], str]:
    """Write request, submission and probe; returns the result and its text."""
    made = craft_of(_method(method, assignments), EveConfig.from_settings(eve))
    read_as = _kind(kind)
    request = Request.parse(forget)
    model, config = artefact.open_run(run)
    dataset = ws.data_of_run(settings, config)
    splits = make_splits(dataset, request, seed=seed)
    cfg = made.config
    split = split_eve(
        dataset, len(splits.forget), cfg.n_targets, cfg.n_bystanders, seed,
        confidence=confidences(model, dataset, splits.heldout_audit.index), wanted=cfg.target_confidence,
        erase=splits.forget,
    )  # fmt: skip
    folder = new_folder(output)
    settings.say("crafting")
    shipped = answers(model, read_as)
    found = made(model, split, heldout=rest_of(splits.heldout, split), seed=seed, read=[shipped])
    found.save(folder)
    oracle = getattr(answers(model, "oracle"), "_oracle", None)
    buffer = io.BytesIO()
    codes = oracle.quantize(found.probe_x) if isinstance(oracle, Oracle) else np.zeros(0, np.int8)
    np.savez(buffer, x=found.probe_x, codes=codes)
    write_atomic(folder / PROBE, buffer.getvalue(), mode=0o600)
    facts = {k: v for k, v in found.facts.items() if k != "settings"}
    value = {**facts, "request": found.digest, "samples": len(found.y), "folder": str(folder)}
    lines = [
        f"{len(found.y)} samples altered by at most {found.facts['eps']:.4g}; cosine {found.facts['cos_before']:.3f}, "
        f"on the input grid {found.facts['cos_after']:.3f}",
        f"  for the operator: {folder / 'submission.npz'}",
        f"  private: {folder / 'request.npz'}, {folder / PROBE} ({len(found.probe_x)} rows)",
        *(f"  warning: {w}" for w in found.facts["warnings"]),
    ]
    return value, "\n".join(lines)


def calibrate(
    settings: Settings,
    run: Path,
    erase: int,
    method: str,
    assignments: Mapping[str, str],
    eve: Mapping[str, str],
    steps: int,
    every: int,
    kind: str,
    seed: int,
    output: Path,
) -> tuple[dict[str, Any], str]:
    """Run the trials and write the calibration; returns its summary and table."""
    how = _method(method, assignments)
    made = craft_of(how, EveConfig.from_settings(eve))
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"{output} cannot be written.", remedy="Give a file in an existing folder.")
    model, config = artefact.open_run(run)
    dataset = ws.data_of_run(settings, config)
    trials = EveCalibrate(
        craft=made,
        unlearning=Watched(method=how, steps=steps, card=ws.load_card(run, model)),
        kind=_kind(kind),
        steps=steps,
        every=every,
    )
    with settings.progress("calibrating") as update:
        found = trials(model, dataset, n_erase=erase, seed=seed, progress=update)
    found.save(output)
    value = found.summary()
    state = "valid" if not found.problems else "NOT VALID: " + "; ".join(found.problems)
    lines = [
        aligned(table(value)),
        "",
        f"calibration {state}",
        f"  detection at least {found.l1:.3f}, false positives at most {found.p0:.3f} (one-sided, {found.alpha:g})",
        f"  a pass needs false positives at most {found.alpha:g}, a failure detection at least {1 - found.alpha:g}",
        f"file {output}",
    ]
    return {**value, "file": str(output), "l1": found.l1}, "\n".join(lines)
