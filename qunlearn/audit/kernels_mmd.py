"""Gaussian-kernel sums over weighted point sets, for many weightings in one pass, without an N x N matrix.

Numpy only. Every quantity of the statistical membership audit is a form ``w^T K v``; permutations, resamples and the
point estimate differ in their weights alone, so that all of them share one pass over the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ConfigError

Float = NDArray[np.float64]
COLUMNS = 256
LARGE = 4000
"""Above this number of points distances are computed in float32; sums are float64 always."""


def median_gamma(points: Float, rng: np.random.Generator, *, most: int = 500) -> float:
    """1 / median squared distance over pairs of at most ``most`` of the points [n, d], zero distances left out.

    NaN where all distances are zero: such features carry nothing.
    """
    chosen = points if len(points) <= most else points[np.sort(rng.permutation(len(points))[:most])]
    d2 = squared_distances(chosen, chosen)[np.triu_indices(len(chosen), 1)]
    d2 = d2[d2 > 0]
    return 1.0 / float(np.median(d2)) if d2.size else float("nan")


def squared_distances(a: Float, b: Float) -> Float:
    """[n, m] of |a_i - b_j|^2, never below 0; ``a`` and ``b`` should be centred (cancellation)."""
    out: Float = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
    return np.maximum(out, 0.0, out=out)


def gram_times(points: Float, gamma: float, weights: Float, *, chunk: int = 512, zero_diagonal: bool = True) -> Float:
    """K W [n, q] for points [n, d], weights [n, q], K_ij = exp(-gamma |x_i - x_j|^2), K_ii = 0 if asked.

    Works in blocks of ``chunk`` rows: memory beyond the result is ``chunk`` n numbers. ``chunk`` < 1 is a ConfigError.
    """
    if chunk < 1:
        raise ConfigError("chunk must be at least 1.", remedy="Use the default, 512.")
    n = len(points)
    x = points.astype(np.float32 if n > LARGE else np.float64, copy=False)
    squares = (x * x).sum(1)
    out = np.empty((n, weights.shape[1]))
    for start in range(0, n, chunk):
        rows = slice(start, min(start + chunk, n))
        k = x[rows] @ x.T
        k *= -2
        k += squares[rows, None]
        k += squares[None, :]
        np.maximum(k, 0, out=k)
        k *= -gamma
        np.exp(k, out=k)
        if zero_diagonal:
            k[np.arange(len(k)), np.arange(rows.start, rows.stop)] = 0
        for first in range(0, weights.shape[1], COLUMNS):
            columns = slice(first, first + COLUMNS)
            out[rows, columns] = k @ weights[:, columns]
    return out


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Kernel sums of weighted sets over one set of points.

    ``weights`` [n, q] and the products ``all_pairs`` = K W and ``same_class`` = K restricted to pairs of one class,
    both without the diagonal; ``classes`` [n] numbers 0..C-1.
    """

    weights: Float
    all_pairs: Float
    same_class: Float
    classes: NDArray[np.int64]

    def cross(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Float:
        """sum_ij w_i v_j k_ij for pairs of columns; the two sets must share no point."""
        out: Float = (self.weights[:, a] * self.all_pairs[:, b]).sum(0)
        return out

    def within(self, a: NDArray[np.int64]) -> Float:
        """The blockwise U-statistic of columns: pairs of one class are normalised class by class."""
        w = self.weights[:, a]
        total = (w * self.all_pairs[:, a]).sum(0)
        own = w * self.same_class[:, a]
        out: Float = total - own.sum(0)
        for c in range(int(self.classes.max()) + 1):
            rows = self.classes == c
            weight = w[rows].sum(0)
            h2 = (w[rows] ** 2).sum(0) / np.where(weight > 0, weight**2, 1)
            out += np.where(h2 < 1, own[rows].sum(0) / np.where(h2 < 1, 1 - h2, 1), 0)
        return out

    def cross_distinct(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Float:
        """As :meth:`cross`, for sets that share points: pairs of a point with itself are left out class by class."""
        w, v = self.weights[:, a], self.weights[:, b]
        total = (w * self.all_pairs[:, b]).sum(0)
        own = w * self.same_class[:, b]
        out: Float = total - own.sum(0)
        for c in range(int(self.classes.max()) + 1):
            rows = self.classes == c
            norm = w[rows].sum(0) * v[rows].sum(0)
            shared = (w[rows] * v[rows]).sum(0) / np.where(norm > 0, norm, 1)
            out += np.where(shared < 1, own[rows].sum(0) / np.where(shared < 1, 1 - shared, 1), 0)
        return out


def sums(points: Float, classes: NDArray[np.int64], gamma: float, weights: Float, *, chunk: int = 512) -> Sums:
    """Both products of :class:`Sums` in one pass over all pairs and one over the pairs of each class."""
    same = np.zeros_like(weights)
    for c in np.unique(classes):
        rows = np.flatnonzero(classes == c)
        same[rows] = gram_times(points[rows], gamma, weights[rows], chunk=chunk)
    return Sums(
        weights=weights, all_pairs=gram_times(points, gamma, weights, chunk=chunk), same_class=same, classes=classes
    )


def permutations(
    classes: Sequence[NDArray[np.int64]], share: Float, count: int, rng: np.random.Generator
) -> tuple[Float, Float]:
    """Weights of ``count`` relabellings of two sets inside each class: two arrays [n_a + n_b, count].

    ``classes`` are the class numbers of both sets. Class counts of both groups stay, and so do the weights that match
    their composition to ``share`` [C].
    """
    both = np.concatenate(classes)
    n_a = len(classes[0])
    first = np.zeros((len(both), count))
    first[:n_a] = 1
    for c in np.unique(both):
        rows = np.flatnonzero(both == c)
        k = int((rows < n_a).sum())
        for column in range(count):
            first[rows, column] = 0
            first[rng.permutation(rows)[:k], column] = 1
    counts = [np.bincount(own, minlength=len(share)) for own in classes]
    omega = [np.where(n > 0, share / np.maximum(n, 1), 0)[both][:, None] for n in counts]
    return first * omega[0], (1 - first) * omega[1]
