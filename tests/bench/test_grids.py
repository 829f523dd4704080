"""Committed grids, run: the smoke grid whole and in time, the full protocol's networks on two of its cells."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qunlearn import bench
from qunlearn.bench.cell import Bench
from qunlearn.bench.draw import draw
from qunlearn.bench.networks import load_dataset
from qunlearn.bench.plan import spots, targets
from qunlearn.bench.scene import Spot
from qunlearn.bench.store import Store
from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.data.sources import load
from qunlearn.data.splits import make_splits
from qunlearn.errors import DataError
from qunlearn.unlearn import METHODS

GRIDS = Path(__file__).resolve().parents[2] / "benchmarks" / "grids"
SMOKE_SECONDS = 300


@pytest.mark.slow
def test_the_smoke_grid_takes_minutes(tmp_path: Path) -> None:
    """Two methods, one seed, three configurations: five minutes of two cores at most, from nothing to the page."""
    grid = bench.read_grid(GRIDS / "smoke.toml")
    assert (len(grid.methods), len(grid.seeds), grid.budget) == (2, 1, 3)
    command = [sys.executable, "-m", "qunlearn", "bench", "run", str(GRIDS / "smoke.toml"), "--processes", "2"]
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "-o", str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < SMOKE_SECONDS
    cells = list(Store(tmp_path))
    assert len(cells) == 2 * 3 + 5
    assert not [c["error"] for c in cells if "error" in c], "configurations that the grid itself makes too dear"
    assert {p.name for p in tmp_path.iterdir()} >= {"chosen.json", "table.md", "table.json", "report.html"}


def test_the_full_grid_is_the_protocol() -> None:
    """Its methods, networks, bit widths, scenarios and budget; every configuration that it draws is valid."""
    grid = bench.read_grid(GRIDS / "full.toml")
    assert grid.methods == tuple(METHODS)
    assert (grid.models, grid.bits) == (("resnet18", "mobilenetv2"), ("w4a4", "w4a8", "w8a8", "w2a2"))
    assert (grid.requests, grid.seeds, grid.budget) == (("random=10%", "random=50%", "class=3"), (0, 1, 2), 12)
    for method in grid.methods:
        configs = draw(grid, method)
        assert len(configs) == 12
        for config in configs:
            METHODS[method](**config).validate()


def few(dataset: Dataset, size: int) -> Dataset:
    """Its training part, and ``size`` samples of either other part."""
    rng = np.random.default_rng(0)
    parts = [dataset.where("train"), *(rng.permutation(dataset.where(p))[:size] for p in ("heldout", "test"))]
    rows = np.sort(np.concatenate(parts))
    return dataclasses.replace(dataset, **{n: getattr(dataset, n)[rows] for n in ("x", "y", "ids", "part")})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spot", "method"),
    [
        (Spot(model="resnet18", bits="w4a4", request="random=10%", seed=0), "oeu"),
        (Spot(model="mobilenetv2", bits="w8a8", request="class=3", seed=0), "ft"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.model,
)
def test_two_cells_of_the_full_grid(spot: Spot, method: str, tmp_path: Path) -> None:
    """Its own networks, bits and requests on CIFAR-10's pictures: 200 of them, 60 held out, 60 to test; a short run."""
    whole = bench.read_grid(GRIDS / "full.toml")
    grid = dataclasses.replace(
        whole, subset=200, train={"epochs": 3, "batch_size": 16, "lr": 0.02},
        settings={method: {"epochs": 1, "lr": 0.01}}, shared={"batch_size": 16, "probe": 50, "max_steps": 4},
    )  # fmt: skip
    try:
        dataset = few(load_dataset(grid, None), 60)
    except DataError as err:
        pytest.skip(f"CIFAR-10 is not here: {err.message}")
    assert spot in spots(whole, dataset, tuning=False)
    assert len(targets(whole, dataset)) == 2 * 4 * 2
    runner = Bench(grid, dataset, tmp_path)
    found = runner.run(spot, method, draw(grid, method)[0], tuning=False)
    assert "error" not in found, found
    assert 0 < found["codes_changed"] <= 1
    assert found["passes"] > 0
    for artefact in ("onnx", "torch", "retrained"):
        assert {"forget_accuracy", "retain_accuracy", "test_accuracy", "mia"} <= set(found[artefact])
    if spot.bits == "w8a8":
        assert found["onnx"] == found["torch"]


def test_tuning_forgets_other_samples_or_the_page_names_the_grid() -> None:
    """A class or group that is tuned on and reported on is the same set of samples; two random draws share a tenth."""
    shared = set()
    for path in GRIDS.glob("*.toml"):
        grid = bench.read_grid(path)
        report = {r for r in grid.requests if not r.startswith("random")}
        every = {r.split("=")[0] for r in report if r.endswith("=*")}
        tuned = grid.tune_requests or grid.requests
        if any(r in report or (r.split("=")[0] in every) for r in tuned):
            shared.add(path.name)
    page = " ".join((GRIDS.parents[1] / "docs" / "bench.md").read_text().split())
    said = re.search(r"`cifar10.toml`[^:]*two of their speakers:", page)
    assert said is not None
    assert set(re.findall(r"`(\w+\.toml)`", said[0])) == shared
    data = load("digits")
    first, second = (set(make_splits(data, Request.parse("random=10%"), seed=s).forget.ids) for s in (0, 100))
    assert 0.02 < len(first & second) / len(first) < 0.2


def test_the_three_grids_of_digits_differ_in_one_setting_each() -> None:
    plain, stop, frozen = (bench.read_grid(GRIDS / f"digits{n}.toml") for n in ("", "_stop", "_frozen"))
    assert (plain.stop_rule, plain.bn, plain.methods) == (False, "source", tuple(METHODS))
    assert stop == dataclasses.replace(plain, stop_rule=True)
    assert frozen == dataclasses.replace(plain, bn="frozen")
    for name in ("ft", "salun", "qmul"):
        assert {METHODS[name](**c).bn for c in draw(frozen, name)} == {"frozen"}
        assert {METHODS[name](**c).bn for c in draw(plain, name)} == {"train"}
