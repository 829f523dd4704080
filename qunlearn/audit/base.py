"""The base class of every verifier: checks the context, judges utility and parity, then the verifier's value.

A verifier is a frozen keyword-only data class with ``run(ctx) -> Measurement``; its hyper-parameters are made with
:func:`qunlearn.hyper.hyper`. Everything that decides a verdict sits here, once, so that no verifier can soften
it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, final

import numpy as np

from qunlearn.audit import utility
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.result import REFERENCE_KINDS, AuditResult
from qunlearn.audit.sets import available
from qunlearn.audit.verdict import Judgement, Measurement, fail, inconclusive, two_sided
from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError, InvariantError, UnsupportedError
from qunlearn.fingerprint import code_digest, config_digest, plain
from qunlearn.hyper import hyper, hypers, parse_settings, problems
from qunlearn_export.files import canonical_json

if TYPE_CHECKING:
    from qunlearn.tasks.base import Task

SUBJECTS = ("unlearned", "baseline")
"""``baseline``: a control (the untouched model, a retrained one) of which nobody claims that it was unlearned."""


class HasJson(Protocol):
    """A report that can stand in a result's tables."""

    def to_json(self) -> Any: ...


class ParityEvidence(HasJson, Protocol):
    """What the parity gate reads of a parity report: its verdict (pass, fail, inconclusive), the digest of the file it
    was made on, and its table."""

    @property
    def verdict(self) -> str: ...

    @property
    def file_digest(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class AuditContext:
    """What an audit reads. All predictors must be of one artefact kind.

    ``reference`` is the retrained model's predictor; ``None`` must be declared by ``reference_kind="none"`` (or
    ``"calibration"``, for audits that bring their own yardstick). ``subject`` is ``unlearned`` or ``baseline``.
    ``inputs`` holds what only some audits take. ``parity`` and ``change`` are the reports of the artefact, or None.
    """

    before: Predictor
    after: Predictor
    reference: Predictor | None
    splits: Splits
    task: Task
    seed: int
    reference_kind: str = "retrained"
    subject: str = "unlearned"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    parity: ParityEvidence | None = None
    change: HasJson | None = None

    def __post_init__(self) -> None:
        bad = []
        if self.reference_kind not in REFERENCE_KINDS:
            bad.append(f"reference kind {self.reference_kind!r} is none of {', '.join(REFERENCE_KINDS)}")
        elif (self.reference is None) == (self.reference_kind == "retrained"):
            bad.append(
                "no reference was given and its absence was not declared"
                if self.reference is None
                else f"a reference was given although {self.reference_kind!r} was declared"
            )
        kinds = {p.kind for p in (self.before, self.after, self.reference) if p is not None}
        if len(kinds) != 1:
            bad.append(f"artefact kinds are mixed: {', '.join(sorted(kinds))}")
        elif len({canonical_json(plain(p.meta)) for p in (self.before, self.after, self.reference) if p}) > 1:
            bad.append("before, after and reference run under different settings (runtime, level, entries or threads)")
        if self.subject not in SUBJECTS:
            bad.append(f"subject {self.subject!r} is none of {', '.join(SUBJECTS)}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            bad.append(f"seed {self.seed!r} is not a whole number >= 0")
        if self.parity is not None and len(kinds) == 1 and _ships(self.kind):
            digest = self.after.digest
            if self.parity.file_digest != digest:
                bad.append(f"the parity report is of file {self.parity.file_digest[:12]}, not of {digest[:12]}")
        if bad:
            raise ConfigError(
                f"audit context: {'; '.join(bad)}.",
                remedy="Give before, after and reference as one artefact kind, or declare reference_kind='none'; "
                "give the parity report of the audited file.",
            )

    @property
    def kind(self) -> str:
        """The artefact kind that is audited."""
        return self.after.kind

    def predictors(self) -> Mapping[str, Predictor]:
        """``before``, ``after`` and, where given, ``reference``: the columns of a table."""
        out = {"before": self.before, "after": self.after}
        return out if self.reference is None else {**out, "reference": self.reference}


@dataclass(frozen=True, kw_only=True)
class Audit(ABC):
    """Base of all verifiers. Subclasses set the class attributes, add fields, and write :meth:`run`.

    ``higher_side`` says what a value above the reference means: ``under`` (remembers) or ``over`` (forgot too much).
    ``headline`` marks the one result of a run that a reader should look at first. ``utility_side`` is the failure side
    of lost utility: EVE's rule calls it ``over``. ``cannot`` says in a sentence or two what even a pass does not show.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    metric: ClassVar[str]
    direction: ClassVar[str]
    higher_side: ClassVar[str]
    headline: ClassVar[bool] = False
    utility_side: ClassVar[str] = "utility"
    cannot: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    sets: ClassVar[tuple[str, ...]] = ("forget", "retain", "heldout")
    """Sample sets that the audit itself reads; their logits must be finite, and those of the utility gate."""

    tol: float = hyper(
        0.10, low=0.0, low_open=True, high=1.0, unit="share", doc="Equivalence margin around the reference's value."
    )
    utility_floor: float = hyper(
        utility.FLOOR, low=0.0, high=1.0, unit="share", doc="Largest allowed drop of retain and held-out accuracy."
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            raise InvariantError(f"{cls.__name__} overrides __call__.", remedy="Write run(ctx) instead.")

    def __post_init__(self) -> None:
        bad = problems(self) + self.validate()
        if bad:
            raise ConfigError(f"audit {self.name!r}: {'; '.join(bad)}.", remedy=f"See: qunlearn audits {self.name}")

    def validate(self) -> list[str]:
        """Problems between fields, as sentences; ranges of single fields are checked already."""
        return []

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Self:
        """The audit with the given fields (numbers may be text). Unknown fields are a ConfigError."""
        return cls(**parse_settings(cls, values))

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """One row a field: name, default, doc, unit, range. Help and docs are made from it."""
        return [
            {"name": h.name, "default": h.default, "doc": h.doc, "unit": h.unit, "range": h.range}
            for h in hypers(cls).values()
        ]

    @abstractmethod
    def run(self, ctx: AuditContext) -> Measurement:
        """Measure. Must not change the models; all randomness comes from ``ctx.seed``."""

    def judge(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """The two-sided rule. Only audits whose specification has a rule of its own (EVE) override this."""
        if ctx.reference is None and ctx.reference_kind == "none":
            return self.judge_without_reference(m, ctx)
        return two_sided(m, tol=self.tol, higher_side=self.higher_side)

    def judge_without_reference(self, m: Measurement, ctx: AuditContext) -> Judgement:
        """The audit's own reference-free rule; by default there is none, and nothing passes."""
        return inconclusive(*m.gates, "I-NO-REFERENCE")

    @final
    def __call__(self, ctx: AuditContext) -> AuditResult:
        """Run the audit and judge it.

        Errors: UnsupportedError for a task that the audit cannot serve, ConfigError for an unusable context,
        InvariantError when the audit changed a model.
        """
        if ctx.task.name not in self.tasks:
            raise UnsupportedError(
                f"audit {self.name!r} does not serve the task {ctx.task.name!r}.",
                remedy=f"It serves {', '.join(self.tasks)}.",
            )
        start = time.perf_counter()
        identity = {name: p.digest for name, p in ctx.predictors().items()}
        same = _same_model(ctx, identity)
        sets = available(ctx.splits, tuple(dict.fromkeys((*self.sets, "retain", utility.HELDOUT))))
        finite = all(bool(np.isfinite(p.on(s)).all()) for p in ctx.predictors().values() for s in sets.values())
        before_finite = finite or all(
            bool(np.isfinite(p.on(s)).all())
            for name, p in ctx.predictors().items()
            if name != "after"
            for s in sets.values()
        )
        if not before_finite:
            raise ConfigError(
                "the model before unlearning, or the reference, gives logits that are not finite.",
                remedy="Audit against sound models.",
            )
        gate = time.perf_counter()
        if finite:
            useful = utility.measure(ctx.before, ctx.after, ctx.splits, floor=self.utility_floor)
            m = self.run(ctx)
            first = _first_gates(ctx, useful.reasons, self.utility_side)
            judgement = first if first is not None else _capped(self.judge(m, ctx), same, ctx)
            metrics = _merged(useful.metrics, m.metrics)
        else:
            m, metrics = None, {}
            judgement = fail(self.utility_side, "F-NONFINITE")
        end = time.perf_counter()
        for name, p in ctx.predictors().items():
            if p.digest != identity[name]:
                raise InvariantError(
                    f"audit {self.name!r} changed the model {name!r} while reading it.",
                    remedy="Report this as a defect of the audit.",
                )
        warnings = [f"W-{s}" for s in same] + list(() if m is None else m.warnings)
        if ctx.parity is None and _ships(ctx.kind):
            warnings.append("W-NO-PARITY")
        return AuditResult(
            audit=self.name,
            version=self.version,
            metric=self.metric,
            value=None if m is None or m.value is None else m.value.value,
            interval=None if m is None or m.value is None else m.value.interval(),
            direction=self.direction,
            headline=self.headline,
            reference={
                "kind": self.reference_kind(ctx),
                "value": None if m is None or m.reference is None else m.reference.value,
                "interval": None if m is None or m.reference is None else m.reference.interval(),
                "digest": self.reference_digest(ctx, identity),
            },
            verdict=judgement.verdict,
            failure_side=judgement.side,
            reasons=judgement.reasons,
            warnings=tuple(warnings),
            artefact={
                "kind": ctx.kind,
                "file_digest": identity["after"],
                "codes_digest": ctx.after.codes_digest(),
                **ctx.after.meta,
            },
            digests={
                "model_before": identity["before"],
                "model_after": identity["after"],
                "data_split": ctx.splits.digest(),
                "config": config_digest({"audit": self.name, "version": self.version, **plain(self)}),
                "code": code_digest(),
            },
            seeds={"audit": ctx.seed, **({} if m is None else m.seeds)},
            n={**{name: len(s) for name, s in sets.items()}, **({} if m is None else m.n)},
            timings={"gates_s": gate - start, "audit_s": end - gate, **({} if m is None else m.timings)},
            tables={
                "metrics": metrics,
                "parity": None if ctx.parity is None else ctx.parity.to_json(),
                "change": None if ctx.change is None else ctx.change.to_json(),
                "per_class": None if m is None else m.per_class,
                "delta": None if m is None or m.delta is None else {**m.delta.to_json(), "tol": self.tol},
                "config": plain(self),
                **({} if m is None else m.tables),
            },
        )

    def reference_kind(self, ctx: AuditContext) -> str:
        """Kind of the yardstick; audits that calibrate override this together with :meth:`reference_digest`."""
        return ctx.reference_kind

    def reference_digest(self, ctx: AuditContext, identity: Mapping[str, str]) -> str | None:
        """Digest of the yardstick; audits that calibrate override this with the digest of their calibration."""
        return identity.get("reference")


def _ships(kind: str) -> bool:
    return not kind.startswith("torch")


def _same_model(ctx: AuditContext, identity: Mapping[str, str]) -> list[str]:
    """``SAME-BYTES``, ``SAME-CODES``, ``SAME-LOGITS`` as far as they hold of before and after."""
    out = []
    if identity["before"] == identity["after"]:
        out.append("SAME-BYTES")
    elif ctx.before.codes_digest() == ctx.after.codes_digest():
        out.append("SAME-CODES")
    sets = available(ctx.splits, ("forget", "heldout")).values()
    if all(np.array_equal(ctx.before.on(s), ctx.after.on(s)) for s in sets):
        out.append("SAME-LOGITS")
    return out


def _first_gates(ctx: AuditContext, utility_reasons: tuple[str, ...], side: str) -> Judgement | None:
    """Utility first, then parity; None where neither failed."""
    if utility_reasons:
        return fail(side, *utility_reasons)
    if _ships(ctx.kind) and ctx.parity is not None and ctx.parity.verdict == "fail":
        return fail("parity", "F-PARITY")
    return None


def _capped(judgement: Judgement, same: Sequence[str], ctx: AuditContext) -> Judgement:
    """What rules out a pass: a model that did not change (and, unless it is a declared baseline, any other verdict on
    it too), an update that was lost to rounding, and a file that ships without a parity report that passed."""
    if same and (ctx.subject != "baseline" or judgement.verdict == "pass"):
        return inconclusive(*(f"I-{s}" for s in same))
    lost = _lost(ctx)
    if lost and judgement.verdict == "pass":
        return inconclusive(*lost)
    if judgement.verdict == "pass" and _ships(ctx.kind):
        if ctx.parity is None:
            return inconclusive("I-PARITY-MISSING")
        if ctx.parity.verdict != "pass":
            return inconclusive("I-PARITY")
    return judgement


def _lost(ctx: AuditContext) -> list[str]:
    """Why the change table rules out a pass: the update was lost when weights were rounded to codes."""
    table = {} if ctx.change is None else ctx.change.to_json()
    found = table.get("warnings", ()) if isinstance(table, Mapping) else ()
    return [f"I-{w.removeprefix('W-')}" for w in found if w in ("W-LOST-TO-ROUNDING", "W-NOTHING-CHANGED")]


def _merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Metric tables joined; one metric may have sets from several tables."""
    out: dict[str, dict[str, Any]] = {}
    for table in tables:
        for metric, sets in table.items():
            out.setdefault(metric, {}).update(sets)
    return out
