"""The bench: grids, equal draws, a closed test split, resumption, tables that refuse to flatter."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_toys import TINY, made, tiny

from qunlearn import bench, quant
from qunlearn.bench import cell as cells
from qunlearn.bench import runner as running
from qunlearn.bench import table
from qunlearn.bench.cell import Bench, Spot, closed
from qunlearn.bench.draw import draw
from qunlearn.bench.grid import grid_from
from qunlearn.bench.networks import load_dataset, network
from qunlearn.bench.plan import choose, expanded, report_jobs, score, spots, tuning_jobs
from qunlearn.bench.store import Store
from qunlearn.data import sources
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import ArtefactError, ConfigError, InvariantError
from qunlearn.unlearn import METHODS


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    bench.run(tiny(), work=out / "work", out=out, say=lambda text: None)
    return out


def test_grid_problems_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as err:
        grid_from(
            {**TINY, "methods": ["rl", "magic"], "tune_seeds": [0], "bits": ["w9a9"], "requests": ["class"],
             "settings": {"rl": {"speed": 1}}, "bn": "maybe"}, where="x.toml",
        )  # fmt: skip
    for part in ("magic", "both tune and report", "w9a9", "speed", "bn must", "x.toml"):
        assert part in err.value.message
    with pytest.raises(ConfigError, match="unknown key 'sedes'"):
        grid_from({**TINY, "sedes": [1]}, where="x")
    with pytest.raises(ConfigError, match="models is missing"):
        grid_from({k: v for k, v in TINY.items() if k != "models"}, where="x")
    with pytest.raises(ConfigError, match="list of whole numbers"):
        grid_from({**TINY, "seeds": ["a"]}, where="x")
    bad = tmp_path / "bad.toml"
    bad.write_text("data = ")
    with pytest.raises(ConfigError, match="not TOML"):
        bench.read_grid(bad)
    with pytest.raises(ConfigError, match="cannot read"):
        bench.read_grid(tmp_path / "none.toml")
    assert grid_from({**TINY, "methods": "all"}, where="x").methods == tuple(METHODS)


def test_committed_grids_are_valid() -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "grids"
    names = sorted(folder.glob("*.toml"))
    assert names
    for path in names:
        assert bench.read_grid(path).methods


def test_draws_are_equal_in_number_nested_and_in_range() -> None:
    grid = tiny(budget=6, methods=["rl", "ga", "scrub", "ssd", "oeu"], search={"oeu": {"loss": ["e1", "e2"]}})
    for method in grid.methods:
        own = draw(grid, method)
        assert len(own) == 6
        assert own[:2] == draw(dataclasses.replace(grid, budget=2), method)
        assert len({json.dumps(c, sort_keys=True) for c in own}) == 6
        for config in own:
            METHODS[method](**config).validate()
            assert config["stop_rule"] is False
    assert {c["loss"] for c in draw(grid, "oeu")} == {"e1", "e2"}
    assert {c["epochs"] for c in draw(dataclasses.replace(grid, budget=40), "rl")} == {1, 3, 5, 10}
    lrs = sorted(c["lr"] for c in draw(dataclasses.replace(grid, budget=40), "rl"))
    assert lrs[0] < 5e-4 < 5e-3 < lrs[-1]  # log-uniform: small and large values both occur
    frozen = draw(dataclasses.replace(grid, bn="frozen"), "rl")
    assert all(c["bn"] == "frozen" for c in frozen)


def test_every_group_and_class() -> None:
    digits, kws = sources.load("digits"), sources.load("kws")
    assert len(expanded(["class=*"], digits)) == 10
    assert expanded(["group=*"], kws)[0] == "group=george"
    with pytest.raises(ConfigError, match=r"group=\*"):
        expanded(["group=*"], digits)


def test_a_tuner_that_peeks_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = make_splits(sources.load("digits"), Request.parse("class=3"), seed=0)
    shut = closed(splits)
    assert len(shut.test) == len(splits.test)
    for look in (lambda: shut.test.inputs(), lambda: shut.test.targets(), lambda: shut.test.raw()):
        with pytest.raises(InvariantError, match="test split"):
            look()
    grid = tiny()
    runner = Bench(grid, load_dataset(grid, None), tmp_path)
    spot = Spot(model="resnet8@4", bits="w8a8", request="class=3", seed=100)
    config = draw(grid, "ga")[0]
    assert "error" not in runner.run(spot, "ga", config, tuning=True)
    monkeypatch.setattr(cells, "CLOSED_SETS", cells.OPEN_SETS)
    with pytest.raises(InvariantError, match="test split"):
        runner.run(spot, "ga", config, tuning=True)


def test_results_and_table(finished: Path) -> None:
    store = Store(finished)
    assert sum(c["tuning"] for c in store) == 4
    assert sum(not c["tuning"] for c in store) == 5
    assert all("test_accuracy" not in c["onnx"] for c in store if c["tuning"])
    value = bench.tables(finished)
    (section,) = value["sections"]
    rows = {r["method"]: r for r in section["rows"]}
    assert set(rows) == {"original", "retrained", "second retrained", "rl", "ga"}
    assert rows["retrained"]["gap"] == (0.0, 0.0)
    assert section["rows"][-1]["method"] == "retrained"
    assert not any(r["bold"] for r in section["rows"])  # one seed
    assert rows["original"]["gap"][0] > 0 < rows["second retrained"]["gap"][0]
    text = table.text(value)
    assert "one seed (0)" in text
    for chosen in value["chosen"]:
        assert chosen["tried"] == 2


def test_similarity_of_the_files(finished: Path) -> None:
    grid = tiny()
    spot = spots(grid, load_dataset(grid, None), tuning=False)[0]
    at = cells.scene(grid, load_dataset(grid, None), spot, finished / "work")
    original, retrained = (cells.file_of(t.model, t.config) for t in (at.original, at.retrained))
    whole = make_splits(sources.load("digits"), Request.parse("class=3"), seed=0)
    assert cells.similarity(original, original, whole, 0) == pytest.approx(1, abs=1e-9)
    other = cells.similarity(retrained, original, whole, 0)
    assert other is not None
    assert other < 0.999
    few = dataclasses.replace(whole, forget=whole.forget.take(np.arange(20)))
    assert cells.similarity(retrained, original, few, 0) is None


def test_running_again_computes_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "cells.jsonl").read_bytes()
    monkeypatch.setattr(Bench, "run", lambda *a, **k: pytest.fail("a finished cell was computed again"))
    bench.run(tiny(), work=finished / "work", out=finished, say=lambda text: None)
    assert (finished / "cells.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="another grid"):
        bench.run(tiny(budget=1), work=finished / "work", out=finished, say=lambda text: None)
    grid = tiny(train={"epochs": 1})
    key = next(iter(cells.keys_of(spots(grid, load_dataset(grid, None), tuning=False)[0]).values()))
    with pytest.raises(ConfigError, match="another recipe"):
        network(grid, load_dataset(grid, None), key, finished / "work")


def test_only_networks_that_missing_cells_read_are_trained(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a work folder: none for a finished grid; for one missing cell its own two; seed by seed after tuning."""
    monkeypatch.setattr(Bench, "row", lambda *a, **k: {})
    monkeypatch.setattr(Bench, "run", lambda *a, **k: {})
    for name in ("grid.json", "cells.jsonl"):
        shutil.copy(finished / name, tmp_path)
    said: list[str] = []
    bench.run(tiny(), work=tmp_path / "work", out=tmp_path, say=said.append)
    assert (said, (tmp_path / "work").exists()) == ([], False)
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["method"] != "original"]
    (tmp_path / "cells.jsonl").write_text("\n".join(kept) + "\n")
    bench.run(tiny(), work=tmp_path / "work", out=tmp_path, say=said.append)
    assert said[0] == "seed 0: networks: 2 to do"
    assert len(list((tmp_path / "work" / "networks").iterdir())) == 2


def test_results_are_immutable(finished: Path, tmp_path: Path) -> None:
    lines = (finished / "cells.jsonl").read_text().splitlines()
    (tmp_path / "cells.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:40])
    assert len(Store(tmp_path).cells) == len(lines)  # the cut-off line is dropped, and gone from the file
    assert (tmp_path / "cells.jsonl").read_text() == "\n".join(lines) + "\n"
    flattered = lines[-1].replace('"gap":0.', '"gap":0.0', 1)
    assert flattered != lines[-1]
    (tmp_path / "cells.jsonl").write_text("\n".join([*lines[:-1], flattered]) + "\n")
    with pytest.raises(ArtefactError, match=f"line {len(lines)} was changed"):
        Store(tmp_path)


def test_kill_and_resume_over_processes(tmp_path: Path) -> None:
    """SIGKILL after the first cell: the workers end too, finished cells are kept, and the others are added."""
    grid = tmp_path / "grid.toml"
    lines = ['data = "digits"', 'models = ["resnet8@4"]', 'requests = ["class=3", "class=5"]', 'methods = ["rl"]']
    lines += ["seeds = [0]", "budget = 1", "subset = 300", "[train]", "epochs = 1", "[shared]", "batch_size = 64"]
    grid.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qunlearn", "bench", "run", str(grid), "-o", str(out), "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    file = out / "cells.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [
        Path("/proc") / pid for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    deadline = time.monotonic() + 30
    while any(w.exists() for w in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [w for w in workers if w.exists()], "workers outlive a killed run"
    first = file.read_bytes()
    kept = first[: first.rfind(b"\n") + 1]
    assert kept
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert file.read_bytes().startswith(kept)
    assert len(Store(out).cells) == 8 == len(file.read_bytes().splitlines()), "a finished cell was computed again"
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_bold_only_beyond_the_noise_floor() -> None:
    def rows(first: float, second: float, floor: float, seeds: int = 3) -> list[dict[str, Any]]:
        out = []
        for s in range(seeds):
            out += [made("original", 0.4, s), made("retrained", 0.0, s), made("second retrained", floor, s)]
            out += [made("rl", first, s), made("ga", second, s)]
        return table.rows_of(out)

    assert [r["method"] for r in rows(0.1, 0.2, 0.05) if r["bold"]] == ["rl"]
    assert not [r for r in rows(0.1, 0.14, 0.05) if r["bold"]]
    assert not [r for r in rows(0.1, 0.2, 0.05, seeds=2) if r["bold"]]


def test_no_table_without_doing_nothing() -> None:
    with pytest.raises(ArtefactError, match="doing nothing"):
        table.rows_of([made("rl", 0.1, 0), made("retrained", 0.0, 0)])


def test_marks() -> None:
    base = [made("original", 0.2, 0), made("retrained", 0.0, 0), made("second retrained", 0.01, 0)]
    torch = {**base[1]["torch"], "test_accuracy": 0.89}
    degenerate = {**base[1]["onnx"], "mia_degenerate": True}
    more = [
        made("ft", 0.25, 0), made("ga", 0.1, 0, utility=["F-COLLAPSE-ENTROPY"]), made("rl", 0.1, 0, torch=torch),
        made("ssd", 0.1, 0, onnx=degenerate), {**made("qmul", 0.0, 0), "error": "DivergedError: x", "gap": None},
    ]  # fmt: skip
    rows = {r["method"]: r for r in table.rows_of([*base, *more])}
    assert rows["ft"]["marks"] == ["no effect"]
    assert rows["ga"]["marks"] == ["utility"]
    assert rows["rl"]["marks"] == ["torch differs"]
    assert rows["ssd"]["marks"] == ["degenerate attack"]
    assert rows["qmul"]["failed"] == 1
    assert "all failed" in table.markdown(list(rows.values()))


def test_marks_of_a_forgotten_class_and_of_a_mean_loss() -> None:
    """Acceptance 4: forget accuracy falls by 20 points or more, or *no effect*; retain by 3 at most, or *utility*."""

    def marks(request: str, forget: float, retain: float) -> list[str]:
        cells = []
        for seed in range(3):
            kept = retain if seed == 0 else 0.9  # one seed of three loses, which is no majority
            onnx = {**made("ga", 0.1, seed)["onnx"], "forget_accuracy": forget, "retain_accuracy": kept}
            own = made("ga", 0.1, seed, onnx=onnx, torch=onnx, utility=["F-UTILITY-RETAIN"] if seed == 0 else [])
            cells += [made("original", 0.2, seed), made("retrained", 0.0, seed), own]
        rows = table.rows_of([{**c, "request": request} for c in cells])
        return next(r["marks"] for r in rows if r["method"] == "ga")

    assert marks("class=3", 0.79, 0.9) == []
    assert marks("class=3", 0.81, 0.9) == ["no effect"]
    assert marks("group=a", 0.81, 0.9) == []
    assert marks("class=3", 0.2, 0.82) == []  # 2.7 points in the mean
    assert marks("class=3", 0.2, 0.80) == ["utility"]


def test_what_stands_beside_the_headline() -> None:
    """Entropy, confidence and divergence beside the retrained network's, what rounding took, dead channels."""
    facts = {"entropy": 0.5, "max_probability": 0.75, "kl_forget": 1.234, "kl_test": 0.1, "cka": 0.9}
    own = {"codes_changed": 0.1, "latents_moved": 0.8, "lost_to_rounding": 0.7, "dead": 2}
    cells = [made("original", 0.4, 0, **facts), made("retrained", 0.0, 0, **{**facts, "entropy": 0.625}),
             made("ga", 0.1, 0, **facts, **own), {**made("ft", 0.1, 0), "error": "x"}]  # fmt: skip
    text = table.details(table.beside(table.rows_of(cells)))
    assert "| method | entropy | max p | KL forget | KL test | moved | lost | dead |" in text
    assert "| ga | 0.50 | 0.75 | 1.23 | 0.10 | 80.0 | 70.0 | 2.0 |" in text
    assert "| retrained | 0.62 | 0.75 | 1.23 | 0.10 | - | - | - |" in text
    assert "ft" not in text
    gone = [{**c, "onnx": {**c["onnx"], "forget_test_accuracy": 0.125}} for c in cells]
    assert "| ga | 12.5 | 0.50 |" in table.details(
        table.beside(table.rows_of(gone))
    )  # a class or group has test samples
    assert "FA test" not in text
    assert "TPR" not in text  # fewer than a thousand non-members
    thousand = table.rows_of([{**c, "tpr_at_fpr": 0.015} for c in cells])
    assert "| TPR at FPR 1 % |" in table.details(table.beside(thousand))
    assert "| 1.5 |" in table.details(table.beside(thousand))


def test_choice_prefers_useful_and_cheap_runs() -> None:
    grid = tiny(budget=3, methods=["rl"])
    dataset = load_dataset(grid, None)
    configs = draw(grid, "rl")
    jobs = list(tuning_jobs(grid, dataset))
    assert [j.config for j in jobs] == configs

    def tuned(gap: float, **more: Any) -> dict[str, Any]:
        value = dict.fromkeys(("forget_accuracy", "retain_accuracy", "heldout_accuracy", "mia"), 0.5)
        return {"onnx": {k: v + gap for k, v in value.items()}, "retrained": value, "passes": 1.0, "utility": [],
                "seconds": 1.0, **more}  # fmt: skip

    found = {jobs[0].id(grid): tuned(0.01, passes=99.0), jobs[1].id(grid): tuned(0.02, utility=["F-UTILITY-RETAIN"]),
             jobs[2].id(grid): tuned(0.3)}  # fmt: skip
    (choice,) = choose(grid, dataset, found)
    assert choice.config == configs[2]
    assert (choice.tried, choice.failed, choice.gate) == (3, 1, True)
    assert score(grid, dataset, {"error": "x"})[0] == 2
    assert [j.method for j in report_jobs(grid, dataset, [choice])] == [
        "original",
        "retrained",
        "second retrained",
        "rl",
    ]


def test_failed_runs_are_cells(tmp_path: Path) -> None:
    grid = tiny()
    runner = Bench(grid, load_dataset(grid, None), tmp_path)
    spot = Spot(model="resnet8@4", bits="w8a8", request="class=3", seed=0)
    found = runner.run(spot, "ga", {"lr": 1e-9, "epochs": 1}, tuning=False)
    assert found["error"].startswith("InvariantError")


def test_tuning_runs_end_at_the_cap(tmp_path: Path) -> None:
    """A run that gets too dear fails there, its identity and the finished runs unchanged; the report has no cap."""
    grid = tiny(cost=0.75)  # of two epochs: one and a half passes
    dataset = load_dataset(grid, None)
    runner = Bench(grid, dataset, tmp_path)
    spot = Spot(model="resnet8@4", bits="w8a8", request="class=3", seed=100)
    original = runner.scene(spot).original.model
    modes, state = [m.training for m in original.modules()], quant.state_digest(original)
    configs: list[dict[str, Any]] = [
        {"epochs": 2, "lr": 0.01, "batch_size": 64},
        {"epochs": 2, "lr": 0.01, "batch_size": 64, "stop_rule": True, "eval_every": 1000},
        {"epochs": 10, "lr": 0.01, "batch_size": 64},
    ]
    cut = [runner.run(spot, "ft", c, tuning=True) for c in configs]
    for found in cut:
        assert found["error"].startswith("TooCostlyError")
        assert found["seconds"] > 0
        assert score(grid, dataset, found)[0] == 2
    assert "on the way to about 10 passes" in cut[2]["error"]  # foreseen after the first epoch
    assert cut[2]["passes"] == 1.0 < 1.5 < cut[0]["passes"] < 2.0
    aux = runner.run(spot, "ec", {"epochs": 1, "aux_epochs": 9, "batch_size": 64}, tuning=True)
    assert aux["error"].startswith("TooCostlyError")
    assert ([m.training for m in original.modules()], quant.state_digest(original)) == (modes, state)
    assert runner.run(spot, "ft", configs[0], tuning=False)["passes"] == 2.0
    free = Bench(dataclasses.replace(grid, cost=5.0), dataset, tmp_path).run(spot, "ft", configs[0], tuning=True)
    assert score(grid, dataset, free) == score(grid, dataset, cut[0])  # the same verdict as computed to its end
    cheap = {**configs[0], "epochs": 1}
    found = runner.run(spot, "ft", cheap, tuning=True)
    same = Bench(dataclasses.replace(grid, cost=5.0), dataset, tmp_path).run(spot, "ft", cheap, tuning=True)
    assert found["passes"] == 1.0
    assert found["onnx"] == same["onnx"]
    assert 0 < found["codes_changed"] <= 1
    assert found["codes_changed"] + found["lost_to_rounding"] == pytest.approx(found["latents_moved"], abs=0.01)


def test_identities_are_stable() -> None:
    """Results that exist stay valid: what a cell is called depends on its figures' causes alone."""
    spot = Spot(model="resnet8@4", bits="w8a8", request="class=3", seed=100)
    found = cells.identity(tiny(), spot, "rl", {"lr": 0.01, "epochs": 3}, tuning=True)
    assert found == "c51acd4cf91b98d4ed6feba326125ff1bbd2eb09d9b4ff0fe32b6d485083d060"


def test_worker_that_dies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = tiny(data=str(tmp_path / "gone.npz"))
    monkeypatch.setattr(running, "load_dataset", lambda grid, folder: sources.load("digits"))
    runner = running.Runner(grid, tmp_path, None, 2, Store(tmp_path), lambda text: None)
    with pytest.raises(InvariantError, match="worker"):
        runner("cells", [("network", None)])
