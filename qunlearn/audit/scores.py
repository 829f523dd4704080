"""Per-sample scores from logits, float64 throughout. p = softmax(z), y = true label."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
_TINY = np.finfo(np.float64).tiny


def log_softmax(logits: NDArray[Any]) -> Float64:
    """log p, float64 [n, C], from logits [n, C]; stable for any finite logits."""
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(axis=1, keepdims=True)
    out: Float64 = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


def predicted(logits: NDArray[Any]) -> NDArray[np.int64]:
    """Class of the largest logit, int64 [n]; the lowest index wins a tie."""
    out: NDArray[np.int64] = np.asarray(logits).argmax(axis=1).astype(np.int64)
    return out


def correct(logits: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """argmax = y, bool [n]."""
    out: NDArray[np.bool_] = predicted(logits) == np.asarray(y)
    return out


def log_likelihood(logits: NDArray[Any], y: NDArray[Any]) -> Float64:
    """log p_y = -CE in nats, float64 [n]."""
    labels = np.asarray(y, dtype=np.int64)
    out: Float64 = log_softmax(logits)[np.arange(labels.size), labels]
    return out


def confidence(logits: NDArray[Any], y: NDArray[Any]) -> Float64:
    """p_y, float64 [n]."""
    out: Float64 = np.exp(log_likelihood(logits, y))
    return out


def max_probability(logits: NDArray[Any]) -> Float64:
    """max_k p_k, float64 [n]."""
    out: Float64 = np.exp(log_softmax(logits).max(axis=1))
    return out


def entropy(logits: NDArray[Any]) -> Float64:
    """-sum_k p_k log p_k in nats, float64 [n], 0..log C."""
    log_p = log_softmax(logits)
    out: Float64 = np.maximum(0.0, -(np.exp(log_p) * log_p).sum(axis=1))
    return out


def modified_entropy(logits: NDArray[Any], y: NDArray[Any]) -> Float64:
    """-(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k) in nats, float64 [n] (Song and Mittal 2021).

    1 - p of the largest class is taken as the sum of the others, so that it keeps its digits near p = 1.
    """
    log_p, labels = log_softmax(logits), np.asarray(y, dtype=np.int64)
    p, rows = np.exp(log_p), np.arange(len(labels))
    rest, top = 1.0 - p, p.argmax(axis=1)
    others = p.copy()
    others[rows, top] = 0.0
    rest[rows, top] = others.sum(axis=1)
    terms = p * np.log(np.maximum(rest, _TINY))
    terms[rows, labels] = rest[rows, labels] * log_p[rows, labels]
    out: Float64 = -terms.sum(axis=1)
    return out


def tpr_at_fpr(positive: NDArray[Any], negative: NDArray[Any], fpr: float) -> NDArray[np.bool_]:
    """Which positives lie strictly above the threshold whose false-positive rate is at most ``fpr``, bool [n_pos].

    The threshold is the (floor(fpr n) + 1)-th largest negative; a tie with it counts as not above.
    """
    ordered = np.sort(np.asarray(negative, dtype=np.float64))[::-1]
    threshold = ordered[min(math.floor(fpr * ordered.size), ordered.size - 1)]
    out: NDArray[np.bool_] = np.asarray(positive, dtype=np.float64) > threshold
    return out


def kl(reference: NDArray[Any], logits: NDArray[Any]) -> Float64:
    """sum_k p_ref,k (log p_ref,k - log p_k) in nats, float64 [n], from two logit arrays [n, C]."""
    log_r, log_p = log_softmax(reference), log_softmax(logits)
    out: Float64 = np.maximum(0.0, (np.exp(log_r) * (log_r - log_p)).sum(axis=1))
    return out


def finite(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows hold finite logits only, bool [n]."""
    out: NDArray[np.bool_] = np.isfinite(np.asarray(logits)).all(axis=1)
    return out
