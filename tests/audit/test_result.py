"""A result is complete or it does not exist."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from qunlearn.audit import AUDITS, AuditResult
from qunlearn.audit.result import worst
from qunlearn.errors import InvariantError


@pytest.fixture(scope="module")
def sound(world: Any) -> dict[str, Any]:
    result = AUDITS["accuracy"]()(world.context(world.original, world.near(world.retrained, 3), world.retrained))
    return result.to_json()


def test_fields_are_those_of_the_specification(sound: dict[str, Any]) -> None:
    assert list(sound) == [
        "audit", "version", "metric", "value", "interval", "direction", "headline", "reference", "verdict",
        "failure_side", "reasons", "warnings", "artefact", "digests", "seeds", "n", "timings", "tables",
    ]  # fmt: skip
    assert set(sound["artefact"]) == {
        "kind", "file_digest", "codes_digest", "runtime", "optimisation_level", "cpu_flags", "threads",
    }  # fmt: skip
    assert set(sound["digests"]) == {"model_before", "model_after", "data_split", "config", "code"}
    assert AuditResult.from_json(sound).to_json() == sound


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(AuditResult)])
def test_a_missing_field_is_an_error(field: str, sound: dict[str, Any]) -> None:
    with pytest.raises(InvariantError, match=field):
        AuditResult.from_json({k: v for k, v in sound.items() if k != field})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": " "}, "direction is empty"),
        ({"verdict": "good"}, "verdict 'good'"),
        ({"failure_side": "under"}, "failure side"),
        ({"verdict": "fail", "failure_side": "under"}, "at least one"),
        ({"verdict": "inconclusive", "reasons": ["I-MADE-UP"]}, "unknown reason"),
        ({"warnings": ["W-MADE-UP"]}, "unknown warning"),
        ({"value": None}, "stand or fall"),
        ({"value": None, "interval": None}, "no gate is named"),
        ({"value": 2.0}, "outside its interval"),
        ({"value": float("nan")}, "not finite"),
        ({"n": {}}, "n is empty"),
        ({"seeds": {}}, "seeds is empty"),
        ({"tables": {"metrics": {}}}, "tables lack change"),
        ({"artefact": {}}, "artefact must have exactly"),
        ({"reference": {"kind": "none", "value": None, "interval": None, "digest": "0" * 64}}, "declared absence"),
    ],
)
def test_inconsistent_results_are_refused(change: dict[str, Any], message: str, sound: dict[str, Any]) -> None:
    with pytest.raises(InvariantError, match=message):
        AuditResult.from_json({**sound, **change})


def test_empty_entries_inside_are_refused(sound: dict[str, Any]) -> None:
    with pytest.raises(InvariantError, match=r"artefact\.runtime"):
        AuditResult.from_json({**sound, "artefact": {**sound["artefact"], "runtime": ""}})
    with pytest.raises(InvariantError, match="data_split is not a SHA-256"):
        AuditResult.from_json({**sound, "digests": {**sound["digests"], "data_split": "abc"}})


def test_a_result_cannot_be_changed(sound: dict[str, Any]) -> None:
    result = AuditResult.from_json(sound)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.verdict = "pass"  # type: ignore[misc]
    with pytest.raises(TypeError):
        result.tables["metrics"]["forget_accuracy"]["x"] = 1  # type: ignore[index]


def test_worst_orders_the_verdicts() -> None:
    assert worst(["pass", "inconclusive"]) == "inconclusive"
    assert worst(["inconclusive", "fail", "pass"]) == "fail"
    with pytest.raises(InvariantError):
        worst([])
