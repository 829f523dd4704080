"""From an assessment to the HTML report of a command."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qunlearn.audit import AUDITS, GLOSSARY
from qunlearn.audit.codes import REASONS, text
from qunlearn.cli import assess
from qunlearn.cli import workspace as ws
from qunlearn.cli.assess import Assessment
from qunlearn.data.splits import Splits
from qunlearn.errors import ArtefactError
from qunlearn.fingerprint import environment, plain
from qunlearn.report import ReportData, words
from qunlearn.report import write as write_report

LABELS = {"before": "base", "after": "unlearned", "reference": "retrained"}
SHOWN = ("guarantee", "stop_reason", "stop_verdict", "chosen_step", "samples_seen", "band")
LIMITS = (
    "Accuracies and one attack are averages: a pass does not prove that nothing about a single sample is left.",
    "The retrained model is one of many; another seed would give other values.",
    "Agreement of the file with its network was measured on the inputs named, on this processor only.",
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
    audit = found.audits.to_json()
    confidences = assess.forget_confidence(found, splits)
    data = ReportData(
        title="Unlearning report",
        verdict=found.audits.verdict,
        reasons=sentences(found.audits.reasons, audit["results"]),
        warnings=(*sentences(found.audits.warnings), *(sentence(w) for w in facts.get("warnings", ()))),
        request=f"{request} ({len(splits.forget):,} of {len(splits.forget) + len(splits.retain):,} training samples)",
        method=facts.get("method", ""),
        columns={LABELS[r]: found.plain(r) for r in roles},
        reference=LABELS["reference"] if "reference" in roles else None,
        subject=LABELS["after"],
        source=found.summaries["after"]["kind"],
        confidences={LABELS[r]: confidences[r] for r in roles},
        trajectory=trace,
        band=tuple(band) if band else None,
        chosen=fields.get("chosen_step"),
        changes=found.changes.to_json() if found.changes is not None else None,
        parity=found.parity.to_json(),
        audit=audit,
        codes=REASONS,
        fields={k: fields[k] for k in SHOWN if fields.get(k) is not None},
        seconds=seconds or {},
        environment=environment(),
        digests={
            "file": found.parity.file_digest,
            "codes": found.parity.codes_digest,
            **{k: v for k, v in found.audits.digests.items() if isinstance(v, str)},
        },
        limits=LIMITS,
        sections=sections(audit["results"][found.audits.shipping[0]]),
    )
    return write_report(data, folder)


def sections(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One section an audit: its result on what ships first, what it asks, its metric, what it cannot show."""
    out = []
    for r in results:
        cls = AUDITS[r["audit"]]
        about = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
        out.append({"result": r, "about": about, "cannot": cls.cannot, "entry": plain(GLOSSARY[r["metric"]])})
    return out


def sentences(
    codes: Sequence[str], results: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> tuple[str, ...]:
    """One sentence a code, with the audits and artefacts that gave it and, from ``results``, what they measured.

    A code reads ``CODE``, ``CODE: KIND AUDIT`` or ``CODE: TEXT``; places of one code and one audit are joined.
    """
    places: dict[tuple[str, str], list[str]] = {}
    for code in codes:
        head, _, where = code.partition(": ")
        kind, _, audit = where.partition(" ")
        known = kind in words.KINDS and audit in words.AUDITS
        places.setdefault((head, audit if known else ""), []).append(kind if known else where)
    out = []
    for (head, audit), found in places.items():
        named = ", ".join(words.kind(k) for k in found if k)
        if audit:
            named = f"{words.audit(audit)}, {named}"
        numbers = _numbers(results[found[0]], audit) if audit and results is not None else ""
        out.append(f"{named + ': ' if named else ''}{text(head)}{numbers} [{head}]")
    return tuple(out)


def sentence(warning: str) -> str:
    """A warning of a method, ``CODE: TEXT``, as a sentence with its code behind."""
    code, _, rest = warning.partition(": ")
    if not rest or not code.startswith("W-"):
        return warning
    return f"{rest[0].upper()}{rest[1:].rstrip('.')}. [{code}]"


def _numbers(results: Sequence[Mapping[str, Any]], audit: str) -> str:
    """What an audit measured against the reference, in words; empty where it has no difference."""
    for r in results:
        delta = r["tables"].get("delta") if r["audit"] == audit else None
        if delta and "tol" in delta:
            low, high = words.signed(delta["lo"]), words.signed(delta["hi"])
            return (
                f" Measured: {words.signed(delta['value'])} points from the retrained model, interval {low} to {high}, "
                f"margin \u00b1{words.percent(delta['tol'])}."
            )
    return ""


def _from_run(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    facts = ws.read_json(run / ws.RESULT) if (run / ws.RESULT).exists() else {}
    trace = run / "trace.jsonl"
    if not trace.exists():
        return facts, []
    try:
        return facts, [json.loads(line) for line in trace.read_text().splitlines()]
    except ValueError as err:
        raise ArtefactError(f"{trace} is malformed: {err}.", remedy="Unlearn anew.") from err
