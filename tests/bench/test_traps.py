"""Traps of the evaluation protocol, at the level of whole cells and tables."""

from __future__ import annotations

import dataclasses
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_toys import made, tiny

from qunlearn import bench, quant
from qunlearn.audit.predictor import TorchPredictor
from qunlearn.bench import networks, table
from qunlearn.bench.cell import Bench
from qunlearn.bench.networks import load_dataset, network
from qunlearn.bench.recipes import recipe_for
from qunlearn.bench.scene import ORIGINAL, ROWS, Spot, keys_of
from qunlearn.bench.store import Store
from qunlearn.data.dataset import Samples
from qunlearn.unlearn.ssd import SSD

ROOT = Path(__file__).resolve().parents[2]
SPOT = Spot(model="resnet8@4", bits="w8a8", request="class=3", seed=0)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    grid = tiny()
    return Bench(grid, load_dataset(grid, None), tmp_path_factory.mktemp("traps"))


def test_t16_test_accuracy_counts_retained_classes_only(runner: Bench) -> None:
    cell = runner.row(SPOT, ORIGINAL)
    scene, data = runner.scene(SPOT), runner.dataset
    test = Samples(data, data.where("test"))
    assert 3 in test.targets()
    hit = runner._file(scene, ORIGINAL).on(test).argmax(1) == test.targets()
    kept = test.targets() != 3
    assert cell["onnx"]["test_accuracy"] == pytest.approx(hit[kept].mean(), abs=1e-12)
    assert cell["onnx"]["forget_test_accuracy"] == pytest.approx(hit[~kept].mean(), abs=1e-12)  # beside, not in it
    assert cell["onnx"]["test_accuracy"] != pytest.approx(hit.mean(), abs=1e-12)
    assert cell["gap"] == pytest.approx(
        statistics.fmean(abs(cell["onnx"][k] - cell["retrained"][k]) for k in table.SHOWN), abs=1e-12
    )


def test_t18_a_degenerate_attack_earns_no_bold() -> None:
    def bold(degenerate: bool) -> list[str]:
        cells = []
        for s in range(3):
            cells += [made("original", 0.4, s), made("retrained", 0.0, s), made("second retrained", 0.02, s)]
            best = made("rl", 0.1, s)
            best["onnx"] = {**best["onnx"], "mia_degenerate": degenerate}
            cells += [best, made("ga", 0.2, s), made("ft", 0.3, s)]
        return [r["method"] for r in table.rows_of(cells) if r["bold"]]

    assert bold(False) == ["rl"]
    assert bold(True) == ["ga"]


def test_t20_evaluation_knows_neither_training_mode_nor_training_transforms(runner: Bench) -> None:
    """A network left in training mode and data that are augmented in training: two evaluations are bit-equal."""
    scene = runner.scene(SPOT)
    augmented = dataclasses.replace(runner.dataset, augment="crop_flip")
    assert recipe_for(augmented, "digits").augment == "crop_flip"
    samples = Samples(augmented, scene.splits.retain.index)
    want = TorchPredictor(scene.original.model).on(scene.splits.retain)
    model = scene.original.model.train()
    before = quant.state_digest(model)
    try:
        first, second = (TorchPredictor(model).on(samples) for _ in range(2))
    finally:
        model.eval()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, want)
    assert quant.state_digest(model) == before  # no statistics moved
    assert runner.row(SPOT, ORIGINAL)["onnx"] == runner.row(SPOT, ORIGINAL)["onnx"]


def test_t21_reference_networks_have_the_recipe_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed beforehand: neither request nor methods nor tuning reach the recipe of any of the three networks."""
    seen: list[Any] = []
    train = quant.train

    def recorded(model: Any, task: Any, samples: Any, recipe: Any, **more: Any) -> Any:
        seen.append((recipe, len(samples)))
        return train(model, task, samples, recipe, **more)

    monkeypatch.setattr(networks.quant, "train", recorded)
    grid = tiny(train={"epochs": 1}, search={"rl": {"lr": [1e-3, 1e-2]}}, budget=3)
    dataset = load_dataset(grid, None)
    for key in keys_of(SPOT).values():
        network(grid, dataset, key, tmp_path)
    recipes, sizes = zip(*seen, strict=True)
    assert len(seen) == 3
    assert recipes[0] == recipes[1] == recipes[2] == recipe_for(dataset, grid.data, epochs=1)
    assert sizes[1] == sizes[2] < sizes[0]  # the reference ones lack the forget set, and nothing else differs


def test_t22_time_is_that_of_the_whole_call(runner: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work before the loop (masks, importances, label passes) counts; passes stand beside it in the table."""
    run = SSD.run

    def slow(self: SSD, ctx: Any) -> None:
        until = time.process_time() + 0.5
        while time.process_time() < until:
            torch.ones(10).sum()
        run(self, ctx)

    monkeypatch.setattr(SSD, "run", slow)
    found = runner.run(SPOT, "ssd", {"importance": "batch", "samples": 64}, tuning=False)
    assert found["seconds"] > 0.5
    assert found["processor"] > 0.5
    assert found["passes"] > 0
    cells = [made("original", 0.4, 0), made("retrained", 0.0, 0, processor=2.0), made("ssd", 0.1, 0, passes=7.25)]
    text = table.markdown(table.rows_of(cells))
    assert "| passes | time |" in text
    assert "| 7.2 | 50 % |" in text


def test_t23_tables_hold_what_was_run_and_nothing_else(tmp_path: Path) -> None:
    grid = tiny(methods=["ga"], budget=1)
    bench.run(grid, work=tmp_path / "work", out=tmp_path, say=lambda text: None)
    (section,) = bench.tables(tmp_path)["sections"]
    cells = {c["method"]: c for c in Store(tmp_path) if not c["tuning"]}
    assert {r["method"] for r in section["rows"]} == {*ROWS, "ga"} == set(cells)
    for row in section["rows"]:
        if "gap" in row:
            for key in table.SHOWN:
                assert row[key][0] == cells[row["method"]]["onnx"][key]


def test_t23_no_page_sets_published_figures_beside_ours() -> None:
    """A figure of somebody's paper in a page about results would be read as comparable."""
    said = re.compile(
        r"(the paper|the authors|published|they) (report|reports|reported|reach|reaches|claim)\w*[^.|]*\d", re.I
    )
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "benchmarks" / "results").glob("*.md")]
    assert len(pages) > 20
    assert not {p.name: m.group(0) for p in pages if (m := said.search(p.read_text()))}
    assert said.search("The paper reports an average gap of 1.2")
