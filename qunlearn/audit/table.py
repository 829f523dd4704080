"""The text table of an audit run. Shares are printed in per cent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qunlearn.audit.codes import text
from qunlearn.audit.glossary import GLOSSARY
from qunlearn.audit.result import AuditResult

_COLUMNS = ("before", "after", "reference", "delta")


def number(value: float | None, unit: str) -> str:
    """One number: per cent for shares, three decimals for nats, whole for counts, a dash where there is none."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if unit == "share" else f"{value:.3f}" if unit == "nats" else f"{value:.0f}"


def _cell(value: Any, unit: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{number(value['value'], unit)} [{number(value['lo'], unit)}, {number(value['hi'], unit)}]"
    return number(value, unit)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns, two spaces apart; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def metric_rows(result: AuditResult) -> list[list[str]]:
    """One row for every metric and set: title, set, n, before, after, reference, delta."""
    out = []
    for metric, sets in result.tables["metrics"].items():
        entry = GLOSSARY[metric]
        mark = "*" if metric == result.metric else ""
        for name, row in sets.items():
            n = next((str(c["n"]) for c in row.values() if isinstance(c, Mapping)), "-")
            cells = [_cell(row.get(c), entry.unit) for c in _COLUMNS]
            out.append([f"{entry.title}{mark}", name, n, *cells])
    return out


def text_table(
    verdict: str,
    reasons: Sequence[str],
    warnings: Sequence[str],
    shipping: Sequence[str],
    not_offered: Sequence[str],
    results: Mapping[str, tuple[AuditResult, ...]],
) -> str:
    """The run as text: overall verdict, one line an audit and kind; all metrics of the first kind that ships."""
    lines = [f"verdict: {verdict.upper()}  (worst over {', '.join(shipping)})"]
    lines += [f"  {code.partition(':')[0]}: {text(code)}" for code in reasons]
    lines += [f"  {code.partition(':')[0]}: {text(code)}" for code in warnings]
    if not_offered:
        lines.append(f"  not offered yet: {', '.join(not_offered)}")
    for kind, found in results.items():
        lines += ["", f"{kind}{'' if kind in shipping else ' (for comparison)'}"]
        head = ["audit", "metric", "value", "reference", "verdict", "side"]
        rows = []
        for r in found:
            unit = GLOSSARY[r.metric].unit
            value = None if r.interval is None else {"value": r.value, **r.interval}
            ref = r.reference
            shown = (
                f"{ref['kind']}: {number(ref['value'], unit)}"
                if ref["value"] is not None
                else f"reference: {ref['kind']}"
            )
            rows.append([r.audit, GLOSSARY[r.metric].title, _cell(value, unit), shown, r.verdict, r.failure_side])
        lines.append(aligned([head, *rows]))
        seen: list[list[str]] = []
        for r in found if kind == shipping[0] else ():
            body = [row for row in metric_rows(r) if row not in seen]
            seen += body
            if body:
                lines += ["", f"{r.audit}: {r.direction}"]
                lines.append(aligned([["metric (* judged)", "set", "n", *_COLUMNS], *body]))
    return "\n".join([*lines, "", "shares in per cent, [90 % interval]", ""])
