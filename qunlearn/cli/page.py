"""From an assessment to the HTML report of a command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qunlearn.audit.codes import text
from qunlearn.cli import assess
from qunlearn.cli import workspace as ws
from qunlearn.cli.assess import Assessment
from qunlearn.data.splits import Splits
from qunlearn.errors import ArtefactError
from qunlearn.report import ReportData
from qunlearn.report import write as write_report

LABELS = {"before": "base", "after": "unlearned", "reference": "retrained"}
SHOWN = ("guarantee", "stop_reason", "stop_verdict", "chosen_step", "samples_seen", "band")
LIMITS = (
    "Accuracies and one attack are averages: a pass does not prove that nothing about a single sample is left.",
    "The retrained model is one of many; another seed would give other values.",
    "Agreement of the file with its network was measured on the inputs named, on this processor only.",
    "Generated C was not compared: this version does not generate it.",
)


def write(
    folder: Path,
    found: Assessment,
    splits: Splits,
    *,
    request: str,
    run: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    trace: Sequence[Mapping[str, Any]] = (),
    seconds: Mapping[str, float] | None = None,
) -> Path:
    """Write ``report.html``; method facts and trace come from the run folder where one is given."""
    if run is not None:
        facts, trace = _from_run(run)
    facts = facts or {}
    fields = facts.get("fields", {})
    band = (fields.get("band") or {}).get("accuracy")
    roles = list(found.summaries)
    confidences = assess.forget_confidence(found, splits)
    data = ReportData(
        title="Unlearning report",
        verdict=found.audits.verdict,
        reasons=_sentences(found.audits.reasons),
        warnings=(*_sentences(found.audits.warnings), *facts.get("warnings", ())),
        request=request,
        method=facts.get("method", ""),
        columns={LABELS[r]: found.plain(r) for r in roles},
        reference=LABELS["reference"] if "reference" in roles else None,
        subject=LABELS["after"],
        confidences={LABELS[r]: confidences[r] for r in roles},
        trajectory=trace,
        band=tuple(band) if band else None,
        changes=found.changes.to_json() if found.changes is not None else None,
        parity=found.parity.to_json(),
        audit=found.audits.to_json(),
        fields={k: fields[k] for k in SHOWN if fields.get(k) is not None},
        seconds=seconds or {},
        environment=assess.environment(),
        digests={
            "file": found.parity.file_digest,
            "codes": found.parity.codes_digest,
            **{k: v for k, v in found.audits.digests.items() if isinstance(v, str)},
        },
        limits=LIMITS,
    )
    return write_report(data, folder)


def _sentences(codes: Sequence[str]) -> tuple[str, ...]:
    """Each code's sentence once, followed by the artefact and audits that gave it."""
    places: dict[str, list[str]] = {}
    for code in codes:
        head, _, where = code.partition(": ")
        places.setdefault(head, []).append(where)
    return tuple(f"{text(head)} ({head}: {', '.join(filter(None, where))})" for head, where in places.items())


def _from_run(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    facts = ws.read_json(run / ws.RESULT) if (run / ws.RESULT).exists() else {}
    trace = run / "trace.jsonl"
    if not trace.exists():
        return facts, []
    try:
        return facts, [json.loads(line) for line in trace.read_text().splitlines()]
    except ValueError as err:
        raise ArtefactError(f"{trace} is malformed: {err}.", remedy="Unlearn anew.") from err
