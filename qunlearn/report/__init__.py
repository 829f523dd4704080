"""HTML and JSON reports: one self-contained file, verdict first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qunlearn.report.data import METRICS, ReportData
from qunlearn.report.page import environment
from qunlearn_export.files import write_atomic

TEMPLATE = "report.html.j2"


def build(data: ReportData) -> str:
    """The report as one HTML document without external resources; equal data give equal text."""
    env = environment()
    import markupsafe

    from qunlearn.report import pictures, plots, words

    env.filters |= {n: getattr(words, n) for n in ("percent", "signed", "pretty", "label", "audit", "kind", "pair")}
    columns, target = data.columns, data.columns.get(data.reference or "", {})
    before = next((c for n, c in columns.items() if n not in (data.subject, data.reference)), {})
    figures = {
        "histogram": plots.histogram(data.confidences) if data.confidences else "",
        "trajectory": plots.trajectory(data.trajectory, data.band, data.chosen),
        "changes": plots.changes(data.changes["layers"]) if data.changes and data.changes["layers"] else "",
    }
    symbol, verdict, meaning = words.VERDICTS[data.verdict]
    html: str = env.get_template(TEMPLATE).render(
        d=data,
        figures={k: markupsafe.Markup(v) for k, v in figures.items()},
        rows=_rows(data),
        symbol=symbol,
        verdict=verdict,
        meaning=meaning,
        method=words.method(data.method),
        change=words.change(before.get("forget"), columns.get(data.subject, {}).get("forget"), target.get("forget")),
        facts={words.label(k): words.fact(k, v) for k, v in data.fields.items()},
        results=_results(data),
        directions=_directions(data),
        sides=words.SIDES,
        sections=[
            {
                **s,
                "figure": markupsafe.Markup(pictures.picture(s["result"])),
                "caption": words.CAPTIONS.get(s["result"]["audit"], ""),
            }
            for s in data.sections
        ],
    )
    return html


def write(data: ReportData, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into an existing folder."""
    return write_atomic(Path(folder) / "report.html", build(data).encode())


def _rows(data: ReportData) -> list[dict[str, Any]]:
    from qunlearn.report import words

    target = data.columns.get(data.reference or "")
    out = []
    for metric in METRICS:
        values = {name: column.get(metric) for name, column in data.columns.items()}
        mine, theirs = values.get(data.subject), target.get(metric) if target else None
        gap = None if mine is None or theirs is None else mine - theirs
        out.append({"label": words.METRICS[metric], "values": values, "gap": gap})
    return out


def _results(data: ReportData) -> list[dict[str, Any]]:
    """Audit results, shipping artefacts first, each with its difference to the reference where it holds one."""
    if data.audit is None:
        return []
    shipping = list(data.audit["shipping"])
    kinds = sorted(data.audit["results"], key=lambda k: (k not in shipping, k))
    out = []
    for kind in kinds:
        for r in data.audit["results"][kind]:
            extra = {
                "delta": (r.get("tables") or {}).get("delta"),
                "against": (r.get("reference") or {}).get("value"),
                "why": [data.codes.get(code.partition(":")[0], code) for code in r["reasons"]],
            }
            out.append({"kind": kind, "ships": kind in shipping, **r, **extra})
    return out


def _directions(data: ReportData) -> dict[str, str]:
    """How to read each audit, once."""
    return {r["audit"]: r["direction"] for r in _results(data) if r.get("direction")}


__all__ = ["ReportData", "build", "write"]
