"""Does the generated C give the oracle's codes on this computer? Every layer, then the release build's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export import selftest
from qunlearn_export.errors import VerificationError
from qunlearn_export.hostlib import HostLibrary
from qunlearn_export.oracle import Oracle, dequantize

Codes = NDArray[np.int8]
MAX_INPUTS, MIN_INPUTS = 256, 16
WORK = 4e9
"""Multiply-accumulates that a check may cost, as far as at least ``MIN_INPUTS`` inputs allow."""


@dataclass(frozen=True, kw_only=True)
class HostCheck:
    """``inputs`` compared, ``mismatches`` of output codes (0, or the check raised), the compiler's command."""

    inputs: int
    mismatches: int
    compiler: str


def check_inputs(graph: g.Graph, macs: int, samples: Codes | None = None) -> Codes:
    """Corner codes, pseudo-random codes and given ``samples``: int8 [n, ...] in the graph's order."""
    n = int(np.clip(WORK / max(1, macs), MIN_INPUTS, MAX_INPUTS))
    seeds = (*selftest.CORNERS, *range(selftest.FIRST_RANDOM, selftest.FIRST_RANDOM + n - len(selftest.CORNERS)))
    made = selftest.vectors(graph, seeds)
    return made if samples is None else np.concatenate([made, samples])


def check_host(graph: g.Graph, inputs: Codes) -> HostCheck:
    """VerificationError naming the first layer that differs from the oracle; MissingDependencyError without a
    compiler."""
    release = HostLibrary(graph)
    tapped = HostLibrary(graph, taps=True, like=release)
    want = Oracle(graph).run_all(dequantize(inputs, graph.activations[graph.input]))
    found = tapped.run_all(inputs)
    for layer in graph.layers:
        if layer.output in found and not np.array_equal(found[layer.output], want[layer.output]):
            share = float((found[layer.output] != want[layer.output]).mean())
            raise VerificationError(
                f"the generated C differs from the integer rule at layer {layer.name!r} in {100 * share:.2g} %.",
                remedy="Do not ship it; try another C compiler (CC), and report this.",
            )
    mismatches = int((release.run(inputs) != want[graph.output]).sum())
    if mismatches:
        raise VerificationError(
            f"the release build differs from the integer rule in {mismatches} output codes.",
            remedy="Do not ship it; try another C compiler (CC), and report this.",
        )
    return HostCheck(inputs=len(inputs), mismatches=0, compiler=" ".join(release.compiler))
