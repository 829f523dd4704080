"""Which share of a sample looks like one of two others: F_u = pi F_n + (1 - pi) F_m, and whether that model holds.

The estimator, its tests and its interval for the statistical membership audit (SMI); numpy only. Sets are called m
(members), n (never trained), u (forgotten). Source of the mixture model: arXiv 2602.01150; the kernel estimator, the
blockwise U-statistics, the tests and the bootstrap over all three sets are our own choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from qunlearn.audit.kernels_mmd import Float, Int, Product, gram_times, median_gamma, permuted, product, resampled
from qunlearn.audit.matching import Matched, Sets, match

MAX_BYTES = 256 << 20
"""Weights that are in memory at once; more resamples than fit are worked through in blocks."""
PAIRS = {"identifiable": ("m", "n"), "forgotten": ("u", "n"), "remembered": ("u", "m")}
TESTS = (*PAIRS, "mixture")
"""T0 to T3: F_m = F_n, F_u = F_n, F_u = F_m, and u on the segment between m and n."""
_STREAMS = {name: i for i, name in enumerate(("gamma", "boot", *TESTS), 11)}
_TIE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """``pi`` unclipped (NaN where nothing tells m from n); ``resamples`` [B] of it; p-values by test; the three squared
    MMDs by pair; ``gamma``."""

    pi: float
    resamples: Float
    p: Mapping[str, float]
    mmd2: Mapping[str, float]
    gamma: float
    matched: Matched = field(repr=False)

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Percentile interval of ``pi`` over the resamples, unclipped; infinite where there are none."""
        return quantiles(self.resamples, level)


def quantiles(values: Float, level: float) -> tuple[float, float]:
    """The two quantiles that hold ``level`` of the finite ``values`` between them."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return -float("inf"), float("inf")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(
    sets: Sets,
    *,
    seed: int,
    bootstrap: int = 200,
    permute: int = 199,
    class_match: str = "weights",
    resample: str = "mnu",
    chunk: int = 512,
    tests: Collection[str] = TESTS,
) -> Estimate:
    """The mixture share of u with its resamples and the ``tests`` asked for.

    The same ``seed`` and labels give the same resampled rows, whatever the features: two models are compared by joint
    resamples. Kernel width and standardisation come from m and n once and never change. DataError when no class has two
    samples in every set.
    """
    x = match(sets, how=class_match, seed=seed)
    rng = {name: np.random.default_rng([seed, i]) for name, i in _STREAMS.items()}
    gamma = median_gamma(np.concatenate([x.points["m"], x.points["n"]]), rng["gamma"])
    if not np.isfinite(gamma):
        return _nothing(x, bootstrap, tests)
    point: dict[str, Float] = {}
    resamples = []
    for count in _blocks(bootstrap, len(x)):
        weights = {s: _columns(x, s, count, rng["boot"], drawn=s in resample) for s in "mnu"}
        k = _terms(x, weights, gamma, chunk)
        point = point or {name: v[:1] for name, v in k.items()}
        resamples.append(np.broadcast_to(_pi(k), (count + 1,))[1:])
    pi = float(_pi(point)[0])
    p = {}
    for name, (a, b) in PAIRS.items():
        if name in tests:
            p[name] = _permutation_test(x, a, b, gamma, permute, rng[name], chunk)
    if "mixture" in tests:
        share = float(np.clip(pi, 0, 1)) if np.isfinite(pi) else 0.0
        off = float(_off_mixture(point, np.array([share]))[0])
        null = _off_mixture_null(x, share, gamma, bootstrap, rng["mixture"], chunk)
        p["mixture"] = (1 + int((null >= off - _TIE).sum())) / (bootstrap + 1)
    return Estimate(
        pi=pi,
        resamples=np.concatenate(resamples),
        p=p,
        mmd2={f"{a},{b}": _mmd2(point, a, b) for a, b in PAIRS.values()},
        gamma=gamma,
        matched=x,
    )


def _nothing(x: Matched, bootstrap: int, tests: Collection[str]) -> Estimate:
    """Features without any distance: nothing is identifiable."""
    return Estimate(
        pi=float("nan"),
        resamples=np.full(bootstrap, np.nan),
        p=dict.fromkeys((t for t in TESTS if t in tests), 1.0),
        mmd2={f"{a},{b}": 0.0 for a, b in PAIRS.values()},
        gamma=0.0,
        matched=x,
    )


def _blocks(count: int, points: int) -> Iterator[int]:
    """Sizes of the blocks of resamples, each small enough for ``MAX_BYTES``."""
    most = max(256, MAX_BYTES // (16 * points))
    for start in range(0, count, most):
        yield min(most, count - start)


def _columns(x: Matched, s: str, count: int, rng: np.random.Generator, *, drawn: bool) -> Float:
    """[n, 1 + count]: matched weights of a set, then resampled ones; the first column alone where it stays."""
    base = x.weights(s)[:, None]
    return np.hstack([base, base * resampled(x.classes[s], count, rng)]) if drawn else base


def _terms(x: Matched, w: Mapping[str, Float], gamma: float, chunk: int) -> dict[str, Float]:
    """The six kernel sums of every triple of columns."""
    out = {s + s: product(x.points[s], x.classes[s], gamma, w[s], chunk=chunk).within() for s in "mnu"}
    for a, b in ("mn", "um", "un"):
        kw = gram_times(x.points[a], gamma, w[b], others=x.points[b], chunk=chunk)
        out[a + b] = (w[a] * kw).sum(0)
    return out


def _pi(k: Mapping[str, Float]) -> Float:
    mmd = k["nn"] + k["mm"] - 2 * k["mn"]
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Float = (k["un"] - k["um"] - k["mn"] + k["mm"]) / mmd
    return out


def _mmd2(k: Mapping[str, Float], a: str, b: str) -> float:
    return float((k[a + a] + k[b + b] - 2 * k[a + b])[0])


def _off_mixture(k: Mapping[str, Float], p: Float) -> Float:
    """Squared distance of u from the mixture with share ``p``."""
    q = 1 - p
    out: Float = k["uu"] + p * p * k["nn"] + q * q * k["mm"] - 2 * p * k["un"] - 2 * q * k["um"] + 2 * p * q * k["mn"]
    return out


def _permutation_test(
    x: Matched, a: str, b: str, gamma: float, count: int, rng: np.random.Generator, chunk: int
) -> float:
    """p-value of F_a = F_b, one-sided, by relabelling inside each class."""
    points = np.concatenate([x.points[a], x.points[b]])
    classes = np.concatenate([x.classes[a], x.classes[b]])
    n_a = len(x.points[a])
    first, second = x.omega(a)[classes][:, None], x.omega(b)[classes][:, None]
    actual = (np.arange(len(points)) < n_a).astype(np.float64)[:, None]
    seen: float | None = None
    above = 0
    for size in _blocks(count, 2 * len(points)):
        s = np.hstack([actual, permuted(classes, n_a, size, rng)])
        one, two = _both(points, classes, gamma, s, first, second, chunk)
        stat = one.within() + two.within() - 2 * (one.weights * two.all_pairs).sum(0)
        seen = float(stat[0]) if seen is None else seen
        above += int((stat[1:] >= seen - _TIE).sum())
    return (1 + above) / (count + 1)


def _both(
    points: Float, classes: Int, gamma: float, s: Float, first: Float, second: Float, chunk: int
) -> tuple[Product, Product]:
    """The products of both groups of relabelled points: s times ``first`` and (1 - s) times ``second``.

    Where the two weights are in one ratio everywhere, K s gives K (1 - s) at once: half the columns.
    """
    ratio = second / first
    if np.ptp(ratio) > 1e-12 * ratio[0, 0]:
        q = s.shape[1]
        both = product(points, classes, gamma, np.hstack([s * first, (1 - s) * second]), chunk=chunk)
        one, two = (
            Product(
                weights=both.weights[:, part],
                all_pairs=both.all_pairs[:, part],
                same_class=both.same_class[:, part],
                classes=classes,
            )
            for part in (slice(0, q), slice(q, 2 * q))
        )
        return one, two
    whole = product(points, classes, gamma, np.hstack([first, s * first]), chunk=chunk)
    r = float(ratio[0, 0])
    one = Product(
        weights=whole.weights[:, 1:],
        all_pairs=whole.all_pairs[:, 1:],
        same_class=whole.same_class[:, 1:],
        classes=classes,
    )
    two = Product(
        weights=(1 - s) * second,
        all_pairs=r * (whole.all_pairs[:, :1] - one.all_pairs),
        same_class=r * (whole.same_class[:, :1] - one.same_class),
        classes=classes,
    )
    return one, two


def _off_mixture_null(x: Matched, pi: float, gamma: float, count: int, rng: np.random.Generator, chunk: int) -> Float:
    """[count] of R under the mixture with share ``pi``: m* and n* resampled, u* drawn from n and m, R at its own p."""
    points = np.concatenate([x.points["m"], x.points["n"]])
    classes = np.concatenate([x.classes["m"], x.classes["n"]])
    n_m = len(x.points["m"])
    out = []
    for size in _blocks(count, 2 * len(points)):
        m = x.weights("m")[:, None] * resampled(x.classes["m"], size, rng)
        n = x.weights("n")[:, None] * resampled(x.classes["n"], size, rng)
        u = _drawn(x, pi, size, rng)
        ku = product(points, classes, gamma, u, chunk=chunk)
        nothing = np.zeros((len(points), size))
        in_m, in_n = nothing.copy(), nothing
        in_m[:n_m], in_n[n_m:] = m, n
        k = {
            "mm": product(x.points["m"], x.classes["m"], gamma, m, chunk=chunk).within(),
            "nn": product(x.points["n"], x.classes["n"], gamma, n, chunk=chunk).within(),
            "uu": ku.within(),
            "um": ku.distinct(in_m),
            "un": ku.distinct(in_n),
            "mn": (m * gram_times(x.points["m"], gamma, n, others=x.points["n"], chunk=chunk)).sum(0),
        }
        out.append(_off_mixture(k, np.clip(np.nan_to_num(_pi(k)), 0, 1)))
    return np.concatenate(out)


def _drawn(x: Matched, pi: float, count: int, rng: np.random.Generator) -> Float:
    """[n_m + n_n, count] weights of u*: of each class as many as u has, a binomial share from n."""
    n_m, n_u = len(x.points["m"]), len(x.points["u"])
    out = np.zeros((n_m + len(x.points["n"]), count))
    for c in range(len(x.share)):
        m, n = np.flatnonzero(x.classes["m"] == c), n_m + np.flatnonzero(x.classes["n"] == c)
        size = int((x.classes["u"] == c).sum())
        from_n = rng.binomial(size, pi, size=count)
        out[n] = rng.multinomial(from_n, np.full(len(n), 1 / len(n))).T / n_u
        out[m] = rng.multinomial(size - from_n, np.full(len(m), 1 / len(m))).T / n_u
    return out
