"""Hostile bytes (acceptance 7): a typed error, or a file whose network is unchanged; no crash, no wrong acceptance.

Reader, ``inspect``, and for what the reader accepts the C generator."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qunlearn_export import codegen, emit, reader, runtime, writer
from qunlearn_export import graph as g
from qunlearn_export.errors import QunlearnError
from qunlearn_export.inspect import inspect

SLOW_SECONDS = 2.0


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """Bit flips, a cut, a removed or repeated stretch, or a length byte set to an extreme."""
    out = bytearray(data)
    match int(rng.integers(0, 5)):
        case 0:
            for _ in range(int(rng.integers(1, 9))):
                out[int(rng.integers(0, len(out)))] ^= 1 << int(rng.integers(0, 8))
        case 1:
            del out[int(rng.integers(0, len(out))) :]
        case 2:
            at, n = int(rng.integers(0, len(out))), int(rng.integers(1, 64))
            del out[at : at + n]
        case 3:
            at, n = int(rng.integers(0, len(out))), int(rng.integers(1, 64))
            out[at:at] = out[at : at + n]
        case _:
            for _ in range(int(rng.integers(1, 4))):
                out[int(rng.integers(0, len(out)))] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
    return bytes(out)


def attack(nets: Any, n: int, seed: int) -> dict[str, int]:
    graph = nets.tiny()
    files = [writer.serialize(graph, io=io, form=form) for io in ("float", "int8") for form in ("qdq", "qop")]
    rng = np.random.default_rng(seed)
    counts = {"refused": 0, "same": 0}
    for i in range(n):
        data = mutant(files[i % len(files)], rng)
        start = time.perf_counter()
        try:
            found = reader.read(data)
        except QunlearnError:
            counts["refused"] += 1
        else:
            # what the digest covers is intact; the mutation touched free text, or an attribute that fits as well
            assert found.codes_digest() == graph.codes_digest()
            counts["same"] += 1
            with contextlib.suppress(QunlearnError):
                options = codegen.Options(boards=("host",), vectors=4)
                text = codegen.generate(codegen.site(found), options)["model.c"].decode()
                assert text.isascii()
        with contextlib.suppress(QunlearnError):
            inspect(data)
        assert time.perf_counter() - start < SLOW_SECONDS, "a hostile file takes long"
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files(nets: Any, seed: int) -> None:
    counts = attack(nets, 120, seed)
    assert counts["refused"] > 80


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_mutated_files(nets: Any) -> None:
    counts = attack(nets, 10_000, 99)
    assert counts["refused"] > 7_000


def test_random_bytes_are_refused(nets: Any) -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 10, 1000, 20_000):
        data = rng.integers(0, 256, n).astype(np.uint8).tobytes()
        assert runtime.file_kind(data) == ""
        assert runtime.classify(data).form == "float"
        for reads in (reader.read, inspect, runtime.make_session):
            with pytest.raises(QunlearnError):
                reads(data)


@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_every_truncation_is_refused(nets: Any, form: str) -> None:
    data = writer.serialize(nets.tiny(), form=form)
    for n in range(0, len(data), 97):
        with pytest.raises(QunlearnError):
            reader.read(data[:n])


def test_claims_of_size_take_no_memory(nets: Any) -> None:
    """Huge dimensions in small files are refused before anything of that size is made."""

    def dims(m: onnx.ModelProto) -> None:
        m.graph.initializer[2].dims[:] = [2**30, 2**30]

    def shape(m: onnx.ModelProto) -> None:
        for value in (*m.graph.value_info, *m.graph.input):
            for d in value.type.tensor_type.shape.dim[2:]:
                d.dim_value = 2**40

    def window(m: onnx.ModelProto) -> None:
        n = next(n for n in m.graph.node if n.op_type.endswith("AveragePool") and n.attribute)
        next(a for a in n.attribute if a.name == "kernel_shape").ints[:] = [2**20, 2**20]
        next(a for a in n.attribute if a.name == "pads").ints[:] = [2**20 - 1] * 4

    for form, edit in itertools.product(("qdq", "qop"), (dims, shape, window)):
        model = writer.to_model(nets.tiny(), form=form)
        edit(model)
        data = model.SerializeToString()
        tracemalloc.start()
        try:
            with pytest.raises(QunlearnError):
                reader.read(data)
            assert tracemalloc.get_traced_memory()[1] < 2**20 + 30 * len(data)
        finally:
            tracemalloc.stop()


def pool(nets: Any, shape: tuple[int, ...], kernel: tuple[int, ...] | None, pad: int) -> g.Graph:
    common = {"name": "a", "inputs": ("input",), "output": "a.out"}
    if kernel is None:
        return nets.graph(nets.act("input", shape, 0.02, 3), (g.GlobalAveragePool(**common), 0.0213, 3))
    window = {"kernel": kernel, "strides": (1,) * len(kernel), "pads": (pad,) * (2 * len(kernel))}
    return nets.graph(nets.act("input", shape, 0.02, 3), (g.AveragePool(**common, **window), 0.0213, 3))


def many_sums(nets: Any, n: int) -> g.Graph:
    steps = [(g.Requant(name="r", inputs=("input",), output="r.out", relu=True), 0.021, -128)]
    for i in range(n):
        source = steps[-1][0].output
        steps.append((g.Add(name=f"a{i}", inputs=(source, source), output=f"a{i}.out"), 0.021, 0))
    return nets.graph(nets.act("input", (1,), 0.02, 3), *steps)


def unchecked(graph: g.Graph, form: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes of a network that the writer itself refuses."""
    with monkeypatch.context() as m:
        m.setattr(emit, "problems", lambda graph: [])
        return writer.serialize(graph, form=form)


@pytest.mark.parametrize("form", ["qdq", "qop"])
@pytest.mark.parametrize("case", ["mean over a large image", "windows of many sizes", "a long line", "many sums"])
def test_small_files_cannot_ask_for_much_work(nets: Any, case: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = {
        "mean over a large image": lambda: pool(nets, (1, 2**8, 2**8), None, 0),
        "windows of many sizes": lambda: pool(nets, (1, 200, 200), (200, 200), 199),
        "a long line": lambda: pool(nets, (1, 2**26 - 2), (3,), 1),
        "many sums": lambda: many_sums(nets, 600),
    }[case]()
    data = unchecked(graph, form, monkeypatch)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with contextlib.nullcontext() if case == "a long line" else pytest.raises(QunlearnError, match="combinations"):
            reader.read(data)
        assert time.perf_counter() - start < SLOW_SECONDS
        assert tracemalloc.get_traced_memory()[1] < 2**23 + 40 * len(data)
    finally:
        tracemalloc.stop()


MEMORY = """
import sys
from qunlearn_export import reader
from qunlearn_export.errors import QunlearnError

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

try:
    reader.read(sys.argv[1])
except QunlearnError:
    pass
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
try:
    reader.read(sys.argv[2])
    print("read", end=" ")
except QunlearnError:
    print("refused", end=" ")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_reading_takes_at_most_four_times_the_file(nets: Any, tmp_path: Path, form: str) -> None:
    """Whole-process peak, sound and with one changed code, on a file of 16 MB."""
    n = 4096
    weight = np.random.default_rng(0).integers(-127, 128, (n, n)).astype(np.int8)
    numbers = {"weight": weight, "weight_scale": np.full(n, 3e-3, np.float32), "bias": np.zeros(n, np.int32)}
    layer = g.Gemm(name="fc", inputs=("input",), output="fc.out", **numbers)
    data = writer.serialize(nets.graph(nets.act("input", (n,), 0.02, 3), (layer, 3.0, 0)), form=form)
    at = data.index(weight.tobytes()[:64])
    bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    (tmp_path / "small.onnx").write_bytes(writer.serialize(nets.tiny(), form=form))
    for name, content, want in (("good", data, "read"), ("bad", bad, "refused")):
        (tmp_path / name).write_bytes(content)
        argv = [sys.executable, "-c", MEMORY, tmp_path / "small.onnx", tmp_path / name]
        done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outcome, peak = done.stdout.split()
        assert outcome == want
        assert int(peak) <= 4 * len(data)
