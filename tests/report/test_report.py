"""The HTML report: self-contained, escaped, deterministic, complete with and without its pieces."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qunlearn.report import ReportData, build, write

VOID = {"meta", "br", "link", "img", "hr", "input", "path", "use", "rect", "line", "circle"}
COLUMN = {"forget": 0.758, "retain": 0.992, "heldout": 0.938, "test": 0.976, "mia": 0.692}


def full() -> ReportData:
    layer = {
        "layer": "stem.0",
        "codes": 200,
        "codes_changed": 50,
        "max_step": 3,
        "bias_changed": 4,
        "lost": 9,
    }
    logits = {"max_abs": 1, "share": 0.00077, "argmax": 1.0}
    result = {
        "audit": "accuracy",
        "direction": "the retrained value is the target",
        "value": 0.758,
        "interval": {"lo": 0.72, "hi": 0.79},
        "reference": {"value": 0.736},
        "verdict": "pass",
        "failure_side": "none",
        "reasons": [],
    }
    return ReportData(
        title="Unlearning report",
        verdict="pass",
        request="1 group",
        method="oeu",
        columns={
            "base": {**COLUMN, "forget": 1.0},
            "unlearned": COLUMN,
            "retrained": {**COLUMN, "forget": 0.736, "mia": None},
        },
        reference="retrained",
        confidences={"base": [0.99] * 20, "unlearned": [0.1, 0.9] * 10, "retrained": [0.2, 0.8] * 10},
        trajectory=[
            {"step": i, "cos_before": -0.5, "cos_after": 0.0, "a_f": 1 - i / 20, "a_r": 1.0} for i in range(1, 10)
        ],
        band=(0.67, 0.8),
        changes={"codes": 200, "codes_changed": 50, "share": 0.25, "lost": 9, "bias_changed": 4, "layers": [layer]},
        parity={
            "verdict": "pass",
            "inputs": {"n": 261},
            "coverage": {"integer": 10, "total": 10, "macs": 1.0},
            "runtime": {"version": "1.32", "cpu": ["avx2"]},
            "logits": {"onnx-all vs oracle": logits, "onnx-raw vs oracle": logits},
            "absent": {"c-host": "not offered"},
        },
        audit={"shipping": ["onnx-all"], "results": {"torch-fq": [result], "onnx-all": [result]}},
        fields={"guarantee": "first-order"},
        seconds={"unlearning": 7.25, "retraining": 114.0},
        environment={"python": "3.11"},
        digests={"file": "ab" * 32},
        limits=("Averages prove nothing about one sample.",),
    )


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_parses_with_balanced_tags() -> None:
    parser = Balanced()
    parser.feed(build(full()))
    assert parser.open == []


def test_is_self_contained_and_has_no_duplicate_ids() -> None:
    html = build(full())
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', html)
    assert "<script" not in html
    assert not re.findall(r"url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    assert build(full()) == build(full())
    path = write(full(), tmp_path)
    assert path.name == "report.html"
    assert path.read_text() == build(full())


@pytest.mark.parametrize(("verdict", "word"), [("pass", "PASS"), ("fail", "FAIL"), ("inconclusive", "INCONCLUSIVE")])
def test_verdict_comes_first_in_words(verdict: str, word: str) -> None:
    html = build(replace(full(), verdict=verdict))
    body = html[html.index("<body") :]
    assert body.index(word) < body.index("Before, after, retrained")


def test_numbers_are_per_cent_with_differences() -> None:
    html = build(full())
    for text in ("75.8", "73.6", "+2.2", "72.0 to 79.0", "25.00"):
        assert text in html, text
    assert "\u2013" in html, "a missing number is a dash"


def test_hostile_text_is_escaped() -> None:
    evil = "<script>alert('x')</script>&\"'"
    data = replace(full(), title=evil, request=evil, reasons=(evil,), warnings=(evil,), fields={evil: evil})
    data = replace(data, columns={evil: COLUMN, "unlearned": COLUMN}, reference=None, confidences={evil: [0.5]})
    html = build(data)
    assert "<script" not in html
    assert "alert" in html


def test_every_piece_may_be_missing() -> None:
    bare = ReportData(title="t", verdict="inconclusive", columns={"unlearned": dict.fromkeys(COLUMN)})
    html = build(bare)
    assert "Reference: none" in html
    for heading in ("How it forgot", "Audits", "Is the file the same model", "What changed"):
        assert heading not in html


def test_light_dark_print_and_phone_are_styled() -> None:
    html = build(full())
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 34rem", 'name="viewport"'):
        assert rule in html
    assert "currentColor" in html
    assert html.count('role="img"') == 3
