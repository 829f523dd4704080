"""Recovery probes: disjoint samples, heads that learn, neighbours, the network's own head and fine-tuning."""

from __future__ import annotations

from typing import Any

import numpy as np

from qunlearn.audit.recovery import Recovery, fit_head, nearest, probe_sets
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits


def test_shots_and_judged_share_no_sample(world: Any, lab: Any) -> None:
    """T15, for a forgotten group (never-trained samples of it) and for a request by ids (other forget samples)."""
    data = lab.make_dataset()
    for splits in (world.splits, make_splits(data, Request.parse("random=20%"), seed=0)):
        sets = probe_sets(splits, shots=5, retained=100, seed=0)
        assert not np.intersect1d(sets.shots.ids, sets.judged.ids).size
        assert np.isin(sets.shots.index, np.concatenate([splits.forget.index, splits.retain.index])).all()
        assert not np.isin(sets.judged.index, splits.retain.index).any()
    few = np.isin(sets.shots.index, splits.forget.index)
    assert few.sum() == 25, "five a class"
    assert (~few).sum() == 100


def test_a_head_learns_what_is_linear_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    told, mute = np.eye(3)[y] + rng.normal(0, 0.2, (300, 3)), rng.normal(size=(300, 3))
    right = []
    for x in (told, mute):
        w = fit_head(x[:200], y[:200], 3, seed=0, epochs=40, lr=0.01, batch=64)
        again = fit_head(x[:200], y[:200], 3, seed=0, epochs=40, lr=0.01, batch=64)
        assert np.array_equal(w, again)
        right.append(((np.c_[x[200:], np.ones(100)] @ w).argmax(1) == y[200:]).mean())
    assert right[0] > 0.95
    assert right[1] < 0.5


def test_neighbours_vote_by_cosine() -> None:
    x = np.array([[1, 0], [2, 0.1], [9, 0], [0, 1], [0, 3], [0.1, 5.0]])
    y = np.array([0, 0, 0, 1, 1, 1])
    assert nearest(x, y, np.array([[50.0, 1], [0.2, 1]]), 2).tolist() == [0, 1]


def test_with_a_trainer_the_own_head_and_fine_tuning_are_tabled(world: Any) -> None:
    after = world.near(world.retrained, 3)
    result = Recovery()(world.context(world.original, after, world.retrained))
    assert result.tables["trained"] == ("finetune", "head")
    assert {"recovery_head", "recovery_finetune", "recovery_neighbours"} <= set(result.tables["metrics"])
    without = Recovery()(world.context(world.original, after, world.retrained, inputs={}))
    assert without.tables["trained"] == ()
    assert without.value == result.value
    assert "recovery_random" not in without.tables["metrics"]


def test_random_features_are_the_lower_end_of_the_scale(world: Any) -> None:
    """What the probe reads of the original, and of features that never learnt: chance."""
    result = Recovery()(world.context(world.original, world.near(world.retrained, 3), world.retrained))
    (row,) = result.tables["metrics"]["recovery_random"].values()
    assert abs(row["before"]["value"] - 0.2) < 0.1
    assert result.tables["metrics"]["recovery_accuracy"]["forgotten"]["before"]["value"] > 0.8
    assert set(row) - {"before"} == set() or all(row[k] is None for k in set(row) - {"before"})


def test_few_judged_samples_decide_nothing(lab: Any) -> None:
    data = lab.make_dataset(per_rest=2)
    small = lab.World(data, make_splits(data, Request.parse("group=s0"), seed=0))
    small.splits.forget_test  # noqa: B018
    result = Recovery()(small.context(small.original, small.near(small.retrained, 3), small.retrained))
    assert ("I-RECOVERY-FEW" in result.reasons) == (result.n["judged"] < 20)
