"""Relearning: matched arms, budgets, the precondition, hidden knowledge found, nothing trained that need not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AUDITS, paired
from qunlearn.audit.relearn import Relearn, relearn_sets
from qunlearn.audit.trainer import Budget
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits


def hidden(world: Any, margin: float) -> Any:
    """The retrained network's answers, but on the forget set the true class is only ``margin`` behind where wrong."""
    out = world.near(world.retrained, 3)
    z, rows = out.table.copy(), world.splits.forget.index
    y = world.splits.forget.targets()
    wrong = z[rows].argmax(1) != y
    z[rows[wrong], y[wrong]] = z[rows[wrong]].max(1) - margin
    return type(out)(z)


@pytest.mark.parametrize("request_text", ["group=s0", "random=20%", "class=a"])
def test_arms_are_of_equal_size_and_never_hold_what_is_scored(lab: Any, request_text: str) -> None:
    data = lab.make_dataset()
    splits = make_splits(data, Request.parse(request_text), seed=0)
    sets = relearn_sets(splits, n_items=30, judged=50, seed=0)
    assert sets.absent == ()
    assert len(sets.judged) == 50
    own = {}
    for arm, samples in sets.arms.items():
        assert not np.intersect1d(samples.index, sets.judged.index).size
        assert len(np.unique(samples.index)) == len(samples)
        assert 55 <= len(samples) <= 60, "30 of its own and as many retained; the random arm may meet some twice"
        own[arm] = np.isin(samples.index, splits.forget.index).sum()
    assert own == {"same_fact": 30, "topical": 0, "random": 0}


def test_hidden_knowledge_passes_accuracy_and_fails_relearning(world: Any) -> None:
    ctx = world.context(world.original, hidden(world, 0.2), world.retrained)
    assert AUDITS["accuracy"]()(ctx).verdict == "pass"
    result = Relearn()(ctx)
    assert (result.verdict, result.failure_side) == ("fail", "under")
    row = result.tables["arms"]["same_fact"]
    assert row["steps"] == (0, 4, 8, 12, 16)
    assert row["curves"]["after"][0] < 0.8 < 0.95 < row["curves"]["after"][-1]
    assert row["best"]["after"] == max(row["curves"]["after"])
    assert Relearn(steps=2, eval_every=1)(ctx).verdict == "pass", "within a smaller budget nothing returns"


def test_a_model_that_learns_no_more_is_over_forgotten(world: Any, lab: Any) -> None:
    class Deaf(lab.FakeTrainer):  # type: ignore[misc,name-defined]
        """Every other network learns at once."""

        def curve(self, predictor: Any, samples: Any, judged: Any, budget: Any) -> Any:
            hits = super().curve(predictor, samples, judged, budget)
            if predictor is not after:
                hits[-1] = True
            return hits

    after = world.near(world.retrained, 3)
    result = Relearn()(world.context(world.original, after, world.retrained, inputs={"trainer": Deaf()}))
    assert (result.verdict, result.failure_side) == ("fail", "over")


def test_what_is_not_forgotten_fails_without_training(world: Any, lab: Any) -> None:
    class Never(lab.FakeTrainer):  # type: ignore[misc,name-defined]
        """A trainer that must not be used."""

        def curve(self, predictor: Any, samples: Any, judged: Any, budget: Any) -> Any:
            raise AssertionError

    inputs = {"trainer": Never()}
    result = Relearn()(world.context(world.original, world.near(world.original, 5), world.retrained, inputs=inputs))
    assert result.reasons == ("F-UNDER", "F-NOT-FORGOTTEN")


def test_without_a_trainer_nothing_is_decided(world: Any) -> None:
    for name in ("relearn", "quant_recovery"):
        ctx = world.context(world.original, world.near(world.retrained, 3), world.retrained, inputs={})
        result = AUDITS[name]()(ctx)
        assert (result.verdict, result.reasons) == ("inconclusive", ("I-NOT-TRAINABLE",))


def test_too_few_samples_of_an_arm(lab: Any) -> None:
    data = lab.make_dataset(per_train=2)
    small = lab.World(data, make_splits(data, Request.parse("group=s0"), seed=0))
    result = Relearn()(small.context(small.original, small.retrained, small.retrained))
    assert "I-RELEARN-ARMS" in result.reasons


def test_scored_steps_hold_the_first_and_the_last() -> None:
    assert Budget(steps=10, every=4, lr=1, batch=1, seed=0).scored == (0, 4, 8, 10)
    assert Budget(steps=3, every=5, lr=1, batch=1, seed=0).scored == (0, 3)


def test_intervals_are_never_of_width_zero() -> None:
    assert paired.widest_of_none(72) == pytest.approx(0.041, abs=5e-4)
    assert paired.widest_of_none(12) == pytest.approx(0.22, abs=2e-3)
    nothing = np.zeros((3, 5, 24), dtype=bool)
    value, reference, delta = paired.curves(nothing, nothing, kind="max", resamples=100, seed=0)
    assert reference is not None
    assert delta is not None
    assert value.value == delta.value == 0
    assert delta.hi == -delta.lo == pytest.approx(paired.widest_of_none(72))
    rng = np.random.default_rng(0)
    u, r = rng.random((3, 5, 40)) < 0.8, rng.random((3, 5, 40)) < 0.3
    _, _, delta = paired.curves(u, r, kind="max", resamples=300, seed=0)
    assert delta is not None
    assert delta.lo < u.mean(2).max(1).mean() - r.mean(2).max(1).mean() == delta.value < delta.hi
    assert delta.lo > 0.2
    area, _, _ = paired.curves(u, None, kind="area", resamples=100, seed=0)
    assert area.value == pytest.approx(u.mean())
