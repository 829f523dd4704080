"""A run directory's model: ``config.json`` and ``model.safetensors``, versioned, loaded strictly, never pickled."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from qunlearn import models
from qunlearn.errors import ArtefactError, ConfigError
from qunlearn.quant.model import QuantModel
from qunlearn.quant.prepare import prepare
from qunlearn.quant.spec import QuantSpec
from qunlearn.quant.state import load_tensors, save_tensors, state_digest
from qunlearn_export.files import write_atomic

VERSION = 1
CONFIG, MODEL = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What is needed to build the network again, and where it came from.

    ``model`` a registered name or ``package.module:function``; ``in_shape`` (C, H, W); ``spec`` bit widths; ``data``
    SOURCE; ``preprocess`` the data set's, as JSON; ``provenance`` whatever the command records besides (seed,
    recipe, method, digests).
    """

    model: str
    in_shape: tuple[int, ...]
    num_classes: int
    spec: QuantSpec
    data: str
    task: str
    preprocess: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain mapping, with the format version."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"version": VERSION, **out, "in_shape": list(self.in_shape), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, value: Any, *, where: str = CONFIG) -> RunConfig:
        """Strict inverse of :meth:`to_json`; ArtefactError lists every problem at once."""
        if not isinstance(value, dict):
            raise ArtefactError(f"{where} does not hold an object.", remedy="Train the run anew.")
        version = value.get("version")
        if type(version) is not int or version != VERSION:
            raise ArtefactError(
                f"{where} has format version {version!r}; this package reads version {VERSION}.",
                remedy="Install a newer qunlearn, or train the run anew."
                if isinstance(version, int) and version > VERSION
                else "Train the run anew.",
            )
        kinds: dict[str, type] = {
            "model": str,
            "in_shape": list,
            "num_classes": int,
            "spec": dict,
            "data": str,
            "task": str,
            "preprocess": dict,
            "provenance": dict,
        }
        problems = [f"missing {k}" for k in kinds if k not in value]
        problems += [f"unknown {k}" for k in value if k not in kinds and k != "version"]
        problems += [f"{k} is not {t.__name__}" for k, t in kinds.items() if k in value and type(value[k]) is not t]
        shape, count = value.get("in_shape"), value.get("num_classes")
        if type(shape) is list and not (len(shape) == 3 and all(type(d) is int and 0 < d < 2**16 for d in shape)):
            problems.append("in_shape is not three positive integers")
        if type(count) is int and not 0 < count < 2**16:
            problems.append("num_classes is not a positive integer")
        spec = None
        if type(value.get("spec")) is dict:
            try:
                spec = QuantSpec.from_json(value["spec"])
            except (TypeError, ConfigError) as err:
                problems.append(f"spec: {err}")
        if problems or spec is None:
            raise ArtefactError(f"{where}: {'; '.join(problems)}.", remedy="Train the run anew.")
        rest = {k: value[k] for k in kinds if k not in ("in_shape", "spec")}
        return cls(in_shape=tuple(value["in_shape"]), spec=spec, **rest)


def save_run(path: str | os.PathLike[str], model: QuantModel, config: RunConfig) -> Path:
    """Write model and config into the existing folder ``path``; the config comes last and marks the run complete."""
    folder = Path(path)
    save_tensors(folder / MODEL, model.state_dict(), {"version": VERSION, "digest": state_digest(model)})
    text = json.dumps(config.to_json(), indent=2, sort_keys=True) + "\n"
    write_atomic(folder / CONFIG, text.encode())
    return folder


def read_config(path: str | os.PathLike[str]) -> RunConfig:
    """The config of a run directory."""
    folder = Path(path)
    if not folder.is_dir():
        raise ArtefactError(
            f"there is no run directory {folder}.", remedy="Give the folder that `qunlearn train` wrote."
        )
    where = folder / CONFIG
    try:
        text = where.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise ArtefactError(
            f"{folder} holds no readable {CONFIG}: the run is missing or was not finished.",
            remedy="Finish it with --resume, or give another folder.",
        ) from err
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ArtefactError(f"{where} is not JSON: {err}.", remedy="Train the run anew.") from err
    return RunConfig.from_json(value, where=str(where))


def load_run(path: str | os.PathLike[str]) -> tuple[QuantModel, RunConfig]:
    """Build the network of a run directory and load its tensors strictly; evaluation mode."""
    config = read_config(path)
    net = models.build(config.model, in_shape=config.in_shape, num_classes=config.num_classes, seed=0)
    model = prepare(net, config.spec, torch.zeros(2, *config.in_shape))
    tensors, facts = load_tensors(Path(path) / MODEL)
    load_state(model, tensors, where=str(Path(path) / MODEL))
    if facts.get("digest") != state_digest(model):
        raise ArtefactError(f"{Path(path) / MODEL} does not match its own digest.", remedy="Restore it from a copy.")
    return model.eval(), config


def load_state(model: QuantModel, tensors: dict[str, torch.Tensor], *, where: str) -> None:
    """Load tensors into ``model``; missing, extra, misshapen and non-finite entries are listed in one error."""
    own = model.state_dict()
    problems = [f"missing {n}" for n in own if n not in tensors]
    problems += [f"unknown {n}" for n in tensors if n not in own]
    for name, value in tensors.items():
        if name in own and (value.shape != own[name].shape or value.dtype != own[name].dtype):
            problems.append(
                f"{name} is {value.dtype} {tuple(value.shape)}, not {own[name].dtype} {tuple(own[name].shape)}"
            )
        elif value.is_floating_point() and not bool(value.isfinite().all()):
            problems.append(f"{name} is not finite")
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ArtefactError(
            f"{where} does not fit its network: {shown}.",
            remedy="Use the checkpoint with the network and bit widths it was trained with.",
        )
    model.load_state_dict(tensors)
