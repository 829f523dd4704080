"""Standings, requests, parts and the utility gate, from cells by hand."""

from __future__ import annotations

from typing import Any

import pytest
from bench_toys import made

from qunlearn.bench import compare


def cells() -> list[dict[str, Any]]:
    """Two requests, two seeds; ga is nearest on request a, rl on b; ft failed once."""
    out = []
    for request, ga, rl in (("group=a", 0.1, 0.2), ("group=b", 0.3, 0.15)):
        for seed in range(2):
            own = [
                made("original", 0.4, seed, cka=1.0), made("retrained", 0.0, seed, cka=0.7, processor=2.0),
                made("second retrained", 0.02, seed, cka=0.7),
                made("ga", ga + 0.01 * seed, seed, codes_changed=0.2, cka=0.9, processor=0.5 + seed),
                made("rl", rl, seed, codes_changed=0.1, cka=0.6, utility=["F-UTILITY-RETAIN"]),
                made("ft", 0.0, seed, codes_changed=0.0, cka=0.7),
            ]  # fmt: skip
            out += [{**c, "request": request} for c in own]
    out[-1]["error"] = "DivergedError: x"
    return out


def test_standing_by_measure() -> None:
    rows = {r["measure"]: r for r in compare.standing(cells(), "ga")}
    gap = rows["Avg Gap"]
    assert gap["value"] == pytest.approx((0.1 + 0.11 + 0.3 + 0.31) / 4)
    assert (gap["place"], gap["of"], gap["best"]) == (2, 2, "rl")  # ft failed in a cell: no place
    assert (gap["best_value"], gap["original"], gap["floor"]) == pytest.approx((0.175, 0.4, 0.02))
    cka = rows["CKA to the original, off by"]
    assert (cka["value"], cka["best_value"], cka["place"]) == (pytest.approx(0.2), pytest.approx(0.1), 2)
    assert rows["time, share of retraining"]["value"] == pytest.approx(0.5)  # median of .25, .75, .25, .75
    assert rows["codes changed"]["floor"] is None
    assert "KL to the retrained file, test set" not in rows  # no cell has it
    assert compare.standing(cells(), "ft") == []


def test_time_is_compared_by_its_median() -> None:
    one = [c for c in cells() if c["method"] in ("retrained", "ga")]
    for cell, seconds in zip((c for c in one if c["method"] == "ga"), (1.0, 1.0, 1.0, 90.0), strict=True):
        cell["processor"] = seconds
    assert compare.means(one, compare.MEDIAN)["ga"] == pytest.approx(0.5)


def test_request_by_request() -> None:
    a, b = compare.by_request(cells(), "ga")
    assert (a["request"], a["best"], b["request"], b["best"]) == ("group=a", "ft", "group=b", "rl")
    assert (a["value"], a["best_value"]) == pytest.approx((0.105, 0.0))
    assert (b["value"], b["best_value"]) == pytest.approx((0.305, 0.15))


def test_parts_are_paired() -> None:
    found = {r["name"]: r for r in compare.parts(cells(), "ga", ("rl", "ft", "absent"))}
    assert (found["ga"]["ahead"], found["ga"]["nearer"]) == (0, 0)
    rl = found["rl"]
    ahead = [0.1, 0.09, -0.15, -0.16]  # rl's gap less ga's, cell by cell
    assert rl["ahead"] == pytest.approx(sum(ahead) / 4)
    assert (rl["nearer"], rl["cells"], rl["unuseful"], rl["failed"]) == (2, 4, 4, 0)
    assert rl["cka_off"] == pytest.approx(0.1)
    assert (found["ft"]["cells"], found["ft"]["failed"]) == (3, 1)
    assert found["absent"] == {"name": "absent", "cells": 0, "failed": 0}


def test_gate_splits_configurations() -> None:
    def tuned(method: str, lr: float, gap: float, **more: Any) -> dict[str, Any]:
        value = dict.fromkeys(("forget_accuracy", "retain_accuracy", "heldout_accuracy", "mia"), 0.5)
        return {"method": method, "config": {"lr": lr}, "retrained": value, "utility": [],
                "onnx": {k: v + gap for k, v in value.items()}, **more}  # fmt: skip

    lost = ["F-UTILITY-RETAIN"]
    rows = compare.gated([
        tuned("rl", 0.1, 0.02), tuned("rl", 0.1, 0.04, utility=lost),  # one of two spots fails: the configuration does
        tuned("rl", 0.01, 0.2), tuned("rl", 0.01, 0.3), tuned("rl", 0.02, 0.4), tuned("rl", 0.02, 0.4),
        tuned("rl", 0.5, 0.0), tuned("rl", 0.5, 0.0, error="x"), tuned("ga", 0.1, 0.1, utility=lost),
    ])  # fmt: skip
    ga, rl = rows
    assert (rl["kept"], rl["lost"], rl["reasons"]) == (pytest.approx(0.25), pytest.approx(0.03), tuple(lost))
    assert (ga["method"], ga["kept"], ga["lost"]) == ("ga", None, pytest.approx(0.1))
