"""The membership attack: equal to scikit-learn called directly, and the traps of the evaluation protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

from qunlearn.audit import AUDITS, gap, summary
from qunlearn.audit.mia import attack, attack_sets, called_nonmember, draw_balanced
from qunlearn.audit.sets import kept, pick
from qunlearn.data.dataset import Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import ConfigError, DataError, UnsupportedError


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("nonmembers", ["heldout", "test"])
def test_equals_scikit_learn_called_directly(nonmembers: str, world: Any) -> None:
    model, splits = world.retrained, world.splits
    sets = attack_sets(splits, nonmembers=nonmembers, seed=3)
    own = {"heldout": splits.heldout_audit, "test": splits.test}[nonmembers]
    assert sorted(sets.nonmembers.ids) == sorted(own.ids)
    assert len(sets.members) == len(own)
    assert set(sets.members.ids) <= set(splits.retain.ids)

    def p_true(samples: Samples) -> np.ndarray:
        return softmax(model.table[samples.index])[np.arange(len(samples)), samples.targets()][:, None]

    x = np.concatenate([p_true(sets.members), p_true(sets.nonmembers)])
    y = np.r_[np.ones(len(sets.members)), np.zeros(len(sets.nonmembers))]
    svc = SVC(kernel="rbf", C=3, gamma=1).fit(x, y)
    want = float((svc.predict(p_true(splits.forget)) == 0).mean())
    assert attack(model, sets).calls.mean() == pytest.approx(want, abs=1e-12)
    audit = AUDITS["mia"].from_config({"nonmembers": nonmembers})
    result = audit(world.context(world.original, model, model, seed=3))
    assert result.value == pytest.approx(want, abs=1e-12)
    assert 0.05 < want < 0.95
    assert summary(model, splits, world.context(model, model, model).task, 3, nonmembers=nonmembers)["mia"] == (
        pytest.approx(want, abs=1e-12)
    )


def test_members_are_balanced_over_classes(world: Any) -> None:
    retain = world.splits.retain
    y = retain.targets()
    skewed = retain.take(np.flatnonzero((y != 0) | (np.arange(len(y)) % 12 == 0)))
    few = int((skewed.targets() == 0).sum())
    drawn = draw_balanced(skewed, 200, 0, 1)
    counts = np.bincount(drawn.targets(), minlength=5)
    assert counts[0] == few < 40
    assert counts[1:].max() - counts[1:].min() <= 1
    assert len(set(drawn.ids)) == 200
    assert sorted(draw_balanced(skewed, len(skewed), 0, 1).ids) == sorted(skewed.ids)
    assert list(draw_balanced(skewed, 200, 1, 1).ids) != list(drawn.ids)
    with pytest.raises(DataError):
        draw_balanced(skewed, len(skewed) + 1, 0, 1)


def test_t19_the_order_of_the_data_does_not_matter(world: Any, lab: Any) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(world.dataset))
    shuffled = lab.make_dataset(order=order)
    splits = make_splits(shuffled, Request.parse("group=s0"), seed=0)
    # Inputs carry the sample's old position, so that the same table serves both orders.
    model = world.retrained
    plain, other = (
        AUDITS["mia"]()(world.context(world.original, model, model, splits=s)) for s in (world.splits, splits)
    )
    assert sorted(splits.forget.ids) == sorted(world.splits.forget.ids)
    assert list(splits.forget.ids) != list(world.splits.forget.ids)
    assert plain.value == other.value
    assert dict(plain.interval or {}) == dict(other.interval or {})
    assert plain.digests["data_split"] == other.digests["data_split"]


def test_the_first_members_in_data_order_would_give_another_value(world: Any) -> None:
    """The trap behind T19: data sorted by class, members taken from the front."""
    model, splits = world.retrained, world.splits
    sets = attack_sets(splits, nonmembers="heldout", seed=0)
    by_class = splits.retain.take(np.argsort(splits.retain.targets(), kind="stable")[: len(sets.nonmembers)])
    assert len(np.unique(by_class.targets())) == 1
    assert len(np.unique(sets.members.targets())) == 5
    assert attack(model, sets).members.shape == (len(by_class),)


@pytest.mark.parametrize("constant", [0.2, 1.0])
def test_t18_constant_confidences_are_degenerate(constant: float) -> None:
    same = np.full(40, constant)
    calls, degenerate = called_nonmember(same, same, same[:10])
    assert degenerate
    assert calls.mean() in (0.0, 1.0)
    rng = np.random.default_rng(0)
    _, sound = called_nonmember(rng.uniform(0.7, 1, 60), rng.uniform(0, 0.8, 60), rng.uniform(0, 1, 10))
    assert not sound


def test_t18_a_degenerate_attack_decides_nothing(world: Any, lab: Any) -> None:
    flat = 20.0 * (np.arange(5) == world.dataset.y[:, None])
    model = lab.TableModel(flat)
    before = lab.TableModel(flat - np.float32(0.5) * (flat == 0))
    result = AUDITS["mia"]()(world.context(before, model, world.retrained))
    assert (result.verdict, result.reasons) == ("inconclusive", ("I-MIA-DEGENERATE",))
    assert "W-MIA-DEGENERATE: after" in result.warnings
    assert result.tables["attack"]["degenerate"] == ("after",)
    assert summary(model, world.splits, lab.FakeTask(), 0)["mia_degenerate"] is True


def test_t16_a_forgotten_class_is_taken_out_of_test_and_read_beside(world: Any, lab: Any) -> None:
    splits = make_splits(world.dataset, Request.parse("class=2"), seed=0)
    z = 8.0 * (np.arange(5) == world.dataset.y[:, None]) + np.random.default_rng(0).normal(
        0, 0.3, (len(world.dataset), 5)
    )
    z[:, 2] -= 30
    model = lab.TableModel(z)
    out = summary(model, splits, lab.FakeTask(), 0)
    assert out["test_accuracy"] == out["heldout_accuracy"] == out["retain_accuracy"] == 1.0
    assert out["forget_accuracy"] == out["forget_test_accuracy"] == 0.0
    assert out["n"]["forget_test"] == (world.dataset.y[world.dataset.where("test")] == 2).sum()
    assert not (pick(splits, "test").targets() == 2).any()  # type: ignore[union-attr]


def test_t16_holds_for_a_request_that_names_a_whole_group_by_ids(world: Any) -> None:
    d, s = world.dataset, world.splits
    unnamed = Splits(
        forget=s.forget,
        retain=s.retain,
        heldout_stop=s.heldout_stop,
        heldout_audit=Samples(d, np.r_[s.heldout_audit.index, s.forget_heldout.index]),
        test=Samples(d, np.r_[s.test.index, s.forget_test.index]),
    )
    assert sorted(kept(unnamed.test, unnamed).ids) == sorted(s.test.ids)
    assert sorted(pick(unnamed, "forget_test").ids) == sorted(s.forget_test.ids)  # type: ignore[union-attr]
    assert sorted(pick(unnamed, "heldout").ids) == sorted(s.heldout_audit.ids)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="every held-out or test sample"):
        kept(s.forget_test, unnamed)
    with pytest.raises(ConfigError, match="unknown sample set"):
        pick(s, "train")


def test_t20_two_evaluations_are_bit_equal_and_one_pass_serves_all_audits(world: Any) -> None:
    model = world.retrained
    first = model.on(world.splits.forget).copy()
    calls = model.calls
    assert model.on(world.splits.forget) is model.on(world.splits.forget)
    assert model.calls == calls
    model.forget_cache()
    assert np.array_equal(model.on(world.splits.forget), first)
    turned = world.splits.forget.take(np.arange(len(first))[::-1])
    assert np.array_equal(model.on(turned), first[::-1])
    with pytest.raises(ValueError, match="read-only"):
        model.on(turned)[0] = 0


def test_tpr_is_reported_from_a_thousand_nonmembers_on(world: Any, lab: Any) -> None:
    small = AUDITS["mia"]()(world.context(world.original, world.retrained, world.retrained))
    assert "tpr_at_fpr" not in small.tables["metrics"]
    dataset = lab.make_dataset(per_train=70, per_rest=134)
    big = lab.World(dataset, make_splits(dataset, Request.parse("group=s0"), seed=0))
    audit = AUDITS["mia"].from_config({"refits": 5})
    result = audit(big.context(big.original, big.retrained, big.retrained))
    assert result.n["nonmembers"] >= 1000
    row = result.tables["metrics"]["tpr_at_fpr"]["forget, nonmembers"]
    assert row["after"]["value"] == row["reference"]["value"] <= 0.2


def test_cap_on_samples_is_kept(world: Any) -> None:
    sets = attack_sets(world.splits, nonmembers="test", seed=0, max_n=50)
    assert len(sets.members) == len(sets.nonmembers) == 50
    assert np.ptp(np.bincount(sets.nonmembers.targets())) <= 1


def test_summary_leaves_closed_sets_alone(world: Any, lab: Any) -> None:
    class Guarded(lab.TableModel):  # type: ignore[misc,name-defined]
        """Raises when it sees a test sample."""

        def logits(self, x: Any) -> Any:
            if np.isin(x[:, 0, 0, 0].astype(int), world.splits.test.index).any():
                raise RuntimeError("the test split is closed")
            return super().logits(x)

    model = Guarded(world.retrained.table)
    with pytest.raises(RuntimeError, match="closed"):
        summary(model, world.splits, lab.FakeTask(), 0)
    out = summary(
        model, world.splits, lab.FakeTask(), 0, nonmembers="heldout", sets=("forget", "retain", "heldout_stop")
    )
    assert set(out) >= {"forget_accuracy", "retain_accuracy", "heldout_stop_accuracy", "mia"}
    assert "test_accuracy" not in out
    with pytest.raises(UnsupportedError):
        summary(model, world.splits, lab.FakeTask("lm"), 0)


def test_summary_survives_broken_logits_and_gap_averages_four_numbers(world: Any, lab: Any) -> None:
    z = world.retrained.table.copy()
    z[:] = np.nan
    broken = summary(lab.TableModel(z), world.splits, lab.FakeTask(), 0)
    assert broken["forget_accuracy"] == 0.0
    assert broken["mia"] is None
    sound = summary(world.retrained, world.splits, lab.FakeTask(), 0)
    assert gap(broken, sound) is None
    assert gap(sound, sound) == 0
    moved = {**sound, "forget_accuracy": sound["forget_accuracy"] - 0.2, "mia": sound["mia"] + 0.2}
    assert gap(moved, sound) == pytest.approx(0.1)
