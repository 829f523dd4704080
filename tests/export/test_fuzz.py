"""Hostile bytes (acceptance 7): a typed error, or a file whose network is unchanged; no crash, no wrong acceptance."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from typing import Any

import numpy as np
import onnx
import pytest

from qunlearn_export import codegen, reader, runtime, writer
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
    files = [writer.serialize(graph, io=io) for io in ("float", "int8")]
    rng = np.random.default_rng(seed)
    counts = {"refused": 0, "same": 0}
    for i in range(n):
        data = mutant(files[i % 2], rng)
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


def test_every_truncation_is_refused(nets: Any) -> None:
    data = writer.serialize(nets.tiny())
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
        n = next(n for n in m.graph.node if n.op_type == "AveragePool")
        next(a for a in n.attribute if a.name == "kernel_shape").ints[:] = [2**20, 2**20]
        next(a for a in n.attribute if a.name == "pads").ints[:] = [2**20 - 1] * 4

    for edit in (dims, shape, window):
        model = writer.to_model(nets.tiny())
        edit(model)
        data = model.SerializeToString()
        tracemalloc.start()
        try:
            with pytest.raises(QunlearnError):
                reader.read(data)
            assert tracemalloc.get_traced_memory()[1] < 2**20 + 30 * len(data)
        finally:
            tracemalloc.stop()
