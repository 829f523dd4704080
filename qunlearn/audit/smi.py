"""SMI: which share of the forget set now looks like never-trained data, estimated without any shadow model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import intervals, matching, mixture, smi_cov
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.intervals import Estimate
from qunlearn.audit.matching import Sets
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.smi_sets import AuditSets, audit_sets, gone_sets
from qunlearn.audit.verdict import PASS, Judgement, Measurement, fail, inconclusive
from qunlearn.data.dataset import Samples
from qunlearn.errors import DataError, UnsupportedError
from qunlearn.hyper import hyper

FEWEST = 50
DROPPED, WIDEST = 0.1, 0.5
AUTO, LOGITS, PENULTIMATE = "auto", "logits", "penultimate"
ASKED: Mapping[str, tuple[str, ...]] = {"after": mixture.TESTS, "reference": ("identifiable", "mixture"), "before": ()}
"""The tests that each model needs; the model before unlearning is a self check only."""


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
    cannot: ClassVar[str] = (
        "It judges the forget set as a whole: an average rate near 1 does not show that every single sample is "
        "forgotten. It needs members and never-trained samples of the same kind that can be told apart."
    )

    tol: float = hyper(0.2, low=0, low_open=True, high=1, unit="share", doc="Equivalence margin around the reference.")
    pi_min: float = hyper(0.8, low=0, high=1, unit="share", doc="Without a reference: least share that can pass.")
    estimator: str = hyper(
        "mmd",
        choices=("mmd", "cov", "both"),
        doc="mmd decides; cov is the fidelity form, and alone it is inconclusive.",
    )
    phi: str = hyper(
        AUTO,
        doc="Features: penultimate, logits, or the name of a layer; auto: penultimate, or logits (with a warning) "
        "where the artefact shows no features.",
    )
    bootstrap: int = hyper(200, low=100, high=10_000, unit="resamples", doc="Resamples of the interval and of T3.")
    resample: str = hyper("mnu", choices=("mnu", "u"), doc="Sets that are resampled; u alone is the fidelity form.")
    level: float = hyper(0.9, low=0.5, high=0.999, doc="The interval holds this share of the resamples, two-sided.")
    permutations: int = hyper(199, low=99, high=10_000, unit="permutations", doc="Permutations of each test.")
    alpha: float = hyper(0.05, low=0, low_open=True, high=0.5, doc="Level of the identifiability and mixture tests.")
    class_match: str = hyper(
        "weights",
        choices=matching.HOW,
        doc="Give members and non-members the classes of the forget set by weights or by leaving samples out; none "
        "only where labels mean nothing.",
    )
    member_reference: str = hyper(
        "retain",
        choices=("retain", "original_model"),
        doc="Members: retain set; or, to explore classes forgotten as a whole, forget set under the model before "
        "(never passes).",
    )
    max_n: int = hyper(1000, low=50, high=100_000, unit="samples", doc="Most samples of a set.")
    chunk: int = hyper(512, low=1, high=100_000, unit="rows", doc="Rows of the kernel that are in memory at once.")

    def run(self, ctx: AuditContext) -> Measurement:
        """Estimates on before, after and reference with the same resamples, self checks, gates."""
        phi, warnings = self._phi(ctx.after)
        sets = audit_sets(ctx.splits, max_n=self.max_n, seed=ctx.seed)
        if self.member_reference == "original_model":
            sets = gone_sets(ctx.splits, sets, seed=ctx.seed)
        shared: dict[str, Any] = {
            "n": {"members": len(sets.m), "nonmembers": len(sets.n), "forget": len(sets.u), "spare": len(sets.spare)},
            "warnings": warnings,
        }
        features = {name: self._features(name, ctx, sets, phi) for name in ctx.predictors()}
        tables: dict[str, Any] = {"phi": phi, **self._cov(features["after"], ctx.seed)}
        if self.estimator == "cov":
            return Measurement(value=None, gates=("I-SMI-COV",), metrics={}, tables=tables, **shared)
        try:
            found = {name: self._estimate(f, ctx.seed, ASKED[name]) for name, f in features.items()}
        except DataError:
            return Measurement(value=None, gates=("I-SMI-CLASSES",), metrics={}, tables=tables, **shared)
        after, reference = found["after"], found.get("reference")
        checks = self._checks(features["after"], found["before"], sets, ctx, phi)
        tables |= {
            "tests": {name: _tests(e) for name, e in found.items()},
            "self_checks": checks,
            "dead_columns": after.matched.dead,
        }
        gates = self._gates(found, checks)
        values = {name: self._interval(e.pi, e.resamples) for name, e in found.items()}
        delta = None
        if reference is not None:
            delta = self._interval(after.pi - reference.pi, after.resamples - reference.resamples)
        row = {name: v for name, v in {**values, "delta": delta}.items() if v is not None}
        return Measurement(
            value=values["after"],
            before=found["before"].pi if values["before"] is not None else None,
            reference=values.get("reference"),
            delta=delta,
            gates=gates,
            metrics={"forgetting_rate": {"forget": intervals.row(**row)}} if row else {},
            tables=tables,
            **shared,
        )

    def judge(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """The two-sided rule; off the mixture where the reference is not rules out a pass, beyond 1 it is a failure."""
        plain = super().judge(m, ctx)
        if m.gates or m.value is None or ctx.reference is None:
            return plain
        tests = m.tables["tests"]
        alone = tests["after"]["mixture"] < self.alpha <= tests["reference"]["mixture"]
        if alone and m.value.value > 1 and plain.verdict != "fail":
            return fail("over", "F-OVER", "I-SMI-OFF-MIXTURE")
        return inconclusive("I-SMI-OFF-MIXTURE") if alone and plain == PASS else plain

    def judge_without_reference(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """pass: the whole interval is at least ``pi_min`` and the mixture model holds; fail: it lies wholly below."""
        if m.gates or m.value is None:
            return inconclusive(*m.gates)
        off = m.tables["tests"]["after"]["mixture"] < self.alpha
        if m.value.hi < self.pi_min:
            return fail("under", "F-UNDER")
        if off and m.value.value > 1:
            return fail("over", "F-OVER", "I-SMI-OFF-MIXTURE")
        if off:
            return inconclusive("I-SMI-OFF-MIXTURE")
        return PASS if m.value.lo >= self.pi_min else inconclusive("I-INTERVAL")

    def _phi(self, predictor: Predictor) -> tuple[str, tuple[str, ...]]:
        """The features to read, and what is to be said about the choice."""
        if self.phi != AUTO:
            return self.phi, ()
        shows = "features" in predictor.capabilities and predictor.kind != "c-target"
        return (PENULTIMATE, ()) if shows else (LOGITS, ("W-SMI-LOGITS",))

    def _features(self, name: str, ctx: AuditContext, sets: AuditSets, phi: str) -> Sets:
        predictor = ctx.predictors()[name]
        members = ctx.before if self.member_reference == "original_model" else predictor
        return Sets(
            m=features_of(members, sets.m, phi),
            n=features_of(predictor, sets.n, phi),
            u=features_of(predictor, sets.u, phi),
            y_m=sets.m.targets(),
            y_n=sets.n.targets(),
            y_u=sets.u.targets(),
        )

    def _estimate(self, f: Sets, seed: int, tests: tuple[str, ...] = ()) -> mixture.Estimate:
        return mixture.estimate(
            f, seed=seed, bootstrap=self.bootstrap, permute=self.permutations, resample=self.resample,
            class_match=self.class_match, chunk=self.chunk, tests=tests,
        )  # fmt: skip

    def _interval(self, value: float, resamples: NDArray[np.float64]) -> Estimate | None:
        """None where nothing could be estimated."""
        if not np.isfinite(value):
            return None
        low, high = mixture.quantiles(resamples, self.level)
        drawn = "all three sets" if self.resample == "mnu" else "the forget set only"
        return Estimate(
            value=float(value),
            lo=float(min(value, low)) if np.isfinite(low) else float(value),
            hi=float(max(value, high)) if np.isfinite(high) else float(value),
            level=self.level,
            method=f"percentile bootstrap of {drawn}",
            n=self.bootstrap,
        )

    def _cov(self, f: Sets, seed: int) -> dict[str, Any]:
        if self.estimator == "mmd":
            return {}
        c = smi_cov.estimate(f.m, f.n, f.u, seed=seed, bootstrap=self.bootstrap, level=self.level)
        return {
            "cov": {
                "pi": c.pi,
                "two_minima": c.two_minima,
                "reference_range": list(c.reference_range),
                "joint": c.joint,
                "projected": c.projected,
            }
        }

    def _gates(self, found: Mapping[str, mixture.Estimate], checks: Mapping[str, Any]) -> tuple[str, ...]:
        e = found["after"]
        out = [
            "I-SMI-NO-SIGNAL" if name == "after" else f"I-SMI-NO-SIGNAL: {name}"
            for name in ("after", "reference")
            if name in found and (found[name].p["identifiable"] >= self.alpha or not np.isfinite(found[name].pi))
        ]
        if min(e.matched.n_eff) < FEWEST:
            out.append("I-SMI-FEW")
        if e.matched.dropped > DROPPED:
            out.append("I-SMI-CLASSES")
        low, high = e.interval(self.level)
        if high - low > WIDEST:
            out.append("I-SMI-WIDE")
        if self.member_reference == "original_model":
            out.append("I-SMI-EXPLORATORY")
        out += [f"I-SMI-SELF-CHECK: {name}" for name, c in checks.items() if not c["ok"]]
        return tuple(out)

    def _checks(
        self, f: Sets, before: mixture.Estimate, sets: AuditSets, ctx: AuditContext, phi: str
    ) -> dict[str, dict[str, Any]]:
        """Known shares on the audited features: the model before (0), a spare half of held-out (1), a mixture (1/2)."""
        spare = replace(f, u=features_of(ctx.after, sets.spare, phi), y_u=sets.spare.targets())
        out = {"before": _check(0.0, before, least=self.tol)}
        for name, truth, given, least in (
            ("spare", 1.0, spare, self.tol),
            ("mixture", 0.5, matching.synthetic(f, seed=ctx.seed), 0.0),
        ):
            try:
                out[name] = _check(truth, self._estimate(given, ctx.seed), least=least)
            except DataError:
                out[name] = {"expected": truth, "pi": None, "se": None, "ok": False}
        return out


def _check(truth: float, e: mixture.Estimate, *, least: float) -> dict[str, Any]:
    """Whether an estimate lies within 3 standard errors, or ``least``, of the truth. [our choice]"""
    if not np.isfinite(e.pi):
        return {"expected": truth, "pi": None, "se": None, "ok": False}
    error = spread(e.resamples)
    return {"expected": truth, "pi": e.pi, "se": error, "ok": bool(abs(e.pi - truth) <= max(least, 3 * error))}


def spread(resamples: NDArray[np.float64]) -> float:
    """Standard error from the quartiles of the resamples: a ratio has no finite variance, quartiles it has."""
    finite = resamples[np.isfinite(resamples)]
    return float(np.subtract(*np.quantile(finite, [0.75, 0.25])) / 1.349) if len(finite) else 0.0


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


def _tests(e: mixture.Estimate) -> dict[str, Any]:
    return {**e.p, "mmd2": dict(e.mmd2), "gamma": e.gamma, "n_eff": list(e.matched.n_eff), "dropped": e.matched.dropped}
