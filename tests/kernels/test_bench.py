"""The benchmark of the projection: what it says and writes without a GPU, and its GPU part on stand-ins."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scripts import benchmark

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return benchmark("projection_gpu")


def by_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def test_without_a_gpu_the_benchmark_says_so(tmp_path: Path) -> None:
    file = tmp_path / "new" / "projection.json"
    command = [sys.executable, str(BENCHMARKS / "bench_projection.py"), "--nets", "dscnn", "--seconds", "0"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "GPU: none here, not measured" in done.stdout.splitlines()
    out = json.loads(file.read_text())
    assert out["gpu"] is None
    assert out["runs"][0]["rows"][0]["seconds"]["steep"] > 0
    assert [f.name for f in file.parent.iterdir()] == ["projection.json"], "no table of figures that nobody measured"


def test_the_gpu_part_times_every_form_and_writes_a_table(gpu: ModuleType, tmp_path: Path) -> None:
    one = gpu.measure([3000], torch.device("cpu"), ["torch"], by_clock, 2, compiled=False)
    two = gpu.measure([56] * 7, torch.device("cpu"), ["torch"], by_clock, 2, compiled=False)
    assert (one["parameters"], one["tensors"], two["parameters"], two["tensors"]) == (3000, 1, 392, 7)
    assert set(one["seconds"]) == {"copy", "plain", "torch"}
    rate = one["gigabytes_per_second"]
    assert rate["torch"] == pytest.approx(20 * 3000 / one["seconds"]["torch"] * 1e-9)
    assert rate["copy"] == pytest.approx(8 * 3000 / one["seconds"]["copy"] * 1e-9)
    gpu.write_csv(tmp_path / "gpu.csv", {"device": "none", "torch": "2"}, (one, two))
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {r["device"] for r in rows} == {"none"}
    assert float(rows[0]["microseconds"]) == pytest.approx(1e6 * one["seconds"]["copy"], rel=1e-2, abs=1e-3)


def test_the_plain_form_is_a_projection(gpu: ModuleType) -> None:
    f, r = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    want = f.double() - torch.dot(f.double(), r.double()) / torch.dot(r.double(), r.double()) * r.double()
    gpu.plain(f, r)
    assert torch.allclose(f.double(), want, atol=1e-6)


def test_gpu_bars(gpu: ModuleType) -> None:
    def size(triton: float, copy: float = 1e-3) -> dict[str, Any]:
        seconds = {"copy": copy, "triton": triton, "torch": 1.0}
        return {
            "seconds": seconds,
            "gigabytes_per_second": {k: (8 if k == "copy" else 20) / s for k, s in seconds.items()},
        }

    assert gpu.missed(size(2.9e-3), size(14e-6), ["torch", "triton"]) == []
    slow = gpu.missed(size(3.0e-3), size(16e-6), ["torch", "triton"])
    assert [line.split(" <")[0] for line in slow] == ["triton: 0.83", "triton: 16.0 > 15 us on the small row"]
    assert sum(gpu.SMALL) == 100_000
    assert len(gpu.SMALL) == 180
