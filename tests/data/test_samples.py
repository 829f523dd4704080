"""Views of a data set and the preprocessing of what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.errors import ConfigError, DataError


def test_a_view_gives_inputs_targets_ids_and_groups(toy: Dataset) -> None:
    view = Samples(toy, np.array([5, 2, 90]))
    want = (toy.x[[5, 2, 90]].astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    assert view.inputs().dtype == np.float32
    np.testing.assert_array_equal(view.inputs(), want)
    np.testing.assert_array_equal(view.raw(), toy.x[[5, 2, 90]])
    np.testing.assert_array_equal(view.targets(), toy.y[[5, 2, 90]])
    assert list(view.ids) == ["s005", "s002", "s090"]
    assert toy.group is not None
    assert view.group is not None
    np.testing.assert_array_equal(view.group, toy.group[[5, 2, 90]])
    assert view.num_classes == 3
    assert repr(view) == "Samples(3 of 'toy')"


@pytest.mark.parametrize("idx", [[2, 0], np.array([2, 0]), np.array([True, False, True]), slice(1, None), []])
def test_positions_are_within_the_view(toy: Dataset, idx: Any) -> None:
    index = np.array([5, 2, 90])
    rows = index[np.asarray(idx, np.int64) if isinstance(idx, list) else idx]
    view = Samples(toy, index)
    np.testing.assert_array_equal(view.targets(idx), toy.y[rows])
    assert list(view.take(idx).ids) == list(toy.ids[rows])
    assert view.inputs(idx).shape == (len(rows), 2, 3, 3)


def test_raw_is_a_copy(toy: Dataset) -> None:
    before = toy.digest()
    raw = Samples(toy, np.arange(4)).raw()
    raw[:] = 0
    assert toy.x[:4].any()
    assert toy.digest() == before


@pytest.mark.parametrize("index", [[-1], [180], [0.5], [[0, 1]], [True, False]])
def test_wrong_index_of_a_view(toy: Dataset, index: Any) -> None:
    with pytest.raises(DataError, match=r"whole numbers in 0\.\.179"):
        Samples(toy, np.array(index))


def test_a_view_holds_a_sample_once(toy: Dataset) -> None:
    with pytest.raises(DataError, match="names a sample twice"):
        Samples(toy, np.array([3, 4, 3]))


@pytest.mark.parametrize(("idx", "text"), [([3], r"leaves 0\.\.2"), ([0.5], "whole numbers"), ([True], "leaves")])
def test_wrong_positions(toy: Dataset, idx: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        Samples(toy, np.array([5, 2, 90])).inputs(idx)


def test_content_hashes_and_digest_of_a_view(toy: Dataset) -> None:
    view, turned = Samples(toy, np.array([5, 2])), Samples(toy, np.array([2, 5]))
    assert view.content_hashes() == [toy.hashes[5], toy.hashes[2]]
    assert view.digest() == turned.digest() != Samples(toy, np.array([2])).digest()


def test_preprocess_applies_one_constant_for_each_channel() -> None:
    pre = Preprocess((0.0, 1.0), (1.0, 2.0), 10.0)
    out = pre.apply(np.full((1, 2, 1, 1), -20, np.int8))
    np.testing.assert_array_equal(out.ravel(), np.array([-2.0, -1.5], np.float32))
    with pytest.raises(DataError, match=r"2 channels.*\[1, 3, 1, 1\]"):
        pre.apply(np.zeros((1, 3, 1, 1), np.uint8))
    with pytest.raises(DataError, match="2 channels"):
        pre.apply(np.zeros((2, 2), np.uint8))


def test_preprocess_round_trip() -> None:
    pre = Preprocess((0.1, 0.2), (0.3, 0.4), 128.0, "logmel:x")
    assert Preprocess.from_json(pre.to_json()) == pre
    for change in ({"layout": "NHWC"}, {"mean": 0.1}, {"extra": 1}):
        with pytest.raises(ConfigError, match="malformed"):
            Preprocess.from_json({**pre.to_json(), **change})


def test_preprocess_reports_all_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        Preprocess((float("nan"),), (0.0, 1.0), -1.0, "")
    for part in ("same length", "mean must be finite", "std must be", "divisor must be", "front_end must be"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="must be numbers"):
        Preprocess(("a",), (1.0,))  # type: ignore[arg-type]
