"""The audit around the mixture estimate: sets, gates, self checks, verdict rules, cost. Numbers: test_mixture.py."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AUDITS, Smi, mixture
from qunlearn.audit.intervals import Estimate
from qunlearn.audit.matching import Sets
from qunlearn.audit.smi import features_of
from qunlearn.audit.smi_sets import audit_sets
from qunlearn.audit.verdict import Measurement
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import ConfigError, DataError, UnsupportedError
from qunlearn_export.files import canonical_json

GOOD = (1.0, 7.0, 1.0)
REST = (0.95, 5.0, 1.5)


def measured(
    value: float, half: float, *, off: bool = False, ref: float | None = 1.0, ref_off: bool = False, gates: Any = ()
) -> Measurement:
    def e(v: float) -> Estimate:
        return Estimate(value=v, lo=v - half, hi=v + half, level=0.9, method="m", n=200)

    tests = {"after": {"mixture": 0.01 if off else 0.4}}
    if ref is not None:
        tests["reference"] = {"mixture": 0.01 if ref_off else 0.4}
    return Measurement(
        value=e(value),
        before=0.0,
        reference=None if ref is None else e(ref),
        delta=None if ref is None else e(value - ref),
        n={"x": 1},
        metrics={},
        tables={"tests": tests},
        gates=gates,
    )


@pytest.mark.parametrize(
    ("m", "verdict", "side"),
    [
        (measured(1.0, 0.1), "pass", "none"),
        (measured(0.9, 0.25), "inconclusive", "none"),
        (measured(0.5, 0.1), "fail", "under"),
        (measured(1.5, 0.1), "fail", "over"),
        (measured(1.0, 0.1, off=True, ref_off=True), "pass", "none"),
        (measured(0.95, 0.1, off=True), "inconclusive", "none"),
        (measured(1.05, 0.1, off=True), "fail", "over"),
        (measured(0.5, 0.1, off=True), "fail", "under"),
        (measured(1.0, 0.1, gates=("I-SMI-WIDE",)), "inconclusive", "none"),
    ],
)
def test_the_rule_with_a_reference(m: Measurement, verdict: str, side: str, world: Any) -> None:
    found = Smi().judge(m, world.context(world.original, world.retrained, world.retrained))
    assert (found.verdict, found.side) == (verdict, side)


@pytest.mark.parametrize(
    ("m", "verdict", "side"),
    [
        (measured(0.95, 0.1, ref=None), "pass", "none"),
        (measured(0.85, 0.1, ref=None), "inconclusive", "none"),
        (measured(0.6, 0.1, ref=None), "fail", "under"),
        (measured(0.95, 0.1, ref=None, off=True), "inconclusive", "none"),
        (measured(1.3, 0.1, ref=None, off=True), "fail", "over"),
        (measured(1.3, 0.1, ref=None), "pass", "none"),
        (measured(0.95, 0.1, ref=None, gates=("I-SMI-NO-SIGNAL",)), "inconclusive", "none"),
    ],
)
def test_the_rule_without_a_reference(m: Measurement, verdict: str, side: str, world: Any) -> None:
    found = Smi().judge(m, world.context(world.original, world.retrained, None))
    assert (found.verdict, found.side) == (verdict, side)


def test_without_a_reference_a_model_that_treats_forgotten_as_unseen_passes(roomy: Any) -> None:
    forgot = roomy.model(2, forget=REST, retain=GOOD, rest=REST)
    result = Smi()(roomy.context(roomy.original, forgot, None))
    assert (result.verdict, result.reference["kind"]) == ("pass", "none")
    assert result.value == pytest.approx(1.0, abs=0.15)
    remembered = Smi()(roomy.context(roomy.original, roomy.near(roomy.original, 3), None))
    assert (remembered.verdict, remembered.failure_side) == ("fail", "under")


def test_the_sets_are_disjoint_and_do_not_depend_on_the_order(world: Any, lab: Any) -> None:
    sets = audit_sets(world.splits, max_n=1000, seed=0)
    ids = [set(getattr(sets, f.name).ids) for f in dataclasses.fields(sets)]
    assert sum(map(len, ids)) == len(set().union(*ids))
    assert ids[1] | ids[3] == set(world.splits.heldout_audit.ids)
    assert ids[0] <= set(world.splits.retain.ids)
    rng = np.random.default_rng(0)
    shuffled = make_splits(
        lab.make_dataset(order=rng.permutation(len(world.dataset))), Request.parse("group=s0"), seed=0
    )
    other = audit_sets(shuffled, max_n=100, seed=0)
    plain = audit_sets(world.splits, max_n=100, seed=0)
    for f in dataclasses.fields(sets):
        assert list(getattr(other, f.name).ids) == list(getattr(plain, f.name).ids)
    assert max(len(getattr(plain, f.name)) for f in dataclasses.fields(sets)) <= 101
    counts = np.bincount(plain.m.targets())
    assert counts.max() - counts.min() <= 1


def test_acceptance_11_shuffled_samples_give_the_same_json(world: Any, lab: Any) -> None:
    order = np.random.default_rng(0).permutation(len(world.dataset))
    shuffled = make_splits(lab.make_dataset(order=order), Request.parse("group=s0"), seed=0)
    texts = []
    for splits in (world.splits, shuffled):
        result = Smi()(world.context(world.original, world.near(world.retrained, 3), world.retrained, splits=splits))
        table = result.without_timings()
        texts.append(canonical_json({k: table[k] for k in ("value", "interval", "verdict", "reference", "n")}))
    assert texts[0] == texts[1]


def test_self_checks_are_near_what_is_known(roomy: Any) -> None:
    result = Smi()(roomy.context(roomy.original, roomy.near(roomy.retrained, 3), roomy.retrained))
    checks = result.tables["self_checks"]
    assert {name: c["expected"] for name, c in checks.items()} == {"before": 0.0, "spare": 1.0, "mixture": 0.5}
    assert all(c["ok"] for c in checks.values())
    assert all(abs(c["pi"] - c["expected"]) < 0.2 for c in checks.values())


def test_a_failed_self_check_is_named_and_decides_nothing(roomy: Any) -> None:
    """The model 'before' treats the forget set as unseen: the features do not show its membership."""
    odd = roomy.model(1, forget=REST, retain=GOOD, rest=REST)
    result = Smi()(roomy.context(odd, roomy.near(roomy.retrained, 3), roomy.retrained))
    assert result.verdict == "inconclusive"
    assert "I-SMI-SELF-CHECK: before" in result.reasons


def test_t5_no_membership_signal_is_inconclusive(roomy: Any) -> None:
    same = roomy.model(2, forget=GOOD, retain=GOOD, rest=GOOD)
    verdicts = []
    for seed in range(10):
        after = roomy.model(10 + seed, forget=GOOD, retain=GOOD, rest=GOOD)
        result = Smi(bootstrap=100, permutations=99)(roomy.context(same, after, None))
        verdicts.append((result.verdict, result.reasons))
    assert sum(v == "inconclusive" for v, _ in verdicts) >= 9
    assert sum("I-SMI-NO-SIGNAL" in r for _, r in verdicts) >= 8


def test_t8_equal_features_decide_nothing(world: Any, lab: Any) -> None:
    z = 20.0 * (np.arange(5) == world.dataset.y[:, None])
    before = lab.TableModel(z - np.float32(0.5) * (z == 0))
    result = Smi(class_match="weights")(world.context(before, lab.TableModel(z), None))
    assert result.verdict == "inconclusive"
    flat = lab.TableModel(np.zeros_like(z))
    result = Smi()(world.context(flat, lab.TableModel(np.zeros_like(z) + 1.0), None))
    assert (result.value, result.interval) == (None, None)
    assert "I-SMI-NO-SIGNAL" in result.reasons


def test_a_class_forgotten_as_a_whole_is_not_identifiable(roomy: Any) -> None:
    splits = make_splits(roomy.dataset, Request.parse("class=2"), seed=0)
    context = roomy.context(roomy.original, roomy.near(roomy.original, 3), roomy.retrained, splits=splits)
    result = Smi()(context)
    assert (result.verdict, result.reasons) == ("inconclusive", ("I-SMI-CLASSES",))
    assert result.value is None
    explored = Smi(member_reference="original_model")(context)
    assert explored.verdict == "inconclusive"
    assert "I-SMI-EXPLORATORY" in explored.reasons
    assert explored.value is not None


def test_few_samples_are_inconclusive(world: Any) -> None:
    splits = make_splits(world.dataset, Request.parse("random=5%"), seed=0)
    result = Smi()(world.context(world.original, world.near(world.original, 3), world.retrained, splits=splits))
    assert result.verdict == "inconclusive"
    assert "I-SMI-FEW" in result.reasons


def test_t12_cov_has_a_reference_range_and_no_interval(roomy: Any) -> None:
    models = (roomy.original, roomy.near(roomy.retrained, 3), roomy.retrained)
    alone = Smi(estimator="cov")(roomy.context(*models))
    assert (alone.verdict, alone.interval, alone.reasons) == ("inconclusive", None, ("I-SMI-COV",))
    both = Smi(estimator="both")(roomy.context(*models))
    assert both.verdict == "pass"
    for result in (alone, both):
        cov = result.tables["cov"]
        assert len(cov["reference_range"]) == 2
        assert 0 <= cov["pi"] <= 1
        assert "confidence" not in canonical_json(result.to_json())
    assert both.value == Smi()(roomy.context(*models)).value


def test_resampling_the_forget_set_alone_says_so(roomy: Any) -> None:
    models = (roomy.original, roomy.near(roomy.retrained, 3), roomy.retrained)
    narrow, wide = (Smi(resample=r)(roomy.context(*models)).to_json()["interval"] for r in ("u", "mnu"))
    assert narrow["hi"] - narrow["lo"] < wide["hi"] - wide["lo"]
    assert "forget set only" in narrow["method"]


def test_the_level_widens_the_interval(roomy: Any) -> None:
    models = (roomy.original, roomy.near(roomy.retrained, 3), roomy.retrained)
    wide, narrow = (Smi(level=v)(roomy.context(*models)).to_json()["interval"] for v in (0.95, 0.5))
    assert wide["hi"] - wide["lo"] > narrow["hi"] - narrow["lo"]
    assert (wide["level"], narrow["level"]) == (0.95, 0.5)


class Feature:
    """A predictor's capability to show features, mixed into a table of logits."""

    capabilities = frozenset({"logits", "codes", "features"})

    def features(self, x: Any, names: Any) -> Any:
        table = self.table  # type: ignore[attr-defined]
        known = {"penultimate": table * 2, "layer": table[:, :2]}
        missing = [n for n in names if n not in known]
        if missing:
            raise ConfigError(f"no feature named {missing}.")
        return {n: known[n][x[:, 0, 0, 0].astype(np.int64)].astype(np.float32) for n in names}


def test_features_are_read_where_there_are_any_and_logits_with_a_warning_elsewhere(world: Any, lab: Any) -> None:
    class Shows(Feature, lab.TableModel):  # type: ignore[misc,name-defined]
        """A table that shows features."""

    tables = (world.original.table, world.near(world.retrained, 3).table, world.retrained.table)
    plain, rich = ([kind(t) for t in tables] for kind in (lab.TableModel, Shows))
    result = Smi()(world.context(*rich))
    assert (result.tables["phi"], result.warnings) == ("penultimate", ())
    result = Smi()(world.context(*plain))
    assert (result.tables["phi"], result.warnings) == ("logits", ("W-SMI-LOGITS",))
    assert Smi(phi="layer")(world.context(*rich)).tables["phi"] == "layer"
    with pytest.raises(UnsupportedError, match="shows no features"):
        Smi(phi="penultimate")(world.context(*plain))
    with pytest.raises(ConfigError, match="no feature"):
        Smi(phi="nothing")(world.context(*rich))


def test_t11_two_readings_are_equal_bit_for_bit_and_read_once(world: Any) -> None:
    model, sets = world.retrained, audit_sets(world.splits, max_n=1000, seed=0)
    one = features_of(model, sets.n, "logits")
    calls = model.calls
    two = features_of(model, sets.n, "logits")
    assert model.calls == calls
    model.forget_cache()
    three = features_of(model, sets.n, "logits")
    assert model.calls > calls
    assert np.array_equal(one, two)
    assert np.array_equal(one, three)
    assert np.abs(one.mean(1)).max() < 1e-6


def test_t11_shared_content_is_refused(world: Any) -> None:
    with pytest.raises(DataError, match="share samples"):
        dataclasses.replace(world.splits, heldout_audit=world.splits.retain)


def test_t13_held_out_too_small_to_halve(world: Any) -> None:
    splits = dataclasses.replace(world.splits, heldout_audit=world.splits.heldout_audit.take(np.array([0])))
    with pytest.raises(DataError, match="halved"):
        audit_sets(splits, max_n=100, seed=0)


def big(n: int = 1000, d: int = 64) -> Sets:
    rng = np.random.default_rng(0)
    y = [rng.integers(0, 10, n) for _ in range(3)]
    x = [rng.standard_normal((n, d)) for _ in range(3)]
    x[1][:, :8] += 0.5
    return Sets(m=x[0], n=x[1], u=x[2], y_m=y[0], y_n=y[1], y_u=y[2])


def test_three_sets_of_1000_take_little_time_and_memory() -> None:
    sets = big()
    start = time.process_time()
    mixture.estimate(sets, seed=0)
    seconds = time.process_time() - start
    tracemalloc.start()
    mixture.estimate(sets, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds <= 3.0
    assert peak <= 200 << 20


def test_the_whole_audit_of_three_sets_of_1000_keeps_the_bar(lab: Any) -> None:
    """Three models, 64 features, all tests and self checks: 3 s of processor time, 500 MB beyond the models."""
    dataset = lab.make_dataset(per_train=160, per_rest=210)
    big_world = lab.World(dataset, make_splits(dataset, Request.parse("random=32%"), seed=0))
    mix = np.random.default_rng(0).normal(size=(5, 64))

    class Wide(Feature, lab.TableModel):  # type: ignore[misc,name-defined]
        """A table that shows 64 features."""

        def features(self, x: Any, names: Any) -> Any:
            rows = self.table[x[:, 0, 0, 0].astype(np.int64)]
            return {n: np.maximum(rows @ mix, 0).astype(np.float32) for n in names}

    tables = (big_world.original.table, big_world.near(big_world.retrained, 3).table, big_world.retrained.table)
    ctx = big_world.context(*(Wide(t) for t in tables))
    start = time.process_time()
    result = Smi()(ctx)
    seconds = time.process_time() - start
    assert {k: result.n[k] for k in ("members", "nonmembers", "forget", "spare")} == dict.fromkeys(
        ("members", "nonmembers", "forget", "spare"), 1000
    )
    assert result.value is not None
    assert set(result.tables["self_checks"]) == {"before", "spare", "mixture"}
    tracemalloc.start()
    Smi()(big_world.context(*(Wide(t) for t in tables)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds <= 3.0
    assert peak <= 500e6


def test_smi_is_registered_and_needs_no_reference_to_decide() -> None:
    assert AUDITS["smi"] is Smi
    assert (Smi().estimator, Smi().class_match, Smi().resample) == ("mmd", "weights", "mnu")
