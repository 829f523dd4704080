"""The tables of the benchmark of agreement, from made cells: what counts, what is explained, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scripts import benchmark

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("bench_agreement")


def reading(verdict: str, value: float | None = 0.5, side: str = "none", *reasons: str) -> dict[str, Any]:
    delta = None if value is None else [round(value - 0.5, 6), value - 0.6, value - 0.4]
    return {
        "verdict": verdict, "side": side, "reasons": list(reasons), "value": value, "delta": delta,
        "tol": None if delta is None else 0.1,
    }  # fmt: skip


def cell(
    script: ModuleType, *kinds: dict[str, Any], model: str = "oeu", audit: str = "accuracy", request: str = "group=theo"
) -> dict[str, Any]:
    three = kinds * 3 if len(kinds) == 1 else kinds
    return {
        "place": "kws", "request": request, "model": model, "audit": audit, "forget": 360,
        "kinds": dict(zip(script.KINDS, three, strict=True)),
        "answers_differ": {"onnx-all": 1, "c-host": 2}, "c_equals_file": model != "odd",
    }  # fmt: skip


def test_a_cell_is_alike_only_if_all_three_verdicts_are_one(script: ModuleType) -> None:
    good, bad = reading("pass"), reading("inconclusive")
    assert script.alike(cell(script, good))
    for at in range(3):
        kinds = [good] * 3
        kinds[at] = bad
        assert not script.alike(cell(script, *kinds))
    assert script.verdicts(cell(script, good, good, bad)) == ["pass", "pass", "inconclusive"]


def test_the_gate_counts_only_where_it_decided_on_every_artefact(script: ModuleType) -> None:
    gone = reading("fail", None, "utility", "F-UTILITY-RETAIN")
    assert script.gated(cell(script, gone))
    assert not script.gated(cell(script, gone, gone, reading("fail", 0.9, "under")))
    assert not script.gated(cell(script, reading("fail", 0.9, "under")))


def test_the_share_and_the_bar(script: ModuleType) -> None:
    good = cell(script, reading("pass"))
    odd = cell(script, reading("pass"), reading("pass"), reading("fail", 0.9, "under"), model="odd")
    assert script.share([]) == "-"
    assert script.share([good] * 19 + [odd]).startswith("19 of 20 (95.0 %, ")
    reached, missed = script.table([good] * 19 + [odd]), script.table([good] * 18 + [odd] * 2)
    assert "**19 of 20 (95.0 %" in reached
    assert "(bar: 95 %: reached)" in reached
    assert "(bar: 95 %: **missed**)" in missed
    assert "File and C alone: 19 of 20" in reached
    assert "equal bit for bit in 19 of 20 networks" in reached


def test_every_cell_that_disagrees_is_explained_by_what_was_measured(script: ModuleType) -> None:
    good = cell(script, reading("pass"))
    odd = cell(
        script, reading("pass", 0.58), reading("pass", 0.59), reading("inconclusive", 0.61, "none", "I-INTERVAL")
    )
    assert "No cell disagrees." in script.table([good])
    text = script.table([good, odd])
    assert "No cell disagrees." not in text
    (line,) = [x for x in text.splitlines() if x.startswith("- kws group=theo, oeu, `accuracy`: ")]
    assert "torch-fq: pass, difference +8.00 [-2.00, +18.00] against +-10" in line
    assert "c-host: inconclusive (I-INTERVAL), difference +11.00 [+1.00, +21.00] against +-10" in line
    assert line.endswith("Of 360 forget samples 2 get another answer than from torch.")


def test_distances_of_values_leave_out_what_cannot_be_estimated(script: ModuleType) -> None:
    file = reading("inconclusive", 0.53)
    row = cell(script, reading("inconclusive", 0.5), file, reading("inconclusive", 0.55))
    assert script.apart(row, *script.KINDS[:2]) == pytest.approx(0.03)
    assert script.apart(row, *script.KINDS[1:]) == pytest.approx(0.02)
    blind = reading("inconclusive", 7.0, "none", "I-SMI-NO-SIGNAL")
    assert script.apart(cell(script, blind, audit="smi"), *script.KINDS[:2]) is None
    assert script.apart(cell(script, blind, audit="mia"), *script.KINDS[:2]) == 0
    assert script.apart(cell(script, reading("fail", None)), *script.KINDS[:2]) is None
    assert script.most([row, cell(script, blind, audit="smi")], *script.KINDS[:2]) == "3.00 of 1"
    assert script.most([], *script.KINDS[:2]) == "-"


def test_one_line_an_audit_and_a_place_and_what_was_not_run(script: ModuleType) -> None:
    gone = reading("fail", None, "utility", "F-UTILITY-RETAIN")
    rows = [
        cell(script, reading("pass")), cell(script, gone, model="collapsed"),
        cell(script, reading("inconclusive"), audit="mia"), cell(script, gone, model="collapsed", audit="mia"),
        cell(script, reading("fail", 0.9, "under"), request="group=lucas"),
    ]  # fmt: skip
    text = script.table(rows)
    lines = {x.split(" | ")[0].strip("| "): x for x in text.splitlines() if x.startswith("| ")}
    assert lines["accuracy"].split(" | ")[1:4] == [
        script.share([rows[0]] * 3), script.share([rows[0]] * 2), "1 / 0 / 1",
    ]  # fmt: skip
    assert lines["mia"].split(" | ")[3] == "0 / 1 / 0"
    assert lines["kws group=theo"] == "| kws group=theo | oeu; collapsed | 4 | 4 |"
    assert lines["kws group=lucas"] == "| kws group=lucas | oeu | 1 | 1 |"
    missing = text.splitlines()[-1]
    assert missing.startswith("Not run yet: ")
    assert "kws group=theo" not in missing
    assert {p.strip() for p in missing.removeprefix("Not run yet: ").rstrip(".").split(",")} == {
        f"{p} {q}" for p, (_, requests) in script.PLACES.items() for q in requests
    } - {"kws group=theo", "kws group=lucas"}


def large(verdict: str, tests: bool = True) -> dict[str, Any]:
    found = reading(verdict, 0.42)
    if tests:
        found |= {"tests": {"after": {"identifiable": 0.88, "mixture": 0.756}}, "interval": [-1.79, 2.8]}
    return {"place": "cifar10", "request": "random=10%", "model": "rl", "audit": "smi", "kinds": {}, "large": found}


def test_smi_at_full_size_has_a_table_of_its_own_and_is_no_cell(script: ModuleType) -> None:
    good = cell(script, reading("pass"))
    text = script.table([good, large("inconclusive"), large("fail", tests=False)])
    assert "**1 of 1 (100.0 %" in text
    assert "SMI with 1,000 samples a set" in text
    (line,) = [x for x in text.splitlines() if x.startswith("| cifar10 random=10% | rl |")]
    assert "0.42 | -1.79 to 2.80 | -0.08 [-0.18, +0.02] | 0.880 | 0.756 | inconclusive | -" in line
    assert "SMI with" not in script.table([good])


def test_saved_rows_are_in_the_order_of_the_places_and_are_read_again(script: ModuleType, tmp_path: Path) -> None:
    rows = [large("pass"), cell(script, reading("pass")), cell(script, reading("pass"), request="group=lucas")]
    script.save(tmp_path, rows)
    again = json.loads((tmp_path / "agreement.json").read_text())
    assert [(r["place"], r["request"]) for r in again["rows"]] == [
        ("kws", "group=lucas"), ("kws", "group=theo"), ("cifar10", "random=10%"),
    ]  # fmt: skip
    assert (tmp_path / "agreement.md").read_text() == script.table(again["rows"])
    with pytest.raises(ValueError, match="nowhere"):
        script.save(tmp_path, [{**rows[1], "request": "nowhere"}])


def test_a_result_becomes_a_reading(script: ModuleType) -> None:
    tables = {
        "delta": {"value": 0.1234567, "lo": 0.0, "hi": 0.2, "tol": 0.2},
        "tests": {"after": {"identifiable": 0.1}},
    }
    result = SimpleNamespace(
        audit="smi", verdict="pass", failure_side="none", reasons=("I",), value=0.9, tables=tables,
        interval={"lo": 0.8, "hi": 1.0}, n={"members": 1, "nonmembers": 2, "forget": 3, "spare": 4},
    )  # fmt: skip
    found = script.row(result)
    assert (found["delta"], found["tol"], found["interval"]) == ([0.123457, 0.0, 0.2], 0.2, [0.8, 1.0])
    assert found["tests"]["after"] == {"identifiable": 0.1, "mixture": None}
    assert json.loads(json.dumps(found)) == found
    bare = script.row(SimpleNamespace(**{**vars(result), "audit": "mia", "tables": {"delta": None}}))
    assert (bare["delta"], bare["tol"]) == (None, None)
    assert "tests" not in bare


@pytest.mark.parametrize("kind", ["random", "large"])
def test_sets_are_cut_by_seed_and_stay_disjoint(script: ModuleType, kind: str) -> None:
    from qunlearn.data.arrays import from_arrays
    from qunlearn.data.request import Request
    from qunlearn.data.splits import make_splits

    n = 6000
    data = from_arrays("cut", {"x": np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1), "y": np.arange(n) % 5}, seed=0)
    whole = make_splits(data, Request.parse("random=30%"), seed=0)
    small, again = (script.cut(whole, kind) for _ in range(2))
    sizes = {name: (len(getattr(whole, name)), len(getattr(small, name))) for name in script.CUT[kind]}
    assert all(after == min(before, script.CUT[kind][name]) for name, (before, after) in sizes.items()), sizes
    assert sizes["retain"][1] < sizes["retain"][0]
    for name in script.CUT[kind]:
        assert np.array_equal(getattr(small, name).index, getattr(again, name).index)
        assert np.isin(getattr(small, name).index, getattr(whole, name).index).all()


def test_the_committed_table_is_that_of_the_committed_cells(script: ModuleType) -> None:
    rows = json.loads((BENCHMARKS / "results" / "agreement.json").read_text())["rows"]
    assert (BENCHMARKS / "results" / "agreement.md").read_text() == script.table(rows)
    cells = [r for r in rows if "large" not in r]
    assert {"kws", "cifar10"} <= {r["place"] for r in cells}
    for place in ("kws", "cifar10"):
        own = [script.alike(r) for r in cells if r["place"] == place]
        assert sum(own) / len(own) >= script.BAR, place
