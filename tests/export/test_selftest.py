"""The self-test block: generator, corner cases, oracle's answers, and refusals."""

from __future__ import annotations

import struct
from dataclasses import replace

import bundle_cases as cases
import numpy as np
import pytest

from qunlearn_export import selftest
from qunlearn_export.errors import ArtefactError, ConfigError
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.selftest import SelfTest


def test_the_generator_is_the_one_written_down():
    state, out = 16, []
    for _ in range(1000):
        state = (state ^ (state << 13)) % 2**32
        state = state ^ (state >> 17)
        state = (state ^ (state << 5)) % 2**32
        out.append(state >> 24)
    assert selftest.codes(16, 1000, 0).view(np.uint8).tolist() == out
    assert len(set(out)) > 200
    # first state after seed 16, by hand: 16 ^ 16 << 13 = 0x20010; >> 17: ^ 1 = 0x20011; << 5: ^ 0x400220 = 0x420231
    assert selftest.codes(16, 1, 0).tolist() == [0x00]
    assert selftest.codes(2**32 - 1, 1, 0).dtype == np.int8


def test_corner_cases():
    assert set(selftest.codes(0, 9, 5)) == {-128}
    assert set(selftest.codes(1, 9, 5)) == {127}
    assert set(selftest.codes(2, 9, 5)) == {5}
    assert selftest.codes(3, 4, 5).tolist() == [-128, 127, -128, 127]


@pytest.mark.parametrize("seed", [*range(4, 16), -1, 2**32])
def test_reserved_seeds(seed):
    with pytest.raises(ConfigError, match="reserved"):
        selftest.codes(seed, 3, 0)


def test_inputs_are_channel_last(nets):
    graph = nets.tiny()
    a = graph.activations[graph.input]
    given = selftest.vectors(graph, [99])
    assert given.shape == (1, *a.shape)
    flat = selftest.codes(99, int(np.prod(a.shape)), a.zero_point)
    c, _, w = a.shape
    for i in range(flat.size):
        assert given[0, i % c, i // c // w, i // c % w] == flat[i]


def test_expected_codes_are_the_oracles(nets):
    graph = nets.tiny()
    test = selftest.generate(graph)
    assert test.seeds[:4] == (0, 1, 2, 3)
    assert len(test.seeds) == 8
    assert min(test.seeds[4:]) >= 16
    x = dequantize(selftest.vectors(graph, test.seeds), graph.activations[graph.input])
    assert np.array_equal(Oracle(graph).run(x), test.expected)
    assert selftest.passed(test, graph) == 8


def test_block_round_trip_and_size(nets):
    graph = nets.tiny()
    test = selftest.generate(graph)
    block = test.to_bytes()
    assert len(block) == 8 + 8 * (4 + 5)
    assert struct.unpack_from("<HHI", block) == (8, 5, 128)
    again = SelfTest.from_bytes(block)
    assert again.seeds == test.seeds
    assert np.array_equal(again.expected, test.expected)
    assert again.to_bytes() == block


def test_vectors_that_tell_base_and_target_apart_come_first(nets):
    base = nets.tiny(seed=3)
    fc = next(x for x in base.layers if x.name == "fc")
    weight = fc.weight.copy()
    weight[0, :6] += np.where(weight[0, :6] > 0, -1, 1).astype(np.int8)
    target = nets.with_layer(base, "fc", weight=weight)
    seen = selftest.generate(target, base)
    blind = selftest.generate(target)
    told = [int((selftest.outputs(base, t.seeds[4:]) != t.expected[4:]).any(1).sum()) for t in (seen, blind)]
    assert told[0] == 4 > told[1]
    assert selftest.generate(target, base).to_bytes() == seen.to_bytes()


def test_a_changed_network_fails(nets):
    base = nets.tiny(seed=3)
    test = selftest.generate(cases.unlearned(base), base)
    assert selftest.passed(test, base) < len(test.seeds)


def test_other_shapes_pass_nothing(nets):
    graph = nets.tiny()
    test = selftest.generate(graph)
    assert selftest.passed(replace(test, inputs=127), graph) == 0
    assert selftest.passed(replace(test, expected=test.expected[:, :4]), graph) == 0


@pytest.mark.parametrize("n", [0, 4, 65])
def test_numbers_of_vectors(nets, n):
    with pytest.raises(ConfigError):
        selftest.generate(nets.tiny(), n=n)


def test_refused_blocks(nets):
    block = selftest.generate(nets.tiny()).to_bytes()
    row = 4 + 5
    bad = [
        b"",
        block[:7],
        block[:-1],
        block + b"\0",
        struct.pack("<HHI", 0, 5, 128),
        struct.pack("<HHI", 8, 0, 128) + bytes(32),
        struct.pack("<HHI", 8, 5, 0) + block[8:],
        struct.pack("<HHI", 65, 5, 128) + bytes(65 * row),
        struct.pack("<HHI", 7, 5, 128) + block[8:],
    ]
    bad += [block[:8] + struct.pack("<I", seed) + block[12:] for seed in (4, 15)]
    for one in bad:
        with pytest.raises(ArtefactError):
            SelfTest.from_bytes(one)
