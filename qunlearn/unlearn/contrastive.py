"""Contrastive unlearning losses on normalised features: pull forget samples away from their own class."""

from __future__ import annotations

import torch
from torch import Tensor

FORMS = ("retain", "forget", "none")


def _mean_over(terms: Tensor, pairs: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``terms`` [n, m] over the True entries of ``pairs`` per row, then over the ``valid`` rows."""
    row = (terms * pairs).sum(1) / pairs.sum(1).clamp_min(1)
    return (row * valid).sum() / valid.sum().clamp_min(1)


def forget_form(z: Tensor, y: Tensor, tau: float) -> tuple[Tensor, int]:
    """(loss, anchors skipped) over a forget batch: ``z`` [n, d] of unit length, ``y`` int64 [n].

    l_i = -1/|N_i| sum over N_i of [ z_i.z_j/tau - log sum over the batch of exp(z_i.z_k/tau) ], N_i = other classes. An
    anchor without N_i is skipped. 0 <= l_i <= 2/tau + log n.
    """
    s = z @ z.T / tau
    negative = y[:, None] != y[None, :]
    valid = negative.any(1)
    terms = torch.logsumexp(s, 1, keepdim=True) - s
    return _mean_over(terms, negative, valid), int((~valid).sum())


def retain_form(z: Tensor, y: Tensor, z_r: Tensor, y_r: Tensor, tau: float) -> tuple[Tensor, int]:
    """(loss, anchors skipped): forget features ``z`` [n, d], ``y`` [n] against retain features ``z_r`` [m, d], ``y_r``.

    l_i = -1/|N_i| sum over N_i of [ z_i.z_a/tau - log sum over P_i of exp(z_i.z_p/tau) ], N_i = retain samples of
    other classes, P_i = retain samples of the own class, or, where the whole class is forgotten, the other forget
    samples of it. Retain features are detached (our choice). |l_i| <= 2/tau + log|P_i|.
    """
    z_r = z_r.detach()
    negative = y[:, None] != y_r[None, :]
    own = ~negative
    among = (y[:, None] == y[None, :]) & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    use_own = own.any(1)
    positive = torch.where(use_own[:, None], own, torch.zeros_like(own))
    fallback = torch.where(use_own[:, None], torch.zeros_like(among), among)
    s_r, s_f = z @ z_r.T / tau, z @ z.T / tau
    valid = negative.any(1) & (positive.any(1) | fallback.any(1))
    both = torch.cat([s_r.masked_fill(~positive, -torch.inf), s_f.masked_fill(~fallback, -torch.inf)], 1)
    # rows without any positive would be -inf throughout: give them a value that the mask below removes
    both = torch.where(valid[:, None], both, torch.zeros_like(both))
    terms = torch.logsumexp(both, 1, keepdim=True) - s_r
    return _mean_over(terms, negative, valid), int((~valid).sum())
