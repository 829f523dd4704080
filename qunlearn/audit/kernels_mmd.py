"""Gaussian-kernel sums over weighted point sets, for many weightings in one pass, without an N x N matrix.

Numpy only. Every quantity of the statistical membership audit is a form ``w^T K v``; permutations, resamples and the
point estimate differ in their weights alone, so that all of them share the passes over the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ConfigError

Float = NDArray[np.float64]
Int = NDArray[np.int64]
COLUMNS = 256
LARGE = 4000
"""Above this number of points distances are computed in float32; sums are float64 always."""


def median_gamma(points: Float, rng: np.random.Generator, *, most: int = 500) -> float:
    """1 / median squared distance over pairs of at most ``most`` of the points [n, d], zero distances left out.

    The choice does not depend on the order of the points. NaN where all distances are zero: such features carry
    nothing.
    """
    if len(points) > most:
        order = np.argsort(points @ rng.standard_normal(points.shape[1]), kind="stable")
        points = points[order[rng.permutation(len(points))[:most]]]
    d2 = squared_distances(points, points)[np.triu_indices(len(points), 1)]
    d2 = d2[d2 > 1e-12 * max(1.0, float(d2.max(initial=0.0)))]
    return 1.0 / float(np.median(d2)) if d2.size else float("nan")


def squared_distances(a: Float, b: Float) -> Float:
    """[n, m] of |a_i - b_j|^2, never below 0; ``a`` and ``b`` should be centred (cancellation)."""
    out: Float = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    return np.maximum(out, 0.0, out=out)


def gram_times(
    points: Float,
    gamma: float,
    weights: Float,
    *,
    others: Float | None = None,
    chunk: int = 512,
    zero_diagonal: bool = True,
) -> Float:
    """K W [n, q] for points [n, d], weights [m, q], K_ij = exp(-gamma |x_i - y_j|^2), y = ``others`` or the points.

    Without ``others`` K_ii = 0 if asked. Works in blocks of ``chunk`` rows: memory beyond the result is that of
    ``chunk`` rows of K. ``chunk`` < 1 is a ConfigError.
    """
    if chunk < 1:
        raise ConfigError("chunk must be at least 1.", remedy="Use the default, 512.")
    n, m = len(points), len(points if others is None else others)
    kind: Any = np.float32 if max(n, m) > LARGE else np.float64
    x: NDArray[Any] = points.astype(kind, copy=False)
    y: NDArray[Any] = x if others is None else others.astype(kind, copy=False)
    row, column = (x * x).sum(1), (y * y).sum(1)
    out = np.empty((n, weights.shape[1]))
    for start in range(0, n, chunk):
        rows = slice(start, min(start + chunk, n))
        k: NDArray[Any] = x[rows] @ y.T
        k *= -2
        k += row[rows, None]
        k += column[None, :]
        np.maximum(k, 0, out=k)
        k *= -gamma
        np.exp(k, out=k)
        if others is None and zero_diagonal:
            k[np.arange(len(k)), np.arange(rows.start, rows.stop)] = 0
        for first in range(0, weights.shape[1], COLUMNS):
            columns = slice(first, first + COLUMNS)
            out[rows, columns] = k @ weights[:, columns]
    return out


def per_class(values: Float, classes: Int) -> Float:
    """[C, q]: sums of the rows of ``values`` [n, q] over each class 0..C-1."""
    indicator = np.zeros((int(classes.max(initial=0)) + 1, len(classes)))
    indicator[classes, np.arange(len(classes))] = 1
    out: Float = indicator @ values
    return out


@dataclass(frozen=True, kw_only=True)
class Product:
    """A set with many weightings and its own kernel products, without the diagonal.

    ``weights`` [n, q], ``all_pairs`` = K W, ``same_class`` = K restricted to pairs of one class, times W; ``classes``
    [n] numbers 0..C-1.
    """

    weights: Float
    all_pairs: Float
    same_class: Float
    classes: Int

    def within(self) -> Float:
        """[q]: the blockwise U-statistic of every column; pairs of one class are normalised class by class."""
        return self.distinct(self.weights)

    def distinct(self, other: Float) -> Float:
        """[q]: sum_ij v_i w_j k_ij of ``other`` [n, q] (the same points, other weights) with every column of W.

        Pairs of a point with itself are left out, and 1 - sum_i v_i w_i makes up for them class by class.
        """
        total = (other * self.all_pairs).sum(0)
        own = per_class(other * self.same_class, self.classes)
        norm = per_class(other, self.classes) * per_class(self.weights, self.classes)
        shared = per_class(other * self.weights, self.classes) / np.where(norm > 0, norm, 1)
        whole = shared < 1
        out: Float = total - own.sum(0) + np.where(whole, own / np.where(whole, 1 - shared, 1), 0).sum(0)
        return out


def product(points: Float, classes: Int, gamma: float, weights: Float, *, chunk: int = 512) -> Product:
    """Both products of :class:`Product`: one pass over all pairs, and one over the pairs of each class."""
    everything = gram_times(points, gamma, weights, chunk=chunk)
    present = np.unique(classes)
    if len(present) == 1:
        return Product(weights=weights, all_pairs=everything, same_class=everything, classes=classes)
    same = np.zeros_like(everything)
    for c in present:
        rows = np.flatnonzero(classes == c)
        same[rows] = gram_times(points[rows], gamma, weights[rows], chunk=chunk)
    return Product(weights=weights, all_pairs=everything, same_class=same, classes=classes)


def permuted(classes: Int, n_a: int, count: int, rng: np.random.Generator) -> Float:
    """[n_a + n_b, count] of 0 and 1: ``count`` relabellings of two sets inside each class; 1 marks the first set.

    ``classes`` [n_a + n_b] are the class numbers of both. The class counts of both groups stay.
    """
    first = np.zeros((len(classes), count))
    for c in np.unique(classes):
        rows = np.flatnonzero(classes == c)
        k = int((rows < n_a).sum())
        chosen = np.argsort(rng.random((len(rows), count)), axis=0)[:k]
        first[rows[chosen], np.arange(count)] = 1
    return first


def resampled(classes: Int, count: int, rng: np.random.Generator) -> Float:
    """[n, count] of how often each point is drawn: multinomial inside each class, as many as the class has."""
    out = np.zeros((len(classes), count))
    for c in np.unique(classes):
        rows = np.flatnonzero(classes == c)
        out[rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count).T
    return out
