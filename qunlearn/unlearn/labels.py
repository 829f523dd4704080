"""Other labels for forget samples: random ones, and batches in which a table of labels replaces the true ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from qunlearn.tasks.base import Batch
from qunlearn.unlearn.context import Context


def random_labels(
    y: NDArray[np.int64], classes: int, rng: np.random.Generator, *, exclude_true: bool = True
) -> NDArray[np.int64]:
    """One uniform label in 0..classes-1 for each true label ``y`` int64 [n]; never the true one unless allowed."""
    if not exclude_true or classes < 2:
        return rng.integers(0, classes, len(y))
    out: NDArray[np.int64] = (y + rng.integers(1, classes, len(y))) % classes
    return out


def relabelled(ctx: Context, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Batch:
    """The forget samples ``rows`` with ``labels`` (one for every forget sample) in place of their own."""
    return dataclasses.replace(ctx.task.batch(ctx.data.forget, rows), y=torch.from_numpy(labels[rows]))


def union_batch(ctx: Context, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[Batch, int]:
    """(batch, its number of forget samples) of rows in forget + retain; forget samples first, with ``labels``."""
    n = len(ctx.data.forget)
    own, other = rows[rows < n], rows[rows >= n] - n
    parts = [relabelled(ctx, own, labels)] if len(own) else []
    parts += [ctx.task.batch(ctx.data.retain, other)] if len(other) else []
    return Batch(**{k: torch.cat([getattr(p, k) for p in parts]) for k in ("x", "y", "index")}), len(own)
