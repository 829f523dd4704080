"""The picture of an erasure check: whose answers moved how far, and what the calibration proves about a flip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qunlearn.report.plots import _INK, COLOURS, _figure, _legend, _svg

ROWS = (("targets", "private target"), ("bystanders", "bystanders"))
REQUEST = "eve"


def picture(tables: Mapping[str, Any]) -> str:
    """Leads of the true class before and after, one line a sample; below it, where there is a calibration, the flips of
    every arm beside the bounds that they prove."""
    proven = tables["eve"]["calibration"]
    arms = {} if proven is None else _arms(proven)
    context, fig = _figure(2.6 + (0.5 + 0.22 * len(arms) if arms else 0))
    axes = fig.subplots(
        2 if arms else 1, 1, squeeze=False, height_ratios=[2.2, 0.4 + 0.22 * len(arms)] if arms else [1]
    )
    groups = {name: tables.get(key, ()) for key, name in ROWS}
    _leads(axes[0, 0], groups, tables["eve"])
    said = [f"{name}: {sum(r['flip'] for r in rows)} of {len(rows)} flipped" for name, rows in groups.items()]
    if arms:
        _flips(axes[1, 0], arms, proven)
        said.append(f"calibration: {', '.join(f'{n} {100 * v:.0f} per cent' for n, v in arms.items())}")
    return _svg(context, fig, "Audit eve", "; ".join(said))


def _arms(proven: Mapping[str, Any]) -> dict[str, float]:
    """Share of trials in which an arm flipped its target: the crafted request first, then its controls."""
    named = {REQUEST: "crafted request", **{arm: arm.replace("_", " ") for arm in sorted(proven["controls"])}}
    return {name: proven["flips"][arm] / proven["trials"] for arm, name in named.items()}


def _leads(ax: Any, groups: Mapping[str, Sequence[Mapping[str, Any]]], facts: Mapping[str, Any]) -> None:
    least = facts["margin_needed"] if facts["margin_unit"] != "logit" else 0
    at, ticks = 0.0, []
    for name, rows in groups.items():
        ticks.append((at + 0.35 * max(0, len(rows) - 1) / 2, name))
        for r in rows:
            lead = (r["margin_before"], r["lead_after"])
            first = not at
            ax.plot(lead, (at, at), color=_INK, lw=0.6, alpha=0.5)
            ax.plot(lead[:1], [at], "o", ms=4, color=COLOURS[0], mfc="none", label="before" if first else None)
            ax.plot(lead[1:], [at], "o", ms=4, color=COLOURS[1], label="after" if first else None)
            at += 0.35
        at += 0.65
    ax.axvspan(-least, least, color=COLOURS[4], alpha=0.3, lw=0, label="too near to tell")
    ax.axvline(0, color=_INK, lw=0.8)
    ax.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    ax.invert_yaxis()
    ax.set_xlabel(f"lead of the true class ({facts['margin_unit']}s)")
    _legend(ax)


def _flips(ax: Any, arms: Mapping[str, float], proven: Mapping[str, Any]) -> None:
    y = range(len(arms))
    colours = [COLOURS[1], *[COLOURS[0]] * (len(arms) - 1)]
    ax.barh(y, [100 * v for v in arms.values()], color=colours, height=0.65)
    for key, name, style in (("p0", "false flips \u2264", ":"), ("l1", "detection \u2265", "--")):
        ax.axvline(100 * proven[key], color=_INK, lw=1, linestyle=style, label=f"{name} {100 * proven[key]:.0f} %")
    ax.set_yticks(y, list(arms))
    ax.tick_params(axis="y", labelsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel=f"flips in {proven['trials']} trials of the calibration (%)")
    _legend(ax)
