"""The attacks beside SMI: scores against plain formulas, the share they imply, gates, shadow pool and its cache."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AUDITS, Loss, Shadow, ShadowPool, Smi, intervals, shadow_pool, side_by_side
from qunlearn.audit.attacks import Lira, Rmia, gaussian
from qunlearn.audit.membership import attack, log_odds, weighted_auc
from qunlearn.audit.reference import halves, pool_samples
from qunlearn.audit.smi_sets import AuditSets, audit_sets
from qunlearn.data.dataset import Samples
from qunlearn.errors import ArtefactError, ConfigError

ATTACKS = ("loss", "lira", "rmia", "u_lira")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def p_true(table: np.ndarray, samples: Samples) -> np.ndarray:
    return np.asarray(softmax(table[samples.index])[np.arange(len(samples)), samples.targets()])


def test_weighted_auc_equals_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(1, 8, 50).astype(float)
    ones = np.full((40, 1), 1 / 40), np.full((50, 1), 1 / 50)
    assert weighted_auc(a, b, *ones)[0] == pytest.approx(intervals.auc(a, b).value, abs=1e-12)
    twice = np.r_[np.full(39, 1 / 41), 2 / 41][:, None]
    assert weighted_auc(a, b, twice, ones[1])[0] == pytest.approx(intervals.auc(np.r_[a, a[-1]], b).value, abs=1e-12)


class Few:
    """Samples of one class, for the arithmetic alone."""

    def __init__(self, n: int) -> None:
        self.n = n

    def targets(self) -> np.ndarray:
        return np.zeros(self.n, np.int64)


@pytest.mark.parametrize("pi", [0.2, 0.5, 0.9])
def test_the_share_of_a_mixture_is_found_from_a_score(pi: float) -> None:
    rng = np.random.default_rng(0)
    n = 3000
    u = np.where(rng.random(n) < pi, rng.normal(0, 1, n), rng.normal(1, 1, n))
    sets = AuditSets(m=Few(n), n=Few(n), u=Few(n), spare=Few(n))  # type: ignore[arg-type]
    found = attack(rng.normal(1, 1, n), rng.normal(0, 1, n), u, sets, seed=0, bootstrap=50, level=0.9)
    assert found.pi == pytest.approx(pi, abs=0.08)
    low, high = np.quantile(found.resamples, [0.05, 0.95])
    assert low < found.pi < high
    assert found.power > 0.2


def test_loss_is_the_log_likelihood_and_tells_the_threshold_rule(roomy: Any) -> None:
    after = roomy.near(roomy.retrained, 3)
    result = Loss()(roomy.context(roomy.original, after, roomy.retrained))
    sets = audit_sets(roomy.splits, max_n=1000, seed=0)
    m, u = (np.log(p_true(after.table, s)) for s in (sets.m, sets.u))
    called = result.tables["attack"]["called_member"]["after"]
    assert called["u"] == pytest.approx(float((u > m.mean()).mean()), abs=1e-12)
    assert called["n"] < called["m"]
    assert result.tables["attack"]["models_trained"] == 0


def test_lira_equals_a_plain_loop(roomy: Any) -> None:
    ctx = roomy.context(roomy.original, roomy.retrained, roomy.retrained)
    pool = ctx.inputs["shadows"]
    sets = audit_sets(roomy.splits, max_n=1000, seed=0)
    found = Lira().score(ctx, ctx.after, sets.u, sets)

    def z(table: np.ndarray) -> np.ndarray:
        p = np.clip(p_true(table, sets.u), 1e-7, 1 - 1e-7)
        return np.log(p / (1 - p))

    target, shadows = z(ctx.after.table), [z(s.logits["torch-fq"]) for s in pool.shadows]
    sides: dict[bool, list[tuple[float, float, int]]] = {True: [], False: []}
    for i, at in enumerate(sets.u.index):
        for side, found_side in sides.items():
            v = np.array([s[i] for s, p in zip(shadows, pool.shadows, strict=True) if p.seen[at] == side])
            found_side.append((float(v.mean()), float(((v - v.mean()) ** 2).sum()), len(v)))
    score = []
    sd = {k: math.sqrt(sum(s for _, s, _ in v) / sum(n - 1 for _, _, n in v)) for k, v in sides.items()}
    for i in range(len(target)):
        one, two = ((target[i] - sides[k][i][0]) / sd[k] for k in (True, False))
        score.append(-0.5 * one**2 - math.log(sd[True]) + 0.5 * two**2 + math.log(sd[False]))
    assert np.abs(found - score).max() < 1e-9
    offline = Lira(mode="offline").score(ctx, ctx.after, sets.u, sets)
    assert np.abs(offline - [(target[i] - sides[False][i][0]) / sd[False] for i in range(len(target))]).max() < 1e-9


def test_one_variance_below_16_models_a_side_own_ones_above() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, 3)) * np.array([1.0, 5.0, 0.1])
    _, few = gaussian(z[:8], np.ones((8, 3), bool))
    assert np.ptp(few) == 0
    mean, many = gaussian(z, np.ones((40, 3), bool))
    assert many == pytest.approx(z.std(0, ddof=1))
    assert mean == pytest.approx(z.mean(0))
    with pytest.raises(ConfigError, match="no shadow model"):
        gaussian(z, np.zeros((40, 3), bool))


def test_p_is_clipped_before_the_log_odds() -> None:
    z = log_odds(np.array([[100.0, 0.0], [-100.0, 0.0]]), np.array([0, 0]))
    assert z == pytest.approx([math.log((1 - 1e-7) / 1e-7), -math.log((1 - 1e-7) / 1e-7)])


def test_rmia_equals_a_plain_loop(roomy: Any) -> None:
    ctx = roomy.context(roomy.original, roomy.retrained, roomy.retrained)
    sets = audit_sets(roomy.splits, max_n=1000, seed=0)
    shadows = ctx.inputs["shadows"].shadows

    def ratio(samples: Samples) -> list[float]:
        own = p_true(ctx.after.table, samples)
        others = [p_true(s.logits["torch-fq"], samples) for s in shadows]
        out = []
        for i, at in enumerate(samples.index):
            mean = float(np.mean([o[i] for o, s in zip(others, shadows, strict=True) if not s.seen[at]]))
            out.append(own[i] / (0.5 * (1.3 * mean + 0.7)))
        return out

    population = ratio(sets.spare)
    want = [float(np.mean([x / z > 1 for z in population])) for x in ratio(sets.u)]
    found = Rmia().score(ctx, ctx.after, sets.u, sets)
    assert np.mean(np.abs(found - want) < 1e-9) > 0.99
    assert not set(sets.spare.ids) & (set(sets.m.ids) | set(sets.n.ids) | set(sets.u.ids))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_without_power_decides_nothing(name: str, roomy: Any) -> None:
    same = (1.0, 7.0, 1.0)
    blind = roomy.model(3, forget=same, retain=same, rest=same)
    context = roomy.context(blind, roomy.near(blind, 4, flips=0.0), roomy.retrained)
    result = AUDITS[name]()(context)
    if name in ("loss", "rmia"):
        assert "I-ATTACK-NO-POWER" in result.reasons
    assert result.verdict != "pass"


def test_shadow_models_are_needed_and_of_the_target_s_kind(roomy: Any) -> None:
    models = (roomy.original, roomy.near(roomy.retrained, 3), roomy.retrained)
    with pytest.raises(ConfigError, match="needs shadow models"):
        Rmia()(roomy.context(*models, inputs={}))
    pool = roomy.shadows(4, kinds=("torch-reloaded",))
    with pytest.raises(ConfigError, match="the target is torch-fq"):
        Rmia()(roomy.context(*models, inputs={"shadows": pool}))
    with pytest.raises(ConfigError, match="another seed"):
        Rmia()(roomy.context(*models, seed=1, inputs=roomy.pools()))
    assert Rmia(cross_kind=True)(roomy.context(*models, inputs={"shadows": pool})).value is not None


def test_halves_share_every_sample_out_evenly() -> None:
    for models in (2, 4, 5):
        saw = halves(101, models, np.random.default_rng(0))
        assert (saw.sum(0) == (models + 1) // 2).all()
        assert len(np.unique(saw, axis=1).T) > 1


class Counted:
    """A maker that counts, on a world's tables."""

    def __init__(self, world: Any, lab: Any) -> None:
        self.world, self.lab = world, lab
        self.calls: list[tuple[int, int]] = []

    def __call__(self, samples: Samples, forget: Samples | None, seed: int) -> dict[str, Any]:
        self.calls.append((len(samples), 0 if forget is None else len(forget)))
        if forget is not None:
            assert set(forget.ids) <= set(samples.ids)
        return {"torch-fq": self.lab.TableModel(self.world.original.table + np.float32(seed))}


def test_the_pool_is_cached_by_its_recipe(world: Any, lab: Any, tmp_path: Path) -> None:
    make = Counted(world, lab)

    def pool(recipe: str, unlearn: bool = False) -> ShadowPool:
        return shadow_pool(
            make, world.splits, models=4, seed=0, recipe={"r": recipe}, kinds=("torch-fq",), cache=tmp_path,
            unlearn=unlearn,
        )  # fmt: skip

    one = pool("a")
    assert len(make.calls) == 4
    two = pool("a")
    assert len(make.calls) == 4
    assert one.recipe == two.recipe
    assert one.seconds == pytest.approx(two.seconds)
    for a, b in zip(one.shadows, two.shadows, strict=True):
        assert np.array_equal(a.seen, b.seen)
        assert np.array_equal(a.logits["torch-fq"], b.logits["torch-fq"])
    assert pool("b").recipe != one.recipe
    assert len(make.calls) == 8
    unlearned = pool("a", unlearn=True)
    assert (unlearned.trainings, unlearned.unlearnings) == (4, 4)
    samples, gone = pool_samples(world.splits, seed=0)
    for s in unlearned.shadows:
        assert s.unlearned[gone.index].sum() == s.seen[gone.index].sum() > 0
        assert not s.unlearned[world.splits.retain.index].any()
    assert not one.shadows[0].seen[np.setdiff1d(np.arange(len(world.dataset)), samples.index)].any()
    broken = next(iter(tmp_path.glob("*.npz")))
    broken.write_bytes(b"nothing")
    with pytest.raises(ArtefactError, match="cannot be read"):
        [pool(recipe, unlearn) for recipe, unlearn in (("a", False), ("b", False), ("a", True))]


def test_a_pool_of_too_few_models_or_of_a_missing_kind_is_refused(world: Any, lab: Any) -> None:
    with pytest.raises(ConfigError, match="1 shadow models"):
        shadow_pool(Counted(world, lab), world.splits, models=1, seed=0, recipe={}, kinds=("torch-fq",))
    with pytest.raises(ConfigError, match="not made as onnx-all"):
        shadow_pool(Counted(world, lab), world.splits, models=2, seed=0, recipe={}, kinds=("onnx-all",))


def test_side_by_side_names_cost_and_models(roomy: Any) -> None:
    context = roomy.context(roomy.original, roomy.near(roomy.retrained, 3), roomy.retrained)
    results = [Smi()(context), *(AUDITS[name]()(context) for name in ATTACKS), AUDITS["accuracy"]()(context)]
    found = {row[0]: row for row in side_by_side.rows(results)}
    assert list(found) == ["smi", *ATTACKS]
    assert found["smi"][6:9] == ("0.00", found["smi"][7], "0")
    assert found["rmia"][8] == "4"
    assert found["loss"][4:6] == ("met", "pass")
    assert all(row[9] == "-" for row in found.values())
    assert side_by_side.text(results[:1]) == ""
    assert "models" in side_by_side.text(results)


def test_tpr_at_fpr_needs_1000_non_members(lab: Any) -> None:
    from qunlearn.data.request import Request
    from qunlearn.data.splits import make_splits

    dataset = lab.make_dataset(per_rest=400)
    big = lab.World(dataset, make_splits(dataset, Request.parse("random=20%"), seed=0))
    models = (big.original, big.near(big.retrained, 3), big.retrained)
    result = Loss()(big.context(*models))
    assert result.n["nonmembers"] >= 1000
    assert 0 <= result.tables["metrics"]["tpr_at_fpr"]["forget, nonmembers"]["after"]["value"] <= 1
    assert side_by_side.rows([result])[0][9].endswith("%")
    pool = big.pools()["shadows"]
    one = replace(pool, shadows=pool.shadows[:1])
    assert isinstance(one.shadows[0], Shadow)
    with pytest.raises(ConfigError, match=r"at least 2|every shadow"):
        Rmia()(big.context(*models, inputs={"shadows": one}))
