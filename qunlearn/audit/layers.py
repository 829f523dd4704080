"""Which internal tensors an audit of representations looks at: one rule for every artefact kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.predictor import Predictor
from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError, UnsupportedError
from qunlearn_export.graph import Add, Conv, Graph

MOST = 8
PENULTIMATE = "penultimate"
MEMORY = 2**28
ROWS = 64
"""Samples whose layers are read at once: a network holds the activations of all its layers meanwhile."""


def feature_layers(graph: Graph) -> tuple[str, ...]:
    """Names of the layers whose outputs are compared, from input to output; the last one is ``penultimate``.

    The sums of residual blocks; without any, every weighted layer that is not depthwise; at most 8, evenly spread (our
    choice). The penultimate feature is what the last weighted layer reads.
    """
    owners = {layer.output: layer.name for layer in graph.layers}
    weighted = list(graph.weighted())
    sums = [layer.name for layer in graph.layers if isinstance(layer, Add)]
    dense = [w.name for w in weighted[:-1] if not (isinstance(w, Conv) and w.group == w.weight.shape[0] > 1)]
    names = sums or dense
    if len(names) > MOST:
        names = [names[round(i)] for i in np.linspace(0, len(names) - 1, MOST)]
    last = owners.get(weighted[-1].inputs[0], "input")
    return (*(n for n in names if n != last), PENULTIMATE)


def graph_of(predictor: Predictor) -> Graph:
    """The integer graph behind a predictor; UnsupportedError where it has none."""
    graph = getattr(predictor, "graph", None)
    if graph is None and "features" in predictor.capabilities:
        model = getattr(predictor, "model", None)
        if model is not None:
            from qunlearn.quant import lower

            graph = lower(model)
    if not isinstance(graph, Graph):
        raise UnsupportedError(
            f"artefact kind {predictor.kind!r} shows no features.", remedy="Audit the run, or its int8 ONNX file."
        )
    return graph


def shows(predictor: Predictor) -> bool:
    """Whether a predictor shows features; where not, audits read its logits and say so (``W-NO-FEATURES``)."""
    return "features" in predictor.capabilities


def chosen(predictor: Predictor, text: str) -> tuple[str, ...]:
    """The layers that ``text`` names (comma-separated), or those of the rule where it is empty; none of a predictor
    that shows no features. One without an integer graph names its own by ``feature_names``."""
    if not shows(predictor):
        return ()
    own = getattr(predictor, "feature_names", None)
    graph = None if own is not None else graph_of(predictor)
    if not text:
        return tuple(own) if graph is None else feature_layers(graph)
    if graph is None:
        return tuple(n.strip() for n in text.split(","))
    known = {layer.name for layer in graph.layers} | {"input", PENULTIMATE}
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",")))
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError(f"no layers named {', '.join(unknown)}.", remedy=f"Known: {', '.join(sorted(known))}.")
    return names


def channels_of(predictor: Predictor, names: Sequence[str]) -> Mapping[str, int]:
    """Channels of those layers of ``names`` whose features are maps; others are left out."""
    if not shows(predictor) or getattr(predictor, "feature_names", None) is not None:
        return {}
    graph = graph_of(predictor)
    shapes = {layer.name: graph.activations[layer.output].shape for layer in graph.layers}
    return {n: shapes[n][0] for n in names if n in shapes and len(shapes[n]) == 3}


def by_layer(
    predictor: Predictor, samples: Samples, names: Sequence[str], *, memory: int = MEMORY
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(layer, float32 [n, d]) in the order of ``names``, samples in theirs.

    Layers that fit into ``memory`` bytes together share one pass over the samples; a wider one gets its own.
    """
    if not names:
        return
    first = predictor.features(samples.inputs(np.arange(min(2, len(samples)))), names)
    size = {n: 4 * len(samples) * first[n].shape[1] for n in names}
    group: list[str] = []
    for i, name in enumerate(names):
        group.append(name)
        if i + 1 == len(names) or sum(size[g] for g in (*group, names[i + 1])) > memory:
            yield from features(predictor, samples, group).items()
            group = []


def features(
    predictor: Predictor, samples: Samples, names: Sequence[str], pooled: Mapping[str, int] | None = None
) -> Mapping[str, NDArray[np.float32]]:
    """Float32 [n, d] of every named layer, in the order of ``samples``; one pass.

    Maps of the layers in ``pooled`` (layer to channels) are averaged over space: d = channels.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {n: [] for n in names}
    for start in range(0, len(samples), ROWS):
        x = samples.inputs(np.arange(start, min(start + ROWS, len(samples))))
        for name, value in predictor.features(x, names).items():
            channels = (pooled or {}).get(name)
            parts[name].append(value if channels is None else value.reshape(len(value), channels, -1).mean(2))
    return {n: np.concatenate(p) for n, p in parts.items()}
