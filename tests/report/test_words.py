"""Words for codes and keys; they cover what the other rooms can produce."""

from __future__ import annotations

from typing import Any

import pytest

from qunlearn.audit import AUDITS
from qunlearn.audit.codes import REASONS
from qunlearn.audit.predictor import KINDS
from qunlearn.cli import page
from qunlearn.report import words
from qunlearn.report.data import METRICS
from qunlearn.unlearn import METHODS


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "\u2013"), (0.0, "0.0"), (0.12345, "12.3"), (1.0, "100.0"), (0.9996, "100.0")]
)
def test_percent(value: float | None, shown: str) -> None:
    assert words.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "\u2013"), (0.039, "+3.9"), (-0.047, "\u22124.7"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0001, "0.0")],
)
def test_signed(value: float | None, shown: str) -> None:
    assert words.signed(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "a"),
        (None, "\u2013"),
        (True, "yes"),
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (["avx", "avx2"], "avx, avx2"),
        ({"numpy": "2.4", "onnx": "1.23"}, "numpy 2.4, onnx 1.23"),
        ([], "none"),
        ({}, "none"),
    ],
)
def test_values_are_readable(value: Any, shown: str) -> None:
    assert words.pretty(value) == shown


def test_facts_are_sentences_and_unknown_ones_stay() -> None:
    band = {"accuracy": [0.667, 0.799], "confidence": [0.58, 0.72], "source": "declared", "note": ""}
    shown = words.fact("band", band).replace("\u00a0", " ")
    assert shown == "forget accuracy 66.7 to 79.9 %, mean confidence 58.0 to 72.0 %; from what the user declared"
    assert "confirmed" in words.fact("stop_reason", "target_reached")
    assert words.fact("stop_reason", "new") == "new"
    assert words.fact("guarantee", "void: adam") == "void: adam"
    assert words.label("cpu_model") == "Processor"
    assert words.label("byte_order") == "Byte order"


def test_change_without_parts() -> None:
    assert words.change(1.0, None, 0.7) == ""
    assert "from" not in words.change(None, 0.5, None)
    assert "retrained" not in words.change(1.0, 0.5, None)


def test_every_name_of_the_other_rooms_has_words() -> None:
    assert set(KINDS) <= set(words.KINDS)
    assert set(AUDITS) <= set(words.AUDITS)
    assert set(METHODS) <= set(words.METHODS)
    assert set(METRICS) == set(words.METRICS)
    assert words.pair("onnx-all vs oracle") == "int8 file in ONNX Runtime against exact integer reference"
    assert words.pair("x vs y") == "x against y"


def test_reasons_become_sentences_with_place_and_numbers() -> None:
    delta = {"value": -0.022, "lo": -0.11, "hi": 0.066, "tol": 0.1}
    results = {"onnx-all": [{"audit": "accuracy", "tables": {}}, {"audit": "mia", "tables": {"delta": delta}}]}
    codes = ["I-INTERVAL: onnx-all mia", "F-PARITY: onnx-all accuracy"]
    first, second = page.sentences(codes, results)
    assert first.startswith("Membership attack on the forgotten samples, int8 file in ONNX Runtime: ")
    assert REASONS["I-INTERVAL"] in first
    assert "\u22122.2 points from the retrained model, interval \u221211.0 to +6.6, margin \u00b110.0." in first
    assert first.endswith("[I-INTERVAL]")
    assert REASONS["F-PARITY"] in second
    assert "Measured" not in second


def test_warnings_are_joined_and_plain_codes_stay() -> None:
    joined = page.sentences(["W-NO-PARITY: onnx-all mia", "W-NO-PARITY: onnx-off mia", "W-TORCH-NOT-RUN", "X: y z"])
    assert len(joined) == 3
    assert "int8 file in ONNX Runtime, int8 file in ONNX Runtime, unoptimised: " in joined[0]
    assert joined[1] == "The trained model was not audited beside the file. [W-TORCH-NOT-RUN]"
    assert joined[2] == "y z: X [X]"
    assert page.sentence("W-BAND: the band is wide") == "The band is wide. [W-BAND]"
    assert page.sentence("something else: here") == "something else: here"
