"""Gradients of one batch into one arena row: micro-batches, and processes that share a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.data.dataset import Samples
from qunlearn.tasks.base import Batch, Task
from qunlearn.unlearn.probe import to_device


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without an initialised process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def chunks(rows: NDArray[np.int64], micro_batch: int | None) -> list[NDArray[np.int64]]:
    """This process's share of ``rows`` in pieces of at most ``micro_batch``."""
    rank, size = world()
    own = rows[rank::size]
    step = micro_batch or max(1, len(own))
    return [own[i : i + step] for i in range(0, len(own), step)]


def accumulate(
    task: Task,
    samples: Samples,
    rows: NDArray[np.int64],
    device: torch.device,
    loss: Callable[[Batch], tuple[Tensor, dict[str, float]]],
    *,
    micro_batch: int | None = None,
    finish: Callable[[], Tensor],
) -> dict[str, float]:
    """Backward passes over all pieces of ``rows``, so that ``.grad`` holds the gradient of the mean over the batch.

    ``loss(batch)`` returns the mean loss of a piece and further means; all are returned averaged over the batch.
    ``finish()`` is called after the last piece and returns the flat gradient buffer, which is then summed over
    processes; so both happen before anything is projected.
    """
    totals: dict[str, float] = {}
    for piece in chunks(rows, micro_batch):
        batch = to_device(task.batch(samples, piece), device)
        share = len(piece) / len(rows)
        value, extra = loss(batch)
        (value if share == 1 else value * share).backward()  # type: ignore[no-untyped-call]
        for name, x in {"loss": float(value.detach()), **extra}.items():
            totals[name] = totals.get(name, 0.0) + share * x
    buffer = finish()
    if world()[1] > 1:
        dist.all_reduce(buffer)
        names = sorted(totals) or ["loss"]
        means = torch.tensor([totals.get(n, 0.0) for n in names], dtype=torch.float64)
        dist.all_reduce(means)
        totals = dict(zip(names, means.tolist(), strict=True))
    return totals
