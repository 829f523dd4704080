"""Per-sample scores against the glossary's formulas, written out sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qunlearn.audit import scores


def softmax(z: list[float]) -> list[float]:
    e = [math.exp(v) for v in z]
    return [v / sum(e) for v in e]


@pytest.mark.parametrize("label", [0, 1, 2])
def test_t17_modified_entropy_is_the_glossary_formula(label: int) -> None:
    z = [1.3, -0.4, 0.2]
    p = softmax(z)
    want = -(1 - p[label]) * math.log(p[label])
    want -= sum(p[k] * math.log(1 - p[k]) for k in range(3) if k != label)
    got = scores.modified_entropy(np.array([z, z[::-1]]), np.array([label, 2 - label]))
    assert got == pytest.approx([want, want])
    # The published attack code uses log p where log(1 - p) belongs; that number is another one.
    wrong = -(1 - p[label]) * math.log(p[label]) - sum(p[k] * math.log(p[k]) for k in range(3) if k != label)
    assert abs(want - wrong) > 0.05


def test_modified_entropy_is_finite_and_ordered_at_the_extremes() -> None:
    right, wrong = scores.modified_entropy(np.array([[900.0, 0, 0], [900.0, 0, 0]]), np.array([0, 1]))
    assert right == pytest.approx(0.0, abs=1e-12)
    assert np.isfinite(wrong)
    assert wrong > 100


def test_entropy_confidence_and_kl() -> None:
    z = np.array([[0.0, 0, 0, 0], [2.0, -1, 0.5, 0]])
    p = np.array([softmax(list(r)) for r in z])
    assert scores.entropy(z) == pytest.approx([math.log(4), float(-(p[1] * np.log(p[1])).sum())])
    assert scores.confidence(z, np.array([3, 2])) == pytest.approx([0.25, p[1, 2]])
    assert scores.max_probability(z) == pytest.approx(p.max(1))
    assert scores.kl(z, z) == pytest.approx([0, 0])
    assert scores.kl(z[:1], z[1:])[0] == pytest.approx(float((p[0] * np.log(p[0] / p[1])).sum()))


def test_ties_go_to_the_lowest_index() -> None:
    assert scores.predicted(np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])).tolist() == [0, 1]


def test_tpr_at_fpr_keeps_the_false_positive_rate() -> None:
    rng = np.random.default_rng(0)
    negative, positive = rng.normal(size=1000), rng.normal(1.0, 1.0, size=400)
    above = scores.tpr_at_fpr(positive, negative, 0.01)
    threshold = positive[above].min()
    assert (negative >= threshold).mean() <= 0.01
    lower = np.sort(negative)[-11]
    assert above.sum() == (positive > lower).sum() > 4
    assert not scores.tpr_at_fpr(np.ones(5), np.ones(1000), 0.01).any()


def test_finite_marks_rows() -> None:
    assert scores.finite(np.array([[1.0, 2.0], [np.nan, 0.0], [np.inf, 0.0]])).tolist() == [True, False, False]
