"""The delta body: the worked example, random pairs, sizes, and everything that a decoder must refuse."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from delta_cases import EXAMPLE_BODY, Pair, blob, example, layout, random_pair, uniform

from qunlearn_export import delta
from qunlearn_export.errors import ArtefactError


def test_worked_example_byte_for_byte():
    pair = example()
    assert delta.encode(pair.old, pair.new, pair.layout) == EXAMPLE_BODY
    assert delta.decode(pair.old, EXAMPLE_BODY, pair.layout) == pair.new


def test_a_thousand_random_pairs_come_back():
    modes = set()
    for seed in range(1000):
        pair = random_pair(seed)
        body = delta.encode(pair.old, pair.new, pair.layout)
        assert delta.decode(pair.old, body, pair.layout) == pair.new, seed
        modes |= {(h >> 6, h >> 4 & 3) for h in heads(pair, body)}
    # every section in every coding was met
    assert modes == {(s, m) for s in range(4) for m in range(4)}


def heads(pair: Pair, body: bytes) -> list[int]:
    """First byte of every record, found by decoding prefixes: a record is whole when the next one is at fault."""
    seen: list[int] = []

    class Spy(delta._Reader):
        def byte(self) -> int:
            self.fresh = self.at
            return super().byte()

        def varint(self) -> int:
            return super().varint()

    original, delta._Reader = delta._Reader, Spy
    try:
        delta.decode(pair.old, body, pair.layout)
    finally:
        delta._Reader = original
    return seen


def test_equal_blobs_give_an_empty_delta():
    pair = random_pair(3)
    body = delta.encode(pair.old, pair.old, pair.layout)
    assert body == struct.pack("<4sIII", b"QUD1", len(pair.old), 0, 0)
    assert delta.decode(pair.old, body, pair.layout) == pair.old
