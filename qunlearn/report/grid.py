"""The page of a benchmark: one section a network, bit width and kind of request, with its table and a plot of gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qunlearn.report.page import environment

FIXED = ("original", "retrained", "second retrained")
SPOILT = ("no effect", "utility", "degenerate attack")


def build(value: Mapping[str, Any]) -> str:
    """HTML from what :func:`qunlearn.bench.tables` returns; equal data give equal text."""
    env = environment()
    import markupsafe

    from qunlearn.report import plots

    env.filters["setting"] = setting
    shared = {**value["grid"]["shared"], "stop_rule": value["grid"]["stop_rule"]}
    sections = []
    for s in value["sections"]:
        rows = [r for r in s["rows"] if "gap" in r and r["method"] != "retrained"]
        names, gaps = [r["method"] for r in rows], [r["gap"] for r in rows]
        floor = next((r["gap"][0] for r in rows if r["method"] == "second retrained"), None)
        marked = [r["method"] for r in rows if set(r["marks"]) & set(SPOILT)]
        where = f"{s['model']}, {s['bits']}, {s['kind']}"
        plot = plots.gaps(names, gaps, FIXED, where=where, floor=floor, marked=marked)
        sections.append({**s, "plot": markupsafe.Markup(plot), "marked": marked, "where": where})
    chosen = [{**c, "config": own(c["config"], shared)} for c in value["chosen"]]
    html: str = env.get_template("grid.html.j2").render(
        grid=value["grid"], shared=shared, chosen=chosen, sections=sections
    )
    return html


def own(config: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method that are not those that all share."""
    return {k: v for k, v in config.items() if k not in shared or shared[k] != v}


def setting(value: object) -> str:
    """A value as ``--set`` takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
