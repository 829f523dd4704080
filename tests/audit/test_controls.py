"""Controls that must fail: doing nothing, answering nothing, a permuted head, noise; and what Avg Gap says of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AUDITS, gap, summary
from qunlearn.audit.mia import attack, attack_sets
from qunlearn.audit.result import worst
from qunlearn.audit.utility import measure
from qunlearn.cli.assess import SUITES
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits

FLOOR = 0.03


def permuted(world: Any, lab: Any) -> Any:
    return lab.TableModel(world.original.table[:, [1, 2, 3, 4, 0]])


def noisy(world: Any, lab: Any, share: float = 0.05) -> Any:
    """The original with ``share`` of all answers wrong."""
    z = world.original.table.copy()
    rng = np.random.default_rng(0)
    for part in (world.splits.forget, world.splits.retain, world.splits.heldout, world.splits.test):
        rows = part.index[rng.permutation(len(part))[: round(share * len(part))]]
        z[rows] = np.roll(z[rows], 1, axis=1)
    return lab.TableModel(z)


def test_utility_controls_fail(world: Any, lab: Any) -> None:
    constant = lab.TableModel(0 * world.original.table)
    for model in (constant, permuted(world, lab), noisy(world, lab)):
        assert measure(world.original, model, world.splits, floor=FLOOR).reasons
        result = AUDITS["accuracy"]()(world.context(world.original, model, world.retrained))
        assert (result.verdict, result.failure_side) == ("fail", "utility")
    for model in (world.original, world.near(world.original, 3, flips=0.0)):
        assert not measure(world.original, model, world.splits, floor=FLOOR).reasons


@pytest.mark.parametrize("request_text", ["group=s0", "class=2"])
def test_doing_nothing_fails_under(request_text: str, world: Any, lab: Any) -> None:
    splits = make_splits(world.dataset, Request.parse(request_text), seed=0)
    reference = world.retrained
    if request_text == "class=2":
        table = world.original.table.copy()
        table[:, 2] -= 30
        reference = lab.TableModel(table)
    same = world.near(world.original, 5)  # another seed's worth of difference: some code must differ
    result = AUDITS["accuracy"]()(world.context(world.original, same, reference, splits=splits))
    assert (result.verdict, result.failure_side) == ("fail", "under")


def test_t3_a_collapsed_network_has_the_worst_gap(world: Any, lab: Any) -> None:
    """UA 100 looks perfect; its gap is larger than that of doing nothing and of every other control."""
    models = {
        "constant": lab.TableModel(0 * world.original.table), "original": world.original,
        "noisy": noisy(world, lab), "retrained": world.retrained,
    }  # fmt: skip
    found = {n: summary(m, world.splits, lab.FakeTask(), 0) for n, m in models.items()}
    gaps = {n: gap(v, found["retrained"]) for n, v in found.items()}
    assert max(gaps, key=lambda n: gaps[n] or 0) == "constant"
    assert (gaps["original"] or 0) > gaps["retrained"] == 0


def test_attack_reads_retrained_and_never_trained_data_alike(world: Any, lab: Any) -> None:
    """Random 10 %: a retrained network's forget set and held-out data within 3 s.e., the original's value lower."""
    splits = make_splits(world.dataset, Request.parse("random=10%"), seed=0)
    own = lab.World(world.dataset, splits)
    trained, rest = (1.0, 7.0, 1.0), (0.95, 5.0, 1.5)
    for seed in range(3):
        original = own.model(10 + seed, forget=trained, retain=trained, rest=rest)
        retrained = own.model(20 + seed, forget=rest, retain=trained, rest=rest)
        sets = attack_sets(splits, nonmembers="test", seed=seed)
        unseen = attack(retrained, dataclasses.replace(sets, forget=splits.heldout_audit)).calls
        forgotten, kept = (attack(m, sets).calls for m in (retrained, original))
        error = float(np.sqrt(sum(v.var() / len(v) for v in (unseen, forgotten))))
        assert abs(forgotten.mean() - unseen.mean()) <= 3 * error
        assert kept.mean() < forgotten.mean() - 3 * error


def mislabelled(world: Any, lab: Any) -> Any:
    """The original with other answers on as many forget samples as the retrained model gets wrong."""
    z, forget = world.original.table.copy(), world.splits.forget
    wrong = int((world.retrained.table[forget.index].argmax(1) != forget.targets()).sum())
    rows = forget.index[np.random.default_rng(0).permutation(len(forget))[:wrong]]
    z[rows] = np.roll(z[rows], 1, axis=1)
    return lab.TableModel(z)


def test_the_standard_suite_passes_neither_a_collapsed_nor_a_mislabelled_network(roomy: Any, lab: Any) -> None:
    """Accuracy alone is deceived by wrong labels; the suite is not, and a retrained network passes it."""
    found = {}
    for name, model in {
        "collapsed": lab.TableModel(0 * roomy.original.table),
        "mislabelled": mislabelled(roomy, lab),
        "retrained": roomy.near(roomy.retrained, 3),
    }.items():
        ctx = roomy.context(roomy.original, model, roomy.retrained)
        found[name] = {a: AUDITS[a]()(ctx).verdict for a in SUITES["standard"]}
    assert {n: worst(list(f.values())) for n, f in found.items()} == {
        "collapsed": "fail", "mislabelled": "fail", "retrained": "pass",
    }, found  # fmt: skip
    assert found["mislabelled"]["accuracy"] == "pass"
