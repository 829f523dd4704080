"""The gradients that a perturbation aligns, and its optimization. Needs torch; one idea: see docs/eve.md."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn.audit.eve_config import EveConfig
from qunlearn.audit.eve_grid import InputGrid
from qunlearn.errors import DivergedError
from qunlearn.quant.freeze import latent_parameters

ForgetLoss = Callable[[Tensor, Tensor], Tensor]
"""``forget_loss(logits [n, C], y [n])``: the scalar that the operator's method minimises on the erased samples."""

FINETUNE_EPOCHS, FINETUNE_LR = 20, 0.01
"""``boundary="finetune"``: epochs as in the authors' code; the step is our own choice."""


def negative_ce(logits: Tensor, y: Tensor) -> Tensor:
    """Minus cross-entropy: gradient ascent, the default forget loss."""
    return -F.cross_entropy(logits, y)


def flat(loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
    """Gradient of ``loss`` over all parameters as one vector, in their order; zeros where it does not depend on one."""
    found = torch.autograd.grad(loss, list(parameters), create_graph=create_graph, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    )


def soft_sign(g: Tensor) -> Tensor:
    """tanh(g / s) with s the median of |g|, held fixed: a differentiable stand-in for the sign."""
    scale = g.detach().abs()
    scale = scale[scale > 0].median() if bool((scale > 0).any()) else scale.new_tensor(1.0)
    return torch.tanh(g / scale)


def similarity(a: Tensor, b: Tensor, align: str) -> Tensor:
    """Cosine over the whole vector, after :func:`soft_sign` of both where ``align`` says so."""
    if align == "soft_sign":
        a, b = soft_sign(a), soft_sign(b)
    return F.cosine_similarity(a, b, dim=0, eps=1e-30)


def boundary_direction(model: nn.Module, x_t: Tensor, y_adv: Tensor, cfg: EveConfig) -> Tensor:
    """g_bd: the direction whose negative moves the targets to ``y_adv``; a constant vector over the latent parameters.

    ``finetune``: parameters less those of a copy fine-tuned on (x_t, y_adv).
    """
    parameters = latent_parameters(model, part=cfg.params)
    if cfg.boundary == "grad":
        return flat(F.cross_entropy(model(x_t), y_adv, reduction="sum"), list(parameters.values())).detach()
    tuned = copy.deepcopy(model)
    moved = latent_parameters(tuned, part=cfg.params)
    optimizer = torch.optim.SGD(list(moved.values()), lr=FINETUNE_LR)
    for _ in range(FINETUNE_EPOCHS):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(tuned(x_t), y_adv, reduction="sum").backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.cat([(p - q).detach().flatten() for p, q in zip(parameters.values(), moved.values(), strict=True)])


@dataclass(frozen=True, kw_only=True)
class Crafted:
    """``codes`` int8 [n, ...] on the input grid; cosines of the whole request before and after snapping; ``losses`` of
    the steps of the winning restart (mean over batches)."""

    codes: NDArray[np.int8]
    cos_before: float
    cos_after: float
    losses: tuple[float, ...]


def cosine(model: nn.Module, x: Tensor, y: Tensor, g_bd: Tensor, forget_loss: ForgetLoss, cfg: EveConfig) -> float:
    """Similarity of the gradient that the operator will follow on (x, y) with ``g_bd``."""
    parameters = list(latent_parameters(model, part=cfg.params).values())
    return float(similarity(flat(forget_loss(model(x), y), parameters), g_bd, cfg.align).detach())


def craft_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    g_bd: Tensor,
    forget_loss: ForgetLoss,
    cfg: EveConfig,
    *,
    aligned: bool = True,
) -> Tensor:
    """``1 - cos(g_un, g_bd) - kappa CE``, differentiable in ``x``; ``aligned=False``: minus CE alone."""
    out = model(x)
    if not aligned:
        return negative_ce(out, y)
    parameters = list(latent_parameters(model, part=cfg.params).values())
    g_un = flat(forget_loss(out, y), parameters, create_graph=True)
    loss = 1 - similarity(g_un, g_bd, cfg.align)
    return loss - cfg.kappa * F.cross_entropy(out, y) if cfg.kappa else loss


def perturb(
    model: nn.Module,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    g_bd: Tensor,
    forget_loss: ForgetLoss,
    cfg: EveConfig,
    *,
    eps: float,
    grid: InputGrid,
    seed: int,
    aligned: bool = True,
) -> Crafted:
    """Optimize the perturbation of samples ``x`` [n, C, H, W] within ``eps`` and snap it to the grid.

    The network must be frozen (:func:`qunlearn.quant.freeze.freeze_quant`). ``aligned=False`` is what the authors'
    released code effectively does: its alignment term has no gradient. DivergedError for a non-finite loss.
    """
    base = grid.inside(x)
    labels = torch.from_numpy(y)
    best: Crafted | None = None
    for r in range(cfg.restarts):
        moved, losses = [], []
        for start in range(0, len(base), cfg.batch_size):
            rows = slice(start, start + cfg.batch_size)
            part, trace = _optimize(
                model, base[rows], labels[rows], g_bd, forget_loss, cfg, eps, grid, [seed, r, start], aligned
            )
            moved.append(part)
            losses.append(trace)
        x_free = np.concatenate(moved)
        codes = grid.snap(x_free, base, eps)
        found = Crafted(
            codes=codes,
            cos_before=cosine(model, torch.from_numpy(x_free), labels, g_bd, forget_loss, cfg),
            cos_after=cosine(model, torch.from_numpy(grid.values(codes)), labels, g_bd, forget_loss, cfg),
            losses=tuple(float(v) for v in np.mean(losses, axis=0)),
        )
        if best is None or found.cos_after > best.cos_after:
            best = found
    assert best is not None
    return best


def _optimize(
    model: nn.Module,
    base: NDArray[np.float64],
    y: Tensor,
    g_bd: Tensor,
    forget_loss: ForgetLoss,
    cfg: EveConfig,
    eps: float,
    grid: InputGrid,
    seed: list[int],
    aligned: bool,
) -> tuple[NDArray[np.float32], list[float]]:
    """Adam on d, clipped to the ball and to the range after every step. Returns x + d and the losses."""
    x = torch.from_numpy(base.astype(np.float32))
    low, high = (torch.from_numpy(np.broadcast_to(v, base.shape).astype(np.float32)) for v in (grid.low, grid.high))
    drawn = np.random.default_rng([*seed, 83]).uniform(-eps, eps, base.shape) if seed[1] else np.zeros(base.shape)
    d = torch.from_numpy(drawn.astype(np.float32)).requires_grad_()
    optimizer = torch.optim.Adam([d], lr=eps / 10 if cfg.lr is None else cfg.lr)
    losses = []
    for step in range(cfg.steps):
        loss = craft_loss(model, x + d, y, g_bd, forget_loss, cfg, aligned=aligned)
        (d.grad,) = torch.autograd.grad(loss, [d])
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]) or not bool(d.grad.isfinite().all()):
            raise DivergedError(f"crafting diverged at step {step + 1}.", remedy="Use a smaller lr.")
        optimizer.step()
        with torch.no_grad():
            d.clamp_(-eps, eps)
            d.copy_(torch.clamp(x + d, low, high) - x)
    return (x + d).detach().numpy(), losses


def uniform_noise(x: NDArray[np.float32], *, eps: float, grid: InputGrid, seed: int) -> NDArray[np.int8]:
    """Codes of the samples with uniform noise of radius ``eps``: the attribution arm ``random``."""
    base = grid.inside(x)
    noise = np.random.default_rng([seed, 89]).uniform(-eps, eps, base.shape)
    return grid.snap(base + noise, base, eps)
