"""The loop that iterative methods share: steps, divergence, evaluations and snapshots, checkpoints, trace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qunlearn.errors import DivergedError, InvariantError
from qunlearn.quant.state import save_tensors
from qunlearn.unlearn import checkpoint
from qunlearn.unlearn.checkpoint import LAST_GOOD, Part
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.stopping import Band, Evaluation, Evaluator, StopRule, target_band

if TYPE_CHECKING:
    from qunlearn.unlearn.base import Unlearner

StepFunction = Callable[[int], dict[str, Any]]

Observer = Callable[[], tuple[float, dict[str, Any]]]
"""Looks at the model at an evaluation: (what the stop rule's objective grows by, values for the trace)."""


class _ModelPart:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.model.state_dict()), {}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        checkpoint.fill(self.model, tensors)


class _SnapshotPart:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.tensors, {}

    def restore(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        self.tensors = dict(tensors)


class Loop:
    """Runs ``step(t)`` for t = 1..total on ``ctx.model``.

    ``step`` changes the parameters and returns a trace row of plain finite numbers, text and None; it raises
    DivergedError (or returns a non-finite number) when the run breaks. ``parts`` holds all other state of the method.
    """

    def __init__(
        self,
        ctx: Context,
        method: Unlearner,
        *,
        total: int,
        parts: Mapping[str, Part],
        representation: Observer | None = None,
    ) -> None:
        self.ctx = ctx
        self.representation = representation
        self.method = method
        self.total = total
        self.snapshot = _SnapshotPart()
        self.parts: dict[str, Part] = {"model": _ModelPart(ctx.model), "snapshot": self.snapshot, **parts}
        self.rule: StopRule | None = None
        self.evaluator: Evaluator | None = None
        self._started = time.perf_counter()

    def run(self, step: StepFunction, *, finish: Callable[[], None] | None = None) -> None:
        """All steps, from the checkpoint on if the run is resumed; leaves the chosen parameters in the model.

        ``finish()`` is called after the last step, and the state saved once more.
        """
        first = self._begin() + 1
        for t in range(first, self.total + 1):
            if self.rule is not None and self.rule.reason is not None:
                break
            row = self._step(step, t)
            if self.rule is not None and (t % self.method.eval_every == 0 or t == self.total):
                row |= self._evaluate(t)
            row |= {"passes": self.ctx.passes, "seconds": self._seconds()}
            self.ctx.trace.append(row)
            over = t == self.total or (self.rule is not None and self.rule.reason is not None)
            if over or t % self.ctx.checkpoint_every == 0:
                self._save(t)
            if self.ctx.progress is not None:
                self.ctx.progress(t, self.total, row)
            if self.ctx.watch is not None and not self.ctx.watch(t, self.total, self.ctx.model):
                break
        if finish is not None:
            finish()
            self._save(len(self.ctx.trace))
        self._finish()

    def _seconds(self) -> float:
        return self.ctx.earlier_seconds + time.perf_counter() - self._started

    def _begin(self) -> int:
        ctx, m = self.ctx, self.method
        if m.stop_rule:
            self.evaluator = Evaluator(
                ctx.task,
                forget=ctx.data.forget,
                retain=ctx.data.retain,
                stop=ctx.data.stop,
                request_kind=ctx.request_kind,
                size=m.probe,
                seed=ctx.seed,
            )
        facts = None
        if ctx.resume and ctx.run_dir is not None:
            facts = checkpoint.load(ctx.run_dir, ctx.identity, self.parts)
        if facts is None:
            if self.evaluator is not None:
                self.rule = StopRule(
                    band=self._band(),
                    start=self.evaluator(ctx.model, 0),
                    utility_floor=m.utility_floor,
                    entropy_drift=m.entropy_drift,
                )
            self._save(0)
            return 0
        ctx.trace = list(facts["trace"])
        ctx.warnings = list(facts["warnings"])
        ctx.fields = dict(facts["fields"])
        ctx.gradients = int(facts["gradients"])
        ctx.earlier_seconds = float(facts["seconds"])
        if facts["code"] != ctx.code:
            ctx.warn("W-CODE-CHANGED", "the code changed since the run was interrupted; the result may differ")
        if facts["rule"] is not None:
            self.rule = StopRule(
                band=_band_from(facts["band"]),
                start=Evaluation(**facts["start"]),
                utility_floor=m.utility_floor,
                entropy_drift=m.entropy_drift,
            )
            self.rule.load(facts["rule"])
        return int(facts["step"])

    def _band(self) -> Band | None:
        ctx, m = self.ctx, self.method
        return target_band(
            ctx.before,
            ctx.task,
            forget=ctx.data.forget,
            retain=ctx.data.retain,
            stop=ctx.data.stop,
            request_kind=ctx.request_kind,
            card=ctx.card,
            tol=m.tol,
            declared_accuracy=m.target_accuracy,
            declared_confidence=m.target_confidence,
        )

    def _step(self, step: StepFunction, t: int) -> dict[str, Any]:
        try:
            row = {"step": t, **step(t)}
        except DivergedError as err:
            raise self._diverged(t, err.message.rstrip(".")) from err
        bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            raise self._diverged(t, f"not finite: {', '.join(bad)}")
        return row

    def _diverged(self, t: int, what: str) -> DivergedError:
        state: Mapping[str, Tensor] = self.ctx.model.state_dict()
        origin = f"parameters before step {t}"
        if self.snapshot.tensors:
            state, origin = self.snapshot.tensors, "best evaluation"
        elif not all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point()):
            state, origin = self.ctx.before.state_dict(), "original network"
        kept = ""
        if self.ctx.run_dir is not None:
            path = save_tensors(self.ctx.run_dir / LAST_GOOD, state, {"step": t, "origin": origin})
            kept = f" The last good state ({origin}) is kept in {path}."
        return DivergedError(f"{self.method.name} diverged at step {t}: {what}.{kept}", remedy="Use a smaller lr.")

    def _evaluate(self, t: int) -> dict[str, Any]:
        if self.rule is None or self.evaluator is None:
            raise InvariantError("an evaluation without a stop rule.", remedy="Report this defect.")
        extra, row = self.representation() if self.representation is not None else (0.0, {})
        if self.rule.observe(self.evaluator(self.ctx.model, t), extra):
            self.snapshot.tensors = {n: v.detach().clone() for n, v in self.ctx.model.state_dict().items()}
        return self.rule.last | row

    def _save(self, t: int) -> None:
        if self.ctx.run_dir is None:
            return
        rule = self.rule
        facts: dict[str, Any] = {
            "step": t,
            "code": self.ctx.code,
            "trace": self.ctx.trace,
            "warnings": self.ctx.warnings,
            "fields": self.ctx.fields,
            "gradients": self.ctx.gradients,
            "seconds": self._seconds(),
            "rule": rule.state() if rule else None,
            "band": rule.band.to_json() if rule and rule.band else None,
            "start": vars(rule.start) if rule else None,
        }
        checkpoint.save(self.ctx.run_dir, self.ctx.identity, self.parts, facts)

    def _finish(self) -> None:
        ctx, rule = self.ctx, self.rule
        if rule is None or rule.best is None:
            ctx.fields["stop_reason"] = "max_steps"
            return
        checkpoint.fill(ctx.model, self.snapshot.tensors)
        verdict, side = rule.judge(rule.best)
        ctx.fields |= {
            "stop_reason": rule.reason or ("max_steps" if rule.band else "no_reference"),
            "stop_verdict": verdict,
            "stop_failure_side": side,
            "chosen_step": rule.best.step,
            "chosen": rule.best.to_json() | {"J": rule.best_objective},
            "start": rule.start.to_json(),
            "band": rule.band.to_json() if rule.band else None,
        }
        if not rule.best_usable:
            ctx.warn("W-NO-USABLE-SNAPSHOT", "no evaluation kept utility; the least bad one was restored")
        if rule.band is None:
            ctx.warn(
                "W-NO-REFERENCE",
                "nothing tells where a retrained network would stand; give a reference card or target_accuracy",
            )
        elif rule.band.note:
            ctx.warn("W-BAND", rule.band.note)


def _band_from(value: Mapping[str, Any] | None) -> Band | None:
    if value is None:
        return None
    return Band(
        accuracy=(value["accuracy"][0], value["accuracy"][1]),
        confidence=(value["confidence"][0], value["confidence"][1]),
        source=value["source"],
        note=value["note"],
    )


def scheduled(lr: float, schedule: str, t: int, total: int) -> float:
    """Learning rate of step t = 1..total: ``constant``, or ``cosine`` from ``lr`` towards 0."""
    return lr if schedule == "constant" else lr * 0.5 * (1 + math.cos(math.pi * (t - 1) / max(1, total)))


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> float:
    """2-norm over all gradients; a non-finite one is a DivergedError that names the tensors."""
    grads = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    norms = torch._foreach_norm(list(grads.values()))
    bad = [n for n, v in zip(grads, norms, strict=True) if not bool(torch.isfinite(v))]
    if bad:
        raise DivergedError(f"non-finite gradient in {', '.join(bad[:4])}.", remedy="Use a smaller lr.")
    return float(torch.stack([v.double() for v in norms]).square().sum().sqrt())
