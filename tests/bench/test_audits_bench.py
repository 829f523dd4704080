"""The benchmark of the audits, from made cells: what is missing, what is kept, what the tables count."""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scripts import benchmark

from qunlearn.audit import AUDITS
from qunlearn.audit.eve_calibration import ARMS
from qunlearn.cli.assess import SUITES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("bench_audits")


def cells(script: ModuleType, *audits: str, seeds: tuple[int, ...] = (0,), **models: str) -> list[dict[str, Any]]:
    """Every cell of some audits: the network that should pass does and all others fail, but for ``models``."""
    rows = []
    for seed in seeds:
        for audit in audits:
            for request in script.requests_of(audit):
                for kind in script.KINDS:
                    for i, model in enumerate(script.EVERY[request]):
                        verdict = models.get(model, "fail" if i else "pass")
                        rows.append({
                            "request": request, "seed": seed, "kind": kind, "model": model, "audit": audit,
                            "verdict": verdict, "side": "none", "value": 0.5, "reference": 0.5, "seconds": 1.0,
                            "reasons": [] if verdict == "pass" else ["I-INTERVAL", "I-NO-SIGNAL: reference"],
                        })  # fmt: skip
    return rows


def test_every_registered_audit_has_its_place(script: ModuleType) -> None:
    assert set(script.ALL) == set(AUDITS)
    assert len(script.ALL) == len(AUDITS)
    arms = set(script.EVERY[script.EVE])
    assert arms == (set(ARMS) - {"eve"}) | {script.CRAFTED, "collapsed"}
    assert script.EVERY[script.EVE][:2] == (script.CRAFTED, "no_unlearning")


def test_only_what_is_missing_is_run_and_eve_comes_last(script: ModuleType) -> None:
    done = cells(script, *SUITES["strict"], seeds=(0, 1))
    assert script.missing(done, (0, 1), SUITES["strict"]) == []
    assert script.missing(done, (0, 1), ("mia", "loss", "eve")) == [
        *((s, q, ("loss",)) for s in (0, 1) for q in script.ORDER), (0, script.EVE, ("eve",)),
        (1, script.EVE, ("eve",)),
    ]  # fmt: skip
    one = next(r for r in done if (r["seed"], r["request"], r["audit"]) == (1, "class=3", "smi"))
    assert script.missing([r for r in done if r is not one], (0, 1), ("smi", "mia")) == [(1, "class=3", ("smi",))]
    assert script.missing(done, (2,), ("smi",)) == [(2, q, ("smi",)) for q in script.ORDER]


def test_new_rows_join_the_kept_ones_in_their_place(script: ModuleType) -> None:
    kept, new = cells(script, "accuracy", "cka", seeds=(0, 1)), cells(script, "eve", "loss", seeds=(1, 0))
    ordered = script.merged(kept, new)
    assert ordered == script.merged(new, kept[::-1])
    assert len(ordered) == len(kept) + len(new)
    assert all(any(r is k for r in ordered) for k in kept)
    first = [r for r in ordered if r["seed"] == 0]
    assert ordered[: len(first)] == first
    assert {r["audit"] for r in first[-len(script.EVERY[script.EVE]) * 3 :]} == {"eve"}
    assert [r["audit"] for r in first[:3]] == ["accuracy", "cka", "loss"]
    again = [{**kept[0], "verdict": "inconclusive"}]
    assert [r["verdict"] for r in script.merged(kept, again)].count("inconclusive") == 1
    with pytest.raises(ValueError, match="nowhere"):
        script.merged(kept, [{**kept[0], "request": "nowhere"}])


def test_a_network_that_is_not_the_kept_one_stops_the_run(script: ModuleType) -> None:
    kept = cells(script, "accuracy", "mia")
    script.same_network(kept, "class=3", 0, "onnx-all", "flipped", 0.5)
    script.same_network(kept, "class=3", 1, "onnx-all", "flipped", 0.6)  # nothing is kept of that seed
    script.same_network([r for r in kept if r["audit"] == "mia"], "class=3", 0, "onnx-all", "flipped", 0.6)
    with pytest.raises(ValueError, match="another network"):
        script.same_network(kept, "class=3", 0, "onnx-all", "flipped", 0.6)


def test_rates_count_the_network_that_should_pass_apart(script: ModuleType) -> None:
    rows = cells(script, "loss", seeds=(0, 1), flipped="pass", half="inconclusive")
    rows += cells(script, "eve", seeds=(0, 1), crafted="inconclusive", clean="pass")
    text = script.table(rows, (0, 1))
    lines = {x.split(" | ")[0].strip("| "): x for x in text.splitlines() if x.startswith("| ")}
    false_pass = [False] * 12 + [True] * 4
    assert (
        lines["loss"]
        == f"| loss | {script.rate(false_pass)} | {script.rate([False] * 4)} | {script.rate([True] * 4)} |"
    )
    assert lines["eve"].split(" | ")[1:] == [
        script.rate([True] * 2 + [False] * 14), script.rate([False] * 2), script.rate([False] * 2) + " |",
    ]  # fmt: skip
    assert lines["half"] == "| half | 0 / 2 / 0 |"
    assert lines["released_code"] == "| released_code | 0 / 0 / 2 |"
    assert "- crafted request, `eve`: `I-INTERVAL` 2, `I-NO-SIGNAL` 2" in text
    assert "- crafted request, `eve`: crafted and" not in text
    assert "- group=turned, `loss`: retrained and flipped; original and collapsed" in text
    assert "**standard**" not in text
    assert "`eve` is not in the tables above" in text
    assert f"are one in {script.rate([True] * 38)} cells" in text


def test_suites_stand_in_the_table_once_all_their_audits_do(script: ModuleType) -> None:
    rows = cells(script, *SUITES["standard"], "lira")
    text = script.table(rows, (0,))
    assert "| **standard** |" in text
    assert "**strict**" not in text
    assert "`eve` is not in the tables above" not in text
    assert "| retrained | 1 / 0 / 0 | 1 / 0 / 0 | 1 / 0 / 0 | 1 / 0 / 0 | 1 / 0 / 0 |" in text
    odd = [{**r, "verdict": "fail"} if (r["audit"], r["model"]) == ("mia", "retrained") else r for r in rows]
    assert "| retrained | 1 / 0 / 0 | 0 / 0 / 1 | 1 / 0 / 0 | 1 / 0 / 0 | 0 / 0 / 1 |" in script.table(odd, (0,))


def test_an_audit_that_lacks_a_cell_of_a_seed_is_named_and_not_counted(script: ModuleType) -> None:
    rows = cells(script, "accuracy", "rmia", seeds=(0, 1))
    text = script.table(rows[:-1], (0, 1, 2))
    assert "| retrained | 2 / 0 / 0 | 1 / 0 / 0 |" in text
    last = text.splitlines()[-1]
    assert last.startswith("Not run yet, and not counted: `accuracy`, seeds 2; ")
    assert "`rmia`, seeds 1, 2; " in last
    assert "Not run yet" not in script.table(cells(script, *script.ALL), (0,))


def test_kinds_that_differ_are_counted(script: ModuleType) -> None:
    rows = cells(script, "loss")
    odd = [{**r, "verdict": "inconclusive"} if r is rows[0] else r for r in rows]
    assert f"are one in {script.rate([True] * 9 + [False])} cells" in script.table(odd, (0,))


class Pool:
    """Runs what is submitted at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def submit(self, function: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done


def test_a_second_run_keeps_what_is_there(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "audits.json"
    kept = script.merged(cells(script, "accuracy", seeds=(0, 1)), [])
    file.write_text(json.dumps(kept))
    asked: list[tuple[int, str, tuple[str, ...]]] = []

    def made(seed: int, request: str, names: tuple[str, ...], **common: Any) -> list[dict[str, Any]]:
        assert common["kept"] == kept
        assert (common["shadows"], common["trials"], common["work"]) == (3, 60, tmp_path / "work")
        asked.append((seed, request, names))
        return [r for r in cells(script, *names, seeds=(seed,), flipped="pass") if r["request"] == request]

    monkeypatch.setattr(script, "of_seed", made)
    monkeypatch.setattr(script, "ProcessPoolExecutor", Pool)
    command = ["bench_audits.py", "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--shadows", "3"]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "0,1", "--audits", "loss, accuracy"])
    script.main()
    assert asked == [(s, q, ("loss",)) for s in (0, 1) for q in script.ORDER]
    rows = json.loads(file.read_text())
    assert [r for r in rows if r["audit"] == "accuracy"] == kept
    assert len(rows) == 2 * len(kept)
    assert (tmp_path / "audits.md").read_text() == script.table(rows, script.SEEDS)
    before = file.read_bytes()
    script.main()
    assert len(asked) == 4
    assert file.read_bytes() == before
    monkeypatch.setattr(sys, "argv", [*command, "--audits", "loss,none"])
    with pytest.raises(SystemExit):
        script.main()


def test_shadow_models_are_made_for_the_attacks_that_need_some_and_only_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read as every artefact kind; those of ``u_lira`` unlearned what they had seen of forget set and non-members."""
    from qunlearn.data.request import Request
    from qunlearn.data.splits import make_splits

    splits = make_splits(script.written(), Request.parse("group=turned"), seed=0)
    monkeypatch.setattr(script, "RECIPE", script.replace(script.RECIPE, epochs=1))
    assert script.pools(splits, ("loss", "mia"), 0, 2, tmp_path) == {}
    assert not list(tmp_path.iterdir())
    found = script.pools(splits, ("lira", "rmia", "u_lira"), 0, 2, tmp_path)
    assert set(found) == {"shadows", "unlearned_shadows"}
    assert all(p.kinds == script.KINDS for p in found.values())
    assert not any(s.unlearned.any() for s in found["shadows"].shadows)
    gone = found["unlearned_shadows"].shadows[0]
    assert (gone.seen[gone.unlearned]).all()
    assert gone.unlearned[splits.forget.index].sum() == gone.seen[splits.forget.index].sum() > 0
    assert not gone.unlearned[splits.retain.index].any()

    def never(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(script, "network", never)
    again = script.pools(splits, ("u_lira", "lira"), 0, 2, tmp_path)
    for key, pool in found.items():
        for one, two in zip(pool.shadows, again[key].shadows, strict=True):
            assert all(np.array_equal(one.logits[k], two.logits[k]) for k in script.KINDS)


def test_the_committed_table_is_that_of_the_committed_cells(script: ModuleType) -> None:
    rows = json.loads((BENCHMARKS / "results" / "audits.json").read_text())
    assert rows == script.merged(rows, [])
    assert (BENCHMARKS / "results" / "audits.md").read_text() == script.table(rows, script.SEEDS)
    assert script.missing(rows, script.SEEDS, SUITES["strict"]) == []
