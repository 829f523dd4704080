"""Three feature sets made comparable: the same classes in the same shares, one scale. numpy only.

Source of the need: the composition of members and non-members must be that of the forget set, or a difference in
classes is read as forgetting. Weights, subsampling and the standardisation by m and n alone are our own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qunlearn.audit.kernels_mmd import Float, Int
from qunlearn.errors import ConfigError, DataError

DEAD = 1e-12
FEWEST = 2
HOW = ("weights", "subsample", "none")


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Features float64 [n, d] and class numbers int64 [n] (0..C-1) of members m, never trained n, forgotten u."""

    m: Float
    n: Float
    u: Float
    y_m: Int
    y_n: Int
    y_u: Int


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Sets with the classes that all three have, standardised by m and n, centred.

    ``points`` and ``classes`` by set; ``share`` [C] of the classes in u; ``dropped`` share of u that was left out;
    ``dead`` feature columns without variance.
    """

    points: Mapping[str, Float]
    classes: Mapping[str, Int]
    share: Float
    dropped: float
    dead: int

    def __len__(self) -> int:
        return sum(map(len, self.points.values()))

    def omega(self, s: str) -> Float:
        """[C]: weight of a point of each class in set ``s``."""
        out: Float = self.share / np.bincount(self.classes[s], minlength=len(self.share))
        return out

    def weights(self, s: str) -> Float:
        """[n]: weight of every point of set ``s``; they sum to 1, and each class to its share of u."""
        out: Float = self.omega(s)[self.classes[s]]
        return out

    @property
    def n_eff(self) -> tuple[float, float, float]:
        """1 / sum of squared weights of m, n and u."""
        m, n, u = (float(1 / (self.weights(s) ** 2).sum()) for s in "mnu")
        return m, n, u


def match(sets: Sets, *, how: str = "weights", seed: int = 0) -> Matched:
    """Keep the classes with two samples in every set and give m and n the composition of u.

    ``how``: ``weights``; ``subsample`` (of each class of m and n a seeded part, so that all weights are equal up to
    rounding); ``none``: all samples are one class. DataError when nothing is left, ConfigError for another ``how``.
    """
    if how not in HOW:
        raise ConfigError(f"class match {how!r} is not known.", remedy=f"Known: {', '.join(HOW)}.")
    labels = {"m": sets.y_m, "n": sets.y_n, "u": sets.y_u}
    if how == "none":
        labels = {s: np.zeros(len(y), np.int64) for s, y in labels.items()}
    count = 1 + max(int(y.max(initial=0)) for y in labels.values())
    counts = {s: np.bincount(y, minlength=count) for s, y in labels.items()}
    kept = np.flatnonzero(np.min(list(counts.values()), axis=0) >= FEWEST)
    if not len(kept):
        raise DataError(
            "no class has two samples among members, non-members and forget set.", remedy="Audit a larger request."
        )
    rows = {s: np.flatnonzero(np.isin(y, kept)) for s, y in labels.items()}
    if how == "subsample":
        for s in "mn":
            rows[s] = _subsampled(labels[s], counts[s], counts["u"], kept, np.random.default_rng([seed, 16, ord(s)]))
    number = np.zeros(count, np.int64)
    number[kept] = np.arange(len(kept))
    classes = {s: number[labels[s][r]] for s, r in rows.items()}
    points = {s: np.asarray(x, np.float64)[rows[s]] for s, x in (("m", sets.m), ("n", sets.n), ("u", sets.u))}
    pooled = np.concatenate([points["m"], points["n"]])
    center = pooled.mean(0)
    std = (pooled - center).std(0)
    alive = (std >= DEAD) & (np.ptp(pooled, axis=0) > 0)
    points = {s: (x - center)[:, alive] / std[alive] for s, x in points.items()}
    middle = np.concatenate(list(points.values())).mean(0)
    return Matched(
        points={s: x - middle for s, x in points.items()},
        classes=classes,
        share=np.bincount(classes["u"], minlength=len(kept)) / len(classes["u"]),
        dropped=1 - len(rows["u"]) / len(labels["u"]),
        dead=int((~alive).sum()),
    )


def _subsampled(y: Int, counts: Int, wanted: Int, kept: Int, rng: np.random.Generator) -> Int:
    """Rows of ``y`` whose classes stand in the ratio of ``wanted``, as many as there can be, at least two a class."""
    factor = float((counts[kept] / wanted[kept]).min())
    out = []
    for c in kept:
        rows = np.flatnonzero(y == c)
        size = min(len(rows), max(FEWEST, int(factor * wanted[c] + 1e-9)))
        out.append(rng.permutation(rows)[:size])
    return np.sort(np.concatenate(out))


def synthetic(sets: Sets, *, seed: int) -> Sets:
    """The same m and n halved inside each class, and a u made of as many unused samples of each: its share is 1/2.

    A self check of the estimator on the very features that are audited.
    """
    rng = np.random.default_rng([seed, 21])
    parts: dict[str, list[Int]] = {"m": [], "n": [], "um": [], "un": []}
    for c in np.union1d(sets.y_m, sets.y_n):
        m, n = (rng.permutation(np.flatnonzero(y == c)) for y in (sets.y_m, sets.y_n))
        size = min(len(m) // 2, len(n) // 2)
        parts["um"].append(m[:size])
        parts["un"].append(n[:size])
        parts["m"].append(m[size:][: max(size, (len(m) + 1) // 2)])
        parts["n"].append(n[size:][: max(size, (len(n) + 1) // 2)])
    rows = {k: np.sort(np.concatenate(v)) for k, v in parts.items()}
    return Sets(
        m=sets.m[rows["m"]],
        n=sets.n[rows["n"]],
        u=np.concatenate([sets.m[rows["um"]], sets.n[rows["un"]]]),
        y_m=sets.y_m[rows["m"]],
        y_n=sets.y_n[rows["n"]],
        y_u=np.concatenate([sets.y_m[rows["um"]], sets.y_n[rows["un"]]]),
    )
