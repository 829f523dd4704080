"""The base class of every unlearning method: what happens around ``run`` and what is checked afterwards."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError, DataError, InvariantError, UnsupportedError, VerificationError
from qunlearn.fingerprint import code_digest, config_digest
from qunlearn.hyper import hyper, parse_settings, problems
from qunlearn.quant import QuantModel, code_changes, codes_digest, lower, scale_parameter_names
from qunlearn.quant.state import state_digest
from qunlearn.tasks.base import Task
from qunlearn.unlearn import checkpoint
from qunlearn.unlearn.card import ReferenceCard
from qunlearn.unlearn.context import Context, Data, Progress, UnlearnResult, Watch
from qunlearn.unlearn.digests import data_digest
from qunlearn.unlearn.modes import BN_MODES, statistics_names
from qunlearn.unlearn.stopping import KINDS, parse_bounds
from qunlearn_export.files import canonical_json, write_atomic

SHIPS = ("codes", "adapter")


@dataclass(frozen=True, kw_only=True)
class Unlearner(ABC):
    """A method is its configuration: a frozen, keyword-only dataclass with :meth:`run`; instances are called.

    A subclass sets ``name``, ``tasks``, ``source`` (paper and what is our own choice), optionally ``version``,
    ``presets`` and ``ships``, and implements :meth:`run`. It never overrides ``__call__`` (ConfigError at class
    creation). The fields of this class belong to every method.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    source: ClassVar[str]
    version: ClassVar[int] = 1
    ships: ClassVar[str] = "codes"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    bn: str = hyper("frozen", choices=BN_MODES, doc="BatchNorm: statistics fixed, moved by retain batches, or by all")
    train_scales: bool = hyper(False, doc="train the quantization scales as well")
    stop_rule: bool = hyper(False, doc="watch held-out data, stop in the target band, restore the best evaluation")
    eval_every: int = hyper(5, low=1, high=100_000, unit="steps", doc="steps between evaluations of the stop rule")
    probe: int = hyper(500, low=16, high=2000, unit="samples", doc="samples of each set in an evaluation, at most")
    utility_floor: float = hyper(0.03, low=0.0, high=1.0, unit="fraction", doc="accuracy that may be lost")
    entropy_drift: float | None = hyper(
        0.5, low=0.0, high=100.0, unit="fraction", doc="change of held-out entropy that utility allows; none: any"
    )
    tol: float = hyper(0.02, low=0.0, high=0.5, unit="fraction", doc="width added to the target band on each side")
    target_accuracy: str = hyper("", doc="declared band of accuracy on the forget set, such as 0.60..0.75")
    target_confidence: str = hyper("", doc="declared band of true-class probability, such as 0.50..0.70")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            raise ConfigError(f"{cls.__name__} overrides __call__, which is final.", remedy="Implement run(ctx).")

    @abstractmethod
    def run(self, ctx: Context) -> None:
        """Change ``ctx.model`` in place; use ``ctx.data``, ``ctx.task``, ``ctx.rng``; log rows to ``ctx.trace``."""

    def forget_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """What a step minimises on forget samples, as a scalar of their logits [n, C] and labels int64 [n].

        Optional: a method has it where that is a differentiable function of the logits alone whose gradient at the
        original network is not zero. All others raise UnsupportedError.
        """
        raise UnsupportedError(
            f"{self.name} has no differentiable forget loss of the logits alone.",
            remedy="Use a method that has one, such as ga, graddiff or oeu, or ask for surrogate=neg_ce by name.",
        )

    @classmethod
    def from_settings(cls, settings: Mapping[str, str]) -> Self:
        """From the texts of ``--set key=value``; the key ``preset`` names one of ``presets``, others win over it."""
        rest = dict(settings)
        preset = rest.pop("preset", None)
        if preset is not None and preset not in cls.presets:
            raise ConfigError(
                f"{cls.name} has no preset {preset!r}.", remedy=f"Presets: {', '.join(cls.presets) or 'none'}."
            )
        base = cls.presets[preset] if preset is not None else {}
        return cls(**{**base, **parse_settings(cls, rest)})

    def config(self) -> dict[str, Any]:
        """Method, version and every hyper-parameter, defaults written out."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"method": self.name, "version": self.version, **fields}

    def problems(self) -> list[str]:
        """Everything that is wrong with the hyper-parameters; a subclass adds what concerns several of them."""
        out = problems(self)
        for name in ("target_accuracy", "target_confidence"):
            value = getattr(self, name)
            try:
                if isinstance(value, str):
                    parse_bounds(value, name)
            except ConfigError as err:
                out.append(f"{err.message.rstrip('.')} ({err.remedy.rstrip('.')})")
        if self.unsettled and not self.stop_rule:
            out.append("lr=auto chooses by the stop rule's objective and needs stop_rule=true")
        return out

    @property
    def unsettled(self) -> bool:
        """Whether the learning rate is still ``auto``, which :func:`qunlearn.unlearn.settle_lr` settles."""
        return getattr(self, "lr", None) == "auto"

    def validate(self) -> None:
        """ConfigError with all problems at once."""
        problems = self.problems()
        if problems:
            raise ConfigError(
                f"{self.name}: {'; '.join(problems)}.", remedy=f"See `qunlearn methods {self.name}` for the ranges."
            )

    @final
    def __call__(
        self,
        model: QuantModel,
        splits: Splits,
        task: Task,
        *,
        request_kind: str,
        card: ReferenceCard | None = None,
        seed: int = 0,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: Progress | None = None,
        watch: Watch | None = None,
        checkpoint_every: int = 25,
        max_passes: float | None = None,
    ) -> UnlearnResult:
        """Unlearn ``splits.forget`` from a copy of ``model`` and check the outcome.

        ``request_kind`` is ``random``, ``ids``, ``group`` or ``class``; ``card`` the model's reference card. Of the
        splits only ``forget``, ``retain`` and ``heldout_stop`` are read. With ``run_dir`` (an existing folder) the
        state is saved every ``checkpoint_every`` steps; ``resume=True`` goes on from it and gives the bits of an
        uninterrupted run, and starts from nothing where there is no state. ``watch`` sees the network after every step
        of an iterative method and may end the run; whether any code changed is then its affair, not checked here.
        ``max_passes`` ends a run that costs more (sample gradients / size of the retain set). Neither is a setting or
        belongs to a digest.

        Raises ConfigError (hyper-parameters, folder), UnsupportedError (task, model), DataError (empty split),
        DivergedError (non-finite; the last good state is kept as ``last_good.safetensors``), TooCostlyError (beyond
        ``max_passes``), InvariantError (nothing changed, or something that must not).
        """
        started = time.perf_counter()
        self.validate()
        if self.unsettled:
            raise ConfigError(
                f"{self.name}: lr='auto' is no number yet.",
                remedy="Settle it with qunlearn.unlearn.settle_lr, as `qunlearn unlearn` does, or give a number.",
            )
        self._check_inputs(model, task, request_kind, checkpoint_every)
        folder = checkpoint.prepare_folder(run_dir, resume)
        data = Data(forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop)
        empty = [n for n in ("forget", "retain", "stop") if not len(getattr(data, n))]
        if empty:
            raise DataError(f"empty splits: {', '.join(empty)}.", remedy="Check the deletion request.")
        config = self.config()
        digests = {
            "model_before": state_digest(model),
            "codes_before": codes_digest(model),
            "data": data_digest(data.forget, data.retain, data.stop),
            "config": config_digest(config),
            "code": code_digest(),
        }
        identity = config_digest(
            {k: v for k, v in digests.items() if k != "code"}
            | {"seed": seed, "kind": request_kind, "card": card.to_json() if card is not None else None}
        )
        ctx = Context(
            model=self._copy(model),
            before=model,
            data=data,
            task=task,
            request_kind=request_kind,
            card=card,
            seed=seed,
            identity=identity,
            code=digests["code"],
            run_dir=folder,
            resume=resume,
            progress=progress,
            watch=watch,
            checkpoint_every=checkpoint_every,
            max_passes=max_passes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.run(ctx)
        after = self._release(model, ctx.model)
        self._check_claims(model, after, digests["model_before"])
        changes = code_changes(model, after)
        if watch is None and self.ships == "codes" and "W-NOTHING-CHANGED" in changes.warnings:
            raise InvariantError(
                f"{self.name} changed no integer code ({changes.latent_changed} latent weights moved by less than a "
                "rounding step): the network that ships is the old one.",
                remedy="Raise lr or the number of steps.",
            )
        for code in changes.warnings:
            ctx.warn(code, _CHANGE_TEXT.get(code, "see the change table"))
        digests |= {"model_after": state_digest(after), "codes_after": codes_digest(after)}
        result = UnlearnResult(
            model=after,
            method=self.name,
            config=config,
            digests=digests,
            changes=changes,
            degenerate=_degenerate(model, after),
            warnings=tuple(ctx.warnings),
            fields={"request_kind": request_kind, "seed": seed, **ctx.fields},
            trace=tuple(ctx.trace),
            seconds=ctx.earlier_seconds + time.perf_counter() - started,
            passes=ctx.passes,
        )
        if folder is not None:
            lines = "".join(canonical_json(row) + "\n" for row in result.trace)
            write_atomic(folder / "trace.jsonl", lines.encode())
        return result

    def _check_inputs(self, model: object, task: Task, request_kind: str, checkpoint_every: int) -> None:
        if task.name not in self.tasks:
            raise UnsupportedError(
                f"{self.name} does not support the task {task.name}.",
                remedy=f"It supports {', '.join(self.tasks)}; choose another method.",
            )
        if not isinstance(model, QuantModel):
            raise UnsupportedError(
                f"{self.name} needs a fake-quantized network, not {type(model).__name__}.",
                remedy="Make one with qunlearn.quant.prepare.",
            )
        if request_kind not in KINDS:
            raise ConfigError(f"request kind {request_kind!r} is unknown.", remedy=f"Use one of {', '.join(KINDS)}.")
        if checkpoint_every < 1:
            raise ConfigError("checkpoint_every must be at least 1.", remedy="Give a number of steps.")

    def _copy(self, model: QuantModel) -> QuantModel:
        out = copy.deepcopy(model)
        scales = scale_parameter_names(out)
        for name, p in out.named_parameters():
            p.grad = None
            if name in scales:
                p.requires_grad_(self.train_scales)
        return out

    def _release(self, before: QuantModel, after: QuantModel) -> QuantModel:
        for p, q in zip(before.parameters(), after.parameters(), strict=True):
            q.grad = None
            q.requires_grad_(p.requires_grad)
        return after.eval()

    def _check_claims(self, before: QuantModel, after: QuantModel, digest_before: str) -> None:
        if state_digest(before) != digest_before:
            raise InvariantError(f"{self.name} changed the network it was given.", remedy="Report this defect.")
        may = {n for n, p in before.named_parameters() if p.requires_grad}
        if not self.train_scales:
            may -= scale_parameter_names(before)
        if self.bn != "frozen":
            may |= statistics_names(before)
        old = before.state_dict()
        moved, broken = [], []
        for name, value in after.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                broken.append(name)
            elif name not in may and not torch.equal(value, old[name]):
                moved.append(name)
        if broken:
            raise InvariantError(f"non-finite after {self.name}: {', '.join(broken[:6])}.", remedy="Use a smaller lr.")
        if moved:
            raise InvariantError(
                f"{self.name} moved tensors that it promised to leave: {', '.join(moved[:6])}.",
                remedy="Report this defect.",
            )


_CHANGE_TEXT = {
    "W-LOST-TO-ROUNDING": "most of the update was lost to rounding; raise lr or the number of steps",
}


def _degenerate(before: QuantModel, after: QuantModel) -> tuple[dict[str, Any], ...]:
    """Findings of the scale checks D1 to D8 as plain data."""
    from qunlearn_export.degenerate import degenerate

    try:
        findings = degenerate(lower(after), lower(before))
    except VerificationError as err:
        return ({"code": err.message.partition(":")[0], "level": "error", "where": "", "message": err.message},)
    return tuple(json.loads(json.dumps(dataclasses.asdict(f), default=str)) for f in findings)


__all__ = ["SHIPS", "Context", "Path", "UnlearnResult", "Unlearner"]
