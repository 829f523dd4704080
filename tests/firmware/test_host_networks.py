"""Three whole networks on this computer: every layer of the generated C equals the oracle (firmware acceptance 1)."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from networks import NETWORKS

from qunlearn_export import selftest
from qunlearn_export.hostlib import HostLibrary
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.probe import layer_vector

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
BATCH = 100


def compare(net: str, seed: int, n: int) -> int:
    """Corner codes, a vector that strains the first layer, random codes, ``n`` in all; how many layers agreed."""
    graph = NETWORKS[net](seed)
    a = graph.activations[graph.input]
    release = HostLibrary(graph)
    tapped, oracle = HostLibrary(graph, taps=True, like=release), Oracle(graph)
    codes = np.random.default_rng([seed, 3]).integers(-128, 128, (n, *a.shape)).astype(np.int8)
    codes[:4] = selftest.vectors(graph, selftest.CORNERS)
    codes[4] = layer_vector(graph, next(graph.weighted()))[0]
    seen: set[str] = set()
    for start in range(0, n, BATCH):
        part = codes[start : start + BATCH]
        found, want = tapped.run_all(part), oracle.run_all(dequantize(part, a))
        assert [name for name in found if not np.array_equal(found[name], want[name])] == [], start
        assert np.array_equal(release.run(part), want[graph.output])
        seen |= set(found)
    return len(seen)


@pytest.mark.parametrize("net", NETWORKS)
def test_some_inputs(net: str) -> None:
    assert compare(net, 0, 40) >= 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("net", NETWORKS)
def test_two_thousand_inputs(net: str, seed: int) -> None:
    assert compare(net, seed, 2000) >= 8
