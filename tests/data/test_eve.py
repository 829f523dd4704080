"""Sets of an erasure check: disjoint by content, targets in the wanted band, seeded."""

from __future__ import annotations

import numpy as np
import pytest

from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.data.eve import EveSplit, input_hashes, require_disjoint, split_eve
from qunlearn.data.splits import divide_heldout
from qunlearn.errors import ConfigError, DataError


def made(*, twins: int = 0, per_part: int = 200) -> Dataset:
    rng = np.random.default_rng(0)
    n = 2 * per_part + 20
    x = rng.normal(size=(n, 3, 1, 1)).astype(np.float32)
    x[per_part : per_part + twins] = x[:twins]  # held-out twins of training samples, under another label
    y = np.arange(n) % 4
    y[per_part : per_part + twins] = (y[:twins] + 1) % 4
    part = np.array(["train"] * per_part + ["heldout"] * per_part + ["test"] * 20)
    return Dataset(
        name="t", x=x, y=y, ids=np.arange(n).astype(str), part=part, class_names=tuple("abcd"),
        preprocess=Preprocess(divisor=1.0),
    )  # fmt: skip


def draw(data: Dataset, seed: int = 0, **kw: object) -> EveSplit:
    confidence = np.random.default_rng(1).uniform(0.2, 1.0, len(data))
    confidence[::7] = np.nan
    return split_eve(data, 20, 1, 10, seed, confidence=confidence, **kw)  # type: ignore[arg-type]


def test_t4_no_two_sets_share_an_input_even_where_the_data_do() -> None:
    data = made(twins=60)
    s = draw(data)
    sets = [set(input_hashes(x)) for x in (s.erase, s.other, s.retain, s.targets, s.bystanders)]
    assert sum(map(len, sets)) == len(set.union(*sets))
    assert (len(s.erase), len(s.other), len(s.targets), len(s.bystanders)) == (20, 20, 1, 10)
    assert len(s.retain) == 160
    train = set(input_hashes(data.samples("train")))
    assert not train & set(input_hashes(s.targets))


def test_targets_come_from_the_audit_half_in_the_wanted_band() -> None:
    data = made()
    confidence = np.random.default_rng(1).uniform(0.2, 1.0, len(data))
    s = split_eve(data, 20, 2, 10, 3, confidence=confidence, wanted=0.6)
    assert set(s.targets.index) <= set(divide_heldout(data, 3)[1])
    gap = np.abs(confidence - 0.6)
    assert gap[s.targets.index].max() <= gap[s.bystanders.index].min()
    assert gap[s.bystanders.index].max() < 0.2


def test_wrongly_answered_samples_are_never_targets() -> None:
    data = made()
    confidence = np.full(len(data), np.nan)
    with pytest.raises(DataError, match="0 correctly answered"):
        split_eve(data, 20, 1, 10, 0, confidence=confidence)
    with pytest.raises(DataError, match="too few"):
        split_eve(data, 150, 1, 10, 0, confidence=np.ones(len(data)))


def test_the_seed_decides_and_erased_samples_can_be_fixed() -> None:
    data = made()
    a, b, c = draw(data, 0), draw(data, 0), draw(data, 1)
    assert np.array_equal(a.erase.index, b.erase.index)
    assert np.array_equal(a.targets.index, b.targets.index)
    assert not np.array_equal(a.erase.index, c.erase.index)
    fixed = Samples(data, np.arange(5, 25))
    assert np.array_equal(draw(data, erase=fixed).erase.index, fixed.index)


def test_t2_a_target_in_the_erased_batch_is_found_under_any_label() -> None:
    data = made(twins=1)
    twin, own = Samples(data, np.array([200])), Samples(data, np.array([0]))
    assert twin.content_hashes() != own.content_hashes()
    with pytest.raises(ConfigError, match=r"targets and erase share 0 \(1 in all\)"):
        require_disjoint([("targets", twin), ("erase", own)])
    s = draw(data)
    with pytest.raises(ConfigError, match="overlap"):
        EveSplit(erase=s.erase, other=s.other, retain=s.erase, targets=s.targets, bystanders=s.bystanders)
