"""Inline SVG plots: deterministic, transparent, with text in the page's own colour so that light and dark both work."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qunlearn.errors import MissingDependencyError
from qunlearn_export.files import canonical_json

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Okabe and Ito's palette: distinguishable with colour-blindness, legible on white and on black."""
_INK = "#010203"


def _figure(width: float, height: float) -> tuple[Any, Any, Any]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingDependencyError(
            "reports need matplotlib.", remedy='Install it: pip install "qunlearn[workstation]".'
        ) from err
    style = {
        "svg.hashsalt": "qunlearn",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    context = mpl.rc_context(style)
    context.__enter__()
    fig = Figure(figsize=(width, height), layout="constrained")
    fig.patch.set_alpha(0)
    return context, fig, mpl


def _svg(context: Any, fig: Any, title: str, description: str) -> str:
    buffer = io.StringIO()
    try:
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    finally:
        context.__exit__(None, None, None)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' xmlns:xlink="[^"]*"', "", text).replace("xlink:href", "href")
    unique = re.sub(r"[^a-z0-9]+", "-", title.lower())
    text = re.sub(r'id="([^"]+)"', rf'id="{unique}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{unique}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{unique}-\1)", text)
    label = canonical_json(f"{title}: {description}").replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label={label}', 1)


def histogram(confidences: Mapping[str, Sequence[float]]) -> str:
    """True-class probability on the forget set, one step histogram a model (share of samples per bin)."""
    context, fig, _ = _figure(6.4, 2.9)
    ax = fig.add_subplot()
    bins = np.linspace(0, 1, 21)
    for i, (name, values) in enumerate(confidences.items()):
        share = np.histogram(np.asarray(values), bins)[0] / max(1, len(values))
        ax.stairs(100 * share, bins, label=name, color=COLOURS[i], linewidth=2, fill=False)
    ax.set(xlabel="probability of the true class on the forget set", ylabel="share of samples (%)", xlim=(0, 1))
    ax.legend(frameon=False)
    return _svg(context, fig, "Confidence on the forget set", "histograms per model")


def trajectory(rows: Sequence[Mapping[str, Any]], band: tuple[float, float] | None) -> str:
    """Accuracy on forget and retain probes over the steps with the target band; cosines below."""
    context, fig, _ = _figure(6.4, 4.4)
    top, bottom = fig.subplots(2, 1, sharex=True)
    seen = [r for r in rows if r.get("a_f") is not None]
    if band is not None:
        top.axhspan(100 * band[0], 100 * band[1], color=COLOURS[4], alpha=0.25, label="target band (forget)", lw=0)
    for key, name, colour in (("a_f", "forget", COLOURS[1]), ("a_r", "retain", COLOURS[0])):
        top.plot([r["step"] for r in seen], [100 * r[key] for r in seen], label=name, color=colour, marker=".", lw=2)
    top.set(ylabel="accuracy (%)", ylim=(0, 103))
    top.legend(frameon=False, loc="lower left", fontsize=9)
    steps = [r for r in rows if r.get("cos_before") is not None]
    for key, name, colour in (
        ("cos_before", "before projection", COLOURS[3]),
        ("cos_after", "after projection", COLOURS[2]),
    ):
        bottom.plot([r["step"] for r in steps], [r[key] for r in steps], label=name, color=colour, lw=1.5)
    bottom.set(xlabel="step", ylabel="cos(forget, retain)")
    bottom.legend(frameon=False, fontsize=9)
    return _svg(context, fig, "Forgetting trajectory", "accuracies and cosines over the steps")


def changes(layers: Sequence[Mapping[str, Any]]) -> str:
    """Share of weight codes that changed, one bar a layer."""
    context, fig, _ = _figure(6.4, 0.6 + 0.26 * len(layers))
    ax = fig.add_subplot()
    names = [r["layer"] for r in layers]
    share = [100 * r["codes_changed"] / max(1, r["codes"]) for r in layers]
    ax.barh(range(len(names)), share, color=COLOURS[0], height=0.7)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="weight codes changed (%)")
    return _svg(context, fig, "Integer codes changed", "share per layer")
