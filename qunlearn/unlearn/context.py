"""What a method's ``run`` gets to see, and what it returns to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError
from qunlearn.quant import ChangeTable, QuantModel
from qunlearn.tasks.base import Task
from qunlearn.unlearn.card import ReferenceCard
from qunlearn.unlearn.pairing import rng_for

Progress = Callable[[int, int, Mapping[str, Any]], None]
"""Called as ``progress(step, total_steps, trace_row)`` after every step."""

Watch = Callable[[int, int, QuantModel], bool]
"""Called as ``watch(step, total_steps, model)`` after every step; it changes nothing. False ends the run."""


CERTAIN = 0.75
"""Share of a foreseen cost that must lie beyond the limit before a run is ended."""


class TooCostlyError(ConfigError):
    """A run asked for more sample gradients than its caller allows; ``passes`` is what it had computed by then."""

    def __init__(self, message: str, *, remedy: str = "", passes: float) -> None:
        super().__init__(message, remedy=remedy)
        self.passes = passes


@dataclass(frozen=True, kw_only=True)
class Data:
    """The three sample sets a method may read; the others are out of its reach."""

    forget: Samples
    retain: Samples
    stop: Samples


@dataclass(kw_only=True)
class Context:
    """One run: ``model`` is a copy that the method changes in place, ``before`` the original, to be read only.

    ``identity`` is a digest of settings, data, model and seed; a checkpoint of another identity is refused. ``code`` is
    the version of the code; a run that goes on under another one says so in a warning. ``max_passes`` bounds the sample
    gradients over the size of the retain set.
    """

    model: QuantModel
    before: QuantModel
    data: Data
    task: Task
    request_kind: str
    card: ReferenceCard | None
    seed: int
    identity: str
    code: str = ""
    run_dir: Path | None = None
    resume: bool = False
    progress: Progress | None = None
    watch: Watch | None = None
    checkpoint_every: int = 25
    max_passes: float | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    gradients: int = 0
    earlier_seconds: float = 0.0

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that may change, by name, sorted."""
        return {n: p for n, p in sorted(self.model.named_parameters()) if p.requires_grad}

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator of this run's seed, independent for every purpose."""
        return rng_for(self.seed, purpose)

    def count(self, samples: int) -> None:
        """Record that ``samples`` sample gradients are computed; TooCostlyError beyond ``max_passes``."""
        self.gradients += samples
        if self.max_passes is not None and self.passes > self.max_passes:
            raise self._too_costly(f"ended at {self.passes:.4g}")

    def foresee(self, gradients: int) -> None:
        """TooCostlyError for a run that will compute about ``gradients`` in all, if most of that is already too much.

        The rest is a margin for epochs that do not cost the same, so that no run within its limit is ended.
        """
        passes = gradients / len(self.data.retain)
        if self.max_passes is not None and CERTAIN * passes > self.max_passes:
            raise self._too_costly(f"ended after {self.passes:.4g}, on the way to about {passes:.4g}")

    def _too_costly(self, what: str) -> TooCostlyError:
        text = f"{what} passes; at most {self.max_passes:.4g} are allowed."
        return TooCostlyError(text, remedy="Use fewer epochs or steps.", passes=self.passes)

    @property
    def passes(self) -> float:
        """Sample gradients so far / size of the retain set."""
        return self.gradients / len(self.data.retain)

    def warn(self, code: str, text: str) -> None:
        """Add a warning once; ``code`` begins with ``W-``."""
        line = f"{code}: {text}"
        if line not in self.warnings:
            self.warnings.append(line)


@dataclass(frozen=True, kw_only=True)
class UnlearnResult:
    """What an unlearning run produced and what is known about it.

    ``model`` the updated network in evaluation mode; ``config`` all hyper-parameters; ``digests`` of model and codes
    before and after, data, config, code; ``changes`` the table of integer-code changes; ``degenerate`` findings of the
    scale checks; ``fields`` the method's own (``guarantee``, ``stop_reason``, ...); ``trace`` one mapping a step;
    ``seconds`` wall time of the whole call; ``passes`` sample gradients computed / size of the retain set.
    """

    model: QuantModel
    method: str
    config: Mapping[str, Any]
    digests: Mapping[str, str]
    changes: ChangeTable
    degenerate: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]
    fields: Mapping[str, Any]
    trace: tuple[Mapping[str, Any], ...]
    seconds: float
    passes: float

    def to_json(self) -> dict[str, Any]:
        """Everything but the network and the trace, as plain data."""
        return {
            "method": self.method,
            "config": dict(self.config),
            "digests": dict(self.digests),
            "changes": self.changes.to_json(),
            "degenerate": [dict(f) for f in self.degenerate],
            "warnings": list(self.warnings),
            "fields": dict(self.fields),
            "steps": len(self.trace),
            "seconds": self.seconds,
            "passes": self.passes,
        }
