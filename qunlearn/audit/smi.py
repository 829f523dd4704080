"""SMI: which share of the forget set now looks like never-trained data, estimated without any shadow model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import intervals, mixture, smi_cov
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.intervals import Estimate
from qunlearn.audit.mixture import Sets
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import need
from qunlearn.audit.verdict import PASS, Judgement, Measurement, fail, inconclusive
from qunlearn.data.dataset import Samples
from qunlearn.data.partition import strata, stratified_part
from qunlearn.data.splits import Splits
from qunlearn.errors import UnsupportedError
from qunlearn.hyper import hyper

FEWEST = 50
DROPPED, WIDEST = 0.1, 0.5
LOGITS, PENULTIMATE = "logits", "penultimate"


@dataclass(frozen=True, kw_only=True)
class AuditSets:
    """Members (retain), never trained (half of held-out's audit part), forgotten, and the spare half of held-out."""

    m: Samples
    n: Samples
    u: Samples
    spare: Samples


def audit_sets(splits: Splits, *, max_n: int, seed: int) -> AuditSets:
    """The four sets, each cut to ``max_n`` by a seeded choice that keeps the classes' shares."""
    heldout = need(splits, "heldout")
    half = _part(heldout, 0.5, seed, "smi.spare")
    n, spare = heldout.take(np.flatnonzero(half)), heldout.take(np.flatnonzero(~half))
    found = {"m": need(splits, "retain"), "n": n, "u": splits.forget, "spare": spare}
    cut = {}
    for name, samples in found.items():
        if len(samples) > max_n:
            samples = samples.take(np.flatnonzero(_part(samples, max_n / len(samples), seed, f"smi.{name}")))
        cut[name] = samples
    return AuditSets(**cut)


def _part(samples: Samples, share: float, seed: int, purpose: str) -> NDArray[np.bool_]:
    return stratified_part(samples.content_hashes(), strata(samples.targets(), None), share, seed=seed, purpose=purpose)


@dataclass(frozen=True, kw_only=True)
class Smi(Audit):
    """Share of the forget set that is distributed like never-trained data, against the retrained model's."""

    name: ClassVar[str] = "smi"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "forgetting_rate"
    higher_side: ClassVar[str] = "over"
    direction: ClassVar[str] = (
        "1 means that the forget set looks like never-trained data, 0 that it looks like training data; the retrained "
        "model's share is the target. Above 1, or off the mixture of both, it looks like neither (over-forgotten)."
    )

    tol: float = hyper(0.2, low=0, low_open=True, high=1, unit="share", doc="Equivalence margin around the reference.")
    pi_min: float = hyper(0.8, low=0, high=1, unit="share", doc="Without a reference: least share that can pass.")
    estimator: str = hyper(
        "mmd",
        choices=("mmd", "cov", "both"),
        doc="mmd decides; cov is the fidelity form, and alone it is inconclusive.",
    )
    phi: str = hyper(PENULTIMATE, doc="Features: penultimate, logits, or the name of a layer.")
    bootstrap: int = hyper(200, low=100, high=10_000, unit="resamples", doc="Resamples of the interval and of T3.")
    resample: str = hyper("mnu", choices=("mnu", "u"), doc="Sets that are resampled; u alone is the fidelity form.")
    permutations: int = hyper(199, low=99, high=10_000, unit="permutations", doc="Permutations of each test.")
    alpha: float = hyper(0.05, low=0, low_open=True, high=0.5, doc="Level of the identifiability and mixture tests.")
    class_match: str = hyper(
        "weights",
        choices=("weights", "none"),
        doc="Match the classes of all sets; none only where labels mean nothing.",
    )
    max_n: int = hyper(1000, low=50, high=100_000, unit="samples", doc="Most samples of a set.")
    chunk: int = hyper(512, low=1, high=100_000, unit="rows", doc="Rows of the kernel that are in memory at once.")

    def run(self, ctx: AuditContext) -> Measurement:
        """Estimates on before, after and reference with the same resamples, self checks, gates."""
        sets = audit_sets(ctx.splits, max_n=self.max_n, seed=ctx.seed)
        features = {name: self._features(p, sets) for name, p in ctx.predictors().items()}
        found = {name: self._estimate(f, ctx.seed) for name, f in features.items()}
        after, reference = found["after"], found.get("reference")
        checks = self._checks(features["after"], found["before"], sets, ctx)
        gates = self._gates(after, checks, len(sets.u))
        value = _estimate(after.pi, after.resamples)
        delta = None
        if reference is not None:
            k = min(len(after.resamples), len(reference.resamples))
            delta = _estimate(after.pi - reference.pi, after.resamples[:k] - reference.resamples[:k])
        tables: dict[str, Any] = {
            "tests": {name: _tests(e) for name, e in found.items()},
            "self_checks": checks,
            "phi": self.phi,
            "dead_columns": after.matched.dead,
        }
        if self.estimator != "mmd":
            f = features["after"]
            c = smi_cov.estimate(f.m, f.n, f.u, seed=ctx.seed, bootstrap=self.bootstrap)
            tables["cov"] = {
                "pi": c.pi, "two_minima": c.two_minima, "reference_range": list(c.reference_range), "joint": c.joint,
                "projected": c.projected,
            }  # fmt: skip
        if self.estimator == "cov":
            gates = ("I-SMI-COV", *gates)
        rows = {name: _estimate(e.pi, e.resamples) for name, e in found.items()}
        return Measurement(
            value=value,
            before=found["before"].pi,
            reference=None if reference is None else rows["reference"],
            delta=delta,
            gates=gates,
            n={"members": len(sets.m), "nonmembers": len(sets.n), "forget": len(sets.u), "spare": len(sets.spare)},
            metrics={"forgetting_rate": {"forget": intervals.row(**rows, **({"delta": delta} if delta else {}))}},
            tables=tables,
        )

    def judge(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """The two-sided rule; off the mixture where the reference is not rules out a pass, beyond 1 it is a failure."""
        plain = super().judge(m, ctx)
        tests = m.tables["tests"]
        alone = tests["after"]["p_mixture"] < self.alpha and (
            "reference" not in tests or tests["reference"]["p_mixture"] >= self.alpha
        )
        if m.gates or not alone:
            return plain
        if m.value.value > 1 and plain.verdict != "fail":
            return fail("over", "F-OVER", "I-SMI-OFF-MIXTURE")
        return inconclusive("I-SMI-OFF-MIXTURE") if plain == PASS else plain

    def judge_without_reference(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """pass: the whole interval is at least ``pi_min`` and the mixture model holds; fail: it lies wholly below."""
        if m.gates:
            return inconclusive(*m.gates)
        off = m.tables["tests"]["after"]["p_mixture"] < self.alpha
        if m.value.hi < self.pi_min:
            return fail("under", "F-UNDER")
        if off and m.value.value > 1:
            return fail("over", "F-OVER", "I-SMI-OFF-MIXTURE")
        if off:
            return inconclusive("I-SMI-OFF-MIXTURE")
        return PASS if m.value.lo >= self.pi_min else inconclusive("I-INTERVAL")

    def _features(self, predictor: Predictor, sets: AuditSets) -> Sets:
        parts = {name: features_of(predictor, getattr(sets, name), self.phi) for name in ("m", "n", "u")}
        return Sets(**parts, y_m=sets.m.targets(), y_n=sets.n.targets(), y_u=sets.u.targets())

    def _estimate(self, f: Sets, seed: int) -> mixture.Estimate:
        return mixture.estimate(
            f, seed=seed, bootstrap=self.bootstrap, permute=self.permutations, resample=self.resample,
            weighting=self.class_match == "weights", chunk=self.chunk,
        )  # fmt: skip

    def _gates(self, e: mixture.Estimate, checks: Mapping[str, Any], size: int) -> tuple[str, ...]:
        out = []
        if e.p_identifiable >= self.alpha:
            out.append("I-SMI-NO-SIGNAL")
        if min(e.matched.n_eff) < FEWEST:
            out.append("I-SMI-FEW")
        if e.matched.dropped > DROPPED:
            out.append("I-SMI-CLASSES")
        low, high = e.interval()
        if high - low > WIDEST:
            out.append("I-SMI-WIDE")
        out += [f"I-SMI-SELF-CHECK: {name}" for name, c in checks.items() if not c["ok"]]
        return tuple(out)

    def _checks(
        self, f: Sets, before: mixture.Estimate, sets: AuditSets, ctx: AuditContext
    ) -> dict[str, dict[str, Any]]:
        """Known shares on the audited features: the model before (0), a spare half of held-out (1), a mixture (1/2)."""
        spare = replace(f, u=features_of(ctx.after, sets.spare, self.phi), y_u=sets.spare.targets())
        tries = {"before": (0.0, before), "spare": (1.0, None), "mixture": (0.5, None)}
        given = {"spare": spare, "mixture": mixture.synthetic(f, seed=ctx.seed)}
        out = {}
        for name, (truth, e) in tries.items():
            e = e or self._estimate(given[name], ctx.seed)
            error = float(np.std(e.resamples)) if len(e.resamples) else float("inf")
            margin = 3 * error if name == "mixture" else max(self.tol, 3 * error)
            out[name] = {"expected": truth, "pi": e.pi, "se": error, "ok": bool(abs(e.pi - truth) <= margin)}
        return out


def features_of(predictor: Predictor, samples: Samples, phi: str) -> NDArray[np.float64]:
    """Features float64 [n, d] of all samples; ``logits`` are centred over the classes."""
    if phi == LOGITS:
        z = predictor.on(samples).astype(np.float64)
        out: NDArray[np.float64] = z - z.mean(axis=1, keepdims=True)
        return out
    if "features" not in predictor.capabilities:
        raise UnsupportedError(
            f"artefact kind {predictor.kind!r} shows no features.", remedy="Set phi=logits, or audit torch or onnx."
        )
    return predictor.features_on(samples, phi).astype(np.float64)


def _estimate(value: float, resamples: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resamples, [0.05, 0.95]) if len(resamples) else (value, value)
    return Estimate(
        value=float(value),
        lo=float(low),
        hi=float(high),
        level=0.9,
        method="percentile bootstrap",
        n=max(1, len(resamples)),
    )


def _tests(e: mixture.Estimate) -> dict[str, Any]:
    return {
        "p_identifiable": e.p_identifiable, "p_forgotten": e.p_forgotten, "p_remembered": e.p_remembered,
        "p_mixture": e.p_mixture, "mmd2": dict(e.mmd2), "n_eff": list(e.matched.n_eff), "dropped": e.matched.dropped,
    }  # fmt: skip
