"""Entropy losses on logits: drive the prediction on forget data towards the uniform distribution.

With ``p = softmax(z)`` over ``C`` classes and ``u = 1/C``::

    e1 = sum_c p_c log p_c        = KL(p||u) - log C      in [-log C, 0]
    e2 = -(1/C) sum_c log p_c     = KL(u||p) + log C      in [log C, inf)

The gradients with respect to the logits are ``p_k (log p_k + H)`` and ``p_k - 1/C``. Forgetting by maximal uncertainty
is the idea of Zhang et al. 2026 (arXiv 2602.00567, abstract); which of the two forms they use is not known, ``e2`` as
the default is our own choice, because ``e1`` has no gradient where the network is certain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qunlearn.errors import ConfigError

KINDS = ("e1", "e2")


def entropy_loss(
    logits: Tensor, *, kind: str = "e2", mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Mean entropy loss of ``logits`` [n, ..., C]: a scalar in nats, of the dtype of the logits.

    ``mask`` [n, ...] (bool or 0/1) marks the positions that count; the mean runs over them, so padding changes nothing.
    ``weight`` [n] multiplies each sample's terms without changing the divisor. Raises ConfigError for an unknown
    ``kind`` or shapes that do not fit.
    """
    if kind not in KINDS:
        raise ConfigError(f"entropy loss {kind!r} is unknown.", remedy=f"Use one of {', '.join(KINDS)}.")
    log_p = torch.log_softmax(logits, dim=-1)
    terms = (log_p.exp() * log_p).sum(-1) if kind == "e1" else -log_p.mean(-1)
    if weight is not None:
        _fits(weight, terms.shape[:1], "weight")
        terms = terms * weight.to(terms.dtype).reshape(-1, *[1] * (terms.ndim - 1))
    return _mean(terms, mask)


def normalized_entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean ``H(p) / log C`` over the positions of ``mask``: a scalar in 0..1 (1 is uniform)."""
    log_p = torch.log_softmax(logits, dim=-1)
    return _mean(-(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1]), mask)


def _mean(terms: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return terms.mean()
    _fits(mask, terms.shape, "mask")
    keep = mask.to(terms.dtype)
    return (terms * keep).sum() / keep.sum().clamp_min(1)


def _fits(value: Tensor, shape: torch.Size, what: str) -> None:
    if value.shape != shape:
        raise ConfigError(
            f"the {what} has shape {list(value.shape)}, the terms of the loss {list(shape)}.",
            remedy=f"Give one {what} value a position.",
        )
