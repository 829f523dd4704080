"""The page of a benchmark: one section a network, bit width and kind of request, with its table and a plot of gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qunlearn.report.page import environment

FIXED = ("original", "retrained", "second retrained")


def build(value: Mapping[str, Any]) -> str:
    """HTML from what :func:`qunlearn.bench.tables` returns; equal data give equal text."""
    env = environment()
    import markupsafe

    from qunlearn.report import plots

    sections = []
    for s in value["sections"]:
        rows = [r for r in s["rows"] if "gap" in r and r["method"] != "retrained"]
        names, gaps = [r["method"] for r in rows], [r["gap"] for r in rows]
        sections.append({**s, "plot": markupsafe.Markup(plots.gaps(names, gaps, FIXED))})
    html: str = env.get_template("grid.html.j2").render(grid=value["grid"], chosen=value["chosen"], sections=sections)
    return html
