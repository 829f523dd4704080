"""A picture for every audit, from its plain result; sections in the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qunlearn.report import ReportData, build
from qunlearn.report.pictures import picture

MODELS = {"before": 1.0, "after": 0.6, "reference": 0.5}
ESTIMATE = {"value": 0.6, "lo": 0.5, "hi": 0.7}
PAIRS = {"after, before": 0.9, "reference, before": None}
ARM = {"steps": [0, 4, 8], "curves": {"after": [0.5, 0.6, 0.7], "reference": [0.5, 0.5, 0.5], "before": [1, 1, 1]}}
TABLES: dict[str, dict[str, Any]] = {
    "cka": {"layers": {"forget": {"stem": PAIRS, "logits": {"after, before": 0.5, "reference, before": 0.4}}}},
    "recovery": {"layers": {"stem": MODELS, "penultimate": MODELS}},
    "relearn": {"arms": {"same_fact": ARM, "random": ARM}},
    "quant_recovery": {"full": MODELS, "widths": {"4 bits": {"accuracy": MODELS}}},
    "mia": {},
}


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


def test_nothing_to_draw_gives_nothing() -> None:
    bare = {"audit": "mia", "metric": "m", "tables": {"metrics": {}, "delta": None}}
    assert picture(bare) == ""


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
