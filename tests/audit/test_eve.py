"""The verdict of the erasure check, on models whose answers are known: every branch of its rule, and its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import Calibration, EveAudit, EveConfig
from qunlearn.audit.eve_calibration import CONTROLS, NULL, pooled, table
from qunlearn.errors import ArtefactError, ConfigError
from qunlearn.fingerprint import plain


def judged(world: Any, after: Any, audit: EveAudit | None = None, **inputs: Any) -> Any:
    given = {k: v for k, v in {**world.eve(), **inputs}.items() if v is not None}
    ctx = world.context(world.original, after, None, reference_kind="calibration", inputs=given)
    return (audit or EveAudit())(ctx)


def good(world: Any) -> Any:
    return world.near(world.retrained, 3)


def test_a_flip_under_a_strong_calibration_passes_and_says_what_it_is_worth(world: Any) -> None:
    r = judged(world, good(world))
    assert (r.verdict, r.value, r.reasons) == ("pass", 1.0, ())
    calibration = world.eve()["eve_calibration"]
    assert r.reference["kind"] == "calibration"
    assert r.reference["digest"] == calibration.digest
    assert (r.interval["lo"], r.interval["hi"]) == (calibration.l1, 1.0)
    found = r.tables["eve"]
    assert found["calibration"]["p0"] == pytest.approx(1 - 0.05 ** (1 / 60))
    assert found["calibration"]["likelihood_ratio"] == pytest.approx(calibration.l1 / calibration.p0)
    assert set(found["calibration"]["controls"]) == set(CONTROLS)
    assert found["strict"] == 1.0
    assert r.tables["targets"][0]["flip"]
    for key in ("request", "model", "unlearner", "config"):
        assert found[key]


def test_no_calibration_is_inconclusive(world: Any) -> None:
    r = judged(world, good(world), eve_calibration=None)
    assert (r.verdict, r.reasons) == ("inconclusive", ("I-EVE-NO-CALIBRATION",))
    assert r.to_json()["reference"] == {"kind": "none", "value": None, "interval": None, "digest": None}
    assert (r.interval["lo"], r.interval["hi"]) == (0.0, 1.0)


@pytest.mark.parametrize("field", ["model", "unlearner", "config"])
def test_a_foreign_calibration_is_inconclusive(field: str, world: Any, lab: Any) -> None:
    r = judged(world, good(world), eve_calibration=lab.eve_calibration(world, **{field: "f" * 64}))
    assert r.verdict == "inconclusive"
    assert any(c.startswith("I-EVE-FOREIGN") for c in r.reasons)


def test_a_request_for_another_network_is_inconclusive(world: Any, lab: Any) -> None:
    r = judged(world, good(world), eve_request=lab.eve_request(world, model="f" * 64))
    assert r.verdict == "inconclusive"
    assert any("another network" in c for c in r.reasons)


def test_p0_above_alpha_is_inconclusive(world: Any, lab: Any) -> None:
    few = lab.eve_calibration(world, n=8)
    assert few.p0 == pytest.approx(0.312, abs=1e-3)
    assert judged(world, good(world), eve_calibration=few).reasons == ("I-EVE-FALSE-POSITIVES",)
    noisy = lab.eve_calibration(world, {"fake_other": 2})
    assert not noisy.problems
    assert judged(world, good(world), eve_calibration=noisy).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("flips", "kw", "said"),
    [
        ({"eve": 40}, {}, "flipped 40 of 60"),
        ({"clean": 58}, {}, "does not beat clean"),
        ({"fake_relabel": 60}, {}, "does not beat fake_relabel"),
        ({}, {"utility_drop": 0.005}, "utility drop of 0.010"),
        ({}, {"utility_drop": 0.02}, "holds up to a utility drop of 0.02"),
    ],
)
def test_an_invalid_calibration_is_inconclusive(flips: Any, kw: Any, said: str, world: Any, lab: Any) -> None:
    r = judged(world, good(world), eve_calibration=lab.eve_calibration(world, flips, **kw))
    assert r.verdict == "inconclusive"
    assert any(c.startswith("I-EVE-CALIBRATION") and said in c for c in r.reasons), r.reasons


def test_a_target_that_keeps_its_answer_fails_only_where_detection_is_proven(world: Any, lab: Any) -> None:
    after = world.near(world.original, 5)
    r = judged(world, after)
    assert (r.verdict, r.failure_side, r.reasons, r.value) == ("fail", "under", ("F-EVE-NOT-FLIPPED",), 0.0)
    assert r.interval["hi"] == world.eve()["eve_calibration"].p0
    weaker = lab.eve_calibration(world, {"eve": 58})
    assert not weaker.problems
    assert judged(world, after, eve_calibration=weaker).reasons == ("I-EVE-WEAK",)


def test_a_target_that_was_wrong_before_is_inconclusive(world: Any) -> None:
    request = world.eve()["eve_request"]
    row = int(request.role("target").raw()[0, 0, 0, 0])
    before = world.original
    before.table[row] = np.roll(before.table[row], 1)
    ctx = world.context(before, good(world), None, reference_kind="calibration")
    assert "I-EVE-TARGET" in EveAudit()(ctx).reasons


def test_an_unresolved_margin_is_inconclusive(world: Any) -> None:
    after = good(world)
    row = int(world.eve()["eve_request"].role("target").raw()[0, 0, 0, 0])
    after.table[row] = 0.0
    r = judged(world, after)
    assert (r.verdict, r.reasons) == ("inconclusive", ("I-EVE-UNRESOLVED",))


@pytest.mark.parametrize("kind", ["constant", "collapsed class"])
def test_t8_a_collapsed_network_fails_as_over_although_its_target_flips(kind: str, world: Any, lab: Any) -> None:
    request = world.eve()["eve_request"]
    z = np.zeros_like(world.original.table)
    z[:, int(request.y_adv[0])] = 5.0
    if kind == "collapsed class":
        z += np.random.default_rng(0).normal(0, 0.1, z.shape)
    r = judged(world, lab.TableModel(z))
    assert r.value == 1.0
    assert (r.verdict, r.failure_side) == ("fail", "over")
    assert {"F-UTILITY-RETAIN", "F-UTILITY-HELDOUT"} <= set(r.reasons)
    assert judged(world, lab.TableModel(z), eve_calibration=None).failure_side == "over"


def test_identical_networks_never_pass_and_say_so(world: Any) -> None:
    r = judged(world, world.original)
    assert r.verdict == "inconclusive"
    assert "W-SAME-BYTES" in r.warnings
    assert r.reasons[0] == "I-SAME-BYTES"


def test_t7_mixed_artefact_kinds_are_refused(world: Any) -> None:
    with pytest.raises(ConfigError, match="mixed"):
        world.context(world.original, good(world).as_kind("onnx-all"), None, reference_kind="calibration")


def test_a_calibration_of_another_kind_is_named(world: Any, lab: Any) -> None:
    r = judged(world, good(world), eve_calibration=lab.eve_calibration(world, kind="c-host"))
    assert (r.verdict, r.warnings) == ("pass", ("W-EVE-KIND: calibrated on c-host",))


def test_t2_a_target_among_the_forget_samples_is_refused(world: Any, lab: Any) -> None:
    request = lab.eve_request(world)
    probe = request.probe_x.copy()
    probe[0] = world.splits.forget.raw()[0]  # under another label too
    with pytest.raises(ConfigError, match="overlap: targets and forget share"):
        judged(world, good(world), eve_request=dataclasses.replace(request, probe_x=probe))


def test_without_a_request_nothing_is_measured(world: Any) -> None:
    r = judged(world, good(world), eve_request=None)
    assert (r.value, r.reasons) == (None, ("I-EVE-NO-REQUEST",))


def test_calibration_file_round_trip_and_damage(world: Any, lab: Any, tmp_path: Path) -> None:
    made = lab.eve_calibration(world, n=8)
    path = made.save(tmp_path / "c.json")
    again = Calibration.load(path)
    assert again.digest == made.digest
    assert plain(again) == plain(made)
    body = json.loads(path.read_text())
    slower = json.loads(path.read_text())
    slower["trials"][0]["eve"]["seconds"]["craft"] = 99.0
    path.write_text(json.dumps(slower))
    assert Calibration.load(path).digest == made.digest  # times are no part of the digest
    for change in ({"format": 2}, {"trials": []}, {"kind": None, "extra": 1}):
        path.write_text(json.dumps({**body, **change}))
        with pytest.raises(ArtefactError):
            Calibration.load(path)
    del body["trials"][0]["clean"]
    path.write_text(json.dumps(body))
    with pytest.raises(ArtefactError, match="lacks an arm"):
        Calibration.load(path)


def test_t13_the_table_times_craft_unlearn_and_verify_apart_for_every_arm(world: Any, lab: Any) -> None:
    rows = table(lab.eve_calibration(world, n=8).summary())
    assert rows[0][-3:] == ["craft s", "unlearn s", "verify s"]
    assert [r[0] for r in rows[1:]] == [*NULL, "clean", "random", "released_code", "eve"]
    assert all(r[-3:] == ["0.10", "0.20", "0.30"] for r in rows[1:])


def test_pooled_trials_of_several_networks_belong_to_none(world: Any, lab: Any) -> None:
    parts = [lab.eve_calibration(world, n=4, model=m * 64) for m in "ab"]
    both = pooled(parts)
    assert (both.n, both.model) == (8, "")
    assert pooled(parts[:1]).model == "a" * 64
    with pytest.raises(ArtefactError):
        pooled([parts[0], lab.eve_calibration(world, n=4, kind="onnx-all")])


def test_t3_the_hard_sign_is_refused_and_ranges_are_checked() -> None:
    with pytest.raises(ConfigError, match="hard sign of a gradient has no derivative"):
        EveConfig(align="sign")
    with pytest.raises(ConfigError, match=r"restarts 11 is outside.*trials 3 is outside"):
        EveConfig(restarts=11, trials=3)
    with pytest.raises(ConfigError, match="'radius' is unknown"):
        EveConfig.from_settings({"radius": "1"})
    assert EveConfig.from_settings({"eps": "0.5", "kappa": "0.1"}) == EveConfig(eps=0.5, kappa=0.1)


def test_the_configuration_digest_covers_the_request_but_not_the_number_of_trials() -> None:
    assert EveConfig().digest() == EveConfig(trials=8).digest() != EveConfig(kappa=0.1).digest()
