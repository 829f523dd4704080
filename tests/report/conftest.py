"""Report data with every piece present, shaped like the JSON of a real run."""

from __future__ import annotations

from typing import Any

import pytest

from qunlearn.report import ReportData

COLUMN = {"forget": 0.758, "retain": 0.992, "heldout": 0.938, "test": 0.976, "mia": 0.692}


def result(audit: str, verdict: str, **more: Any) -> dict[str, Any]:
    """One audit result with a reference and a difference."""
    return {
        "audit": audit,
        "direction": f"how to read {audit}",
        "value": 0.758,
        "interval": {"lo": 0.72, "hi": 0.79},
        "reference": {"value": 0.736},
        "verdict": verdict,
        "failure_side": "none",
        "reasons": [],
        "tables": {"delta": {"value": -0.022, "lo": -0.11, "hi": 0.066, "tol": 0.1}},
    } | more


@pytest.fixture
def full() -> ReportData:
    layer = {"layer": "stem.0", "codes": 2000, "codes_changed": 500, "max_step": 3, "bias_changed": 4, "lost": 9}
    logits = {"max_abs": 1, "share": 0.00077, "argmax": 1.0}
    results = [result("accuracy", "pass"), result("mia", "inconclusive", reasons=["I-INTERVAL"])]
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
        chosen=7,
        changes={"codes": 2000, "codes_changed": 500, "share": 0.25, "lost": 9, "bias_changed": 4, "layers": [layer]},
        parity={
            "verdict": "pass",
            "reasons": [],
            "inputs": {"n": 261},
            "coverage": {"integer": 10, "total": 10, "macs": 1.0},
            "runtime": {"version": "1.32", "cpu": ["avx2"]},
            "logits": {"onnx-all vs oracle": logits, "onnx-raw vs oracle": logits},
            "absent": {"c-host": "not offered"},
        },
        audit={"shipping": ["onnx-all"], "results": {"torch-fq": results, "onnx-all": results}},
        codes={"I-INTERVAL": "The interval crosses the margin."},
        fields={"guarantee": "first-order", "stop_reason": "target_reached"},
        seconds={"unlearning": 7.25, "retraining": 114.0},
        environment={"python": "3.11", "packages": {"numpy": "2.4", "onnx": "1.23"}, "cpu_flags": ["avx", "avx2"]},
        digests={"file": "ab" * 32},
        limits=("Averages prove nothing about one sample.",),
    )
