"""Deletion requests that are wrong: each is a DataError that names what is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qunlearn.data import request as module
from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.errors import DataError

Make = Callable[..., Dataset]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "neither an inline request nor a file"),
        ("clas=7", "'clas=7' is neither an inline request nor a file"),
        ("no/such.json", "'no/such.json' is neither"),
        ("a\0b", "neither|cannot be read"),
        ("x" * 6000, "cannot be read|neither"),
        ("class=", r"1\.\.512 characters"),
        ("group=" + "g" * 513, r"1\.\.512 characters"),
        ("ids=", r"1\.\.512 characters"),
        ("ids=a,,b", r"1\.\.512 characters"),
        ("ids=a,b,a,b,c", r"values occur twice: a, b \(2 in all\)"),
        ("ids=@missing.txt", "'missing.txt' is neither"),
        ("random=", "'' is no fraction"),
        ("random=%", "'%' is no fraction"),
        ("random=ten", "'ten' is no fraction"),
        ("random=-1%", "'-1%' is no fraction"),
        ("random=1e-3", "no fraction"),
        ("random=0", "above 0 and below 1"),
        ("random=10", "above 0 and below 1"),
        ("random=100%", "above 0 and below 1"),
    ],
)
def test_wrong_inline(text: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        Request.parse(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("r.json", "", "not valid JSON"),
        ("r.json", "{", "not valid JSON"),
        ("r.json", "[" * 100_000, "not valid JSON"),
        ("r.json", '{"class": 1, "class": 2}', "a field occurs twice"),
        ("r.json", '{"random": NaN}', "NaN is not allowed"),
        ("r.json", "[1, 2]", "one JSON object"),
        ("r.json", '{"version": 2, "klass": 7}', r"version must be 1; unknown fields: klass .*exactly one of random"),
        ("r.json", '{"version": true, "class": 7}', "version must be 1"),
        ("r.json", '{"version": "1", "class": 7}', "version must be 1"),
        ("r.json", '{"version": 1}', "exactly one of random, group, class, ids"),
        ("r.json", '{"class": 1, "group": "a"}', "exactly one of"),
        ("r.json", '{"ids": "a"}', "ids must hold a list of strings or whole numbers"),
        ("r.json", '{"ids": []}', "ids wants at least one value"),
        ("r.json", '{"ids": ["a", "a"]}', r"values occur twice: a \(1 in all\)"),
        ("r.json", '{"ids": [1.5]}', "strings or whole numbers"),
        ("r.json", '{"ids": [true]}', "strings or whole numbers"),
        ("r.json", '{"ids": [99999999999999999999]}', "strings or whole numbers"),
        ("r.json", '{"class": null}', "class must hold strings or whole numbers"),
        ("r.json", '{"group": ""}', r"1\.\.512 characters"),
        ("r.json", '{"random": true}', "random must be a fraction"),
        ("r.json", '{"random": 10}', "above 0 and below 1"),
        ("r.json", '{"random": 1e999}', "above 0 and below 1"),
        ("r.json", '{"random": "x"}', "'x' is no fraction"),
        ("r.csv", "", "must begin with a header line"),
        ("r.csv", "a\nb\n", "must begin with a header line of one column: id, class or group"),
        ("r.csv", "id,class\na,1\n", "must begin with a header line"),
        ("r.csv", "id\n", "ids wants at least one value"),
        ("r.csv", "id\na\nb,c\n", r"more than one column: 3 \(1 in all\)"),
        ("r.csv", 'id\n"a\n', "not valid CSV"),
        ("r.csv", "id\na\na\n", r"values occur twice: a"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, text: str, match: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        Request.parse(path)
    assert caught.value.remedy


def test_a_file_of_groups_is_no_file_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("group\nann\n")
    with pytest.raises(DataError, match="request of kind group, not ids"):
        Request.parse(f"ids=@{path}")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b"id\n\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        Request.parse(path)
    with pytest.raises(DataError, match="neither an inline request nor a file"):
        Request.parse(tmp_path)


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.csv"
    path.write_text("id\n" + "".join(f"{i}\n" for i in range(30)))
    monkeypatch.setattr(module, "MAX_VALUES", 29)
    with pytest.raises(DataError, match="more than 29 values"):
        Request.parse(path)
    monkeypatch.setattr(module, "MAX_BYTES", 20)
    with pytest.raises(DataError, match="larger than 20 bytes"):
        Request.parse(path)


def test_ids_that_are_no_training_samples_are_listed(toy: Dataset) -> None:
    with pytest.raises(DataError) as caught:
        Request("ids", ("s000", "nobody", "s060", "s120", "s999")).select(toy, 0)
    assert "ids that do not exist: nobody, s999 (2 in all)" in str(caught.value)
    assert "ids that are not training samples: s060, s120 (2 in all)" in str(caught.value)


def test_selections_of_nothing(make: Make, toy: Dataset) -> None:
    assert toy.group is not None
    group = toy.group.copy()
    group[toy.part == "train"] = "ann"
    with pytest.raises(DataError, match=r"\(1 group\) selects no training sample of 'toy'"):
        Request.parse("group=bob").select(make(group=group), 0)
    with pytest.raises(DataError, match="selects no training sample"):
        Request.parse("random=0.1%").select(toy, 0)
    with pytest.raises(DataError, match="'toy' has no groups"):
        Request.parse("group=bob").select(make(group=None), 0)
    with pytest.raises(DataError, match=r"classes that do not exist: 3, dog .*The classes are ant, bee, cat"):
        Request("class", ("3", "dog", "ant")).select(toy, 0)


def test_a_request_of_an_unknown_kind() -> None:
    with pytest.raises(DataError, match="kind must be one of random, group, class, ids"):
        Request("speaker", ("ann",))


@settings(max_examples=150, deadline=None)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass"))))
def test_any_file_is_a_request_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    for name in ("fuzz.json", "fuzz.csv"):
        path = path.with_name(name)
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            assert Request.parse(path).kind in module.KINDS
