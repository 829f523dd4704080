"""Pairs of blobs for tests of the delta, in Python and in C: the worked example, random pairs, clustered changes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from qunlearn_export.layout import Entry, Fold, Layout

EXAMPLE_BODY = bytes.fromhex("51554431 12000000 02000000 00000000 20000001 06031acc 60000700 01025fdb 10")


@dataclass(frozen=True)
class Pair:
    """Two blobs of one layout."""

    old: bytes
    new: bytes
    layout: Layout


def blob(w: object, b: object, m: object, p: object) -> bytes:
    """Four lists as a blob; M as 32-bit patterns."""
    parts = ((w, "<i1"), (b, "<i4"), (m, "<u4"), (p, "<i1"))
    return b"".join(np.asarray(v, dtype=t).tobytes() for v, t in parts)


def layout(sizes: tuple[int, int, int, int], folds: tuple[Fold, ...] = (), cuts: tuple[int, ...] = ()) -> Layout:
    """A bare layout: sizes, folds, and tensors of W between ``cuts``."""
    edges = [0, *cuts, sizes[0]]
    entries = tuple(
        Entry(section="W", offset=a, count=b - a, node=f"n{a}", role="weight")
        for a, b in itertools.pairwise(edges)
        if b > a
    )
    return Layout(sizes=sizes, entries=entries, folds=folds, structure="")


def example() -> Pair:
    """The worked example of the format: a weight of each of two channels changes, and one bias."""
    fold = Fold(weight=0, count=8, channels=2, inner=4, bias=0, zero=0)
    return Pair(
        old=blob([10, -3, 0, 0, 5, 127, -128, 7], [100, -200], [], [-128, 0]),
        new=blob([10, -2, 0, 0, 4, 127, -128, 10], [100, -171], [], [-128, 0]),
        layout=layout((8, 2, 0, 2), (fold,)),
    )


def random_pair(seed: int) -> Pair:
    """All sections, one to four weight tensors (some depthwise, some without a fold), any density and magnitude."""
    rng = np.random.default_rng(seed)
    folds, at, bias, cuts = [], 0, 0, []
    zeros = int(rng.integers(1, 9))
    for _ in range(rng.integers(1, 5)):
        channels, inner = int(rng.integers(1, 9)), int(rng.integers(1, 40))
        count = channels * inner
        if rng.random() < 0.8:
            flat = inner if rng.random() < 0.7 else 0
            zero = int(rng.integers(zeros))
            folds.append(Fold(weight=at, count=count, channels=channels, inner=flat, bias=bias, zero=zero))
        cuts.append(at)
        at, bias = at + -(-count // 16) * 16, bias + -(-channels // 4) * 4
    sizes = (at, bias, 4 * int(rng.integers(0, 5)), 16 * int(rng.integers(1, 4)))
    old = [
        _extreme(rng, -128, 127, sizes[0]),
        _extreme(rng, -(2**31), 2**31 - 1, sizes[1]),
        rng.integers(0, 2**32, sizes[2]),
        _extreme(rng, -128, 127, sizes[3]),
    ]
    new = [v.copy() for v in old]
    for s, (low, high) in enumerate(((-128, 127), (-(2**31), 2**31 - 1), (0, 2**32 - 1), (-128, 127))):
        density = rng.choice([0.0, 0.01, 0.1, 0.5, 1.0, rng.random()])
        where = np.flatnonzero(rng.random(sizes[s]) < density)
        most = int(rng.choice([1, 2, 8, 255, 2**12, 2**31]))
        by = rng.integers(1, most + 1, where.size) * rng.choice([-1, 1], where.size)
        if s in (1, 2):
            new[s][where] = (new[s][where] + by - low) % 2**32 + low
        else:
            new[s][where] = np.clip(new[s][where] + by, low, high)
    if rng.random() < 0.5:  # as an unlearning step does it: biases follow the weights
        for f in folds:
            i = np.arange(f.count)
            channel = i // f.inner if f.inner else i % f.channels
            by = (new[0] - old[0])[f.weight : f.weight + f.count]
            shift = np.bincount(channel, weights=by, minlength=f.channels).astype(np.int64)
            here = slice(f.bias, f.bias + f.channels)
            new[1][here] = (old[1][here] - old[3][f.zero] * shift + 2**31) % 2**32 - 2**31
    return Pair(old=blob(*old), new=blob(*new), layout=layout(sizes, tuple(folds), tuple(cuts)))


def uniform(n: int, share: float, seed: int = 0, block: float = 1.0) -> Pair:
    """``n`` random weights in 20 tensors, ``share`` of all changed by one step inside a block of that part of them."""
    rng = np.random.default_rng(seed)
    old = np.clip(np.rint(rng.normal(0, 30, n)), -127, 127).astype(np.int64)
    length = round(n * block)
    first = (n - length) // 2
    where = first + rng.choice(length, round(n * share), replace=False)
    new = old.copy()
    new[where] += rng.choice([-1, 1], where.size)
    cuts = tuple(range(0, n, n // 20))
    return Pair(old=blob(old, [], [], []), new=blob(new, [], [], []), layout=layout((n, 0, 0, 0), (), cuts))


def _extreme(rng: np.random.Generator, low: int, high: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    values = rng.integers(low, high + 1, n)
    ends = rng.random(n)
    values[ends < 0.05], values[ends > 0.95] = low, high
    return values
