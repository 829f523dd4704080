"""All audits on all artefacts of one unlearning run, and the overall verdict: the worst over what ships.

How the files were made is the caller's business: this module gets predictors per artefact kind and the reports of the
parity, change and degenerate-scale checks, and never exports anything itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qunlearn.audit.base import Audit, AuditContext, HasJson, ParityEvidence
from qunlearn.audit.predictor import ALIASES, KINDS, OFFERED, Predictor
from qunlearn.audit.result import AuditResult, frozen, worst
from qunlearn.audit.table import text_table
from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError, NotYetError, VerificationError
from qunlearn.fingerprint import code_digest, config_digest, environment, plain
from qunlearn_export.files import canonical_json, write_atomic

if TYPE_CHECKING:
    from qunlearn.tasks.base import Task

TORCH = "torch-fq"
SHIPPING = ("onnx-all",)
"""What must pass by default; the command line lets all kinds of ``--on`` ship."""

NOT_OFFERED = tuple(k for k in KINDS if k not in OFFERED)
EXIT = {"pass": 0, "fail": 3, "inconclusive": 4}


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """The three models of one artefact kind; ``reference`` is None only where none is declared."""

    before: Predictor
    after: Predictor
    reference: Predictor | None


def kinds_of(names: Iterable[str]) -> tuple[str, ...]:
    """Artefact kinds for the names of ``--on``: kinds themselves, or ``torch``, ``onnx``, ``c``.

    An unknown name is a ConfigError; a kind that this version cannot run is a NotYetError, never left out in silence.
    """
    out: list[str] = []
    for name in names:
        kind = ALIASES.get(name, name)
        if kind not in KINDS:
            raise ConfigError(f"unknown artefact kind {name!r}.", remedy=f"Known: {', '.join((*ALIASES, *OFFERED))}.")
        if kind in NOT_OFFERED:
            raise NotYetError(
                f"artefact kind {kind!r} is not offered yet.", remedy=f"Audit one of {', '.join(OFFERED)}."
            )
        if kind not in out:
            out.append(kind)
    return tuple(out)


@dataclass(frozen=True, kw_only=True)
class AuditRun:
    """What a run found. ``results`` per artefact kind, in audit order; ``verdict`` is the worst over ``shipping``.

    ``reasons`` and ``warnings`` carry the kind and audit that they come from; ``tables`` holds parity, change and
    degenerate-scale reports (null where none was given); ``not_offered`` lists kinds that this version cannot run.
    """

    verdict: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    shipping: tuple[str, ...]
    not_offered: tuple[str, ...]
    subject: str
    results: Mapping[str, tuple[AuditResult, ...]]
    digests: Mapping[str, Any]
    tables: Mapping[str, Any]
    environment: Mapping[str, Any]
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 pass, 3 fail, 4 inconclusive."""
        return EXIT[self.verdict]

    @property
    def headline(self) -> AuditResult:
        """The result to look at first: the headline audit on the first shipping kind, else its first result."""
        results = self.results[self.shipping[0]]
        return next((r for r in results if r.headline), results[0])

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``canonical_json`` of it is the canonical text."""
        out: dict[str, Any] = plain({**self.__dict__, "results": None})
        out["results"] = {kind: [r.to_json() for r in results] for kind, results in self.results.items()}
        return out

    def without_timings(self) -> dict[str, Any]:
        """:meth:`to_json` less all timings."""
        out = self.to_json()
        del out["timings"]
        for results in out["results"].values():
            for r in results:
                del r["timings"]
        return out

    def table(self) -> str:
        """Plain text for a terminal: one block an artefact kind, per cent."""
        return text_table(self.verdict, self.reasons, self.warnings, self.shipping, self.not_offered, self.results)

    def write(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write ``audit.json`` (canonical) and ``audit.txt`` into an existing folder."""
        where = Path(folder)
        return (
            write_atomic(where / "audit.json", (canonical_json(self.to_json()) + "\n").encode()),
            write_atomic(where / "audit.txt", self.table().encode()),
        )


def audit_run(
    artefacts: Mapping[str, Artefact],
    audits: Sequence[Audit],
    *,
    splits: Splits,
    task: Task,
    seed: int,
    reference_kind: str = "retrained",
    shipping: Sequence[str] = SHIPPING,
    parity: ParityEvidence | None = None,
    change: HasJson | None = None,
    degenerate: Sequence[Any] = (),
    subject: str = "unlearned",
    inputs: Mapping[str, Any] | None = None,
) -> AuditRun:
    """Run every audit on every artefact.

    ``artefacts`` maps kinds to predictors; all are audited, ``shipping`` decides the verdict. ``parity`` is the report
    on the shipped file, ``change`` the code-change table, ``degenerate`` the findings D1 to D8 on ``after``; any of
    level ``error`` stops the run with a VerificationError that lists them all. ConfigError when a shipping kind has no
    artefact or no audit was named; NotYetError for a kind that cannot be run.
    """
    start = time.perf_counter()
    _check(artefacts, audits, kinds_of(shipping))
    _stop_on_degenerate(degenerate)
    results: dict[str, tuple[AuditResult, ...]] = {}
    for kind in sorted(artefacts, key=KINDS.index):
        a = artefacts[kind]
        ctx = AuditContext(
            before=a.before,
            after=a.after,
            reference=a.reference,
            reference_kind=reference_kind,
            splits=splits,
            task=task,
            seed=seed,
            subject=subject,
            inputs=inputs or {},
            parity=None if kind.startswith("torch") else parity,
            change=change,
        )
        results[kind] = tuple(audit(ctx) for audit in audits)
    ships = kinds_of(shipping)
    verdict = worst([r.verdict for kind in ships for r in results[kind]])
    reasons = [f"{code}: {kind} {r.audit}" for kind in ships for r in results[kind] for code in r.reasons]
    warnings = [f"{c}: {k} {r.audit}" for k, rs in results.items() for r in rs for c in r.warnings]
    disagree = _disagreements(results, ships)
    warnings += [f"W-ARTEFACT-DISAGREES: {d}" for d in disagree]
    if disagree and verdict == "pass":
        verdict = "inconclusive"
        reasons += [f"I-DISAGREE: {d}" for d in disagree]
    if TORCH not in results and any(not k.startswith("torch") for k in ships):
        warnings.append("W-TORCH-NOT-RUN")
    first = results[ships[0]][0]
    return AuditRun(
        verdict=verdict,
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        shipping=ships,
        not_offered=NOT_OFFERED,
        subject=subject,
        results=results,
        digests=frozen(
            {
                "artefacts": {
                    kind: {
                        "before": rs[0].digests["model_before"],
                        "after": rs[0].digests["model_after"],
                        "reference": rs[0].reference["digest"],
                        "codes": rs[0].artefact["codes_digest"],
                    }
                    for kind, rs in results.items()
                },
                "data_split": first.digests["data_split"],
                "config": config_digest(
                    {
                        "audits": [{"audit": a.name, "version": a.version, **plain(a)} for a in audits],
                        "reference_kind": reference_kind,
                        "seed": seed,
                        "shipping": list(ships),
                        "subject": subject,
                    }
                ),
                "code": code_digest(),
            }
        ),
        tables=frozen(
            {
                "parity": None if parity is None else plain(parity.to_json()),
                "change": None if change is None else plain(change.to_json()),
                "degenerate": [plain(f) for f in degenerate],
            }
        ),
        environment=frozen(environment()),
        timings={"total_s": time.perf_counter() - start},
    )


def _check(artefacts: Mapping[str, Artefact], audits: Sequence[Audit], ships: Sequence[str]) -> None:
    kinds_of(artefacts)
    bad = [f"the shipping artefact {kind!r} was not given" for kind in ships if kind not in artefacts]
    bad += [
        f"the artefact named {kind!r} is of kind {a.after.kind!r}"
        for kind, a in artefacts.items()
        if a.after.kind != kind
    ]
    if not ships:
        bad.append("nothing ships")
    if not audits:
        bad.append("no audit was named")
    names = [a.name for a in audits]
    bad += [f"audit {n!r} was named twice" for n in sorted({n for n in names if names.count(n) > 1})]
    if bad:
        raise ConfigError(f"audit run: {'; '.join(bad)}.", remedy="Give an artefact of every kind that ships.")


def _stop_on_degenerate(findings: Sequence[Any]) -> None:
    errors = [f for f in findings if getattr(f, "level", "error") == "error"]
    if errors:
        raise VerificationError(
            "the unlearned network is degenerate: "
            + "; ".join(f"{f.code} at {f.where}: {f.message}" for f in errors)
            + ".",
            remedy="Unlearn more gently, or repair dead channels (`export --repair-dead`).",
        )


def _disagreements(results: Mapping[str, tuple[AuditResult, ...]], ships: Sequence[str]) -> list[str]:
    trained = {r.audit: r.verdict for r in results.get(TORCH, ())}
    return [
        f"{r.audit} is {trained[r.audit]} on {TORCH}, {r.verdict} on {kind}"
        for kind in ships
        for r in results[kind]
        if r.audit in trained and r.verdict != trained[r.audit]
    ]


def same_results(tables: Mapping[str, Any]) -> tuple[str, ...]:
    """``W-SAME-RESULT`` with both names, for every two methods whose metric tables are identical.

    ``tables`` maps a method's name to plain data (a summary, or a result's ``tables["metrics"]``).
    """
    texts = {name: canonical_json(plain(table)) for name, table in sorted(tables.items())}
    names = list(texts)
    return tuple(
        f"W-SAME-RESULT: {a} and {b}" for i, a in enumerate(names) for b in names[i + 1 :] if texts[a] == texts[b]
    )
