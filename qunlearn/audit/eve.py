"""EVE: was the update really driven by the samples of one request? Read from a private target's answer. Needs no torch.

After the goal of arXiv 2602.03567 (erased samples altered so that a faithful step also changes the answer on a private
target); norm, radius, equations, controls and verdict are our own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qunlearn.audit import eve_calibration as calibrations
from qunlearn.audit import eve_flips, intervals
from qunlearn.audit import eve_request as requests
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.eve_calibration import Calibration
from qunlearn.audit.eve_config import EveConfig
from qunlearn.audit.eve_request import CraftedRequest
from qunlearn.audit.intervals import Estimate
from qunlearn.audit.predictor_base import Predictor
from qunlearn.audit.verdict import PASS, Judgement, Measurement, fail, inconclusive
from qunlearn.data.eve import require_disjoint
from qunlearn.hyper import hyper

__all__ = ["EveAudit", "EveConfig"]


@dataclass(frozen=True, kw_only=True)
class EveAudit(Audit):
    """Whether a crafted erasure request changed the answer on its private target, as a faithful update would."""

    name: ClassVar[str] = "eve"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "verifiability"
    higher_side: ClassVar[str] = "over"
    utility_side: ClassVar[str] = "over"
    direction: ClassVar[str] = (
        "1 means that the private target's answer flipped, as an update driven by the request would make it; 0 that it "
        "did not. What a single flip is worth is what the calibration proves, and no more."
    )
    cannot: ClassVar[str] = (
        "It shows that an update was driven by the crafted samples, not that nothing of the original samples is left. "
        "An operator who unlearns a cleaned copy of the request, or trains against the test, is not covered."
    )

    alpha: float = hyper(
        0.05, low=0, low_open=True, high=0.5, doc="Largest false-positive bound of a pass, and level of a failure."
    )

    def run(self, ctx: AuditContext) -> Measurement:
        """Logits of targets and bystanders before and after; everything else comes from request and calibration."""
        request: CraftedRequest | None = ctx.inputs.get(requests.INPUT)
        calibration: Calibration | None = ctx.inputs.get(calibrations.INPUT)
        if request is None:
            return Measurement(value=None, gates=("I-EVE-NO-REQUEST",), n={"targets": 0}, metrics={})
        require_disjoint(
            [("targets", request.role("target")), ("forget", ctx.splits.forget), ("retain", ctx.splits.retain)]
        )
        least = 1 + eve_flips.parity_bound(ctx.parity, ctx.kind)
        targets, bystanders = request.role("target"), request.role("bystander")
        step = eve_flips.step_of(ctx.after)
        found = eve_flips.read(
            ctx.before.on(targets),
            ctx.after.on(targets),
            targets.targets(),
            step=step,
            least=least,
            wanted=request.y_adv,
        )
        noise = eve_flips.read(
            ctx.before.on(bystanders), ctx.after.on(bystanders), bystanders.targets(), step=step, least=least
        )
        gates = self._gates(request, calibration, ctx, least)
        if not found.right.all():
            gates.append("I-EVE-TARGET")
        elif not found.resolved.all():
            gates.append("I-EVE-UNRESOLVED")
        value, strict, rate = (float(v.mean()) for v in (found.flip, found.strict, noise.flip))
        usable = calibration is not None and not gates
        proven = None if calibration is None else self._proven(calibration)
        warnings = [w for w in request.facts["warnings"] if str(w).startswith("W-EVE-")]
        if calibration is not None and calibration.kind != ctx.kind:
            warnings.append(f"W-EVE-KIND: calibrated on {calibration.kind}")
        n = len(targets)
        return Measurement(
            value=self._interval(value, calibration if usable else None, n),
            reference=None if calibration is None else _bounded(calibration.verifiability, calibration),
            n={"targets": n, "bystanders": len(bystanders)},
            gates=tuple(gates),
            warnings=tuple(warnings),
            metrics={
                "verifiability": {
                    "targets": intervals.row(after=self._interval(value, calibration if usable else None, n))
                },
                "verifiability_strict": {"targets": {"after": strict}},
                "bystander_flips": {"bystanders": intervals.row(after=intervals.share(noise.flip))},
            },
            tables={
                "targets": found.rows(),
                "bystanders": noise.rows(),
                "eve": {
                    "strict": strict,
                    "bystander_flips": rate,
                    "margin_needed": least,
                    "margin_unit": "output step" if step > 0 else "logit",
                    "cos_before": request.facts["cos_before"],
                    "cos_after_snap": request.facts["cos_after"],
                    "eps": request.facts["eps"],
                    "request": request.digest,
                    "model": request.facts["model"],
                    "unlearner": request.facts["unlearner"],
                    "config": request.facts["config"],
                    "surrogate": request.facts["surrogate"],
                    "calibration": proven,
                },
            },
        )

    def judge(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """The rule of the specification; utility was judged before. A calibration is the only yardstick."""
        calibration: Calibration | None = ctx.inputs.get(calibrations.INPUT)
        if m.gates or m.value is None or calibration is None:
            return inconclusive(*(m.gates or ("I-EVE-NO-CALIBRATION",)))
        if m.tables["eve"]["bystander_flips"] > calibration.noise + 1e-9:
            return fail("over", "F-EVE-BYSTANDERS")
        flips = [row["flip"] for row in m.tables["targets"]]
        if all(flips):
            return PASS if calibration.p0 <= self.alpha else inconclusive("I-EVE-FALSE-POSITIVES")
        if any(flips):
            return inconclusive("I-EVE-MIXED")
        return fail("under", "F-EVE-NOT-FLIPPED") if 1 - calibration.l1 <= self.alpha else inconclusive("I-EVE-WEAK")

    def reference_kind(self, ctx: AuditContext) -> str:
        """``calibration`` where there is one."""
        return "calibration" if ctx.inputs.get(calibrations.INPUT) is not None else "none"

    def reference_digest(self, ctx: AuditContext, identity: Mapping[str, str]) -> str | None:
        """Digest of the calibration."""
        calibration: Calibration | None = ctx.inputs.get(calibrations.INPUT)
        return None if calibration is None else calibration.digest

    def _gates(
        self, request: CraftedRequest, calibration: Calibration | None, ctx: AuditContext, least: int
    ) -> list[str]:
        """Missing, invalid or foreign calibration; a network before that is not the request's."""
        out = []
        if not _same_network(request, ctx.before, least):
            out.append("I-EVE-FOREIGN: the request was crafted for another network")
        if calibration is None:
            return [*out, "I-EVE-NO-CALIBRATION"]
        for field in ("model", "unlearner", "config"):
            if getattr(calibration, field) != request.facts[field]:
                out.append(f"I-EVE-FOREIGN: calibrated for another {field}")
        out += [f"I-EVE-CALIBRATION: {p}" for p in calibration.problems]
        if self.utility_floor > calibration.utility_drop + 1e-9:
            out.append(f"I-EVE-CALIBRATION: it holds up to a utility drop of {calibration.utility_drop:g}")
        return out

    def _interval(self, value: float, calibration: Calibration | None, n: int) -> Estimate:
        """What a flip, or none, says of the rate: the bound that the calibration proves on that side."""
        if calibration is None or 0 < value < 1:
            return Estimate(value=value, lo=0.0, hi=1.0, level=1 - self.alpha, method="none: not calibrated", n=n)
        lo, hi = (calibration.l1, 1.0) if value == 1 else (0.0, calibration.p0)
        level = 1 - calibration.alpha
        return Estimate(value=value, lo=lo, hi=hi, level=level, method="clopper-pearson, calibration", n=calibration.n)

    def _proven(self, calibration: Calibration) -> dict[str, Any]:
        """Bounds, likelihood ratio, controls and digest of the calibration."""
        arms = {arm: calibration.count(arm) for arm in calibrations.ARMS}
        return {
            "digest": calibration.digest,
            "trials": calibration.n,
            "kind": calibration.kind,
            "verifiability": calibration.verifiability,
            "l1": calibration.l1,
            "p0": calibration.p0,
            "likelihood_ratio": calibration.l1 / calibration.p0,
            "bystanders_allowed": calibration.noise,
            "flips": arms,
            "controls": {arm: calibrations.ARMS[arm] for arm in calibrations.CONTROLS},
            "problems": list(calibration.problems),
        }


def _bounded(value: float, calibration: Calibration) -> Estimate:
    return Estimate(
        value=value,
        lo=min(value, calibration.l1),
        hi=1.0,
        level=1 - calibration.alpha,
        method="clopper-pearson, one-sided",
        n=calibration.n,
    )


def _same_network(request: CraftedRequest, before: Predictor, least: int) -> bool:
    """By the digest of the integer codes; where only answers are known, by the answers the request recorded."""
    if getattr(before, "answers_only", False):
        codes = np.rint(before.on(request.probe.samples("train")) / eve_flips.step_of(before))
        known = request.known[request.probe.where("train")] - int(request.facts["output_zero"])
        return len(request.known) > 0 and bool((np.abs(codes - known) < least).all())
    return bool(before.codes_digest() == request.facts["model"])
