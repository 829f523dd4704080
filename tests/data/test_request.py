"""Deletion requests that are right: every form, what they select, digests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qunlearn.data.dataset import Dataset, digest_lines
from qunlearn.data.request import Request
from qunlearn.errors import DataError

Make = Callable[..., Dataset]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("class=7", Request("class", ("7",))),
        ("group=Müller, Anna", Request("group", ("Müller, Anna",))),
        ("group=a=b", Request("group", ("a=b",))),
        ("ids=a, b,c", Request("ids", ("a", "b", "c"))),
        ("random=10%", Request("random", fraction=0.1)),
        ("random=.25", Request("random", fraction=0.25)),
        ("random=0.5%", Request("random", fraction=0.005)),
    ],
)
def test_inline(text: str, want: Request) -> None:
    assert Request.parse(text) == want


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("r.json", '{"version": 1, "ids": ["a", 7]}', Request("ids", ("a", "7"))),
        ("r.json", '{"class": 7}', Request("class", ("7",))),
        ("r.json", '{"class": ["bee", 0]}', Request("class", ("bee", "0"))),
        ("r.json", '\ufeff{"group": "ann"}', Request("group", ("ann",))),
        ("r.json", '{"random": "10%"}', Request("random", fraction=0.1)),
        ("r.json", '{"random": 0.1}', Request("random", fraction=0.1)),
        ("r.txt", ' {"group": ["ann", "bob"]}', Request("group", ("ann", "bob"))),
        ("r.csv", "id\na\n\n b \n", Request("ids", ("a", "b"))),
        ("r.csv", 'group\r\n"Müller, Anna"\r\n', Request("group", ("Müller, Anna",))),
        ("r.csv", "\ufeffclass\n7\n", Request("class", ("7",))),
    ],
)
def test_files(tmp_path: Path, name: str, text: str, want: Request) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert Request.parse(str(path)) == want
    assert Request.parse(path) == want


@pytest.mark.parametrize("text", ["a\nb\n", "id\na\nb\n", '{"ids": ["a", "b"]}', "\n a \n\nb"])
def test_ids_from_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ids"
    path.write_text(text)
    assert Request.parse(f"ids=@{path}") == Request("ids", ("a", "b"))


def test_class_by_name_or_number(toy: Dataset) -> None:
    want = toy.where("train")[toy.y[toy.where("train")] == 1]
    for text in ("class=bee", "class=1"):
        np.testing.assert_array_equal(Request.parse(text).select(toy, 0), want)
    both = Request("class", ("bee", "1", "ant"))
    assert both.classes(toy) == (0, 1)
    assert both.groups(toy) == ()


def test_a_number_is_a_name_where_class_names_are_numbers(make: Make) -> None:
    data = make(class_names=("5", "6", "0"))
    assert Request.parse("class=0").classes(data) == (2,)
    with pytest.raises(DataError, match=r"classes that do not exist: 1 .*The classes are 5, 6, 0"):
        Request.parse("class=1").select(data, 0)


def test_several_classes_inline(toy: Dataset) -> None:
    both = Request.parse("class=ant, bee")
    assert both.classes(toy) == (0, 1)
    parts = [Request.parse(f"class={n}").select(toy, 0) for n in ("ant", "bee")]
    assert both.select(toy, 0).tolist() == sorted(np.concatenate(parts).tolist())
    with pytest.raises(DataError, match="wasp"):
        Request.parse("class=ant,wasp").select(toy, 0)
    named = dataclasses.replace(toy, class_names=("ant", "ant,bee", "bee"))
    assert Request.parse("class=ant,bee").classes(named) == (1,)


def test_group_is_chosen_by_name_only(toy: Dataset) -> None:
    chosen = Request.parse("group=bob").select(toy, 0)
    assert toy.group is not None
    assert len(chosen) == 15
    assert set(toy.group[chosen]) == {"bob"}
    assert set(toy.part[chosen]) == {"train"}
    with pytest.raises(DataError, match=r"groups that do not exist: 1 .*ann, bob, cleo, dan"):
        Request.parse("group=1").select(toy, 0)


def test_ids_come_back_sorted_by_position(toy: Dataset) -> None:
    assert list(Request("ids", ("s030", "s002")).select(toy, 0)) == [2, 30]


def test_random_is_a_seeded_share_of_train(toy: Dataset) -> None:
    request = Request.parse("random=10%")
    first = request.select(toy, 1)
    assert len(first) == 6
    assert set(toy.part[first]) == {"train"}
    np.testing.assert_array_equal(first, request.select(toy, 1))
    assert any(list(request.select(toy, s)) != list(first) for s in range(2, 6))


def test_random_takes_twins_along(make: Make, toy: Dataset) -> None:
    x = toy.x.copy()
    x[1:5] = x[0]
    data = make(x=x)
    sizes = set()
    for seed in range(30):
        chosen = set(Request.parse("random=10%").select(data, seed).tolist())
        assert chosen.isdisjoint(range(5)) or chosen.issuperset(range(5))
        sizes.add(len(chosen))
    assert len(sizes) > 1


def test_digest_is_of_contents(toy: Dataset) -> None:
    group, ids = Request.parse("group=ann"), Request("ids", tuple(toy.ids[:15]))
    want = digest_lines(toy.hashes[:15])
    assert group.digest(toy) == ids.digest(toy) == want != Request.parse("group=bob").digest(toy)
    assert group.canonical_bytes(toy, 0) == "".join(f"{h}\n" for h in sorted(toy.hashes[:15])).encode()


def test_descriptions_name_nobody() -> None:
    assert repr(Request.parse("group=ann")) == "Request('1 group')"
    assert Request.parse("ids=a,b").describe() == "2 sample ids"
    assert Request.parse("random=2.5%").describe() == "random 2.5 % of the training samples"
    assert Request("class", ("1", "2")).describe() == "class 1, 2 (2 in all)"
    assert Request.parse("class=7").describe() == "class 7"


def test_written_json_is_read_again(tmp_path: Path, toy: Dataset) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"version": 1, "ids": [str(i) for i in toy.ids[3:6]]}))
    assert list(Request.parse(path).select(toy, 0)) == [3, 4, 5]
