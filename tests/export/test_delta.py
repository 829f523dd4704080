"""The delta body: the worked example, random pairs, sizes, and everything that a decoder must refuse."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from delta_cases import EXAMPLE_BODY, blob, example, layout, random_pair, uniform

from qunlearn_export import delta
from qunlearn_export.errors import ArtefactError
from qunlearn_export.layout import Fold, Layout


def slow_decode(old: bytes, body: bytes, shape: Layout) -> tuple[bytes, set[tuple[int, int]]]:
    """The format's description read bit by bit, element by element; also which (section, mag) occurred."""
    sizes, values, at = shape.sizes, [], 0
    for n, letter in zip(sizes, "bIIb", strict=True):
        values.append(list(struct.unpack_from(f"<{n}{letter}", old, at)))
        at += struct.calcsize(f"<{n}{letter}")
    zeros, seen = list(values[3]), set()
    position, previous, end = 16, 0, 0

    def byte() -> int:
        nonlocal position
        position += 1
        return body[position - 1]

    def varint() -> int:
        value = shift = 0
        while True:
            b = byte()
            value |= (b & 127) << shift
            shift += 7
            if b < 128:
                return value

    def bits() -> Iterator[int]:
        while True:
            b = byte()
            yield from ((b >> i) & 1 for i in range(7, -1, -1))

    for _ in range(struct.unpack_from("<I", body, 8)[0]):
        h = byte()
        k, mag, section = h & 15, h >> 4 & 3, h >> 6
        seen.add((section, mag))
        e, j = (byte(), byte()) if mag in (1, 2) else (0, 0)
        end = end if section == previous else 0
        previous = section
        start = end + varint()
        end = start + varint() + 1
        if mag == 3:
            letter = "bIIb"[section]
            size = struct.calcsize(f"<{end - start}{letter}")
            values[section][start:end] = struct.unpack_from(f"<{end - start}{letter}", body, position)
            position += size
            continue
        count, stream = varint(), bits()

        def rice(n: int, stream: Iterator[int] = stream) -> int:
            q = 0
            while next(stream):
                q += 1
            for _ in range(n):
                q = 2 * q + next(stream)
            return q

        r, i = rice(e) if mag == 1 else 0, start - 1
        for _ in range(count):
            i += 1 + rice(k)
            sign = -1 if next(stream) else 1
            d = 1
            if mag == 2:
                d += rice(j)
            elif mag == 1 and r == 0:
                d = 2 + rice(j)
                r = rice(e)
            elif mag == 1:
                r -= 1
            values[section][i] += sign * d
            if section in (1, 2):
                values[section][i] %= 2**32
            for f in shape.folds if section == 0 else ():
                if f.weight <= i < f.weight + f.count:
                    own = i - f.weight
                    slot = f.bias + (own // f.inner if f.inner else own % f.channels)
                    values[1][slot] = (values[1][slot] - zeros[f.zero] * sign * d) % 2**32
    assert position == len(body)
    return b"".join(struct.pack(f"<{len(v)}{letter}", *v) for v, letter in zip(values, "bIIb", strict=True)), seen


def test_worked_example_byte_for_byte():
    pair = example()
    assert delta.encode(pair.old, pair.new, pair.layout) == EXAMPLE_BODY
    assert delta.decode(pair.old, EXAMPLE_BODY, pair.layout) == pair.new
    assert slow_decode(pair.old, EXAMPLE_BODY, pair.layout)[0] == pair.new


def test_a_thousand_random_pairs_come_back():
    seen = set()
    for seed in range(1000):
        pair = random_pair(seed)
        body = delta.encode(pair.old, pair.new, pair.layout)
        assert delta.decode(pair.old, body, pair.layout) == pair.new, seed
        slow, modes = slow_decode(pair.old, body, pair.layout)
        assert slow == pair.new, seed
        seen |= modes
    assert seen == {(s, m) for s in range(4) for m in range(4)}  # every section was met in every coding


def test_equal_blobs_give_an_empty_delta():
    pair = random_pair(3)
    body = delta.encode(pair.old, pair.old, pair.layout)
    assert body == struct.pack("<4sIII", b"QUD1", len(pair.old), 0, 0)
    assert delta.decode(pair.old, body, pair.layout) == pair.old


def test_multipliers_are_bits_not_numbers():
    values = np.array([0.0, -0.0, 1.0, 0.99999994, 2.0, 1.9999999, 1e-38, 0.25], dtype=np.float32)
    nan = np.array([0x7FC00001, 0xFFC00000], dtype=np.uint32)
    bits = np.concatenate((values.view(np.uint32), nan))
    shape = layout((0, 0, bits.size, 0))
    for turn in range(bits.size):
        old, new = blob([], [], bits, []), blob([], [], np.roll(bits, turn), [])
        assert delta.decode(old, delta.encode(old, new, shape), shape) == new


def test_the_difference_that_only_a_raw_record_can_say():
    shape = layout((0, 3, 0, 0))
    old, new = blob([], [0, 5, 7], [], []), blob([], [-(2**31), 5, 8], [], [])
    assert delta.decode(old, delta.encode(old, new, shape), shape) == new


@pytest.mark.parametrize(
    ("share", "block", "bar", "measured_before"),
    [(0.001, 1.0, 1.10, 492), (0.01, 1.0, 1.05, 3439), (0.1, 1.0, 1.05, 21612), (0.01, 0.02, None, 1149)],
)
def test_size_against_entropy(share, block, bar, measured_before):
    pair = uniform(300_000, share, block=block)
    body = len(delta.encode(pair.old, pair.new, pair.layout))
    assert body <= 1.01 * measured_before
    if bar is not None:
        n, changed = 300_000, round(300_000 * share)
        positions = (math.lgamma(n + 1) - math.lgamma(changed + 1) - math.lgamma(n - changed + 1)) / math.log(2)
        assert body <= bar * (positions + changed) / 8


def test_smaller_than_every_other_tool_of_the_table():
    """The recorded sizes of other tools, each column; this format's are measured anew above."""
    table = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "delta.json").read_text())["made_up"]
    assert len(table) == 5
    for column, sizes in table.items():
        others = {name: n for name, n in sizes.items() if not name.startswith(("entropy", "this format"))}
        assert {"gaps as varint, zlib", "bsdiff (bz2)", "zstd -19 --patch-from", "xdelta3 -9 lzma"} < set(others)
        assert sizes["this format"] < min(others.values()), column


def test_folding_halves_what_the_biases_cost():
    """1 % of 300,000 weights of 1,000 channels: the delta with folding is far smaller than with plain biases."""
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, 300_000)
    v = w.copy()
    where = rng.choice(w.size, 3000, replace=False)
    v[where] += np.where(v[where] > 0, -1, 1)
    shift = (v - w).reshape(1000, 300).sum(1)
    bias = rng.integers(-5000, 5000, 1000)
    moved = (rng.random(1000) < 0.05) * rng.choice([-1, 1], 1000)  # a few bias codes move too
    old, new = blob(w, bias, [], [-128]), blob(v, bias + 128 * shift + moved, [], [-128])
    fold = Fold(weight=0, count=300_000, channels=1000, inner=300, bias=0, zero=0)
    sizes = (300_000, 1000, 0, 1)
    with_fold = len(delta.encode(old, new, layout(sizes, (fold,))))
    without = len(delta.encode(old, new, layout(sizes)))
    weights = len(delta.encode(blob(w, [], [], []), blob(v, [], [], []), layout((300_000, 0, 0, 0))))
    assert weights < with_fold < weights + 100
    assert without > weights + 1000


def change(body: bytes, at: int, *values: int) -> bytes:
    return body[:at] + bytes(values) + body[at + len(values) :]


W8 = layout((8, 0, 0, 0))
BIG = layout((2**20, 4, 4, 16))


def one(record: bytes, shape: Layout) -> bytes:
    return struct.pack("<4sIII", b"QUD1", delta.blob_bytes(shape.sizes), 1, 0) + record


REFUSED = {
    "empty": (b"", W8),
    "header cut": (EXAMPLE_BODY[:15], example().layout),
    "magic": (change(EXAMPLE_BODY, 0, 0x52), example().layout),
    "blob bytes": (change(EXAMPLE_BODY, 4, 0x13), example().layout),
    "last word": (change(EXAMPLE_BODY, 12, 1), example().layout),
    "one record more": (change(EXAMPLE_BODY, 8, 3), example().layout),
    "one record less": (change(EXAMPLE_BODY, 8, 1), example().layout),
    "cut by a byte": (EXAMPLE_BODY[:-1], example().layout),
    "a byte too many": (EXAMPLE_BODY + b"\0", example().layout),
    "padding bit": (change(EXAMPLE_BODY, 32, 0x11), example().layout),
    "sections decrease": (
        struct.pack("<4sIII", b"QUD1", 18, 2, 0) + EXAMPLE_BODY[24:] + EXAMPLE_BODY[16:24],
        example().layout,
    ),
    "e with mag 2": (change(EXAMPLE_BODY, 17, 1), example().layout),
    "e over 15": (one(bytes([0x10, 16, 0, 0, 0, 1, 0]), W8), W8),
    "j over 31": (one(bytes([0x20, 0, 32, 0, 0, 1, 0, 0, 0, 0, 0]), W8), W8),
    "k with raw": (one(bytes([0x31, 0, 0, 5]), W8), W8),
    "gap not minimal": (one(bytes([0x00, 0x80, 0, 0, 1, 0]), W8), W8),
    "length not minimal": (one(bytes([0x00, 0, 0x80, 0, 1, 0]), W8), W8),
    "count not minimal": (one(bytes([0x00, 0, 0, 0x81, 0, 0]), W8), W8),
    "number over 32 bits": (one(bytes([0x00, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1, 0]), W8), W8),
    "number of 6 bytes": (one(bytes([0x00, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0, 1, 0]), W8), W8),
    "start behind the section": (one(bytes([0x00, 8, 0, 1, 0]), W8), W8),
    "end behind the section": (one(bytes([0x00, 1, 7, 1, 0]), W8), W8),
    "raw behind the section": (one(bytes([0x30, 1, 7, *range(8)]), W8), W8),
    "raw cut": (one(bytes([0x30, 0, 7, *range(7)]), W8), W8),
    "count 0": (one(bytes([0x00, 0, 7, 0, 0]), W8), W8),
    "count over length": (one(bytes([0x00, 0, 0, 2, 0]), W8), W8),
    "gap quotient": (one(bytes([0x00, 0, 1, 1, 0b11000000]), W8), W8),
    "position behind the record": (one(bytes([0x02, 0, 2, 1, 0b01100000]), W8), W8),
    "run quotient": (one(bytes([0x10, 0, 0, 0, 1, 2, 0b11100000]), W8), W8),
    "magnitude quotient": (one(bytes([0x60, 0, 0, 0, 0, 1, 0x3F, *[0xFF] * 128, 0]), BIG), BIG),
    "magnitude of 2^31": (one(bytes([0x60, 0, 31, 0, 0, 1, 0b00011111, *[0xFF] * 3, 0b11100000]), BIG), BIG),
    "over int8": (one(bytes([0x20, 0, 0, 0, 0, 1, 0x3F, *[0xFF] * 16, 0]), W8), W8),
    "section empty": (one(bytes([0x40, 0, 0, 1, 0]), W8), W8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    body, shape = REFUSED[name]
    old = example().old if shape == example().layout else bytes(delta.blob_bytes(shape.sizes))
    with pytest.raises(ArtefactError, match="delta cannot be applied"):
        delta.decode(old, body, shape)


def test_the_hand_written_records_are_refused_for_what_they_say():
    """The same records without the fault decode: the refusals above are not by accident."""
    fine = {
        bytes([0x00, 0, 0, 1, 0]): W8,
        bytes([0x00, 7, 0, 1, 0]): W8,
        bytes([0x30, 0, 7, *range(8)]): W8,
        bytes([0x00, 0, 1, 1, 0b10000000]): W8,
        bytes([0x02, 0, 2, 1, 0b01000000]): W8,
        bytes([0x10, 0, 0, 0, 1, 2, 0b11000000]): W8,
        bytes([0x60, 0, 0, 0, 0, 1, 0x3F, *[0xFF] * 127, 0b11000000]): BIG,
        bytes([0x60, 0, 31, 0, 0, 1, 0b00001111, *[0xFF] * 3, 0b11000000]): BIG,
    }
    for record, shape in fine.items():
        old = bytes(delta.blob_bytes(shape.sizes))
        assert delta.decode(old, one(record, shape), shape) == slow_decode(old, one(record, shape), shape)[0]


def test_wrong_old_blob_length():
    pair = example()
    with pytest.raises(ArtefactError, match="17 bytes"):
        delta.decode(pair.old[:-1], EXAMPLE_BODY, pair.layout)
    with pytest.raises(ArtefactError, match="17 bytes"):
        delta.encode(pair.old, pair.new[:-1], pair.layout)


def test_mutated_bodies_are_refused_or_decode_like_the_description():
    rng = np.random.default_rng(7)
    refused = 0
    for seed in range(300):
        pair = random_pair(seed)
        body = bytearray(delta.encode(pair.old, pair.new, pair.layout))
        for _ in range(rng.integers(1, 4)):
            body[rng.integers(len(body))] ^= 1 << rng.integers(8)
        try:
            found = delta.decode(pair.old, bytes(body), pair.layout)
        except ArtefactError:
            refused += 1
            continue
        assert found == slow_decode(pair.old, bytes(body), pair.layout)[0]
    assert refused > 100
