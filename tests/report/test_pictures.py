"""A picture for every audit, from its plain result; sections in the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qunlearn.audit import AUDITS
from qunlearn.report import ReportData, build
from qunlearn.report.pictures import picture

MODELS = {"before": 1.0, "after": 0.6, "reference": 0.5}
ESTIMATE = {"value": 0.6, "lo": 0.5, "hi": 0.7}
PAIRS = {"after, before": 0.9, "reference, before": None}
ARM = {"steps": [0, 4, 8], "curves": {"after": [0.5, 0.6, 0.7], "reference": [0.5, 0.5, 0.5], "before": [1, 1, 1]}}
ANSWER = {"margin_before": 40.0, "lead_after": -22.0, "flip": True}
PROVEN = {"trials": 60, "p0": 0.05, "l1": 0.93, "flips": {"eve": 60, "clean": 3}, "controls": {"clean": "unaltered"}}
EVE = {"margin_needed": 2, "margin_unit": "output step", "calibration": PROVEN}
KEPT = {**ANSWER, "lead_after": 35.0, "flip": False}
TABLES: dict[str, dict[str, Any]] = {
    "cka": {"layers": {"forget": {"stem": PAIRS, "logits": {"after, before": 0.5, "reference, before": 0.4}}}},
    "recovery": {"layers": {"stem": MODELS, "penultimate": MODELS}},
    "relearn": {"arms": {"same_fact": ARM, "random": ARM}},
    "quant_recovery": {"full": MODELS, "widths": {"4 bits": {"accuracy": MODELS}}},
    "eve": {"targets": [ANSWER], "bystanders": [KEPT] * 20, "eve": EVE},
    "mia": {},
}
DROPS = {"utility_drop": {s: {"after": {"value": 0.1, "lo": 0.05, "hi": 0.15}} for s in ("retain", "heldout_all")}}


def result(audit: str, tables: dict[str, Any]) -> dict[str, Any]:
    metrics = {"m": {"forget": {"after": ESTIMATE, "reference": ESTIMATE, "before": None}}}
    return {
        "audit": audit, "metric": "m", "verdict": "fail",
        "tables": {"metrics": metrics, "delta": {"tol": 0.1}, **tables},
    }  # fmt: skip


@pytest.mark.parametrize("audit", TABLES)
def test_every_audit_has_a_picture_of_its_own(audit: str) -> None:
    svg = picture(result(audit, TABLES[audit]))
    assert svg.startswith("<svg role=")
    assert svg == picture(result(audit, TABLES[audit]))
    if audit != "mia":
        assert svg != picture(result(audit, {})), "without its table the values alone are drawn"


def test_every_registered_audit_has_a_picture() -> None:
    for audit in AUDITS:
        assert picture(result(audit, TABLES.get(audit, {}))).startswith("<svg role="), audit


def test_an_erasure_check_shows_who_flipped_and_what_the_calibration_proves() -> None:
    full, bare = (picture(result("eve", {**TABLES["eve"], "eve": {**EVE, "calibration": c}})) for c in (PROVEN, None))
    assert "private target: 1 of 1 flipped; bystanders: 0 of 20 flipped" in full
    assert "crafted request 100 per cent, clean 5 per cent" in full
    for text in ("private target", "bystanders", "too near to tell", "lead of the true class (output steps)"):
        assert f">{text}<" in full
        assert f">{text}<" in bare
    assert ">false flips \u2264 5 %<" in full
    assert "calibration" not in bare
    logits = picture(result("eve", {**TABLES["eve"], "eve": {**EVE, "margin_unit": "logit"}}))
    assert "lead of the true class (logits)" in logits


def test_an_audit_without_a_value_shows_what_its_utility_gate_measured() -> None:
    stopped = {"audit": "smi", "metric": "m", "tables": {"metrics": DROPS, "config": {"utility_floor": 0.03}}}
    assert "utility lost: heldout 10.0, retain 10.0" in picture(stopped)
    assert picture({**stopped, "tables": {"metrics": {"m": {"forget": {"after": ESTIMATE}}, **DROPS}}}).startswith(
        '<svg role="img" aria-label="Audit smi: unlearned 60.0"'
    )


def test_nothing_to_draw_gives_nothing_and_is_said(full: ReportData) -> None:
    bare = {"audit": "mia", "metric": "m", "verdict": "fail", "tables": {"metrics": {}, "delta": None}}
    assert picture(bare) == ""
    entry = dict.fromkeys(("title", "formula", "target", "range", "interval"), "-")
    section = {"result": bare, "about": "A", "cannot": "B", "entry": entry}
    assert "No picture: nothing could be measured." in build(replace(full, sections=[section]))


def test_sections_say_what_was_measured_and_what_it_cannot_show(full: ReportData) -> None:
    entry = {"title": "T", "formula": "F <b>", "target": "G", "range": "0..1", "interval": "I"}
    sections = [
        {"result": result(a, t), "about": f"About {a}.", "cannot": f"Not {a}.", "entry": entry}
        for a, t in TABLES.items()
    ]
    html = build(replace(full, sections=sections))
    assert html.count("<svg") == build(full).count("<svg") + len(sections)
    for audit in TABLES:
        assert f"About {audit}." in html
        assert f"Not {audit}." in html
    assert "F &lt;b&gt;" in html
    assert "Relearning by a little training" in html
