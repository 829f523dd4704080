"""One picture an audit, made of its plain result: values with intervals, curves, answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qunlearn.report import pictures_eve
from qunlearn.report.plots import _INK, COLOURS, DASHES, _figure, _legend, _name, _svg

ROLES = {"before": "base", "after": "unlearned", "reference": "retrained"}
FAR = 3
Series = Mapping[str, Sequence[float | None]]


def picture(result: Mapping[str, Any]) -> str:
    """Inline SVG for the JSON form of an audit's result. Where an audit stopped before it had a value, what its utility
    gate measured; empty where that measured nothing either (logits that are not finite)."""
    tables = result["tables"]
    if result["audit"] == "eve" and tables.get("targets"):
        return pictures_eve.picture(tables)
    if result["audit"] == "cka" and "forget" in tables.get("layers", {}):
        rows = _ordered(tables["layers"]["forget"], tables)
        pairs = {"unlearned": "after, before", "retrained": "reference, before"}
        found = {n: [row.get(key) for row in rows.values()] for n, key in pairs.items()}
        return lines("Similarity to the base", list(rows), found, "CKA to the base", scale=1, skip=("base",))
    if result["audit"] == "recovery" and tables.get("layers"):
        rows = _ordered(tables["layers"], tables)
        return lines("Recovery by layer", list(rows), _by_role(rows), "right with a new head (%)")
    if result["audit"] == "relearn" and tables.get("arms"):
        return arms(tables["arms"])
    if result["audit"] == "quant_recovery" and tables.get("widths"):
        widths = sorted(tables["widths"].items(), key=lambda row: -int(row[0].split()[0]))
        rows = {"as shipped": tables["full"], **{k: v["accuracy"] for k, v in widths}}
        return lines("Forget set on fewer bits", list(rows), _by_role(rows), "forget set right (%)")
    return dots(result) or gate(result)


def _ordered(rows: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """The rows from input to output where the table says how (JSON does not keep the order)."""
    return {n: rows[n] for n in tables.get("order", rows) if n in rows}


def _by_role(rows: Mapping[str, Mapping[str, float]]) -> dict[str, list[float | None]]:
    return {name: [row.get(role) for row in rows.values()] for role, name in ROLES.items()}


def lines(
    title: str, names: Sequence[str], series: Series, label: str, *, scale: int = 100, skip: Sequence[str] = ()
) -> str:
    """One line a model over named places; a missing value breaks the line."""
    context, fig = _figure(2.9)
    ax = fig.add_subplot()
    for i, (name, style) in enumerate(zip(ROLES.values(), DASHES[:3], strict=True)):
        values = series.get(name, [])
        if name in skip or not any(v is not None for v in values):
            continue
        shown = [float("nan") if v is None else scale * v for v in values]
        ax.plot(range(len(names)), shown, label=name, color=COLOURS[i], linestyle=style, marker=".", lw=1.8)
    ax.set_xticks(range(len(names)), [_name(n) for n in names], rotation=30, ha="right", rotation_mode="anchor")
    ax.set(ylabel=label, ylim=(min(0, ax.get_ylim()[0]), 1.03 * scale))
    _legend(ax)
    return _svg(context, fig, title, f"{label}, one line a model")


def arms(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Forget accuracy over the training steps, one panel an arm, one line a model."""
    context, fig = _figure(2.6)
    axes = fig.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for ax, (arm, row) in zip(axes, sorted(rows.items(), key=lambda r: r[0], reverse=True), strict=True):
        for i, (role, name) in enumerate(ROLES.items()):
            if role in row["curves"]:
                y = [100 * v for v in row["curves"][role]]
                ax.plot(row["steps"], y, label=name, color=COLOURS[i], linestyle=DASHES[i], marker=".", lw=1.8)
        ax.set(xlabel=f"steps, {arm.replace('_', ' ')}", ylim=(0, 103))
    axes[0].set_ylabel("forget set right (%)")
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper left", ncols=3)
    return _svg(context, fig, "Relearning", "forget accuracy over training steps, one panel an arm")


def _estimate(ax: Any, at: int, e: Mapping[str, Any], colour: str) -> float:
    """Draw a fraction with its interval in row ``at``; its value in per cent."""
    v, lo, hi = (float(100 * e[k]) for k in ("value", "lo", "hi"))
    ax.errorbar([v], [at], xerr=[[max(0, v - lo)], [max(0, hi - v)]], color=colour, fmt="o", capsize=3)
    return v


def dots(result: Mapping[str, Any]) -> str:
    """Every model's value of the audit's metric with its interval, and the margin around the retrained one."""
    rows: Mapping[str, Any] = next(iter((result["tables"].get("metrics") or {}).get(result["metric"], {}).values()), {})
    found = [(name, rows[role]) for role, name in ROLES.items() if isinstance(rows.get(role), Mapping)]
    if not found:
        return ""
    context, fig = _figure(0.9 + 0.28 * len(found))
    ax = fig.add_subplot()
    for i, (name, e) in enumerate(found):
        v = _estimate(ax, i, e, COLOURS[list(ROLES.values()).index(name)])
        tol = (result["tables"].get("delta") or {}).get("tol")
        if name == ROLES["reference"] and tol is not None:
            ax.axvspan(v - 100 * tol, v + 100 * tol, color=COLOURS[4], alpha=0.3, lw=0)
    ax.set_yticks(range(len(found)), [name for name, _ in found])
    if any(abs(e[k]) > FAR for _, e in found for k in ("lo", "hi")):
        ax.set_xlim(-100, 200)  # a share that is hardly estimated at all runs out of the picture
    against = "per cent; the band is the margin around the retrained model"
    ax.set(ylim=(len(found) - 0.5, -0.5), xlabel=against if ROLES["reference"] in dict(found) else "per cent")
    shown = ", ".join(f"{name} {100 * e['value']:.1f}" for name, e in found)
    return _svg(context, fig, f"Audit {result['audit']}", shown)


def gate(result: Mapping[str, Any]) -> str:
    """How far retain and held-out accuracy fell, with intervals and the floor: what was measured before the audit."""
    drops: Mapping[str, Any] = (result["tables"].get("metrics") or {}).get("utility_drop", {})
    found = [(name.partition("_")[0], row["after"]) for name, row in sorted(drops.items()) if row.get("after")]
    if not found:
        return ""
    context, fig = _figure(0.9 + 0.28 * len(found))
    ax = fig.add_subplot()
    for i, (_, e) in enumerate(found):
        _estimate(ax, i, e, COLOURS[1])
    floor = (result["tables"].get("config") or {}).get("utility_floor")
    if floor is not None:
        ax.axvline(100 * floor, color=_INK, lw=1, linestyle=":")
    ax.set_yticks(range(len(found)), [name for name, _ in found])
    ax.set(
        ylim=(len(found) - 0.5, -0.5),
        xlabel="points of accuracy lost (dotted: the most allowed)",
    )
    shown = ", ".join(f"{name} {100 * e['value']:.1f}" for name, e in found)
    return _svg(context, fig, f"Audit {result['audit']}: utility lost", shown)
