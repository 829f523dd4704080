"""Passes and pairs: without replacement, counted, resumable, and the order that cannot carry a projection refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qunlearn.errors import ArtefactError, ConfigError, DataError
from qunlearn.unlearn.pairing import Pairs, Pass, batches_per_pass


@given(st.integers(1, 60), st.integers(2, 20))
def test_a_pass_visits_each_sample_at_most_once_and_drops_at_most_one(n: int, size: int) -> None:
    p = Pass(n, size, seed=0, purpose="x")
    rows = np.concatenate([p.next() for _ in range(p.count)])
    assert len(set(rows.tolist())) == len(rows) == p.samples_seen
    assert len(rows) == n - (1 if n > size and n % size == 1 else 0)


def test_last_incomplete_batch_needs_two_samples() -> None:
    assert [batches_per_pass(n, 8) for n in (1, 7, 8, 9, 10, 17)] == [1, 1, 1, 1, 2, 2]


def test_t12_unequal_loaders_are_counted() -> None:
    pairs = Pairs(20, 180, 10, 10, seed=0)
    assert pairs.steps_per_epoch == 18
    for _ in range(18):
        pairs.next()
    assert (pairs.forget.samples_seen, pairs.retain.samples_seen) == (180, 180)
    assert pairs.forget.samples_seen / 20 == 9 * pairs.retain.samples_seen / 180


def test_zip_shortest_ends_an_epoch_with_the_shorter_loader() -> None:
    pairs = Pairs(20, 180, 10, 10, seed=0, pairing="zip_shortest")
    assert pairs.steps_per_epoch == 2
    rows = [pairs.next() for _ in range(4)]
    for half in (rows[:2], rows[2:]):
        assert len(set(np.concatenate([r for r, _ in half]).tolist())) == 20
        assert len(set(np.concatenate([r for _, r in half]).tolist())) == 20


def test_the_shorter_restarts_with_a_fresh_shuffle() -> None:
    pairs = Pairs(32, 320, 32, 32, seed=0)
    first, second = pairs.next()[0], pairs.next()[0]
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("pairing", ["cycle_shorter", "zip_shortest"])
def test_state_continues_with_the_same_batches(pairing: str) -> None:
    a = Pairs(13, 50, 4, 8, seed=3, pairing=pairing)
    for _ in range(7):
        a.next()
    saved = json.loads(json.dumps(a.state()))
    b = Pairs(13, 50, 4, 8, seed=99, pairing=pairing)
    b.load(saved)
    for _ in range(20):
        for x, y in zip(a.next(), b.next(), strict=True):
            np.testing.assert_array_equal(x, y)
    with pytest.raises(ArtefactError, match="13 samples"):
        Pairs(14, 50, 4, 8, seed=3, pairing=pairing).load(saved)


def test_seeds_differ() -> None:
    assert Pass(100, 50, seed=0, purpose="a").next().tolist() != Pass(100, 50, seed=1, purpose="a").next().tolist()


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="cannot carry a projection"):
        Pairs(8, 8, 4, 4, seed=0, pairing="forget_then_retain")
    with pytest.raises(ConfigError, match="unknown"):
        Pairs(8, 8, 4, 4, seed=0, pairing="other")
    with pytest.raises(DataError, match="empty"):
        Pass(0, 4, seed=0, purpose="forget")
