"""The membership attack on networks that were trained here: what the tables' target and their first row rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from qunlearn.audit import TorchPredictor
from qunlearn.audit.mia import attack, attack_sets
from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.quant import QuantModel

SEEDS = (0, 1, 2)


def test_a_retrained_network_has_not_seen_the_forget_set_and_the_original_has(
    trained: Callable[..., QuantModel], retrained: Callable[[Splits, int], QuantModel], dataset: Dataset
) -> None:
    """Random 10 %: the retrained network takes forgotten and held-out data alike (3 s.e.); the original's is lower."""
    lower = []
    for seed in SEEDS:
        splits = make_splits(dataset, Request.parse("random=10%"), seed=seed)
        sets = attack_sets(splits, nonmembers="test", seed=seed)
        original, without = (TorchPredictor(m) for m in (trained("mlp", seed=seed), retrained(splits, seed + 1000)))
        unseen = attack(without, dataclasses.replace(sets, forget=splits.heldout_audit)).calls
        forgotten, known = (attack(p, sets).calls for p in (without, original))
        error = float(np.sqrt(sum(v.var() / len(v) for v in (unseen, forgotten))))
        assert error > 0
        assert abs(forgotten.mean() - unseen.mean()) <= 3 * error
        lower.append(forgotten.mean() - known.mean())
    assert np.mean(lower) > 0.015
