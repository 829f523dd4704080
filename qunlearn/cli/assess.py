"""Judge an unlearned network on the files that ship: export, parity, change table, audits, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn import quant, tasks
from qunlearn.audit import AUDITS, predictor
from qunlearn.audit.base import Audit
from qunlearn.audit.run import Artefact, AuditRun, audit_run
from qunlearn.audit.summary import summary
from qunlearn.audit.table import aligned
from qunlearn.audit.trainer import TRAINER, TorchTrainer
from qunlearn.cli import artefact
from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError, MissingDependencyError, UnsupportedError
from qunlearn_export import codegen, reader
from qunlearn_export.degenerate import degenerate
from qunlearn_export.graph import Graph
from qunlearn_export.hostlib import find_compiler
from qunlearn_export.parity import ParityReport, parity

ROLES = ("before", "after", "reference")
METRICS = ("forget", "retain", "heldout", "test")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network of the comparison: its int8 file, and the fake-quantized model where there is one."""

    file: Path
    model: quant.QuantModel | None
    graph: Graph


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """Everything that was found: plain numbers per role (fractions), audits, parity, change table.

    ``predictors`` are those of the first kind that ships, by role, with the logits they have computed.
    """

    summaries: Mapping[str, Mapping[str, Any]]
    audits: AuditRun
    parity: ParityReport
    changes: quant.ChangeTable | None
    predictors: Mapping[str, predictor.Predictor]

    def plain(self, role: str) -> dict[str, float | None]:
        """Forget, retain, heldout, test accuracy and mia of one role, fractions."""
        s = self.summaries[role]
        return {**{m: s[f"{m}_accuracy"] for m in METRICS}, "mia": s["mia"]}


SUITES: Mapping[str, tuple[str, ...]] = {
    "standard": ("accuracy", "mia", "smi"),
    "strict": ("accuracy", "mia", "smi", "cka", "recovery", "relearn", "quant_recovery"),
}
"""Audits by suite; the code-change table belongs to both. With a crafted request, ``strict`` has ``eve`` too."""

NO_REQUEST = "eve: left out, no crafted request was given (--eve)"


def parse_audits(text: str | None, suite: str | None = None, *, request: bool = False) -> list[Audit]:
    """Audits by comma-separated names, or those of a suite (``standard`` by default); not both.

    ``request``: a crafted request was given; ``eve`` needs one, and one needs ``eve`` (else ConfigError).
    """
    if text and suite:
        raise ConfigError("both --audit and --suite were given.", remedy="Name audits, or a suite.")
    names = [n.strip() for n in text.split(",")] if text else list(SUITES[suite or "standard"])
    if request and suite == "strict":
        names.append("eve")
    if request != ("eve" in names):
        raise ConfigError(
            "a crafted request was given that no audit reads." if request else "eve needs a crafted request.",
            remedy="Give --eve REQUEST together with --suite strict or --audit eve.",
        )
    return [AUDITS[n]() for n in names]


def from_run(model: quant.QuantModel, config: quant.RunConfig, file: Path, *, form: str = "qdq") -> Subject:
    """Export a network next to the others; its parity is checked by :func:`assess`."""
    artefact.export_model(model, config, file, inputs=None, form=form)
    return Subject(file=file, model=model, graph=reader.read(file))


def from_file(file: Path) -> Subject:
    """An int8 ONNX file that this project wrote."""
    return Subject(file=file, model=None, graph=reader.read(file))


def automatic(subject: Subject, say: Callable[[str], None]) -> tuple[str, ...]:
    """The kinds that are audited where none was named: the file, and generated C where this computer has a C compiler
    and firmware serves the network. Says what was chosen."""
    try:
        find_compiler()
        codegen.check_limit(codegen.site(subject.graph), codegen.HOST_LIMIT)
    except (MissingDependencyError, UnsupportedError) as err:
        say(f"auditing onnx, without c: {err}")
        return ("onnx-all",)
    say("auditing onnx and c; --on chooses")
    return ("onnx-all", "c-host")


def assess(
    before: Subject,
    after: Subject,
    reference: Subject | None,
    *,
    splits: Splits,
    task_name: str,
    seed: int,
    kinds: Sequence[str],
    audits: Sequence[Audit],
    inputs: NDArray[np.float32],
    audit_inputs: Mapping[str, Any] | None = None,
) -> Assessment:
    """Audit ``after`` against ``before`` and ``reference`` on the artefact kinds named; ``kinds`` ships.

    ``inputs`` are those of the parity check, ``audit_inputs`` what single audits take. Audits that train get the
    networks of the runs; a file is served where one of them has its codes.
    """
    task = tasks.get(task_name)
    subjects = {n: s for n, s in zip(ROLES, (before, after, reference), strict=True) if s is not None}
    column = quant.TorchColumn(after.model) if after.model is not None else None
    compared = parity(after.graph, after.file, inputs, torch_column=column)
    changes = None
    if before.model is not None and after.model is not None:
        changes = quant.code_changes(before.model, after.model)
    run_kinds = list(kinds)
    if all(s.model is not None for s in subjects.values()) and "torch-fq" not in run_kinds:
        run_kinds.append("torch-fq")
    predictors = {kind: {n: predictor_of(s, kind) for n, s in subjects.items()} for kind in run_kinds}
    found = audit_run(
        {
            kind: Artefact(before=p["before"], after=p["after"], reference=p.get("reference"))
            for kind, p in predictors.items()
        },
        audits,
        splits=splits,
        task=task,
        seed=seed,
        reference_kind="retrained" if reference is not None else "none",
        shipping=kinds,
        parity=compared,
        change=changes,
        degenerate=degenerate(after.graph, before.graph),
        inputs={
            TRAINER: TorchTrainer([s.model for s in subjects.values() if s.model is not None], task),
            **(audit_inputs or {}),
        },
    )
    first = predictors[kinds[0]]
    return Assessment(
        summaries={n: summary(p, splits, task, seed) for n, p in first.items()},
        audits=found,
        parity=compared,
        changes=changes,
        predictors=first,
    )


def predictor_of(subject: Subject, kind: str) -> predictor.Predictor:
    """The predictor of one network as one artefact kind."""
    if kind.startswith("torch"):
        if subject.model is None:
            raise ConfigError(
                "an ONNX file has no fake-quantized network.", remedy="Give the run in place of the file, or --on onnx."
            )
        return predictor.TorchPredictor(subject.model, kind=kind)
    if kind == "oracle":
        return predictor.OraclePredictor(subject.file)
    if kind.startswith("c-"):
        return predictor.FirmwarePredictor(subject.file, kind=kind)
    return predictor.OnnxPredictor(subject.file, level=kind.removeprefix("onnx-"))


def forget_confidence(assessment: Assessment, splits: Splits) -> dict[str, list[float]]:
    """True-class probability on the forget set per role, from the artefact kind that ships first."""
    out = {}
    for name, shipped in assessment.predictors.items():
        logits = shipped.on(splits.forget).astype(np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        out[name] = [float(v) for v in p[np.arange(len(p)), splits.forget.targets()]]
    return out


def table(assessment: Assessment, names: Mapping[str, str]) -> str:
    """Base, unlearned and retrained side by side, per cent, read from the int8 files."""
    columns = {label: assessment.plain(role) for role, label in names.items() if role in assessment.summaries}
    lines = ["  " + f"{'':<10}" + "".join(f"{label:>12}" for label in columns)]
    for metric in (*METRICS, "mia"):
        cells = [c[metric] for c in columns.values()]
        lines.append(f"  {metric:<10}" + "".join("           -" if v is None else f"{100 * v:11.1f}%" for v in cells))
    return "\n".join(lines)


def changes_text(changes: quant.ChangeTable | None) -> str:
    """The table of changed integer codes, a layer a line; a sentence where a file alone was judged."""
    if changes is None:
        return "integer codes: compared for runs only (a file has no network to compare)"
    head = ["layer", "codes", "changed", "%", "most steps", "lost to rounding", "biases changed", "scales changed"]
    rows = [
        [
            r.layer, f"{r.codes:,}", f"{r.codes_changed:,}", f"{100 * r.share:.1f}", str(r.max_step), f"{r.lost:,}",
            str(r.bias_changed), str(r.scales_changed),
        ]
        for r in changes.rows
    ]  # fmt: skip
    total = [
        "all", f"{changes.codes:,}", f"{changes.codes_changed:,}", f"{100 * changes.share:.1f}",
        str(max((r.max_step for r in changes.rows), default=0)), f"{changes.lost:,}", str(changes.bias_changed),
        str(sum(r.scales_changed for r in changes.rows)),
    ]  # fmt: skip
    lines = ["integer codes, before to after", aligned([head, *rows, total])]
    return "\n".join([*lines, *(f"  warning: {w}" for w in changes.warnings)])
