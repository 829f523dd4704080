"""The CUDA source compiled for the host by a C++ compiler: its arithmetic, tables and passes without a GPU.

Lanes run one after another there, so barriers and the launch itself are what this cannot show; the build for GPUs is
read in test_compile.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import device_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qunlearn_kernels.cuda_backend import SOURCE, CudaLauncher, load_library
from qunlearn_kernels.two_launch import Launcher

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: the CUDA source is not built for the host")
SIZES = st.lists(st.sampled_from([0, 1, 2, 15, 17, 64, 255, 256, 257, 1025, 5000]), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda") / "host.so"
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    subprocess.run([str(COMPILER), *options, "-x", "c++", str(SOURCE), "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def run(library: Path) -> Callable[[int], Launcher]:
    loaded = load_library(library)
    return lambda programs: CudaLauncher(torch.device("cpu"), library=loaded, programs=programs)


@settings(max_examples=250, deadline=None)
@given(
    sizes=SIZES,
    seed=st.integers(0, 10_000),
    scope=st.sampled_from(cases.SCOPES),
    when=st.sampled_from(["always", "conflict"]),
    mix=st.sampled_from(cases.MIXES),
    weigh=st.booleans(),
)
def test_equals_the_oracle(
    run: Callable[[int], Launcher], sizes: list[int], seed: int, scope: str, when: str, mix: float, weigh: bool
) -> None:
    cases.check_projection(run, sizes, seed, scope, when, mix, weigh)


@pytest.mark.parametrize("scope", cases.SCOPES)
def test_long_tiles(run: Callable[[int], Launcher], scope: str) -> None:
    cases.check_projection(run, [9_000_001, 70, 33_000], 0, scope, "always", 1.0, True)


@pytest.mark.parametrize("scope", cases.SCOPES)
def test_many_tensors(run: Callable[[int], Launcher], scope: str) -> None:
    cases.check_many(run, scope)


def test_same_bits_for_any_grid(run: Callable[[int], Launcher]) -> None:
    cases.check_grid(run, [5000, 1, 0, 3000, 257, 90_000])


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 16, 20])
@pytest.mark.parametrize("scope", cases.SCOPES)
def test_subspace(run: Callable[[int], Launcher], k: int, scope: str) -> None:
    cases.check_subspace(run, k, scope, [300, 60, 0, 5000, 90])


@pytest.mark.parametrize("scope", cases.SCOPES)
@pytest.mark.parametrize("mix", [0.5, 300.0])
def test_fused_step(run: Callable[[int], Launcher], monkeypatch: pytest.MonkeyPatch, scope: str, mix: float) -> None:
    cases.check_step(run, monkeypatch, scope, [50, 60, 70, 1030, 5001, 1, 0], mix)


def test_refusals_and_edges(run: Callable[[int], Launcher]) -> None:
    cases.check_refusals(run)
    cases.check_partly_negative_metric(run)
    cases.check_views_at_odd_addresses(run)
    cases.check_parallel(run)


WORKER = """
import json, sys, torch
from pathlib import Path
from torch import nn
from qunlearn_kernels import fused
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.cuda_backend import CudaLauncher, load_library
rank, store, library = int(sys.argv[1]), sys.argv[2], load_library(Path(sys.argv[3]))
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
arena = GradientArena([("a.w", nn.Parameter(torch.zeros(64))), ("b.w", nn.Parameter(torch.zeros(100)))])
for role, seed in (("forget", 0), ("retain", 1)):
    generator = torch.Generator().manual_seed(seed)
    for mine, n in zip(arena.views(role), (128, 200)):
        mine.copy_(torch.randn(n, generator=generator).chunk(2)[rank])
run = CudaLauncher(torch.device("cpu"), library=library)
fused.choose_backend, fused.launcher = lambda name, device: "cuda", lambda name, device: run
fused.project_and_step(arena, lr=0.1, lam=2.0, scope="layer", process_group=torch.distributed.group.WORLD)
found = [*arena.views("forget"), *arena.params]
Path(f"{store}.{rank}").write_text(json.dumps([v.tolist() for v in found]))
torch.distributed.destroy_process_group()
"""


def test_a_fused_step_of_two_processes_equals_one(library: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(store), str(library)], env=env)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    halves = [json.loads(Path(f"{store}.{rank}").read_text()) for rank in range(2)]
    rows = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        rows.append([torch.randn(n, generator=generator).double() for n in (128, 200)])
    for i, (f, r) in enumerate(zip(*rows, strict=True)):
        want = f - torch.dot(f, r) / torch.dot(r, r) * r
        cases.close(torch.tensor([*halves[0][i], *halves[1][i]]), want, f)
        moved = torch.tensor([*halves[0][2 + i], *halves[1][2 + i]])
        cases.close(moved, -0.1 * (r + 2.0 * want), r)
