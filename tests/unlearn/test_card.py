"""Reference cards: round trip, strict reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qunlearn.errors import ArtefactError, ConfigError
from qunlearn.unlearn.card import GroupValue, ReferenceCard


def _card() -> ReferenceCard:
    values = {"anna": GroupValue(accuracy=0.68, confidence=0.55, samples=320)}
    values["bert"] = GroupValue(accuracy=1.0, confidence=0.0, samples=1)
    return ReferenceCard(groups=values, model_digest="ab", seed=3)


def test_round_trip(tmp_path: Path) -> None:
    path = _card().save(tmp_path / "card.json")
    assert ReferenceCard.load(path) == _card()


def _without(key: str) -> Any:
    return lambda d: d.pop(key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(version=3), "format version 3"),
        (lambda d: d.update(kind="x"), "not a reference card"),
        (_without("seed"), "missing seed"),
        (lambda d: d.update(extra=1), "unknown extra"),
        (lambda d: d["groups"]["anna"].update(accuracy=1.5), "outside 0..1"),
        (lambda d: d["groups"]["anna"].update(accuracy=True), "not a number"),
        (lambda d: d["groups"]["anna"].update(more=1), "exactly"),
        (lambda d: d["groups"]["anna"].update(samples=0), "positive"),
        (lambda d: d["groups"].clear(), "number of groups"),
        (lambda d: d.update(groups=[1]), "not an object"),
        (lambda d: d.update(seed="0"), "whole number"),
    ],
)
def test_malformed_cards_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    value = json.loads(json.dumps(_card().to_json()))
    spoil(value)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ArtefactError, match=message):
        ReferenceCard.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": NaN}', '{"kind": 1, "kind": 2}', "[" * 100_000])
def test_what_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(ArtefactError):
        ReferenceCard.load(path)


def test_missing_file_and_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot read"):
        ReferenceCard.load(tmp_path / "none.json")
    bad = {"a": GroupValue(accuracy=-1, confidence=2, samples=0)}
    with pytest.raises(ConfigError, match=r"accuracy.*confidence.*samples"):
        ReferenceCard(groups=bad)
