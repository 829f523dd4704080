"""Which coordinates matter for the forget set, and how all others are held still (SalUn)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qunlearn.unlearn.context import Context
from qunlearn.unlearn.pairing import Pass
from qunlearn.unlearn.sgd import mean_loss


def saliency(ctx: Context, batch_size: int) -> dict[str, Tensor]:
    """| sum over forget batches of the gradient of the mean loss | at the current parameters, evaluation mode."""
    parameters = ctx.trainable()
    loader = Pass(len(ctx.data.forget), batch_size, seed=ctx.seed, purpose="saliency")
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for _ in range(loader.count):
        loss = mean_loss(ctx, ctx.data.forget, loader.next(), "frozen", "forget")
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, g in zip(parameters, grads, strict=True):
            if g is not None:
                total[name] += g
    return {n: t.abs() for n, t in total.items()}


def top_share(scores: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Boolean masks: True on the ``ratio`` share of all coordinates with the largest score.

    One ranking over all tensors in the order of ``scores``; ties go to the lower index (rounded up to a whole number of
    coordinates).
    """
    flat = torch.cat([s.flatten() for s in scores.values()])
    keep = math.ceil(ratio * flat.numel())
    chosen = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    chosen[torch.sort(flat, descending=True, stable=True).indices[:keep]] = True
    parts = torch.split(chosen, [s.numel() for s in scores.values()])
    return {n: part.reshape(s.shape) for (n, s), part in zip(scores.items(), parts, strict=True)}


def holder(ctx: Context, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """A function that puts every coordinate outside ``masks`` back to its value of now, bit for bit.

    To be called after each optimizer step: a masked gradient alone would not stop momentum and weight decay.
    """
    parameters = ctx.trainable()
    start = {n: parameters[n].detach().clone() for n in masks}

    @torch.no_grad()
    def restore() -> None:
        for name, mask in masks.items():
            parameters[name].copy_(torch.where(mask, parameters[name], start[name]))

    return restore
