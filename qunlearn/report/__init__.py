"""HTML and JSON reports: one self-contained file, verdict first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qunlearn.errors import MissingDependencyError
from qunlearn.report.data import METRICS, ReportData
from qunlearn_export.files import write_atomic

TEMPLATE = "report.html.j2"


def build(data: ReportData) -> str:
    """The report as one HTML document without external resources; equal data give equal text."""
    try:
        import jinja2
        import markupsafe
    except ImportError as err:
        raise MissingDependencyError(
            "reports need jinja2.", remedy='Install it: pip install "qunlearn[workstation]".'
        ) from err
    from qunlearn.report import plots, words

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"percent": words.percent, "signed": words.signed, "pretty": _pretty}
    figures = {
        "histogram": plots.histogram(data.confidences) if data.confidences else "",
        "trajectory": plots.trajectory(data.trajectory, data.band) if data.trajectory else "",
        "changes": plots.changes(data.changes["layers"]) if data.changes and data.changes["layers"] else "",
    }
    html: str = env.get_template(TEMPLATE).render(
        d=data,
        figures={k: markupsafe.Markup(v) for k, v in figures.items()},
        rows=_rows(data),
        symbol=words.VERDICTS[data.verdict][0],
        verdict=words.VERDICTS[data.verdict][1],
        results=_results(data),
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
    if data.audit is None:
        return []
    shipping = list(data.audit["shipping"])
    kinds = sorted(data.audit["results"], key=lambda k: (k not in shipping, k))
    return [{"kind": kind, "ships": kind in shipping, **r} for kind in kinds for r in data.audit["results"][kind]]


def _pretty(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


__all__ = ["ReportData", "build", "write"]
