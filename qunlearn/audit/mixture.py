"""Which share of a sample looks like one of two others: F_u = pi F_n + (1 - pi) F_m, and whether that model holds.

The estimator, its tests and its interval for the statistical membership audit (SMI); numpy only. Sets are called m
(members), n (never trained), u (forgotten). Source of the mixture model: arXiv 2602.01150; the kernel estimator, the
blockwise U-statistics, the tests and the bootstrap over all three sets are our own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.kernels_mmd import Float, Sums, median_gamma, permutations, sums
from qunlearn.errors import DataError

Int = NDArray[np.int64]
DEAD = 1e-12
FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Features float64 [n, d] and class numbers int64 [n] (0..C-1) of m, n and u."""

    m: Float
    n: Float
    u: Float
    y_m: Int
    y_n: Int
    y_u: Int


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Sets with the classes that all three have, standardised by m and n, centred; ``share`` of the classes in u.

    ``dropped`` share of u that was left out, ``dead`` feature columns without variance.
    """

    points: Float
    classes: Int
    sizes: tuple[int, int, int]
    share: Float
    dropped: float
    dead: int
    n_eff: tuple[float, float, float]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Rows of m, n and u in ``points``."""
        a, b, c = self.sizes
        return slice(0, a), slice(a, a + b), slice(a + b, a + b + c)


def match(sets: Sets, *, weighting: bool = True) -> Matched:
    """Keep the classes with two samples in every set; with ``weighting=False`` all samples are one class.

    DataError when nothing is left.
    """
    labels = (
        [sets.y_m, sets.y_n, sets.y_u]
        if weighting
        else [np.zeros(len(y), np.int64) for y in (sets.y_m, sets.y_n, sets.y_u)]
    )
    count = 1 + max(int(y.max()) for y in labels)
    counts = [np.bincount(y, minlength=count) for y in labels]
    kept = np.flatnonzero(np.min(counts, axis=0) >= FEWEST)
    rows = [np.flatnonzero(np.isin(y, kept)) for y in labels]
    if any(len(r) < FEWEST for r in rows):
        raise DataError(
            "no class has two samples among members, non-members and forget set.", remedy="Audit a larger request."
        )
    number = np.zeros(count, np.int64)
    number[kept] = np.arange(len(kept))
    parts = [np.asarray(x, np.float64)[r] for x, r in zip((sets.m, sets.n, sets.u), rows, strict=True)]
    classes = [number[y[r]] for y, r in zip(labels, rows, strict=True)]
    pooled = np.concatenate(parts[:2])
    center = pooled.mean(0)
    std = (pooled - center).std(0)
    alive = std >= DEAD
    points = (np.concatenate(parts) - center)[:, alive] / std[alive]
    share = np.bincount(classes[2], minlength=len(kept)) / len(classes[2])
    n_eff = []
    for y in classes:
        w = (share / np.bincount(y, minlength=len(kept)))[y]
        n_eff.append(float(1 / (w**2).sum()))
    return Matched(
        points=points - points.mean(0),
        classes=np.concatenate(classes),
        sizes=(len(rows[0]), len(rows[1]), len(rows[2])),
        share=share,
        dropped=1 - len(rows[2]) / len(labels[2]),
        dead=int((~alive).sum()),
        n_eff=(n_eff[0], n_eff[1], n_eff[2]),
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """``pi`` unclipped; ``resamples`` [B] of it; p-values of T0 to T3; the three squared MMDs; ``gamma``."""

    pi: float
    resamples: Float
    p_identifiable: float
    p_forgotten: float
    p_remembered: float
    p_mixture: float
    mmd2: Mapping[str, float]
    gamma: float
    matched: Matched = field(repr=False)

    def interval(self, low: float = 0.05, high: float = 0.95) -> tuple[float, float]:
        """Percentile interval of ``pi`` over the resamples, both unclipped."""
        lo, hi = np.quantile(self.resamples, [low, high])
        return float(lo), float(hi)


def _base_weights(x: Matched) -> Float:
    """[N, 3]: the class-matched weights of m, n, u."""
    out = np.zeros((len(x.points), 3))
    for i, rows in enumerate(x.slices):
        y = x.classes[rows]
        out[rows, i] = (x.share / np.maximum(np.bincount(y, minlength=len(x.share)), 1))[y]
    return out


def _resampled(x: Matched, base: Float, count: int, rng: np.random.Generator, which: str) -> Float:
    """[N, 3 count]: multinomial counts inside each class times the weights; sets not in ``which`` stay as they are."""
    out = np.repeat(base[:, :, None], count, axis=2)
    for i, rows in enumerate(x.slices):
        if "mnu"[i] not in which:
            continue
        y = x.classes[rows]
        for c in np.unique(y):
            own = rows.start + np.flatnonzero(y == c)
            counts = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=count)
            out[own, i] *= counts.T
    return out.reshape(len(x.points), 3 * count)


def _mixtures(x: Matched, pi: float, count: int, rng: np.random.Generator) -> Float:
    """[N, 3 count]: m*, n* resampled, and u* drawn from n with probability ``pi``, from m else, class by class."""
    out = np.zeros((len(x.points), 3, count))
    m, n, u = x.slices
    for c in range(len(x.share)):
        rows = [s.start + np.flatnonzero(x.classes[s] == c) for s in (m, n, u)]
        for i in (0, 1):
            counts = rng.multinomial(len(rows[i]), np.full(len(rows[i]), 1 / len(rows[i])), size=count)
            out[rows[i], i] = counts.T * x.share[c] / len(rows[i])
        from_n = rng.binomial(len(rows[2]), pi, size=count)
        for column, k in enumerate(from_n):
            for own, size in ((rows[1], int(k)), (rows[0], len(rows[2]) - int(k))):
                drawn = np.bincount(rng.integers(0, len(own), size), minlength=len(own))
                out[own, 2, column] = drawn / u_count(x)
    return out.reshape(len(x.points), 3 * count)


def u_count(x: Matched) -> int:
    """Number of forget samples that take part."""
    return x.sizes[2]


def _pi(k: Mapping[str, Float]) -> Float:
    mmd = k["nn"] + k["mm"] - 2 * k["mn"]
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Float = (k["un"] - k["um"] - k["mn"] + k["mm"]) / mmd
    return out


def _off_mixture(k: Mapping[str, Float], p: Float) -> Float:
    """Squared distance of u from the mixture with share ``p``."""
    q = 1 - p
    out: Float = k["uu"] + p * p * k["nn"] + q * q * k["mm"] - 2 * p * k["un"] - 2 * q * k["um"] + 2 * p * q * k["mn"]
    return out


def _terms(s: Sums, start: int, count: int, *, shared: bool = False) -> dict[str, Float]:
    """The six kernel sums of ``count`` triples of columns (m, n, u blocks of ``count`` from ``start`` on)."""
    m, n, u = (np.arange(start + i * count, start + (i + 1) * count) for i in range(3))
    cross = s.cross_distinct if shared else s.cross
    return {
        "mm": s.within(m), "nn": s.within(n), "uu": s.within(u),
        "mn": s.cross(m, n), "um": cross(u, m), "un": cross(u, n),
    }  # fmt: skip


def estimate(
    sets: Sets,
    *,
    seed: int,
    bootstrap: int = 200,
    permute: int = 199,
    weighting: bool = True,
    resample: str = "mnu",
    chunk: int = 512,
) -> Estimate:
    """The mixture share of u with its resamples and the four tests.

    T0 (``p_identifiable``): F_m = F_n, one-sided; where it is not small nothing can be said. T1, T2: F_u = F_n, F_u =
    F_m. T3 (``p_mixture``): u lies on the segment between m and n, by a parametric bootstrap.
    """
    x = match(sets, weighting=weighting)
    rng = {name: np.random.default_rng([seed, i]) for i, name in enumerate(("gamma", "boot", "perm", "mix"), 11)}
    m, n, u = x.slices
    gamma = median_gamma(x.points[: n.stop], rng["gamma"])
    if not np.isfinite(gamma):
        return _nothing(x, bootstrap)
    base = _base_weights(x)
    columns = [base, _resampled(x, base, bootstrap, rng["boot"], resample)]
    tests = []
    for a, b in ((m, n), (u, n), (u, m)):
        rows = np.concatenate([np.arange(a.start, a.stop), np.arange(b.start, b.stop)])
        first, second = permutations((x.classes[a], x.classes[b]), x.share, permute, rng["perm"])
        both = np.zeros((len(x.points), 2 * permute))
        both[rows] = np.concatenate([first, second], axis=1)
        columns.append(both)
    s = sums(x.points, x.classes, gamma, np.concatenate(columns, axis=1), chunk=chunk)
    point = _terms(s, 0, 1)
    pi = float(_pi(point)[0])
    pairs = {"m,n": ("mm", "nn", "mn"), "u,n": ("uu", "nn", "un"), "u,m": ("uu", "mm", "um")}
    mmd2 = {name: float((point[a] + point[b] - 2 * point[c])[0]) for name, (a, b, c) in pairs.items()}
    at = 3 + 3 * bootstrap
    for name in pairs:
        a, b = np.arange(at, at + permute), np.arange(at + permute, at + 2 * permute)
        null = s.within(a) + s.within(b) - 2 * s.cross(a, b)
        tests.append((1 + int((null >= mmd2[name]).sum())) / (permute + 1))
        at += 2 * permute
    share = float(np.clip(pi, 0, 1)) if np.isfinite(pi) else 0.0
    r = float(_off_mixture(point, np.array([share]))[0])
    mixed = sums(x.points, x.classes, gamma, _mixtures(x, share, bootstrap, rng["mix"]), chunk=chunk)
    k = _terms(mixed, 0, bootstrap, shared=True)
    null = _off_mixture(k, np.clip(np.nan_to_num(_pi(k)), 0, 1))
    resamples = _pi(_terms(s, 3, bootstrap))
    return Estimate(
        pi=pi,
        resamples=resamples[np.isfinite(resamples)],
        p_identifiable=tests[0],
        p_forgotten=tests[1],
        p_remembered=tests[2],
        p_mixture=(1 + int((null >= r).sum())) / (bootstrap + 1),
        mmd2=mmd2,
        gamma=gamma,
        matched=x,
    )


def _nothing(x: Matched, bootstrap: int) -> Estimate:
    """Features without any distance: nothing is identifiable."""
    zero = dict.fromkeys(("m,n", "u,n", "u,m"), 0.0)
    return Estimate(
        pi=0.0, resamples=np.zeros(bootstrap), p_identifiable=1.0, p_forgotten=1.0, p_remembered=1.0, p_mixture=1.0,
        mmd2=zero, gamma=0.0, matched=x,
    )  # fmt: skip


def synthetic(sets: Sets, *, seed: int) -> Sets:
    """The same m and n halved, and a u made of one unused half of each: its share is 1/2.

    A self check of the estimator on the very features that are audited.
    """
    rng = np.random.default_rng([seed, 21])
    parts: dict[str, Float] = {}
    labels: dict[str, Int] = {}
    spare = []
    for name, y in (("m", sets.y_m), ("n", sets.y_n)):
        order = rng.permutation(len(y))
        half = len(y) // 2
        x = getattr(sets, name)
        parts[name], labels[name] = x[order[:half]], y[order[:half]]
        spare.append((x[order[half:]], y[order[half:]]))
    size = min(len(y) for _, y in spare)
    return Sets(
        m=parts["m"], n=parts["n"], u=np.concatenate([x[:size] for x, _ in spare]),
        y_m=labels["m"], y_n=labels["n"], y_u=np.concatenate([y[:size] for _, y in spare]),
    )  # fmt: skip
