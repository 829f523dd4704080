"""Data sets: validation reports everything at once, fields are coerced and frozen, digests ignore order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qunlearn.data.dataset import Dataset, Preprocess, content_hashes, digest_lines, name_some
from qunlearn.errors import ConfigError, DataError

Make = Callable[..., Dataset]


def test_all_problems_are_reported_at_once(make: Make) -> None:
    with pytest.raises(DataError) as caught:
        make(x=np.zeros((4, 3), np.int64), y=np.array([0.5, 1.0]), augment="rotate")
    text = str(caught.value)
    for part in ("uint8, int8 or float32, not int64", "[N,C,H,W]", "whole numbers, not float64", "not 'rotate'"):
        assert part in text
    assert caught.value.remedy


def test_value_problems_are_reported_at_once(make: Make, toy: Dataset) -> None:
    y, ids, part = toy.y.copy(), toy.ids.copy(), toy.part.copy()
    y[3], ids[5], part[7] = 9, "s004", "spare"
    with pytest.raises(DataError) as caught:
        make(y=y, ids=ids, part=part)
    text = str(caught.value)
    assert "y lies outside 0..2 in samples s003 (1 in all)" in text
    assert "ids occur twice: s004 (1 in all)" in text
    assert "it is not in samples s007 (1 in all)" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_named(make: Make, toy: Dataset, value: float) -> None:
    x = toy.x.astype(np.float32)
    x[2, 1, 0, 0] = x[11, 0, 2, 2] = value
    with pytest.raises(DataError, match=r"NaN or infinity in samples s002, s011 \(2 in all\)"):
        make(x=x)


def test_a_float64_value_beyond_float32_is_an_error_not_a_warning(make: Make, toy: Dataset) -> None:
    x = toy.x.astype(np.float64)
    x[4] = 1e300
    with pytest.raises(DataError, match="infinity in samples s004"):
        make(x=x)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": np.zeros((0, 1, 2, 2), np.uint8)}, "no empty axis"),
        ({"x": np.zeros((), np.uint8)}, r"\[N,C,H,W\]"),
        ({"x": [[1, 2], [3]]}, "x is ragged"),
        ({"y": np.zeros(3, np.int64)}, r"y must have shape \[180\] like x, not \[3\]"),
        ({"ids": np.arange(7)}, "ids must have shape"),
        ({"part": np.full((180, 1), "train")}, "part must have shape"),
        ({"group": np.array(["a"])}, "group must have shape"),
        ({"ids": np.linspace(0, 1, 180)}, "ids must hold text or whole numbers"),
        ({"group": np.full(180, "")}, "group must have 1..512 characters"),
        ({"group": np.full(180, "g" * 513)}, "group must have 1..512 characters"),
        ({"class_names": ("a", "b", "b")}, "different, non-empty names"),
        ({"class_names": ("a", "b", "")}, "different, non-empty names"),
        ({"class_names": ()}, "different, non-empty names"),
        ({"part": np.full(180, "test")}, "no sample belongs to the part train"),
        ({"y": np.full(180, -1)}, r"y lies outside 0..2 in samples s000.*\(180 in all\)"),
        ({"preprocess": Preprocess((0.0,) * 3, (1.0,) * 3)}, "preprocess has 3 channels, x has 2"),
    ],
)
def test_wrong_fields(make: Make, change: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        make(**change)


def test_fields_are_coerced_and_cannot_be_written(make: Make, toy: Dataset) -> None:
    data = make(x=toy.x.astype(np.float64), y=toy.y.astype(np.uint8), ids=np.arange(180), title="")
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int64
    assert list(data.ids[:2]) == ["0", "1"]
    assert data.title == "toy"
    with pytest.raises(ValueError, match="read-only"):
        data.x[0] = 0
    with pytest.raises(AttributeError):
        data.name = "other"  # type: ignore[misc]


def test_facts_of_a_data_set(toy: Dataset) -> None:
    assert len(toy) == 180
    assert toy.in_shape == (2, 3, 3)
    assert toy.num_classes == 3
    assert toy.group_names == ("ann", "bob", "cleo", "dan")
    assert toy.id_index["s017"] == 17
    assert repr(toy) == "Dataset('toy', 180 samples [2, 3, 3], 3 classes)"
    assert [len(toy.samples(p)) for p in ("train", "heldout", "test")] == [60, 60, 60]
    with pytest.raises(ConfigError, match="unknown part 'dev'"):
        toy.where("dev")


def test_digest_ignores_order_and_ids_but_not_content_label_or_part(make: Make, toy: Dataset) -> None:
    order = np.random.default_rng(0).permutation(len(toy))
    assert toy.group is not None
    moved = make(x=toy.x[order], y=toy.y[order], part=toy.part[order], group=toy.group[order], ids=np.arange(len(toy)))
    assert moved.digest() == toy.digest()
    x, y, part = toy.x.copy(), toy.y.copy(), toy.part.copy()
    x[0, 1, 2, 2] ^= 1
    y[0] = 1
    part[0] = "test"
    assert len({toy.digest(), make(x=x).digest(), make(y=y).digest(), make(part=part).digest()}) == 4


def test_content_hashes_cover_type_shape_bytes_and_label() -> None:
    x = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    y = np.array([0, 0])
    base = content_hashes(x, y)
    assert len(set(base)) == 2
    assert all(len(h) == 64 for h in base)
    assert content_hashes(x.copy(order="F"), y) == base
    assert content_hashes(x.astype(np.float32).astype(">f4"), y) == content_hashes(x.astype(np.float32), y)
    others = [content_hashes(x.astype(np.int8), y), content_hashes(x.reshape(2, 1, 4, 1), y), content_hashes(x, y + 1)]
    assert len({base[0], *(h[0] for h in others)}) == 4


def test_messages_name_some_and_escape_what_steers_a_terminal() -> None:
    assert name_some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (12 in all)"
    assert name_some(["\x1b[31mred", "\ud800", "größe"]) == "\\x1b[31mred, \\ud800, größe (3 in all)"
    assert len(name_some(["a" * 500])) < 100


def test_digest_lines_sorts() -> None:
    assert digest_lines(["b", "a"]) == digest_lines(["a", "b"]) != digest_lines(["ab"])
