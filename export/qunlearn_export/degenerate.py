"""Degenerate scales and channels: checks D1 to D8 of artefact_audit 3.3 on the integer graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.oracle import multiplier

INT31, WARN_BIAS, EXACT = 2**31, 2**30, 2**24
DEAD_SHARE = 1e-6
FOLD_MAX, FOLD_MIN = 1e4, 1e-6
NEWLY_DEAD = 0.10
SCALE_FLOOR = 2.0**-24
BLOCK = 2**17
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A violated rule: ``code`` (D1, S6, ...), ``level`` (error, warning), ``where`` (layer or tensor), ``message``."""

    code: str
    level: str
    where: str
    message: str


@np.errstate(all="ignore")
def degenerate(graph: g.Graph, before: g.Graph | None = None) -> list[Finding]:
    """All findings D1 to D7, and D8 (channels newly dead) against ``before`` where it is given."""
    out: list[Finding] = []
    for a in graph.activations.values():
        out += _activation(a)
    for layer in graph.weighted():
        out += _weighted(graph, layer)
    if before is not None:
        old = {layer.name: layer for layer in before.weighted()}
        for layer in graph.weighted():
            past = old.get(layer.name)
            if past is None or past.weight.shape != layer.weight.shape:
                continue
            fresh = dead_channels(layer) & ~dead_channels(past)
            if fresh.mean() > NEWLY_DEAD:
                out.append(_find("D8", "warning", layer.name, f"{100 * fresh.mean():.0f} % of the channels died"))
    return out


def dead_channels(layer: g.Conv | g.Gemm | g.MatMul) -> NDArray[np.bool_]:
    """Per output channel: no code, a scale at the quantizer's floor, or below 1e-6 of the layer's median magnitude."""
    rows = _rows(layer)
    top = np.maximum(rows.max(axis=1).astype(np.int64), -rows.min(axis=1).astype(np.int64))
    size = top * layer.weight_scale.astype(np.float64)
    live = size[top > 0]
    floor = DEAD_SHARE * float(np.median(live)) if live.size else 0.0
    dead: NDArray[np.bool_] = (top == 0) | (size < floor) | (layer.weight_scale <= SCALE_FLOOR)
    return dead


def repair_dead(graph: g.Graph) -> g.Graph:
    """Dead channels get zero codes, the median live scale, and a bias code on that grid (D4)."""
    layers: list[g.AnyLayer] = []
    for layer in graph.layers:
        if not isinstance(layer, g.Conv | g.Gemm | g.MatMul) or not dead_channels(layer).any():
            layers.append(layer)
            continue
        dead = dead_channels(layer)
        if dead.all():
            layers.append(layer)
            continue
        scale = layer.weight_scale.copy()
        scale[dead] = np.median(layer.weight_scale[~dead])
        weight = layer.weight.copy()
        if isinstance(layer, g.MatMul):
            weight[:, dead] = 0
        else:
            weight[dead] = 0
        bias = layer.bias
        if bias is not None:
            x = graph.activations[layer.inputs[0]].scale
            real = bias.astype(np.float64) * g.bias_scale(x, layer.weight_scale)
            bias = bias.copy()
            bias[dead] = np.clip(np.rint(real / g.bias_scale(x, scale))[dead], -INT31 + 1, INT31 - 1)
        layers.append(replace(layer, weight=weight, weight_scale=scale, bias=bias))
    return replace(graph, layers=tuple(layers))


def _rows(layer: g.Conv | g.Gemm | g.MatMul) -> NDArray[np.int8]:
    w = layer.weight.T if isinstance(layer, g.MatMul) else layer.weight
    return w.reshape(len(w), -1)


def _magnitude(rows: NDArray[np.int8]) -> NDArray[np.int64]:
    """Sum of |code| per row, a block at a time: the file may be large, and copies of it would be larger."""
    step = max(1, BLOCK // max(1, rows.shape[1]))
    blocks = (rows[i : i + step].astype(np.int16) for i in range(0, len(rows), step))
    return np.concatenate([np.abs(block).sum(axis=1, dtype=np.int64) for block in blocks])


def _activation(a: g.Activation) -> Iterator[Finding]:
    s = float(a.scale)
    if not np.isfinite(s) or s < TINY:
        yield _find("D6", "error", a.name, f"scale {s:g} is not a normal positive number")
    if not -128 <= a.zero_point <= 127:
        yield _find("D6", "error", a.name, f"zero point {a.zero_point} is not int8")


def _weighted(graph: g.Graph, layer: g.Conv | g.Gemm | g.MatMul) -> Iterator[Finding]:
    name, scale = layer.name, layer.weight_scale
    bad = ~np.isfinite(scale) | (scale < TINY)
    if bad.any():
        yield _find("D6", "error", name, f"weight scales of channels {_some(bad)} are not normal positive numbers")
        return
    x, out = graph.activations[layer.inputs[0]], graph.activations[layer.output]
    rows = _magnitude(_rows(layer))
    bias = np.zeros(len(rows), dtype=np.int64) if layer.bias is None else np.abs(layer.bias.astype(np.int64))
    if (bias >= INT31 - 1).any():
        yield _find("D1", "error", name, f"bias codes of channels {_some(bias >= INT31 - 1)} are at the int32 limit")
    elif (bias > WARN_BIAS).any():
        yield _find("D1", "warning", name, f"bias codes of channels {_some(bias > WARN_BIAS)} exceed 2^30")
    reach = max(127 - x.zero_point, x.zero_point + 128)
    total = rows * reach + bias
    if (total >= INT31).any():
        yield _find("D2", "error", name, f"sums of channels {_some(total >= INT31)} can leave int32")
    elif (total >= EXACT).any():
        yield _find("D3", "warning", name, f"sums of {int((total >= EXACT).sum())} channels can exceed 2^24")
    dead = dead_channels(layer)
    if dead.any():
        yield _find("D4", "warning", name, f"dead channels {_some(dead)}")
    m = multiplier(layer, x, out).astype(np.float64)
    small = ~np.isfinite(m) | (m < 2.0**-31)
    if small.any():
        yield _find("D5", "error", name, f"multipliers of channels {_some(small)} are below 2^-31: constant output")
    if (m >= 1).any():
        yield _find("D5", "warning", name, f"multipliers of channels {_some(m >= 1)} are 1 or more")
    ratio = scale.astype(np.float64) / float(np.median(scale))
    odd = (ratio > FOLD_MAX) | (ratio < FOLD_MIN)
    if odd.any():
        yield _find("D7", "warning", name, f"folded scales of channels {_some(odd)} are far from the layer's median")


def _find(code: str, level: str, where: str, message: str) -> Finding:
    return Finding(code=code, level=level, where=where, message=message)


def _some(mask: NDArray[np.bool_]) -> str:
    index = np.flatnonzero(mask)
    return ", ".join(map(str, index[:6])) + (f" and {len(index) - 6} more" if len(index) > 6 else "")
