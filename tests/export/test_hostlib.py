"""The generated C in a library: exact against the oracle at every layer, in every build."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn_export import codegen, selftest
from qunlearn_export.errors import (
    ConfigError,
    DataError,
    MissingDependencyError,
    UnsupportedError,
    VerificationError,
)
from qunlearn_export.hostcheck import check_host, check_inputs
from qunlearn_export.hostlib import HostLibrary, find_compiler
from qunlearn_export.layout import unpack
from qunlearn_export.oracle import Oracle
from qunlearn_export.order import from_stored, to_stored

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def kernels(nets: Any) -> HostLibrary:
    """A library whose compiled kernels the others use again."""
    return HostLibrary(nets.tiny())


@pytest.mark.parametrize("seed", range(3))
def test_tiny_network_every_layer(nets: Any, kernels: HostLibrary, seed: int) -> None:
    """2,000 inputs, corner and saturation vectors among them; taps, release, and the blob that C holds."""
    graph = nets.tiny(seed)
    tapped, release = HostLibrary(graph, taps=True, like=kernels), HostLibrary(graph, like=kernels)
    oracle = Oracle(graph)
    codes = oracle.quantize(nets.inputs(graph, 2000, seed))
    codes[:4] = selftest.vectors(graph, selftest.CORNERS)
    found = tapped.run_all(codes)
    for name, want in oracle.run_all(nets_real(graph, codes)).items():
        if name in found:
            assert np.array_equal(found[name], want), name
    assert np.array_equal(release.run(codes), tapped.run(codes))
    assert np.array_equal(release.run(codes), found[graph.output])
    assert unpack(release.blob, release.layout, graph).codes_digest() == graph.codes_digest()


def nets_real(graph: Any, codes: Any) -> Any:
    a = graph.activations[graph.input]
    return ((codes.astype(np.float32) - a.zero_point) * np.float32(a.scale)).astype(np.float32)


def test_orders(nets: Any) -> None:
    codes = np.arange(2 * 3 * 4 * 5, dtype=np.int8).reshape(2, 3, 4, 5)
    stored = to_stored(codes)
    assert stored.shape == (2, 4, 5, 3)
    assert stored[1, 2, 3, 1] == codes[1, 1, 2, 3]
    assert np.array_equal(from_stored(stored.reshape(2, -1), (3, 4, 5)), codes)
    flat = np.zeros((2, 7), np.int8)
    assert to_stored(flat) is flat


def test_quantize_divides_and_rounds_to_even(nets: Any, kernels: HostLibrary) -> None:
    """A million reals and all half-way points: the C quantizes as the oracle does."""
    graph = nets.tiny()
    oracle, n = Oracle(graph), 128
    scale = graph.activations["input"].scale
    rng = np.random.default_rng(0)
    half = (np.arange(-300, 300) + np.float32(0.5)).astype(np.float32) * scale
    x = np.concatenate([half, half * np.float32(1 + 2**-23), rng.uniform(-6, 6, 1_000_000 // n * n - 1200)])
    for row in x.astype(np.float32)[: len(x) // n * n].reshape(-1, n):
        got = kernels.quantize(row)
        want = to_stored(oracle.quantize(row.reshape(1, 8, 8, 2).transpose(0, 3, 1, 2)))
        assert np.array_equal(got, want.ravel())


def test_a_poisoned_arena_changes_nothing_and_a_second_run_is_not_the_first(nets: Any) -> None:
    graph = nets.tiny()
    debug = HostLibrary(graph, flags=["-DQUL_DEBUG"])
    codes = Oracle(graph).quantize(nets.inputs(graph, 50))
    want = debug.run(codes)
    debug.poison()
    assert np.array_equal(debug.run(codes), want)


def test_another_blob_of_the_same_layout_needs_no_compiler(
    nets: Any, kernels: HostLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    other = HostLibrary(nets.tiny(seed=7), like=kernels)
    codes = Oracle(other.graph).quantize(nets.inputs(other.graph, 20))
    assert np.array_equal(other.run(codes), Oracle(other.graph).run(nets_real(other.graph, codes)))
    assert not np.array_equal(other.run(codes), kernels.run(codes))


def test_excess_precision_and_fast_math_are_refused(nets: Any) -> None:
    """Trap 4."""
    for flags in (["-mfpmath=387"], ["-ffast-math"]):
        with pytest.raises(VerificationError, match="excess precision or fast-math"):
            HostLibrary(nets.tiny(), flags=flags)


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        ("0x4B400000", "0x4B400001"),
        ("qul_bits(v + QUL_MAGIC)", "qul_bits((v * 2.0f + QUL_MAGIC - QUL_MAGIC) * 0.5f + QUL_MAGIC)"),
    ],
    ids=["off by one", "rounded twice"],
)
def test_a_wrong_kernel_is_found_and_the_layer_named(
    nets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rule: str, other: str
) -> None:
    """Another rounding in the runtime, also that of fixed-point kernels which round to halves first: seen at once."""
    graph = nets.tiny()
    assert check_host(graph, check_inputs(graph, 1)).mismatches == 0
    shutil.copytree(codegen.runtime(), tmp_path / "runtime")
    header = tmp_path / "runtime" / "qul_rt.h"
    text = header.read_text()
    assert rule in text
    header.write_text(text.replace(rule, other))
    monkeypatch.setattr(codegen, "runtime", lambda: tmp_path / "runtime")
    with pytest.raises(VerificationError, match="at layer 'conv1'"):
        check_host(graph, check_inputs(graph, 1))


def test_compilers(monkeypatch: pytest.MonkeyPatch, nets: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "gcc -m64")
    assert find_compiler() == ("gcc", "-m64")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match="CC names 'no-such-compiler'"):
        HostLibrary(nets.tiny())
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="no C compiler"):
        HostLibrary(nets.tiny())


def test_wrong_inputs(nets: Any, kernels: HostLibrary) -> None:
    with pytest.raises(DataError, match="int8"):
        kernels.run_batch(np.zeros((2, 8, 8, 2), np.float32))
    with pytest.raises(DataError, match="not 2 inputs of 128"):
        kernels.run_batch(np.zeros((2, 8, 8, 3), np.int8))
    with pytest.raises(ConfigError, match="no taps"):
        kernels.run_all(np.zeros((2, 2, 8, 8), np.int8))
    with pytest.raises(UnsupportedError, match="no C kernel"):
        HostLibrary(nets.random("matmul4", np.random.default_rng(0)).graph)
