"""CKA: the retrained network as the yardstick, controls that must fail, undefined layers, pairs, estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AUDITS
from qunlearn.audit.cka import Cka
from qunlearn.audit.layers import by_layer
from qunlearn.audit.result import worst
from qunlearn.cli.assess import SUITES
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits

MAPS = {n: np.random.default_rng(i).normal(0, 1, (5, 8)) for i, n in enumerate(("hidden", "penultimate"))}


@pytest.fixture
def shown(lab: Any) -> Any:
    """``shown(logits, features=None)``: a table whose features are a fixed linear map of a table (or of its logits)."""

    class Shows(lab.TableModel):  # type: ignore[misc,name-defined]
        """A table that shows features of its own."""

        capabilities = frozenset({"logits", "codes", "features"})
        feature_names = ("hidden", "penultimate")
        inner: Any

        def features(self, x: Any, names: Any) -> Any:
            rows = self.inner[x[:, 0, 0, 0].astype(np.int64)]
            return {n: (rows @ MAPS[n]).astype(np.float32) for n in names}

    def make(model: Any, features: Any = None) -> Any:
        out = Shows(model.table)
        out.inner = np.asarray(model.table if features is None else features, dtype=np.float64)
        return out

    return make


def judge(world: Any, shown: Any, after: Any, **settings: Any) -> Any:
    return Cka(**settings)(world.context(shown(world.original), after, shown(world.retrained)))


def test_retrained_passes_and_controls_do_not(world: Any, shown: Any) -> None:
    """T1, T2 and 6.7: features of the original, of a random network, constant; all with the retrained's answers."""
    near = world.near(world.retrained, 3)
    result = judge(world, shown, shown(near))
    assert (result.verdict, result.tables["decides"], result.warnings) == ("pass", "penultimate", ())
    assert 0 < result.reference["value"] < 0.85, "a retrained network is not at 0 and not at 1"
    head_only = judge(world, shown, shown(near, world.original.table))
    assert (head_only.verdict, head_only.failure_side) == ("fail", "under")
    assert head_only.value == pytest.approx(1, abs=1e-6)
    random = np.random.default_rng(0).normal(size=near.table.shape)
    result = judge(world, shown, shown(near, random))
    assert (result.verdict, result.failure_side) == ("fail", "over")
    assert abs(result.value) < 0.1
    result = judge(world, shown, shown(near, np.ones_like(near.table)))
    assert (result.verdict, result.reasons) == ("inconclusive", ("I-CKA-UNDEFINED",))
    assert result.tables["layers"]["forget"]["penultimate"]["after, before"] is None
    assert result.tables["layers"]["forget"]["logits"]["after, before"] is not None


def test_head_only_forgetting_passes_on_accuracy_alone(world: Any, shown: Any) -> None:
    after = shown(world.near(world.retrained, 3), world.original.table)
    ctx = world.context(shown(world.original), after, shown(world.retrained))
    assert AUDITS["accuracy"]()(ctx).verdict == "pass"
    assert AUDITS["cka"]()(ctx).verdict == AUDITS["recovery"]()(ctx).verdict == "fail"


def test_pairs_sets_and_gap(world: Any, shown: Any) -> None:
    layers = judge(world, shown, shown(world.retrained)).tables["layers"]
    assert list(layers) == ["forget", "retain", "forget_heldout"]
    for rows in layers.values():
        assert list(rows) == ["hidden", "penultimate", "logits"]
        for row in rows.values():
            assert list(row) == ["after, before", "after, reference", "reference, before", "gap"]
            assert row["after, reference"] == pytest.approx(1, abs=1e-9)
            assert row["gap"] == pytest.approx(0, abs=1e-12)
    alone = Cka()(world.context(shown(world.original), shown(world.retrained), None))
    assert list(alone.tables["layers"]["forget"]["logits"]) == ["after, before", "gap"]
    assert alone.verdict == "inconclusive"


def test_settings(world: Any, shown: Any) -> None:
    after = shown(world.near(world.retrained, 3))
    result = judge(world, shown, after, layer="logits", layers="hidden", table_n=50, max_n=100)
    assert result.tables["decides"] == "logits"
    assert list(result.tables["layers"]["forget"]) == ["hidden", "logits"]
    assert (result.n["forget"], result.n["retain"]) == (100, 50)
    wide = np.random.default_rng(1).normal(size=(len(after.table), 5))
    plain, unbiased = (
        judge(world, shown, shown(world.retrained, wide), estimator=e) for e in ("batch_biased", "debiased")
    )
    assert plain.value > unbiased.value


def test_few_forgotten_samples_decide_nothing(lab: Any, shown: Any) -> None:
    data = lab.make_dataset(per_train=9)
    small = lab.World(data, make_splits(data, Request.parse("group=s0"), seed=0))
    result = Cka()(small.context(shown(small.original), shown(small.near(small.retrained, 3)), shown(small.retrained)))
    assert result.n["forget"] == 45
    assert result.reasons == ("I-CKA-FEW",)


def test_without_features_the_logits_are_read_and_said_so(world: Any) -> None:
    for name in ("cka", "recovery"):
        result = AUDITS[name]()(world.context(world.original, world.near(world.retrained, 3), world.retrained))
        assert result.warnings == ("W-NO-FEATURES",)
        assert list(result.tables["layers"] if name == "recovery" else result.tables["layers"]["forget"]) == ["logits"]


def test_wide_layers_get_a_pass_of_their_own(world: Any, shown: Any) -> None:
    model, samples = shown(world.original), world.splits.forget
    together = dict(by_layer(model, samples, ("hidden", "penultimate")))
    apart = dict(by_layer(model, samples, ("hidden", "penultimate"), memory=1))
    assert list(together) == list(apart)
    assert all(np.array_equal(together[n], apart[n]) for n in together)


@pytest.mark.parametrize("fake", ["flipped", "collapsed"])
def test_fakes_never_pass_the_standard_suite(fake: str, world: Any, lab: Any, shown: Any) -> None:
    """Wrong labels on as many forget samples as the retrained network gets wrong, features and certainty untouched; and
    a network that answers nothing."""
    sure = (0.7, 7, 1) if fake == "flipped" else (0.2, 0.1, 0.1)
    z = world.model(6, forget=sure, retain=(1.0, 7, 1), rest=(0.95, 5, 1.5), gone=(0.95, 4, 1.5)).table
    z = z if fake == "flipped" else 0 * z
    ctx = world.context(shown(world.original), shown(lab.TableModel(z), world.original.table), shown(world.retrained))
    verdicts = {name: AUDITS[name]()(ctx).verdict for name in SUITES["strict"]}
    assert worst([verdicts[name] for name in SUITES["standard"]]) != "pass"
    assert worst(list(verdicts.values())) == "fail"
    if fake == "flipped":
        assert verdicts["accuracy"] == "pass", "accuracy alone is fooled"
