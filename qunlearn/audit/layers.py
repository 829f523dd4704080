"""Which internal tensors an audit of representations looks at: one rule for every artefact kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.predictor import CHUNK, Predictor
from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError, UnsupportedError
from qunlearn_export.graph import Add, Conv, Graph

MOST = 8


def feature_layers(graph: Graph) -> tuple[str, ...]:
    """Names of the layers whose outputs are compared, from input to output; the last is the penultimate feature.

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
    return tuple(dict.fromkeys([*names, last]))


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


def chosen(predictor: Predictor, text: str) -> tuple[str, ...]:
    """The layers that ``text`` names (comma-separated), or those of the rule where it is empty."""
    graph = graph_of(predictor)
    if not text:
        return feature_layers(graph)
    known = {layer.name for layer in graph.layers} | {"input", "penultimate"}
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",")))
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError(f"no layers named {', '.join(unknown)}.", remedy=f"Known: {', '.join(sorted(known))}.")
    return names


def features(predictor: Predictor, samples: Samples, names: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
    """Float32 [n, d] of every named layer, in the order of ``samples``; one pass."""
    parts: dict[str, list[NDArray[np.float32]]] = {n: [] for n in names}
    for start in range(0, len(samples), CHUNK):
        x = samples.inputs(np.arange(start, min(start + CHUNK, len(samples))))
        for name, value in predictor.features(x, names).items():
            parts[name].append(value)
    return {n: np.concatenate(p) for n, p in parts.items()}
