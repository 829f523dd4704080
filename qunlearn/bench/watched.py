"""A method as EVE's calibration wants it: steps that can be watched, and the same steps without a request."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from qunlearn import tasks
from qunlearn.audit.eve_align import ForgetLoss, negative_ce
from qunlearn.audit.eve_arms import Watch
from qunlearn.audit.eve_config import EveConfig
from qunlearn.audit.eve_craft import EveCraft
from qunlearn.data.splits import Splits
from qunlearn.fingerprint import config_digest
from qunlearn.hyper import hypers
from qunlearn.quant import QuantModel
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.card import ReferenceCard
from qunlearn.unlearn.ft import FT


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One method with its settings. ``steps``: at least so many are made without a request."""

    method: Unlearner
    steps: int
    task: str = "classification"
    card: ReferenceCard | None = None

    @property
    def digest(self) -> str:
        """Digest of the method's configuration."""
        return config_digest(self.method.config())

    def run(self, model: QuantModel, splits: Splits, *, seed: int, retain_only: bool, watch: Watch) -> None:
        """Unlearn a copy under the eyes of ``watch``; ``retain_only``: fine-tune on the same kept batches."""
        method = self._retain_only(len(splits.retain)) if retain_only else self.method
        method(
            model, splits, tasks.get(self.task), request_kind="ids", seed=seed, watch=watch,
            card=None if retain_only else self.card,
        )  # fmt: skip

    def _retain_only(self, n: int) -> FT:
        """Fine-tuning with what it shares with the method: learning rate, batches, BatchNorm."""
        known, shared = hypers(FT), dict[str, Any]()
        for f in dataclasses.fields(self.method):
            value = getattr(self.method, f.name)
            if f.name in known and f.name != "epochs" and known[f.name].problem(value) is None:
                shared[f.name] = value
        size = getattr(self.method, "retain_batch_size", None)
        if isinstance(size, int):
            shared["batch_size"] = size
        per_pass = max(1, n // int(shared.get("batch_size", known["batch_size"].default)))
        return FT(**{**shared, "stop_rule": False, "epochs": min(1000, math.ceil(self.steps / per_pass) + 1)})


def forget_loss_of(method: Unlearner, surrogate: str) -> tuple[ForgetLoss, bool]:
    """(the method's forget loss, whether it is a stand-in). UnsupportedError where a method has none and none was asked
    for by name."""
    if surrogate == "neg_ce":
        return negative_ce, True
    method.forget_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    return method.forget_loss, False


def craft_of(method: Unlearner, config: EveConfig) -> EveCraft:
    """Crafting for an operator who uses this method."""
    loss, stand_in = forget_loss_of(method, config.surrogate)
    return EveCraft(
        config=config,
        forget_loss=loss,
        unlearner=config_digest(method.config()),
        method=method.name,
        surrogate=stand_in,
    )
