"""Trials and calibrations on the toy network: arms, matched utility, and one answer on every artefact."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from qunlearn import quant
from qunlearn.audit import AuditContext, EveAudit, EveConfig
from qunlearn.audit.eve_arms import Bench, Matched, answers, flips_of, trial
from qunlearn.audit.eve_calibrate import EveCalibrate, confidences, rest_of
from qunlearn.audit.eve_calibration import ARMS, CONTROLS, NULL, Calibration, pooled
from qunlearn.bench import gaussians
from qunlearn.bench.watched import Watched, craft_of
from qunlearn.data.dataset import Samples
from qunlearn.data.eve import input_hashes, split_eve
from qunlearn.tasks import Classification
from qunlearn.unlearn import METHODS
from qunlearn_export.parity import parity

BUDGET = 300
KINDS = ("torch-fq", "onnx-all", "onnx-off", "oracle", "c-host")


def method(**kw: Any) -> Any:
    settings = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "epochs": 100, **kw}
    return METHODS["graddiff"](**settings)


def calibrate(kind: str = "onnx-all", steps: int = BUDGET, **kw: Any) -> EveCalibrate:
    how = method()
    cfg = EveConfig(**{"steps": 120, "trials": 8, **kw})
    return EveCalibrate(craft=craft_of(how, cfg), unlearning=Watched(method=how, steps=steps), kind=kind, steps=steps)


def test_one_trial_in_short() -> None:
    data = gaussians.data(0)
    model = gaussians.trained(data, seed=0)
    before = quant.state_digest(model)
    one = calibrate("torch-fq", steps=12).trial(model, data, n_erase=30, seed=0)
    assert quant.state_digest(model) == before
    assert tuple(one.readings) == tuple(ARMS)
    r = one.readings
    assert (r["no_unlearning"].step, r["no_unlearning"].flip, r["no_unlearning"].bystanders) == (0, 0.0, 0.0)
    assert all(r[a].step == 12 for a in ("continued", "fake_other", "clean", "eve"))
    assert all(max(x.retain_drop, x.heldout_drop) <= 0.03 for x in r.values())
    assert r["eve"].cos is not None
    assert r["eve"].cos > 0.6 > r["released_code"].cos  # type: ignore[operator]
    assert all(r[a].cos is None for a in NULL)
    assert r["eve"].seconds["craft"] > 0
    assert all(r[a].seconds["unlearn"] > 0 and r[a].seconds["verify"] > 0 for a in ARMS if a != "no_unlearning")
    digests = {a: quant.codes_digest(m) for a, m in one.models.items()}
    assert len(set(digests.values())) == len(ARMS)
    assert digests["no_unlearning"] == quant.codes_digest(model)


def test_matched_utility_keeps_the_last_step_within_the_budget() -> None:
    data = gaussians.data(0, samples=600)
    model = gaussians.trained(data, seed=0)
    retain, heldout = data.samples("train"), data.samples("heldout")
    matched = Matched(model, retain, heldout, drop=0.03, steps=50, every=1)
    good = {n: t.clone() for n, t in model.state_dict().items()}
    worse = gaussians.trained(gaussians.data(9, samples=600), seed=9)
    assert matched(1, 50, model)
    assert matched(2, 50, model)
    assert matched.step == 2
    goes_on = [matched(t, 50, worse) for t in range(3, 40)]
    assert goes_on.index(False) == 14  # fifteen readings beyond the budget in a row end the arm
    assert matched.step == 2
    assert all(bool((v == good[n]).all()) for n, v in matched.model(worse).state_dict().items())
    assert not Matched(model, retain, heldout, drop=0.03, steps=3, every=1)(3, 50, model)


def test_t4_the_arms_see_disjoint_sets() -> None:
    data = gaussians.data(0)
    model = gaussians.trained(data, seed=0)
    split = split_eve(data, 30, 1, 20, 0, confidence=confidences(model, data))
    seen: list[Any] = []

    class Spy:
        digest = "d" * 64

        def run(self, model: Any, splits: Any, *, seed: int, retain_only: bool, watch: Any) -> None:
            seen.append((retain_only, splits))

    cal = calibrate("torch-fq")
    trial(
        Bench(
            model=model, split=split, heldout=rest_of(data.samples("heldout"), split), craft=cal.craft,
            unlearning=Spy(), kind="torch-fq", steps=5, every=1, seed=0,
        )
    )  # fmt: skip
    assert len(seen) == 7
    assert sum(alone for alone, _ in seen) == 1
    private = set(input_hashes(split.targets)) | set(input_hashes(split.bystanders))
    kept = {tuple(input_hashes(s.retain)) for _, s in seen}
    assert len(kept) == 1  # the same kept samples in every arm
    for _, s in seen:
        forget, retain = set(input_hashes(s.forget)), set(input_hashes(s.retain))
        assert len(s.forget) == 30
        assert not forget & retain
        assert not private & (forget | retain | set(input_hashes(s.heldout)))


def test_t11_an_update_below_one_step_of_the_codes_cannot_pass() -> None:
    """Latent weights move, codes do not: whatever the calibration says, there is no verdict `pass`."""
    data = gaussians.data(0)
    model = gaussians.trained(data, seed=0)
    split = split_eve(data, 30, 1, 20, 0, confidence=confidences(model, data))
    how = method(lr=1e-7, epochs=1)
    cal = calibrate()
    request = cal.craft(model, split, heldout=rest_of(data.samples("heldout"), split), seed=0)
    bench = Bench(
        model=model, split=split, heldout=rest_of(data.samples("heldout"), split), craft=cal.craft,
        unlearning=Watched(method=how, steps=2), kind="onnx-all", steps=2, every=1, seed=0,
    )  # fmt: skip
    matched = Matched(model, split.retain, bench.heldout, drop=0.03, steps=2, every=1)
    bench.unlearning.run(model, bench.splits(split.erase), seed=0, retain_only=False, watch=matched)
    after = matched.model(model)
    assert quant.state_digest(after) != quant.state_digest(model)
    assert quant.codes_digest(after) == quant.codes_digest(model)
    before_p, after_p = answers(model, "torch-fq"), answers(after, "torch-fq")
    ctx = AuditContext(
        before=before_p, after=after_p, reference=None, reference_kind="none", splits=request.splits(),
        task=Classification(), seed=0, inputs={"eve_request": request},
    )  # fmt: skip
    r = EveAudit()(ctx)
    assert r.verdict == "inconclusive"
    assert {"W-SAME-CODES"} <= set(r.warnings)
    assert r.value == 0.0


@pytest.fixture(scope="module")
def eight() -> tuple[Calibration, list[Any]]:
    """Acceptance 1: eight networks, one trial each, read from the int8 file."""
    parts, trials = [], []
    for seed in range(8):
        data = gaussians.data(seed)
        model = gaussians.trained(data, seed=seed)
        cal = calibrate()
        one = cal.trial(model, data, n_erase=30, seed=seed)
        parts.append(cal.pool(model, [one]))
        trials.append((model, data, one))
    return pooled(parts), trials


@pytest.mark.slow
def test_acceptance_1_and_2_eight_seeds_at_matched_utility(eight: Any) -> None:
    found, _ = eight
    flips = {a: found.count(a) for a in ARMS}
    print(flips, {a: found.mean(a, "cos") for a in ("eve", "released_code")})
    assert flips["eve"] >= 7
    assert all(flips[a] <= 1 for a in CONTROLS), flips
    assert not found.problems
    assert flips["released_code"] <= 3
    assert found.mean("released_code", "cos") < 0.2
    assert found.mean("eve", "cos") > 0.6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_acceptance_3_every_artefact_gives_the_same_flips(eight: Any) -> None:
    for seed in range(3):
        model, data, one = eight[1][seed]
        split = split_eve(data, 30, 1, 20, seed, confidence=confidences(model, data))
        private = Samples(data, np.concatenate([split.targets.index, split.bystanders.index]))
        before = {kind: answers(model, kind) for kind in KINDS}
        for arm, after in one.models.items():
            vectors = {}
            for kind in KINDS:
                flips = flips_of(before[kind], answers(after, kind), private, None)
                vectors[kind] = tuple(flips.flip.tolist())
            assert len(set(vectors.values())) == 1, (seed, arm, vectors)
            assert one.readings[arm].flip == float(vectors["onnx-all"][0])


def test_acceptance_3_in_short_every_artefact_gives_the_same_flips() -> None:
    data = gaussians.data(0)
    model, after = gaussians.trained(data, seed=0), gaussians.trained(data, seed=1)
    heldout = data.samples("heldout")
    kinds = KINDS if shutil.which("cc") else KINDS[:-1]
    both = {k: (answers(model, k), answers(after, k)) for k in kinds}
    report = parity(quant.lower(after), both["onnx-all"][1].data, heldout.inputs())  # type: ignore[attr-defined]
    assert report.verdict == "pass"
    vectors = {k: flips_of(*both[k], heldout, None) for k in kinds}
    first = vectors["oracle"]
    assert 3 < first.flip.sum() < len(heldout)
    assert all(np.array_equal(v.flip, first.flip) for v in vectors.values())
