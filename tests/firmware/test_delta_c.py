"""The C applier of deltas against the Python decoder: the same blobs, and the same refusals."""

from __future__ import annotations

import numpy as np
import pytest
from clib import Delta
from delta_cases import EXAMPLE_BODY, example, layout, random_pair, uniform
from test_delta import REFUSED

from qunlearn_export import delta
from qunlearn_export.errors import ArtefactError


def test_worked_example(c_delta: Delta):
    pair = example()
    assert c_delta(pair.old, EXAMPLE_BODY, pair.layout) == pair.new
    assert c_delta(pair.old, EXAMPLE_BODY, pair.layout, page=4) == pair.new


def test_a_thousand_random_pairs_come_back(c_delta: Delta):
    for seed in range(1000):
        pair = random_pair(seed)
        body = delta.encode(pair.old, pair.new, pair.layout)
        assert c_delta(pair.old, body, pair.layout, page=(4, 16, 64, 4096)[seed % 4]) == pair.new, seed


def test_empty_delta_and_clustered_changes(c_delta: Delta):
    pair = random_pair(3)
    assert c_delta(pair.old, delta.encode(pair.old, pair.old, pair.layout), pair.layout) == pair.old
    for share, block in ((0.1, 1.0), (0.01, 0.02)):
        pair = uniform(300_000, share, block=block)
        assert c_delta(pair.old, delta.encode(pair.old, pair.new, pair.layout), pair.layout) == pair.new


@pytest.mark.parametrize("name", REFUSED)
def test_refused(c_delta: Delta, name: str):
    body, shape = REFUSED[name]
    old = example().old if shape == example().layout else bytes(delta.blob_bytes(shape.sizes))
    assert c_delta(old, body, shape) == 14


def test_mutated_bodies_get_the_python_decoders_answer(c_delta: Delta):
    rng = np.random.default_rng(11)
    refused = 0
    pairs = [random_pair(seed) for seed in range(100)]
    bodies = [delta.encode(p.old, p.new, p.layout) for p in pairs]
    for seed in range(3000):
        pair, body = pairs[seed % 100], bytearray(bodies[seed % 100])
        for _ in range(rng.integers(1, 4)):
            body[rng.integers(len(body))] ^= 1 << rng.integers(8)
        if rng.random() < 0.1:
            body = body[: rng.integers(len(body))]
        try:
            expected: bytes | int = delta.decode(pair.old, bytes(body), pair.layout)
        except ArtefactError:
            expected = 14
            refused += 1
        assert c_delta(pair.old, bytes(body), pair.layout, page=16) == expected, seed
    assert 1000 < refused < 2990


def test_a_failing_page_ends_the_work_with_its_code(c_delta: Delta):
    pair = uniform(300_000, 0.01)
    body = delta.encode(pair.old, pair.new, pair.layout)
    assert c_delta(pair.old, body, pair.layout, page=1024, fail_at=8192) == 20
    assert c_delta(pair.old, body, pair.layout, page=1024, fail_at=299_008) == 20


def test_a_layout_table_that_is_not_sound_is_refused(c_delta: Delta):
    pair = example()
    (fold,) = pair.layout.folds
    for name, value in (("weight", 1), ("count", 9), ("channels", 3), ("inner", 3), ("bias", 1), ("zero", 2)):
        changed = type(fold)(**{**vars(fold), name: value})
        assert c_delta(pair.old, EXAMPLE_BODY, layout((8, 2, 0, 2), (changed,))) == 14, name
    assert c_delta(pair.old, EXAMPLE_BODY, layout((8, 2, 0, 2), (fold, fold))) == 14
