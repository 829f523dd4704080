"""The tables of the benchmark of EC on a convolutional network, from made values."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from scripts import benchmark


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("bench_ec_cnn")


def row(gap: float, *, memory: float = 100.0, over: bool = False, torch: str = "pass") -> dict[str, Any]:
    side = "over" if over else "none"
    one = {"verdict": "fail" if over else "pass", "side": side, "value": 0.5}
    artefact = {"cka": one, "recovery": {**one, "verdict": "pass", "side": "none"}}
    onnx = {**artefact, "gaps": {"a": gap, "b": -gap, "c": None}}
    other = {**onnx, "recovery": {**onnx["recovery"], "verdict": torch}}
    return {"fa": 0.1, "ta": 0.8, "seconds": 2.0, "memory": memory, "onnx": onnx, "torch": other}


def values(script: ModuleType, **changed: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"original": {"fa": 0.94, "ta": 0.82}, "retrained": {"fa": 0.0, "ta": 0.85}}
    for name in script.METHODS_OF:
        out[name] = row(0.1 if name.endswith("ec") else 0.2, over=name == "ec lam 1")
    return {**out, "ec lam 1, stop rule": row(0.1), **{k.replace("_", " + "): v for k, v in changed.items()}}


def test_all_that_is_expected_holds_on_made_values(script: ModuleType) -> None:
    found = script.expected([values(script)])
    assert len(found) == 4 + 4
    assert all(all(v) for v in found.values()), found


def test_each_expectation_can_fail(script: ModuleType) -> None:
    worse = values(script, ga_ec=row(0.3, memory=250.0), rl=row(0.2, torch="fail"))
    worse["ec lam 1"] = row(0.05)
    found = script.expected([worse])
    assert {name for name, v in found.items() if not all(v)} == {
        "ga: EC lowers the mean CKA gap",
        "ec lam 1 without stop rule: the audit cka fails it for over",
        "ec lam 1: smaller gap with the stop rule",
        "memory of a base with EC at most twice the base's",
        "network and file have the same verdicts, all rows",
    }


def test_the_table_names_refused_runs_and_verdicts(script: ModuleType) -> None:
    text = script.text([values(script), {**values(script), "ec": {"error": "DivergedError: x"}}])
    assert "| original | 94.0 | 82.0 |" in text
    assert "| ec lam 1 | 10.0 | 80.0 | 0.200 | 2 fail over | 2 pass | 2.0 | 100 |" in text
    assert "at most 1.00 times its memory" in text
    assert "| network and file have the same verdicts, all rows | 2 of 2 |" in text
    gone = {**values(script), "ec": {"error": "DivergedError: x"}}
    assert "| ec |" in (refused := script.text([gone]))
    assert "refused" in refused
    broken = {**values(script), "ga + ec": {"error": "DivergedError: x"}}
    assert script.expected([broken])["ga: EC lowers the mean CKA gap"] == []
    assert "| ga: EC lowers the mean CKA gap | 0 of 0 |" in script.text([broken])


def test_resident_size_grows_with_what_is_held(script: ModuleType) -> None:
    script.reset()
    low = script.peak()
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert script.peak() >= low + 50
