"""Verification for the command line: read answers before and after, judge, print. Needs neither torch nor brevitas
unless the answers are those of training checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from qunlearn.audit import AuditContext, AuditResult, EveAudit, Predictor, Smi
from qunlearn.audit.base import ParityEvidence
from qunlearn.audit.codes import text as sentence
from qunlearn.audit.eve_request import INPUT, CraftedRequest
from qunlearn.audit.predictor import FirmwarePredictor, OnnxPredictor, OraclePredictor, TorchPredictor
from qunlearn.audit.predictor_logits import LogitsPredictor, read_rows
from qunlearn.audit.run import EXIT, kinds_of
from qunlearn.cli import eve_files
from qunlearn.cli.common import new_folder, require_workstation
from qunlearn.errors import ConfigError
from qunlearn_export.files import canonical_json, write_atomic
from qunlearn_export.graph import Graph
from qunlearn_export.oracle import Oracle
from qunlearn_export.parity import parity
from qunlearn_export.reader import read

BESIDE = "beside it, on the unaltered samples"


@dataclass(frozen=True)
class _Named:
    """A task by name: audits of logits read nothing else of it, and tasks need torch."""

    name: str = "classification"


@dataclass(frozen=True)
class DumpParity:
    """Whether dumped answers are those of the integer oracle on the file that the firmware was generated from."""

    verdict: str
    file_digest: str
    differ: int

    def to_json(self) -> dict[str, Any]:
        """Verdict, digest of the dump, rows that differ."""
        return {"verdict": self.verdict, "file_digest": self.file_digest, "rows_differ": self.differ}


def verify(
    request: Path,
    calibration: str | None,
    *,
    before: str | None,
    after: str | None,
    logits: tuple[str, str] | None,
    kind: str,
    output: str | None,
) -> tuple[dict[str, Any], str, int]:
    """(result, text, exit code). ConfigError for kinds and files that do not fit together."""
    kinds = kinds_of([kind])
    inputs = eve_files.inputs(str(request), calibration)
    crafted: CraftedRequest = inputs[INPUT]
    first, second, evidence = _answers(crafted, kinds[0], before, after, logits)
    ctx = AuditContext(
        before=first,
        after=second,
        reference=None,
        reference_kind="calibration" if len(inputs) > 1 else "none",
        splits=crafted.splits(),
        task=cast(Any, _Named()),
        seed=int(crafted.facts["seed"]),
        inputs=inputs,
        parity=evidence,
    )
    found = EveAudit()(ctx)
    beside = Smi()(replace(ctx, reference_kind="none"))
    text = render(found, beside)
    value = {"eve": found.to_json(), "beside": beside.to_json(), "verdict": found.verdict}
    if output is not None:
        folder = new_folder(output)
        write_atomic(folder / "eve.json", (canonical_json(value) + "\n").encode())
        write_atomic(folder / "eve.txt", (text + "\n").encode())
    return value, text, EXIT[found.verdict]


def render(found: AuditResult, beside: AuditResult) -> str:
    """The verdict in a few lines. It speaks of an update that was driven by a request, and of nothing more."""
    lines = [
        f"eve: {found.verdict.upper()} on {found.artefact['kind']}"
        + ("" if found.failure_side == "none" else f" ({found.failure_side})")
    ]
    lines += [f"  {code.partition(':')[0]}: {sentence(code)}" for code in (*found.reasons, *found.warnings)]
    table: Mapping[str, Any] = found.tables.get("eve", {})
    for i, row in enumerate(found.tables.get("targets", ())):
        state = "flipped" if row["flip"] else "kept its answer" if row["resolved"] else "not resolved"
        unit = f"{table['margin_unit']}s"
        lines.append(
            f"  target {i + 1}: {state}; margin {row['margin_before']:.3g} before, {row['margin_after']:.3g} after "
            f"({unit}; at least {table['margin_needed']} needed)"
        )
    if table:
        drops = found.tables["metrics"]["utility_drop"]
        worst = max(row["after"]["value"] for row in drops.values())
        lines.append(
            f"  V {found.value:.2f}, strict {table['strict']:.2f}; bystanders {table['bystander_flips']:.2f}; "
            f"utility drop {worst:.3f}; cosine {table['cos_after_snap']:.2f}"
        )
        proven = table["calibration"]
        if proven is not None:
            lines.append(
                f"  calibration: {proven['trials']} trials on {proven['kind']}, detection at least {proven['l1']:.3f}, "
                f"false positives at most {proven['p0']:.3f}, likelihood ratio {proven['likelihood_ratio']:.2f}"
            )
            controls = ", ".join(f"{a} {proven['flips'][a]}" for a in proven["controls"])
            lines.append(f"  flips of {proven['trials']}: eve {proven['flips']['eve']}; controls: {controls}")
    value = "-" if beside.value is None else f"{beside.value:.2f}"
    lines.append(f"smi ({BESIDE}): {beside.verdict}, forgetting rate {value}")
    lines += [f"  {code.partition(':')[0]}: {sentence(code)}" for code in beside.reasons]
    lines.append(f"what this does not show: {EveAudit.cannot}")
    return "\n".join(lines)


def _answers(
    crafted: CraftedRequest, kind: str, before: str | None, after: str | None, logits: tuple[str, str] | None
) -> tuple[Predictor, Predictor, ParityEvidence | None]:
    """Both predictors and the parity evidence of the one after."""
    if (before is None) != (after is None) or (before is None and logits is None):
        raise ConfigError("both sides are needed.", remedy="Give --before and --after, or --logits BEFORE AFTER.")
    if logits is not None:
        return _dumped(crafted, kind, before, after, logits)
    assert before is not None
    assert after is not None
    if kind.startswith("torch"):
        require_workstation()
        from qunlearn.cli.artefact import open_run

        models = [open_run(Path(p))[0] for p in (before, after)]
        return TorchPredictor(models[0], kind=kind), TorchPredictor(models[1], kind=kind), None
    for path in (before, after):
        if not Path(path).is_file():
            raise ConfigError(f"{path} is no file.", remedy="Give int8 ONNX files (`qunlearn export`), or --on torch.")
    first, second = (_of_file(Path(p), kind) for p in (before, after))
    return first, second, parity(read(Path(after)), Path(after), crafted.probe_x)


def _of_file(path: Path, kind: str) -> Predictor:
    if kind == "oracle":
        return OraclePredictor(path)
    if kind.startswith("c-"):
        return FirmwarePredictor(path, kind=kind)
    return OnnxPredictor(path, level=kind.removeprefix("onnx-"))


def _dumped(
    crafted: CraftedRequest, kind: str, before: str | None, after: str | None, logits: tuple[str, str]
) -> tuple[Predictor, Predictor, ParityEvidence | None]:
    if not kind.startswith("c-"):
        raise ConfigError(f"dumped logits are of firmware, not of {kind}.", remedy="Use --on c-target or --on c.")
    graphs: list[Graph | None] = [None if p is None else read(Path(p)) for p in (before, after)]
    rows = [read_rows(Path(p)) for p in logits]
    found = []
    for codes, graph in zip(rows, graphs, strict=True):
        out = None if graph is None else graph.activations[graph.output]
        scale = float(crafted.facts["output_scale"] if out is None else out.scale)
        zero = int(crafted.facts["output_zero"] if out is None else out.zero_point)
        found.append(LogitsPredictor(codes, crafted.probe, scale=scale, zero_point=zero, kind=kind, graph=graph))
    last = graphs[1]
    if last is None:
        return found[0], found[1], None
    differ = sum(_differ(g, codes, crafted) for g, codes in zip(graphs, rows, strict=True) if g is not None)
    evidence = DumpParity("fail" if differ else "pass", found[1].digest, differ)
    return found[0], found[1], evidence


def _differ(graph: Graph, codes: Any, crafted: CraftedRequest) -> int:
    expected = Oracle(graph).run_all(crafted.probe_x)[graph.output].astype(np.int64)
    return int((expected.reshape(len(expected), -1) != codes).any(axis=1).sum())
