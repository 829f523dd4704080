"""Inline SVG plots: deterministic, transparent, with text in the page's own colour so that light and dark both work."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qunlearn.errors import MissingDependencyError

COLOURS = ("#0072b2", "#d55e00", "#008a64", "#a8457f", "#e69f00")
"""After Okabe and Ito's palette, for white paper. The page may replace each by its variable ``--c0`` to ``--c4``."""
DASHES = ("-", "-", "--", ":", "-.")
"""Line styles beside the colours, so that lines can be told apart without them."""
_INK = "#010203"
_WIDTH = 4.5
_LONGEST = 24
_LEGEND = {"borderaxespad": 0.2, "handlelength": 1.8, "columnspacing": 1.2}


def _figure(height: float) -> tuple[Any, Any]:
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
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    context = mpl.rc_context(style)
    context.__enter__()
    fig = Figure(figsize=(_WIDTH, height), layout="constrained")
    fig.patch.set_alpha(0)
    return context, fig


def _svg(context: Any, fig: Any, title: str, description: str) -> str:
    buffer = io.StringIO()
    try:
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    finally:
        context.__exit__(None, None, None)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    for i, colour in enumerate(COLOURS):
        text = text.replace(f": {colour}", f": var(--c{i}, {colour})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' xmlns:xlink="[^"]*"', "", text).replace("xlink:href", "href")
    unique = re.sub(r"[^a-z0-9]+", "-", title.lower())
    text = re.sub(r'\bid="([^"]+)"', rf'id="{unique}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{unique}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{unique}-\1)", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(f"{title}: {description}")}"', 1)


def _name(text: str) -> str:
    """A name as plain text for matplotlib: no formulas, not hidden by an underscore in front, not too long."""
    short = text if len(text) <= _LONGEST else "\u2026" + text[1 - _LONGEST :]
    short = short.replace("$", r"\$")
    return f"\u200b{short}" if short.startswith("_") else short


def _legend(ax: Any) -> None:
    columns = len(ax.get_legend_handles_labels()[1])
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, columns), **_LEGEND)


def histogram(confidences: Mapping[str, Sequence[float]]) -> str:
    """True-class probability on the forget set, one step histogram a model (share of samples per bin)."""
    context, fig = _figure(2.6)
    ax = fig.add_subplot()
    bins = np.linspace(0, 1, 21)
    for i, (name, values) in enumerate(confidences.items()):
        share = np.histogram(np.asarray(values), bins)[0] / max(1, len(values))
        i %= len(COLOURS)
        line = ax.stairs(100 * share, bins, label=_name(name), color=COLOURS[i], linewidth=1.8, linestyle=DASHES[i])
        line.set_clip_on(False)
    ax.set(xlabel="probability given to the true class", ylabel="forgotten samples (%)", xlim=(0, 1), ylim=(0, None))
    _legend(ax)
    return _svg(context, fig, "Confidence on the forget set", "share of samples by probability, one line a model")


def trajectory(
    rows: Sequence[Mapping[str, Any]], band: tuple[float, float] | None = None, chosen: int | None = None
) -> str:
    """Accuracy on forget and retain probes over the steps with the target band and the step kept; cosines below.

    The lower half is left out where no row has a cosine, the upper where none has an accuracy; empty without both.
    """
    seen = [r for r in rows if r.get("a_f") is not None]
    steps = [r for r in rows if r.get("cos_before") is not None]
    if not seen and not steps:
        return ""
    context, fig = _figure(3.9 if seen and steps else 2.4)
    axes = list(fig.subplots(int(bool(seen)) + int(bool(steps)), 1, sharex=True, squeeze=False)[:, 0])
    axes[-1].set(xlabel="step")
    if seen:
        _accuracies(axes[0], seen, band, chosen)
    if steps:
        ax = axes[-1]
        for key, name, i in (("cos_before", "before projection", 3), ("cos_after", "after projection", 2)):
            found = [r for r in steps if r.get(key) is not None]
            style = {"color": COLOURS[i], "lw": 1.4, "linestyle": "-" if i == 3 else "--"}
            ax.plot([r["step"] for r in found], [r[key] for r in found], label=name, **style)
        ax.set(ylabel="cosine")
        _legend(ax)
    return _svg(context, fig, "Forgetting trajectory", "accuracies and gradient cosines over the steps")


def _accuracies(
    ax: Any, rows: Sequence[Mapping[str, Any]], band: tuple[float, float] | None, chosen: int | None
) -> None:
    for key, name, i, mark in (("a_f", "forget", 1, "."), ("a_r", "retain", 0, "")):
        found = [r for r in rows if r.get(key) is not None]
        style = {"color": COLOURS[i], "marker": mark, "lw": 1.8}
        ax.plot([r["step"] for r in found], [100 * r[key] for r in found], label=name, **style)
    if band is not None:
        ax.axhspan(100 * band[0], 100 * band[1], color=COLOURS[4], alpha=0.3, label="target band", lw=0)
    if chosen is not None:
        ax.axvline(chosen, color=_INK, lw=1, linestyle=":", label="step kept")
    ax.set(ylabel="accuracy (%)", ylim=(0, 103))
    _legend(ax)


def changes(layers: Sequence[Mapping[str, Any]]) -> str:
    """Share of weight codes that changed, one bar a layer."""
    context, fig = _figure(0.6 + 0.22 * len(layers))
    ax = fig.add_subplot()
    names = [_name(r["layer"]) for r in layers]
    share = [100 * r["codes_changed"] / max(1, r["codes"]) for r in layers]
    ax.barh(range(len(names)), share, color=COLOURS[0], height=0.7)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="weight codes changed (%)", xlim=(0, max([1.0, *share]) * 1.02))
    return _svg(context, fig, "Integer codes changed", "share per layer")


def gaps(
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    fixed: Sequence[str],
    *,
    where: str,
    floor: float | None = None,
    marked: Sequence[str] = (),
) -> str:
    """Horizontal bars of (mean, standard deviation) fractions, best on top; ``where`` tells pictures of a page apart.

    The rows of ``fixed`` are hatched, those of ``marked`` pale; ``floor`` is drawn as a line across all rows.
    """
    context, fig = _figure(0.7 + 0.24 * len(names))
    ax = fig.subplots()
    at = np.arange(len(names))[::-1]
    for y, name, (mean, sd) in zip(at, names, values, strict=True):
        own = name not in fixed
        ax.barh(y, 100 * mean, xerr=100 * sd, height=0.7, color=COLOURS[0] if own else COLOURS[4],
                alpha=0.4 if name in marked else None, hatch="" if own else "///", edgecolor=_INK, linewidth=0.4,
                ecolor=_INK, error_kw={"elinewidth": 0.8})  # fmt: skip
    if floor is not None:
        ax.axvline(100 * floor, color=COLOURS[1], linestyle="--", linewidth=1.4, label="noise floor")
        _legend(ax)
    ax.set_yticks(at, names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_xlim(left=0)
    ax.set_xlabel("points")
    listed = "; ".join(f"{n} {100 * m:.1f}" for n, (m, _) in zip(names, values, strict=True))
    return _svg(context, fig, f"Average gap to the retrained network, {where}", listed)
