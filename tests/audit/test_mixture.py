"""The mixture estimate on worlds whose share is known: bias, tests, coverage, and the traps of the specification.

Toy A: 16 dimensions, members N(0, I), others shifted by .5 in 4 of them and (or) scaled by 1.3. Toy B: ten classes
with N(0, I) means on top. The long statistical tests are slow; each has a short form in the normal run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qunlearn.audit import mixture, smi_cov
from qunlearn.audit.kernels_mmd import gram_times
from qunlearn.audit.matching import Sets, match, synthetic
from qunlearn.audit.mixture import estimate
from qunlearn.errors import ConfigError, DataError

WORLDS = ("mean", "mean+scale", "scale")
D = 16


def member(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((n, D))


def other(n: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((n, D)) * (1.3 if "scale" in kind else 1.0)
    if "mean" in kind:
        x[:, :4] += 0.5
    return x


def toy_a(
    seed: int, pi: float, kind: str = "mean+scale", n: int = 200, shift: float = 0.0, exact: bool = False
) -> Sets:
    """``shift`` moves u in 4 unused dimensions: off the mixture. ``exact``: the very share, no binomial."""
    rng = np.random.default_rng([seed, 1])
    k = round(n * pi) if exact else int(rng.binomial(n, pi))
    u = np.concatenate([other(k, kind, rng), member(n - k, rng)])
    u[:, 8:12] += shift
    zero = np.zeros(n, np.int64)
    return Sets(m=member(n, rng), n=other(n, kind, rng), u=u, y_m=zero, y_n=zero, y_u=zero)


def toy_b(
    seed: int, pi: float, n: int = 200, skew: bool = False, kind: str = "mean+scale", exact: bool = False
) -> Sets:
    """Ten classes; ``skew``: two of them have four times the share in u."""
    rng = np.random.default_rng([seed, 2])
    means = rng.standard_normal((10, D))
    share = np.where(np.arange(10) < 2, 4.0 if skew else 1.0, 1.0)
    y_m, y_n = np.arange(n) % 10, np.arange(n) % 10
    y_u = rng.choice(10, n, p=share / share.sum()) if skew else np.arange(n) % 10
    k = round(n * pi) if exact else int(rng.binomial(n, pi))
    u = rng.permutation(np.arange(n))
    x = member(n, rng)
    x[u[:k]] = other(k, kind, rng)
    return Sets(
        m=member(n, rng) + means[y_m], n=other(n, kind, rng) + means[y_n], u=x + means[y_u], y_m=y_m, y_n=y_n, y_u=y_u
    )


def share(sets: Sets, seed: int = 0, **kw: object) -> float:
    return estimate(sets, seed=seed, bootstrap=1, tests=(), **kw).pi  # type: ignore[arg-type]


def mean_error(draws: int, make: object, pi: float) -> float:
    found = [share(make(s)) for s in range(draws)]  # type: ignore[operator]
    return float(np.mean(found)) - pi


def mmd_bias(draws: int) -> dict[tuple[str, float], float]:
    out = {}
    for pi in (0.2, 0.5, 0.8):
        for kind in WORLDS:
            out[kind, pi] = mean_error(draws, lambda s, k=kind, p=pi: toy_a(s, p, k, 500, exact=True), pi)
        for skew in (False, True):
            out[f"B {skew}", pi] = mean_error(draws, lambda s, w=skew, p=pi: toy_b(s, p, 500, w, exact=True), pi)
    return out


def test_acceptance_1_quick() -> None:
    found = {pi: mean_error(8, lambda s, p=pi: toy_a(s, p, n=500, exact=True), pi) for pi in (0.2, 0.8)}
    assert max(map(abs, found.values())) <= 0.03
    assert abs(mean_error(8, lambda s: toy_b(s, 0.5, 500, True, exact=True), 0.5)) <= 0.04


@pytest.mark.slow
def test_acceptance_1_mean_error_of_mmd() -> None:
    found = mmd_bias(30)
    assert max(map(abs, found.values())) <= 0.03, found


def naive(sets: Sets) -> float:
    """The same formula with the diagonal kept (a V-statistic), one class."""
    x = match(sets)
    gamma = estimate(sets, seed=0, bootstrap=1, tests=()).gamma
    k = {}
    for a, b in ("mm", "nn", "mn", "um", "un"):
        w = np.full((len(x.points[b]), 1), 1 / len(x.points[b]))
        k[a + b] = gram_times(x.points[a], gamma, w, others=x.points[b]).mean()
    return float((k["un"] - k["um"] - k["mn"] + k["mm"]) / (k["nn"] + k["mm"] - 2 * k["mn"]))


def test_t3_the_diagonal_pulls_to_one_half() -> None:
    for pi, sign in ((0.2, 1), (0.8, -1)):
        sets = [toy_a(s, pi, "mean", 200, exact=True) for s in range(12)]
        kept = float(np.mean([naive(s) for s in sets]))
        left_out = float(np.mean([share(s) for s in sets]))
        assert sign * (kept - pi) > 0.03
        assert abs(left_out - pi) < abs(kept - pi)


def global_norm(sets: Sets) -> float:
    """The estimate with one normaliser for the whole set, in place of one a class."""
    x = match(sets)
    gamma = estimate(sets, seed=0, bootstrap=1, tests=()).gamma
    w = {s: x.weights(s)[:, None] for s in "mnu"}

    def within(s: str) -> float:
        return float((w[s] * gram_times(x.points[s], gamma, w[s])).sum() / (1 - (w[s] ** 2).sum()))

    def cross(a: str, b: str) -> float:
        return float((w[a] * gram_times(x.points[a], gamma, w[b], others=x.points[b])).sum())

    mm, nn, mn = within("m"), within("n"), cross("m", "n")
    return (cross("u", "n") - cross("u", "m") - mn + mm) / (mm + nn - 2 * mn)


def test_t4_one_normaliser_is_biased_on_stratified_sets() -> None:
    """Identical laws: MMD2 must be 0 on average. With one normaliser for all classes it is not."""
    blockwise, whole = [], []
    for s in range(40):
        sets = toy_b(s, 0.3, 200, kind="")
        x = match(sets)
        e = estimate(sets, seed=0, bootstrap=1, tests=())
        blockwise.append(e.mmd2["m,n"])
        w = {k: x.weights(k)[:, None] for k in "mn"}
        own = [float((w[k] * gram_times(x.points[k], e.gamma, w[k])).sum() / (1 - (w[k] ** 2).sum())) for k in "mn"]
        cross = float((w["m"] * gram_times(x.points["m"], e.gamma, w["n"], others=x.points["n"])).sum())
        whole.append(sum(own) - 2 * cross)
    error = np.std(blockwise) / np.sqrt(len(blockwise))
    assert abs(np.mean(blockwise)) < 3 * error
    assert np.mean(whole) < -6 * np.std(whole) / np.sqrt(len(whole))


@pytest.mark.slow
def test_t4_blockwise_bias() -> None:
    for per_class in (20, 50):
        sets = [toy_b(s, 0.3, 10 * per_class, exact=True) for s in range(120)]
        found = [share(s) for s in sets]
        whole = [global_norm(s) for s in sets]
        assert abs(np.mean(found) - 0.3) < 0.015, (per_class, np.mean(found))
        assert abs(np.mean(whole) - 0.3) > abs(np.mean(found) - 0.3), (per_class, np.mean(whole))


def test_t5_no_signal_is_seen() -> None:
    fired = sum(estimate(toy_a(s, 0.5, "", 100), seed=s, bootstrap=1, permute=99, tests=("identifiable",)).p[
        "identifiable"] < 0.05 for s in range(30))  # fmt: skip
    assert fired <= 5


def rejections(runs: int) -> float:
    hits = 0
    for s in range(runs):
        rng = np.random.default_rng([s, 3])
        y = np.arange(60) % 2
        means = rng.standard_normal((2, D))
        m, n, u = (member(60, rng) + means[y] for _ in range(3))
        e = estimate(Sets(m=m, n=n, u=u, y_m=y, y_n=y, y_u=y), seed=s, bootstrap=1, tests=("identifiable",))
        hits += e.p["identifiable"] < 0.05
    return hits / runs


def test_acceptance_4_quick() -> None:
    assert rejections(40) <= 0.15
    p = [estimate(toy_a(s, 0.5), seed=s, bootstrap=1, tests=("identifiable",)).p["identifiable"] for s in range(4)]
    assert max(p) < 0.05


@pytest.mark.slow
def test_acceptance_4_size_and_power_of_the_permutation_test() -> None:
    assert 0.01 <= rejections(200) <= 0.10
    p = [estimate(toy_a(s, 0.5), seed=s, bootstrap=1, tests=("identifiable",)).p["identifiable"] for s in range(60)]
    assert max(p) < 0.05


def coverage(runs: int, make: object, pi: float) -> float:
    hits = 0
    for s in range(runs):
        low, high = estimate(make(s), seed=s, tests=()).interval()  # type: ignore[operator]
        hits += low <= pi <= high
    return hits / runs


def test_acceptance_5_quick() -> None:
    assert coverage(15, lambda s: toy_a(s, 0.5), 0.5) >= 0.7


@pytest.mark.slow
def test_acceptance_5_coverage() -> None:
    assert coverage(60, lambda s: toy_a(s, 0.5), 0.5) >= 0.80
    assert coverage(60, lambda s: toy_b(s, 0.5), 0.5) >= 0.80


def off_mixture(runs: int, shift: float) -> float:
    p = [estimate(toy_a(s, 0.5, shift=shift), seed=s, tests=("mixture",)).p["mixture"] for s in range(runs)]
    return float(np.mean(np.array(p) < 0.05))


def test_acceptance_6_quick() -> None:
    assert off_mixture(12, 0.0) <= 0.25
    assert off_mixture(5, 0.5) == 1.0


@pytest.mark.slow
def test_acceptance_6_size_and_power_off_the_mixture() -> None:
    assert off_mixture(60, 0.0) <= 0.12
    assert off_mixture(60, 0.3) >= 0.9


def test_t7_kernel_and_scale_never_look_at_u_nor_change() -> None:
    sets = toy_a(0, 0.5)
    far = replace(sets, u=sets.u * 9 + 4)
    one, two = (estimate(s, seed=0, bootstrap=5, tests=()) for s in (sets, far))
    assert one.gamma == pytest.approx(two.gamma, rel=1e-12)
    assert one.mmd2["m,n"] == pytest.approx(two.mmd2["m,n"], rel=1e-9)


def test_t7_one_kernel_width_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = mixture.gram_times

    def spy(points: np.ndarray, gamma: float, weights: np.ndarray, **kw: object) -> np.ndarray:
        seen.add(gamma)
        return real(points, gamma, weights, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(mixture, "gram_times", spy)
    monkeypatch.setattr("qunlearn.audit.kernels_mmd.gram_times", spy)
    e = estimate(toy_b(0, 0.5), seed=0)
    assert seen == {e.gamma}


def test_t8_equal_features_and_coarse_integers() -> None:
    sets = toy_a(0, 0.5)
    flat = replace(sets, m=np.ones_like(sets.m), n=np.ones_like(sets.n), u=np.ones_like(sets.u))
    e = estimate(flat, seed=0)
    assert np.isnan(e.pi)
    assert set(e.p.values()) == {1.0}
    assert e.matched.dead == D
    coarse = replace(sets, m=np.clip(np.rint(sets.m), -1, 1), n=np.clip(np.rint(sets.n), -1, 1), u=np.rint(sets.u))
    e = estimate(coarse, seed=0, tests=())
    assert np.isfinite(e.pi)
    assert np.isfinite(e.resamples).all()


def test_t8_dead_columns_are_dropped_and_counted() -> None:
    sets = toy_a(0, 0.5)
    wide = [np.hstack([x, np.full((len(x), 3), 1e4 + 0.1)]) for x in (sets.m, sets.n, sets.u)]
    e = estimate(replace(sets, m=wide[0], n=wide[1], u=wide[2]), seed=0, bootstrap=5, tests=())
    assert e.matched.dead == 3
    assert e.pi == pytest.approx(share(sets), abs=1e-9)


def test_t9_a_large_offset_changes_nothing() -> None:
    sets = toy_a(0, 0.5)
    moved = replace(sets, m=sets.m + 1e4, n=sets.n + 1e4, u=sets.u + 1e4)
    assert share(moved) == pytest.approx(share(sets), abs=1e-6)


def test_t10_class_shares_are_not_read_as_forgetting() -> None:
    sets = [toy_b(s, 0.2, 400, True, exact=True) for s in range(15)]
    matched = float(np.mean([share(s) for s in sets]))
    unmatched = float(np.mean([share(s, class_match="none") for s in sets]))
    assert abs(matched - 0.2) < 0.06
    assert abs(matched - 0.2) < abs(unmatched - 0.2)


def test_subsampling_gives_equal_weights_and_the_share_of_u() -> None:
    sets = toy_b(3, 0.5, 400, True, exact=True)
    x = match(sets, how="subsample", seed=1)
    for s in "mn":
        counts = np.bincount(x.classes[s]) / len(x.classes[s])
        assert np.abs(counts - x.share).max() < 0.03
        assert len(x.points[s]) < 400
    assert len(x.points["u"]) == 400
    found = [share(toy_b(s, 0.5, 400, True, exact=True), class_match="subsample") for s in range(10)]
    assert abs(np.mean(found) - 0.5) < 0.08
    with pytest.raises(ConfigError, match="subsample"):
        match(sets, how="guess")


def test_classes_that_a_set_lacks_are_dropped_and_their_share_told() -> None:
    sets = toy_b(0, 0.5)
    fewer = replace(sets, m=sets.m[sets.y_m != 4], y_m=sets.y_m[sets.y_m != 4])
    assert match(fewer).dropped == pytest.approx(0.1)
    assert len(match(fewer).share) == 9
    with pytest.raises(DataError, match="no class"):
        match(replace(sets, y_m=sets.y_m + 20))


@pytest.mark.parametrize("n", [2, 3])
def test_t13_tiny_sets_run(n: int) -> None:
    rng = np.random.default_rng(0)
    zero = np.zeros(n, np.int64)
    m, k, u = (rng.standard_normal((n, 1)) for _ in range(3))
    sets = Sets(m=m, n=k, u=u, y_m=zero, y_n=zero, y_u=zero)
    e = estimate(sets, seed=0, bootstrap=20, permute=99)
    assert all(0 < p <= 1 for p in e.p.values())
    c = smi_cov.estimate(m, k, u, seed=0, bootstrap=20)
    assert 0 <= c.pi <= 1
    with pytest.raises(DataError, match="two samples"):
        estimate(replace(sets, y_m=np.arange(n), y_n=np.arange(n), y_u=np.arange(n)), seed=0)


def test_acceptance_11_same_seed_same_numbers_and_the_order_does_not_matter() -> None:
    sets = toy_b(1, 0.5, 600)
    one, two = (estimate(sets, seed=4, bootstrap=50, permute=99) for _ in range(2))
    assert (one.pi, one.p) == (two.pi, two.p)
    assert np.array_equal(one.resamples, two.resamples)
    rng = np.random.default_rng(0)
    a, b, c = (rng.permutation(600) for _ in range(3))
    mixed = Sets(
        m=sets.m[a], n=sets.n[b], u=sets.u[c], y_m=sets.y_m[a], y_n=sets.y_n[b], y_u=sets.y_u[c]
    )  # fmt: skip
    assert share(mixed, seed=4) == pytest.approx(one.pi, abs=1e-9)


def test_resamples_are_joint_for_two_models() -> None:
    sets = toy_b(0, 0.5)
    twin = replace(sets, m=sets.m * 2, n=sets.n * 2, u=sets.u * 2)
    one, two = (estimate(s, seed=3, bootstrap=30, tests=()) for s in (sets, twin))
    assert np.abs(one.resamples - two.resamples).max() < 1e-9


def test_blocks_of_resamples_have_the_same_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "MAX_BYTES", 0)
    e = estimate(toy_a(0, 0.5, n=60), seed=0, bootstrap=300, permute=300)
    assert len(e.resamples) == 300
    assert len(np.unique(e.resamples)) > 290
    assert e.p["identifiable"] == pytest.approx(1 / 301, abs=0.02)


def test_resampling_the_forget_set_alone_is_narrower() -> None:
    sets = toy_a(0, 0.5)
    widths = {}
    for which in ("mnu", "u"):
        low, high = estimate(sets, seed=0, resample=which, tests=()).interval()
        widths[which] = high - low
    assert widths["u"] < widths["mnu"]


def test_a_synthetic_mixture_is_half_and_uses_no_sample_twice() -> None:
    sets = toy_b(0, 0.9, 400)
    half = synthetic(sets, seed=0)
    rows = {tuple(r) for x in (half.m, half.n, half.u) for r in x}
    assert len(rows) == len(half.m) + len(half.n) + len(half.u)
    assert np.mean([share(synthetic(toy_b(s, 0.9, 400), seed=s)) for s in range(10)]) == pytest.approx(0.5, abs=0.06)


def test_acceptance_2_the_quartic_is_solved_exactly() -> None:
    grid = np.linspace(0, 1, 10_001)
    rng = np.random.default_rng(0)
    for _ in range(100):
        d = int(rng.integers(1, 6))
        m, n, u = (rng.standard_normal((30, d)) * rng.uniform(0.5, 2) + rng.normal(0, 1, d) for _ in range(3))
        s_m, s_n, s_u, delta = *(smi_cov.covariance(x) for x in (m, n, u)), n.mean(0) - m.mean(0)
        c = smi_cov.coefficients(s_m, s_n, s_u, delta)
        slow = [
            float(((s_u - (p * s_n + (1 - p) * s_m + p * (1 - p) * np.outer(delta, delta))) ** 2).sum())
            for p in (0.0, 0.3, 1.0)
        ]
        assert np.polyval(c[::-1], [0.0, 0.3, 1.0]) == pytest.approx(slow, rel=1e-9, abs=1e-9)
        f = np.concatenate([[np.inf], np.polyval(c[::-1], grid), [np.inf]])
        minima = (f[1:-1] < f[:-2]) & (f[1:-1] < f[2:])
        # With d = 1 f is a square, often with two roots: which of two minima of 0 is the least is a matter of rounding.
        best = grid[minima & (f[1:-1] <= f.min() + 1e-6)]
        assert np.abs(smi_cov.solve(c)[0] - best).min() <= 1.0001e-4


def strong_shift(seed: int, pi: float, n: int = 500) -> Sets:
    """Equal covariances, means 4 apart: |d d^T| is far above the sampling noise of 500 covariances in 16 dimensions."""
    rng = np.random.default_rng([seed, 5])
    k = round(n * pi)
    d = np.r_[np.full(4, 2.0), np.zeros(D - 4)]
    zero = np.zeros(n, np.int64)
    u = np.concatenate([member(k, rng) + d, member(n - k, rng)])
    return Sets(m=member(n, rng), n=member(n, rng) + d, u=u, y_m=zero, y_n=zero, y_u=zero)


def test_t1_equal_covariances_have_two_minima() -> None:
    """And which of the two is the lower one is chance, while the kernel estimate knows."""
    sets = [strong_shift(s, 0.2) for s in range(40)]
    found = [smi_cov.estimate(s.m, s.n, s.u, seed=0, bootstrap=2) for s in sets]
    assert np.mean([f.two_minima for f in found]) >= 0.95
    wrong = np.mean([abs(f.pi - 0.8) < abs(f.pi - 0.2) for f in found])
    assert 0.2 < wrong < 0.8
    assert all(abs(share(s) - 0.2) < 0.05 for s in sets[:10])


def test_t2_cov_is_biased_where_mmd_is_not() -> None:
    sets = [toy_a(s, 0.8, "scale", 500, exact=True) for s in range(10)]
    cov = float(np.mean([smi_cov.estimate(s.m, s.n, s.u, seed=0, bootstrap=2).pi for s in sets]))
    mmd = float(np.mean([share(s) for s in sets]))
    assert abs(mmd - 0.8) <= 0.03
    assert abs(cov - 0.8) > 0.06


def test_the_joint_form_uses_the_mean_too() -> None:
    sets = [toy_a(s, 0.8, "mean", 500, exact=True) for s in range(6)]
    found = [smi_cov.estimate(s.m, s.n, s.u, seed=0, bootstrap=60) for s in sets]
    assert np.mean([f.joint for f in found]) == pytest.approx(0.8, abs=0.08)
    assert all(f.reference_range[0] <= f.reference_range[1] for f in found)


def test_wide_features_are_projected() -> None:
    rng = np.random.default_rng(0)
    m, n, u = (rng.standard_normal((20, 2100)) for _ in range(3))
    assert smi_cov.estimate(m, n, u, seed=0, bootstrap=2).projected
    assert not smi_cov.estimate(m[:, :9], n[:, :9], u[:, :9], seed=0, bootstrap=2).projected
