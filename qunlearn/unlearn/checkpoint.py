"""Resumable state of a run: one safetensors file, written whole, tensors inside and plain facts in its metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qunlearn.errors import ArtefactError, ConfigError
from qunlearn.quant.state import load_tensors, optimizer_tensors, restore_optimizer, save_tensors

NAME = "checkpoint.safetensors"
LAST_GOOD = "last_good.safetensors"
VERSION = 2


class Part(Protocol):
    """Something that has state: tensors by name, and facts as JSON data."""

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state now."""

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Put a saved state back."""


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved values into the tensors of ``model``; KeyError or RuntimeError when they do not fit.

    ``load_state_dict`` is not used on purpose: in a deep copy, brevitas' hooks on it put the quantizers of the original
    network back, which the two networks would then share.
    """
    own = model.state_dict()
    if set(own) != set(tensors):
        raise KeyError("tensor names differ")
    for name, value in own.items():
        value.copy_(tensors[name])


class _Plain(Protocol):
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


class PlainPart:
    """A :class:`Part` without tensors: anything with ``state`` and ``load``."""

    def __init__(self, item: _Plain) -> None:
        self.item = item

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The item's state."""
        return {}, self.item.state()

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Put it back."""
        self.item.load(facts)


class OptimizerPart:
    """A torch optimizer as a :class:`Part`; its hyper-parameters come from the method."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Momentum and the like."""
        return optimizer_tensors(self.optimizer, "o"), {}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Put them back."""
        restore_optimizer(self.optimizer, tensors, "o")


def prepare_folder(run_dir: str | os.PathLike[str] | None, resume: bool) -> Path | None:
    """The folder for checkpoints; ConfigError when it is missing, or holds a run that ``resume`` was not asked for."""
    if run_dir is None:
        if resume:
            raise ConfigError("resume needs a run directory.", remedy="Give run_dir.")
        return None
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}.", remedy="Create it first.")
    if not resume and (folder / NAME).exists():
        raise ConfigError(
            f"{folder} holds the state of an earlier run.", remedy="Use resume to continue it, or another folder."
        )
    return folder


def save(folder: Path, identity: str, parts: Mapping[str, Part], facts: Mapping[str, Any]) -> None:
    """Write all parts and facts to the folder's checkpoint, atomically."""
    tensors: dict[str, Tensor] = {"torch_rng": torch.get_rng_state()}
    kept: dict[str, Any] = {}
    for name, part in parts.items():
        own, kept[name] = part.save()
        tensors |= {f"{name}/{key}": value for key, value in own.items()}
    save_tensors(folder / NAME, tensors, {"version": VERSION, "identity": identity, "parts": kept, **facts})


def load(folder: Path, identity: str, parts: Mapping[str, Part]) -> dict[str, Any] | None:
    """Put all parts back and return the facts; None where there is no checkpoint; ArtefactError for another run's."""
    path = folder / NAME
    if not path.exists():
        return None
    tensors, facts = load_tensors(path)
    remedy = "Repeat the call exactly as it was interrupted, with the same version, or start in a new folder."
    if facts.get("version") != VERSION or facts.get("identity") != identity:
        raise ArtefactError(f"{path} belongs to a run with other settings, data, code or model.", remedy=remedy)
    try:
        for name, part in parts.items():
            own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}
            part.restore(own, facts["parts"][name])
        torch.set_rng_state(tensors["torch_rng"])
    except (KeyError, RuntimeError, TypeError, ValueError) as err:
        raise ArtefactError(f"{path} is damaged: {err}.", remedy=remedy) from err
    return facts
