"""What an OEU step did: first-order predictions against true changes, batch noise, and integer codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.quant import QuantModel
from qunlearn.quant.lower import latent_scale
from qunlearn.quant.model import WEIGHTED
from qunlearn.tasks.base import Batch, Task
from qunlearn.unlearn.compose import Update
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.orthogonal import add, dot, gram
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import dots

WINDOW = 50
"""``rho2`` is a ratio of sums over the last so many measurements."""


def geometry(arena: GradientArena, scope: str, r: Tensor, f: Tensor, u: Update) -> dict[str, Any]:
    """Norms and cosines before and after the projection, and the first-order change of L_r."""
    g = gram([r, f, u.projected, u.against, u.unprojected, u.retain, u.forget])
    rr, fr, ff = g[0][0], g[0][1], g[1][1]
    pp, qq, pq, start = g[2][2], g[3][3], g[2][3], g[4][4]
    one = scope in ("global", "none")
    conflicts = int(fr < 0) if one else int((dots(arena, f, r, scope=scope).fr < 0).sum())
    return {
        "norm_r": rr**0.5,
        "norm_f": ff**0.5,
        "norm_fperp": pp**0.5,
        "cos_before": fr / (ff * rr) ** 0.5 if ff > 0 and rr > 0 else 0.0,
        "cos_after": pq / (pp * qq) ** 0.5 if pp > 0 and qq > 0 else 0.0,
        "removed": 1 - pp / start if start > 0 else 0.0,
        "conflicting_segments": conflicts,
        "dLr_pred": g[0][5] + g[0][6],
        "dLr_pred_forget": g[0][6],
        "norm_update_forget": g[6][6] ** 0.5,
    }


@torch.no_grad()
def actual_changes(loss: Callable[[], float], arena: GradientArena, u: Update, before: float) -> dict[str, float]:
    """True changes of L_r on the same batch: of the whole update, and of its forget part after the retain part.

    ``loss()`` evaluates L_r at the current parameters, which are put back bit for bit.
    """
    parameters = arena.params
    kept = [p.detach().clone() for p in parameters]

    def put_back() -> None:
        for p, old in zip(parameters, kept, strict=True):
            p.copy_(old)

    add(parameters, arena.split(u.retain))
    only_retain = loss()
    put_back()
    add(parameters, arena.split(u.retain + u.forget))
    both = loss()
    put_back()
    return {"dLr_actual": both - before, "dLr_forget_actual": both - only_retain}


def half_batches(
    task: Task, model: nn.Module, parameters: Sequence[nn.Parameter], halves: Sequence[Batch], total: int
) -> tuple[float, float]:
    """(estimate of |mu|^2, |r|^2) from two halves of a retain batch; mu is the gradient over all ``total`` samples.

    With r1, r2 the gradients of the halves and r = (r1 + r2) / 2, <r1, r2> estimates |mu|^2 if samples are drawn with
    replacement. A pass draws b of N without: then E<r1, r2> = |mu|^2 - S/N and E|r|^2 = |mu|^2 + S (1/b - 1/N), where
    S is the trace of the samples' covariance. So <r1, r2> + (b/N) (|r|^2 - <r1, r2>) is free of bias, and equals
    |mu|^2 if the batch is the whole set. The ratio of both sums takes noise to have no part along mu.
    """
    grads = []
    for half in halves:
        loss = task.loss(task.logits(model, half), half)
        grads.append(torch.autograd.grad(loss, list(parameters), allow_unused=True))
    inner = square = 0.0
    for a, b in zip(*grads, strict=True):
        if a is None or b is None:
            continue
        inner += dot(a, b)
        mean = (a + b) / 2
        square += dot(mean, mean)
    return inner + sum(len(h) for h in halves) / total * (square - inner), square


def deep(
    ctx: Context,
    arena: GradientArena,
    rows: NDArray[np.int64],
    update: Update,
    before: float,
    *,
    bn: str,
    noise: list[list[float]],
) -> dict[str, Any]:
    """True changes of L_r on the retain batch ``rows`` and the share of the mean in its gradient (``rho2``).

    ``before`` is the loss of the retain pass, which with frozen BatchNorm is the loss before the update. ``noise`` is
    the window of earlier measurements, moved on in place.
    """
    task, model = ctx.task, ctx.model
    model.eval()
    device = device_of(model)
    batch = to_device(task.batch(ctx.data.retain, rows), device)

    def loss() -> float:
        return float(task.loss(task.logits(model, batch), batch))

    if bn != "frozen":
        with torch.no_grad():
            before = loss()
    out: dict[str, Any] = actual_changes(loss, arena, update, before)
    half = len(rows) // 2
    if half:
        pieces = (rows[:half], rows[half : 2 * half])
        halves = [to_device(task.batch(ctx.data.retain, p), device) for p in pieces]
        ctx.count(2 * half)
        noise.append(list(half_batches(task, model, arena.params, halves, len(ctx.data.retain))))
        del noise[:-WINDOW]
        square = sum(b for _, b in noise)
        out["rho2"] = sum(a for a, _ in noise) / square if square > 0 else 0.0
    return out


@torch.no_grad()
def code_state(before: QuantModel, after: QuantModel, delta: dict[str, Tensor]) -> dict[str, float]:
    """Share of weight codes that differ from the start, share of moved latents whose code did not, median step in LSB.

    ``delta`` maps parameter names to the last update.
    """
    changed = lost = moved = total = 0
    steps = []
    for step in after.steps:
        if step.kind not in WEIGHTED:
            continue
        old, new = before.get_submodule(str(step.module)).weight, after.get_submodule(str(step.module)).weight
        scale = latent_scale(after, step)
        was = before.weight_quantizer_of(step).codes(_tensor(old), scale=latent_scale(before, step))
        differs = was != after.weight_quantizer_of(step).codes(_tensor(new), scale=scale)
        shifted = _tensor(old) != _tensor(new)
        total += differs.numel()
        changed += int(differs.sum())
        moved += int(shifted.sum())
        lost += int((shifted & ~differs).sum())
        update = delta.get(f"{step.module}.weight")
        if update is not None:
            steps.append((update.abs() / scale).flatten())
    return {
        "codes_changed": changed / max(1, total),
        "codes_lost": lost / max(1, moved),
        "lsb_step": float(torch.cat(steps).median()) if steps else 0.0,
    }


def _tensor(value: Any) -> Tensor:
    out: Tensor = value.detach()
    return out
