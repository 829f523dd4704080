"""The C column of the parity table: generated C, compiled for this host, against the oracle, with no tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.errors import MissingDependencyError, UnsupportedError
from qunlearn_export.hostlib import HostLibrary
from qunlearn_export.layout import unpack

Codes = NDArray[np.int8]
COLUMN = "c-host"
PAIR = f"{COLUMN} vs oracle"


@dataclass(frozen=True, kw_only=True)
class CColumn:
    """Codes that the release build gives, those of every node (tap build), the codes digest of the C's own blob.

    ``absent`` says why there is no column: no compiler, or a network without kernels; everything else is then empty.
    """

    output: Codes | None = None
    layers: Mapping[str, Codes] | None = None
    digest: str = ""
    absent: str = ""


def c_column(graph: g.Graph, inputs: Codes) -> CColumn:
    """Run ``inputs`` (codes [n, ...] in the graph's order) through the generated C."""
    try:
        release = HostLibrary(graph)
        tapped = HostLibrary(graph, taps=True, like=release)
    except (MissingDependencyError, UnsupportedError) as err:
        return CColumn(absent=err.message.rstrip("."))
    return CColumn(
        output=release.run(inputs),
        layers=tapped.run_all(inputs),
        digest=unpack(release.blob, release.layout, graph).codes_digest(),
    )


def c_reasons(graph: g.Graph, column: CColumn, codes: Mapping[str, Codes]) -> list[str]:
    """Every layer, output or digest of the C that is not exactly the oracle's; empty where the column is absent."""
    if column.layers is None or column.output is None:
        return []
    out = [
        f"layer {layer.name}, {PAIR}: differs, the bound is 0 LSB"
        for layer in graph.layers
        if layer.output in column.layers and not np.array_equal(column.layers[layer.output], codes[layer.output])
    ]
    if not np.array_equal(column.output, codes[graph.output]):
        out.append(f"logits, {PAIR}: differ, the bound is 0 LSB")
    if column.digest != graph.codes_digest():
        out.append(f"{COLUMN}: the codes digest of its weights is not the network's")
    return out
