"""The encoder's search for a small delta: where records begin and end, and their Rice parameters.

Start with one range per tensor, or finer, trimmed to its first and last change; then join neighbours while bytes fall.
The cost of a range is exact and additive: a range keeps, for every parameter, the sum of quotients, so that joining two
needs only the gap and the run between them. The format is fixed (``delta``); this search may change.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_QUOTIENT = 1024  # of a magnitude's code word; decoders refuse longer ones
_K = np.arange(16)
_J = np.arange(32)
_GRIDS = (0, 4096, 1024, 256)
_NEVER = 2**62


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section: ``diff`` int64 per element, ``new`` in its file type, ``cuts`` where tensors begin."""

    index: int
    diff: NDArray[np.int64]
    new: NDArray[Any]
    cuts: tuple[int, ...]
    raw: bool


@dataclass(frozen=True, kw_only=True)
class Record:
    """Bytes of one record that covers elements ``start`` to ``end``."""

    start: int
    end: int
    raw: bool
    data: bytes


@dataclass(frozen=True, kw_only=True)
class _Range:
    """Elements ``start`` to ``end``, first and last one changed; the sums that costs are made of."""

    start: int
    end: int
    count: int
    gaps: NDArray[np.int64]  # [16] sum of gap >> k
    ones: NDArray[np.int64]  # [32] sum of (|d| - 1) >> j
    twos: NDArray[np.int64]  # [32] sum of (|d| - 2) >> j over |d| > 1
    larger: int  # number of |d| > 1
    runs: NDArray[np.int64]  # [16] sum of run >> e without the first and the last run
    first_run: int
    last_run: int
    most: int  # largest |d|


def best_records(section: Section) -> list[Record]:
    """The smallest records found for a section; [] when nothing changed."""
    where = np.flatnonzero(section.diff)
    if where.size == 0:
        return []
    best: list[tuple[_Range, int]] = []
    least = _NEVER
    for grid in _GRIDS:
        ranges = _join(list(_start(section, where, grid)), section)
        found = sum(cost for _, cost in ranges)
        if found < least:
            best, least = ranges, found
    out, end = [], 0
    for r, _ in best:
        out.append(_write(r, end, section))
        end = r.end
    return out


def _start(section: Section, where: NDArray[np.int64], grid: int) -> Iterator[_Range]:
    """Ranges between the cuts of the tensors and, with ``grid``, every so many elements."""
    cuts = np.asarray([c for c in section.cuts if c > 0], dtype=np.int64)
    if grid:
        cuts = np.union1d(cuts, np.arange(grid, section.diff.size, grid))
    for part in np.split(where, np.searchsorted(where, cuts)):
        if part.size:
            yield _measure(part, np.abs(section.diff[part]))


def _measure(where: NDArray[np.int64], size: NDArray[np.int64]) -> _Range:
    gaps = np.diff(where) - 1
    large = np.flatnonzero(size > 1)
    # runs of |d| = 1 before each larger change, then the rest
    edges = np.concatenate(([-1], large, [size.size]))
    runs = np.diff(edges) - 1
    return _Range(
        start=int(where[0]),
        end=int(where[-1]) + 1,
        count=int(where.size),
        gaps=(gaps[:, None] >> _K).sum(0) if gaps.size else np.zeros(16, dtype=np.int64),
        ones=(size[:, None] - 1 >> _J).sum(0),
        twos=(size[large][:, None] - 2 >> _J).sum(0),
        larger=int(large.size),
        runs=(runs[1:-1][:, None] >> _K).sum(0),
        first_run=int(runs[0]),
        last_run=int(runs[-1]),
        most=int(size.max()),
    )


def _merge(a: _Range, b: _Range) -> _Range:
    middle = a.last_run + b.first_run
    runs, first, last = a.runs + b.runs, a.first_run, b.last_run
    if a.larger and b.larger:
        runs = runs + (middle >> _K)
    elif a.larger:
        last = middle
    elif b.larger:
        first = middle
    else:
        first = last = a.count + b.count
    return _Range(
        start=a.start,
        end=b.end,
        count=a.count + b.count,
        gaps=a.gaps + b.gaps + ((b.start - a.end) >> _K),
        ones=a.ones + b.ones,
        twos=a.twos + b.twos,
        larger=a.larger + b.larger,
        runs=runs,
        first_run=first,
        last_run=last,
        most=max(a.most, b.most),
    )


def _parameters(r: _Range, section: Section) -> tuple[int, int, int, int, int]:
    """(bytes without the gap field, k, mag, e, j) of the cheapest coding; of equal ones the simplest."""
    covered = r.end - r.start
    lead = 1 + _varint_bytes(covered - 1)
    raw = (lead + covered * section.new.dtype.itemsize, 0, 3, 0, 0)
    if r.most >= 2**31:  # the one difference that a Rice record cannot say
        return raw
    gap_bits = r.gaps + r.count * (1 + _K)
    k = int(gap_bits.argmin())
    bits = int(gap_bits[k]) + r.count
    lead += _varint_bytes(r.count)
    if r.most == 1:
        coded = (lead + _bytes(bits), k, 0, 0, 0)
    else:
        two = np.where(r.most - 1 >> _J > MAX_QUOTIENT, _NEVER, r.ones + r.count * (1 + _J))
        j = int(two.argmin())
        coded = (lead + 2 + _bytes(bits + int(two[j])), k, 2, 0, j)
        run = r.runs + (r.first_run >> _K) + (r.last_run >> _K) + (r.larger + 1) * (1 + _K)
        one = np.where(r.most - 2 >> _J > MAX_QUOTIENT, _NEVER, r.twos + r.larger * (1 + _J))
        e, j = int(run.argmin()), int(one.argmin())
        split = (lead + 2 + _bytes(bits + int(run[e]) + int(one[j])), k, 1, e, j)
        if split[0] < coded[0]:
            coded = split
    return raw if section.raw and raw[0] < coded[0] else coded


def _join(ranges: list[_Range], section: Section) -> list[tuple[_Range, int]]:
    """Neighbours joined while bytes fall, the largest gain first; with each range its bytes."""
    n = len(ranges)
    alive: list[_Range | None] = list(ranges)
    body = [_parameters(r, section)[0] for r in ranges]
    before = list(range(-1, n - 1))
    after = [*range(1, n), -1]
    heap: list[tuple[int, int, int, int, int, _Range, int]] = []
    stamp = [0] * n

    def offer(a: int) -> None:
        b = after[a]
        x, y = alive[a], alive[b] if b >= 0 else None
        if x is None or y is None:
            return
        both = _merge(x, y)
        cost = _parameters(both, section)[0]
        gain = body[a] + body[b] + _varint_bytes(y.start - x.end) - cost
        if gain > 0:
            heapq.heappush(heap, (-gain, a, b, stamp[a], stamp[b], both, cost))

    for a in range(n):
        offer(a)
    while heap:
        _, a, b, at_a, at_b, both, cost = heapq.heappop(heap)
        if alive[a] is None or alive[b] is None or stamp[a] != at_a or stamp[b] != at_b:
            continue
        alive[a], alive[b], body[a] = both, None, cost
        stamp[a] += 1
        after[a] = after[b]
        if after[b] >= 0:
            before[after[b]] = a
        offer(a)
        if before[a] >= 0:
            offer(before[a])
    out, end = [], 0
    for r, cost in zip(alive, body, strict=True):
        if r is not None:
            out.append((r, cost + _varint_bytes(r.start - end)))
            end = r.end
    return out


def _write(r: _Range, end: int, section: Section) -> Record:
    """The bytes of one record; ``end`` is where the previous record of the section ends."""
    _, k, mag, e, j = _parameters(r, section)
    head = bytes([section.index << 6 | mag << 4 | k])
    if mag in (1, 2):
        head += bytes([e, j])
    head += _varint(r.start - end) + _varint(r.end - r.start - 1)
    if mag == 3:
        return Record(start=r.start, end=r.end, raw=True, data=head + section.new[r.start : r.end].tobytes())
    diff = section.diff[r.start : r.end]
    where = np.flatnonzero(diff)
    size = np.abs(diff[where])
    n = where.size
    # four symbols a change: gap, sign, magnitude, run; those not written have no bits
    value = np.zeros((n, 4), dtype=np.int64)
    unary = np.zeros((n, 4), dtype=bool)
    low = np.zeros((n, 4), dtype=np.int64)
    value[:, 0], unary[:, 0], low[:, 0] = np.diff(where, prepend=-1) - 1, True, k
    value[:, 1], low[:, 1] = diff[where] < 0, 1
    lead = np.zeros((0, 3), dtype=np.int64)
    if mag == 2:
        value[:, 2], unary[:, 2], low[:, 2] = size - 1, True, j
    elif mag == 1:
        large = np.flatnonzero(size > 1)
        runs = np.diff(np.concatenate(([-1], large, [n]))) - 1
        lead = np.array([[runs[0], 1, e]], dtype=np.int64)
        value[large, 2], unary[large, 2], low[large, 2] = size[large] - 2, True, j
        value[large, 3], unary[large, 3], low[large, 3] = runs[1:], True, e
    value1 = np.concatenate((lead[:, 0], value.ravel()))
    unary1 = np.concatenate((lead[:, 1].astype(bool), unary.ravel()))
    low1 = np.concatenate((lead[:, 2], low.ravel()))
    return Record(start=r.start, end=r.end, raw=False, data=head + _varint(r.count) + _pack(value1, unary1, low1))


def _pack(value: NDArray[np.int64], unary: NDArray[np.bool_], low: NDArray[np.int64]) -> bytes:
    """Symbols as bits, most significant first: with ``unary`` value >> low ones and a zero; then ``low`` low bits."""
    ones = np.where(unary, value >> low, 0)
    length = ones + unary + low
    start = np.concatenate(([0], np.cumsum(length)))
    bits = np.zeros(int(start[-1]), dtype=np.uint8)
    first = np.repeat(start[:-1] - np.concatenate(([0], np.cumsum(ones)[:-1])), ones)
    bits[first + np.arange(first.size)] = 1
    for b in range(int(low.max(initial=0))):
        here = np.flatnonzero(low > b)
        bits[start[here + 1] - 1 - b] = value[here] >> b & 1
    return np.packbits(bits).tobytes()


def _varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def _bytes(bits: int) -> int:
    return (bits + 7) // 8
