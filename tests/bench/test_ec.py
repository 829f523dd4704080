"""The benchmark of EC on a small network: what its committed figures show, and tables that hide no refused run."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import benchmark

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("bench_ec")


@pytest.fixture
def values() -> Any:
    return json.loads((BENCHMARKS / "results" / "ec.json").read_text())


def test_the_committed_tables_are_those_of_the_committed_figures(script: ModuleType, values: Any) -> None:
    assert len(values) == 3
    assert all(set(v) == set(script.ORDER) for v in values.values())
    assert (BENCHMARKS / "results" / "ec.md").read_text() == f"{script.table(values)}\n\n{script.bars(values)}\n"


def test_what_the_specification_expects_holds_in_the_committed_figures(script: ModuleType, values: Any) -> None:
    """Toy D in order, in two of three seeds or more; controls in all; over-erasure; EC inside three of four bases."""
    found = script.expected(values)
    always = ("cka and recovery fail", "neither audit fails", "probe: head only", "lam 1: smaller")
    few = {n: v for n, v in found.items() if sum(v) < (3 if n.startswith(always) else 2)}
    assert not {n: v for n, v in few.items() if not n.endswith("EC lowers the CKA gap")}, few
    assert sum(sum(v) >= 2 for n, v in found.items() if n.endswith("EC lowers the CKA gap")) >= 3
    assert sum(n.startswith(always) for n in found) == 5


def test_a_refused_run_stays_in_the_table(script: ModuleType, values: Any) -> None:
    gone = "ec retain, lam 1, lr .05"
    assert f"| {gone}, 3 of 3 runs refused | - |" in script.table(values)
    values["0"]["rl + ec"] = {"error": "DivergedError"}
    assert "| rl + ec, 1 of 3 runs refused | 0.0 (" in script.table(values)
    assert len(script.expected(values)["rl: EC lowers the CKA gap"]) == 2
    assert "| rl: EC lowers the CKA gap | 2 of 2 |" in script.bars(values)


def test_every_expectation_can_fail(script: ModuleType, values: Any) -> None:
    """One row exchanged for another that is not what is expected of it."""
    default, large = script.DEFAULT, script.LARGE
    exchanged = {
        "forget accuracy": (default, "original"), "kept classes": (default, "random"), "CKA gap": (default, "original"),
        "probe nearer": (default, "original"), "probe: original": ("retrained", "original"),
        "probe: head only": ("head only", "random"), "cka and recovery fail doing nothing": ("head only", default),
        "cka and recovery fail random": ("random", "second retrained"), "neither audit": ("second retrained", "random"),
        "lam .3": ("ec retain, lam .3", "retrained"), "lam 1 without": (large, "no contrast"),
        "lam 1: smaller": (f"{large}, stop rule", large),
        **{f"{b}: EC": (f"{b} + ec", b) for b in script.BASES},
    }  # fmt: skip
    names = list(script.expected(values))
    assert len(names) == len(exchanged)
    for start, (row, other) in exchanged.items():
        (name,) = (n for n in names if n.startswith(start))
        (found,) = script.expected({"0": {**values["0"], row: values["0"][other]}})[name]
        assert not found, name
