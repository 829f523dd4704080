"""The delta body of an update: what turns the old blob into the new one, in few bytes and with few instructions.

A blob is four sections W (int8), B (int32), M (float32 seen as int32 bits), P (int8). The body is a header and byte
aligned records; a record covers a range of one section and codes the changed elements in it by Rice codes (unchanged
elements before each, sign, magnitude), or the new values as they are. The starting point of B is the old bias plus what
the changed weights do to it (bias folding), so that only the remainder is coded.

Rice codes are R. F. Rice's (JPL publication 79-22, 1979); record layout, folding and the encoder's search are our own
choice. The decoder is in this file; the encoder's search is in ``delta_search``. The C applier decodes the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qunlearn_export.delta_search import MAX_QUOTIENT, Section, best_records
from qunlearn_export.errors import ArtefactError

if TYPE_CHECKING:
    from qunlearn_export.layout import Fold, Layout

MAGIC = b"QUD1"
HEADER = struct.Struct("<4sIII")
SECTIONS = "WBMP"
_WIDTHS = (1, 4, 4, 1)
_TYPES = ("<i1", "<u4", "<u4", "<i1")

Values: TypeAlias = NDArray[np.int64]


def decode(old: bytes, body: bytes, layout: Layout) -> bytes:
    """The new blob, byte for byte.

    ``old`` is the blob that the body was made against (the caller has compared its digest), ``body`` comes from
    :func:`encode` of this or another implementation. Raises ArtefactError for everything that is not canonical: the
    decoder accepts one reading only, and never more work than the body's length allows.
    """
    total = blob_bytes(layout.sizes)
    if len(old) != total:
        raise _bad(f"the old blob has {len(old)} bytes, the layout {total}")
    if len(body) < HEADER.size:
        raise _bad("the header is cut off")
    magic, size, records, zero = HEADER.unpack_from(body)
    if magic != MAGIC or zero != 0:
        raise _bad("the header is not that of a delta")
    if size != total:
        raise _bad(f"it is for a blob of {size} bytes, the layout has {total}")
    sections = split(old, layout.sizes)
    zeros = sections[3].copy()
    reader = _Reader(body, HEADER.size)
    section, end = 0, 0
    for _ in range(records):
        head = reader.byte()
        k, mag, which = head & 15, head >> 4 & 3, head >> 6
        if which < section:
            raise _bad("sections are not in order")
        while section < which:
            section, end = section + 1, 0
        e = j = 0
        if mag in (1, 2):
            e, j = reader.byte(), reader.byte()
            if e > 15 or j > 31 or (mag == 2 and e):
                raise _bad("a parameter is out of range")
        start = end + reader.varint()
        length = reader.varint() + 1
        end = start + length
        if end > layout.sizes[section]:
            raise _bad("a record ends behind its section")
        values = sections[section]
        if mag == 3:
            if k:
                raise _bad("a reserved bit is set")
            raw = reader.take(length * _WIDTHS[section])
            values[start:end] = np.frombuffer(raw, dtype=_TYPES[section])
            continue
        where, by = reader.changes(length, k=k, mag=mag, e=e, j=j)
        where += start
        if section in (1, 2):
            values[where] = (values[where] + by) % 2**32
            continue
        values[where] += by
        if values[where].min() < -128 or values[where].max() > 127:
            raise _bad("a code leaves the range of int8")
        if section == 0:
            _fold(sections[1], where, by, zeros, layout.folds)
    if reader.at != len(body):
        raise _bad(f"{len(body) - reader.at} bytes are left over")
    return join(sections)


def encode(old: bytes, new: bytes, layout: Layout) -> bytes:
    """A small body with ``decode(old, body, layout) == new``; the same blobs give the same bytes.

    ``old`` and ``new`` are blobs of this layout. Raises ArtefactError when a length is not the layout's.
    """
    total = blob_bytes(layout.sizes)
    for name, blob in (("old", old), ("new", new)):
        if len(blob) != total:
            raise _bad(f"the {name} blob has {len(blob)} bytes, the layout {total}")
    bodies = [_encode(old, new, layout, raw) for raw in (True, False)]
    return min(bodies, key=len)


def _encode(old: bytes, new: bytes, layout: Layout, raw_weights: bool) -> bytes:
    """The body with or without raw records in W (which save bytes there and cost the folding of their channels)."""
    before, after = split(old, layout.sizes), split(new, layout.sizes)
    out: list[bytes] = []
    for s, name in enumerate(SECTIONS):
        diff = after[s] - before[s]
        if s in (1, 2):
            diff = (diff + 2**31) % 2**32 - 2**31
        cuts = tuple(sorted({e.offset for e in layout.entries if e.section == name}))
        part = Section(index=s, diff=diff, new=after[s].astype(_TYPES[s]), cuts=cuts, raw=raw_weights or s > 0)
        for record in best_records(part):
            out.append(record.data)
            if s == 0 and not record.raw:
                where = np.flatnonzero(diff[record.start : record.end]) + record.start
                _fold(before[1], where, diff[where], before[3], layout.folds)
    return HEADER.pack(MAGIC, blob_bytes(layout.sizes), len(out), 0) + b"".join(out)


def blob_bytes(sizes: tuple[int, int, int, int]) -> int:
    """Bytes of a blob with these numbers of elements."""
    return sum(n * w for n, w in zip(sizes, _WIDTHS, strict=True))


def split(blob: bytes, sizes: tuple[int, int, int, int]) -> list[Values]:
    """The four sections as int64; B and M as unsigned 32-bit patterns."""
    out, at = [], 0
    for n, w, t in zip(sizes, _WIDTHS, _TYPES, strict=True):
        out.append(np.frombuffer(blob, dtype=t, count=n, offset=at).astype(np.int64))
        at += n * w
    return out


def join(sections: Iterable[Values]) -> bytes:
    """The inverse of :func:`split`."""
    return b"".join(v.astype(t).tobytes() for v, t in zip(sections, _TYPES, strict=True))


def _fold(bias: Values, where: Values, by: Values, zeros: Values, folds: Iterable[Fold]) -> None:
    """Add ``-z_x d`` to the bias of every changed weight's channel, modulo 2^32, in place."""
    for f in folds:
        lo, hi = np.searchsorted(where, (f.weight, f.weight + f.count))
        if lo == hi:
            continue
        i = where[lo:hi] - f.weight
        channel = i // f.inner if f.inner else i % f.channels
        shift = np.zeros(f.channels, dtype=np.int64)
        np.add.at(shift, channel, by[lo:hi])
        here = slice(f.bias, f.bias + f.channels)
        bias[here] = (bias[here] - int(zeros[f.zero]) * shift) % 2**32


def _bad(text: str) -> ArtefactError:
    return ArtefactError(f"the delta cannot be applied: {text}.", remedy="Fetch the update again from its maker.")


class _Reader:
    """Reads bytes, varints and bit streams from ``at`` on; every read is bounds-checked."""

    def __init__(self, body: bytes, at: int) -> None:
        self.body, self.at = body, at
        self._bits: str | None = None

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, n: int) -> bytes:
        if n > len(self.body) - self.at:
            raise _bad("it is cut off")
        self.at += n
        return self.body[self.at - n : self.at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            b = self.byte()
            value |= (b & 127) << shift
            if b < 128:
                if (shift and b == 0) or value >= 2**32:
                    raise _bad("a number is not written in its shortest form")
                return value
        raise _bad("a number is too long")

    def changes(self, length: int, *, k: int, mag: int, e: int, j: int) -> tuple[Values, Values]:
        """Positions relative to the record's start and differences, in order."""
        count = self.varint()
        if not 1 <= count <= length:
            raise _bad("a count is out of range")
        if self._bits is None:
            self._bits = (np.unpackbits(np.frombuffer(self.body, dtype=np.uint8)) + 48).tobytes().decode("ascii")
        s, at = self._bits, self.at * 8

        def rice(n: int, bound: int) -> int:
            nonlocal at
            stop = s.find("0", at)
            if stop < 0 or stop + n >= len(s):
                raise _bad("it is cut off")
            quotient = stop - at
            if quotient > bound:
                raise _bad("a code word is too long")
            at = stop + 1 + n
            return quotient << n | int(s[stop + 1 : at], 2) if n else quotient

        most_gap, most_run, position = (length - 1) >> k, count >> e, -1
        run = rice(e, most_run) if mag == 1 else 0
        where, by = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        for i in range(count):
            position += 1 + rice(k, most_gap)
            if position >= length:
                raise _bad("a change lies behind its record")
            if at >= len(s):
                raise _bad("it is cut off")
            negative = s[at] == "1"
            at += 1
            size = 1
            if mag == 2:
                size += rice(j, MAX_QUOTIENT)
            elif mag == 1 and run:
                run -= 1
            elif mag == 1:
                size += 1 + rice(j, MAX_QUOTIENT)
                run = rice(e, most_run)
            where[i], by[i] = position, -size if negative else size
            if size >= 2**31:
                raise _bad("a difference is too large")
        self.at = (at + 7) // 8
        if "1" in s[at : self.at * 8]:
            raise _bad("padding is not zero")
        return where, by
