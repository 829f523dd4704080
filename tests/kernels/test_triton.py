"""The triton backend under triton's interpreter, on the CPU.

Triton decides at import whether kernels are interpreted, so this file runs itself again in a process with
TRITON_INTERPRET=1; there the cases below are collected, here only the test that starts them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import device_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qunlearn_kernels.fused import project_and_step
from qunlearn_kernels.projection import Basis, project, project_k
from qunlearn_kernels.triton_backend import TritonLauncher, interpreted
from qunlearn_kernels.two_launch import Launcher

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
SIZES = st.lists(st.sampled_from([0, 1, 2, 17, 255, 256, 257, 1025, 2100]), min_size=1, max_size=4)


def run(programs: int) -> Launcher:
    return TritonLauncher(torch.device("cpu"), programs=programs)


if not interpreted():

    def test_under_the_interpreter() -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        passed = [line for line in done.stdout.splitlines() if " passed" in line]
        assert passed, done.stdout
        assert "skipped" not in passed[0], done.stdout
        assert "xfailed" not in passed[0], done.stdout

else:

    @settings(max_examples=110, deadline=None)
    @given(
        sizes=SIZES,
        seed=st.integers(0, 10_000),
        scope=st.sampled_from(cases.SCOPES),
        when=st.sampled_from(["always", "conflict"]),
        mix=st.sampled_from(cases.MIXES),
        weigh=st.booleans(),
    )
    def test_equals_the_oracle(sizes: list[int], seed: int, scope: str, when: str, mix: float, weigh: bool) -> None:
        cases.check_projection(run, sizes, seed, scope, when, mix, weigh)

    def test_many_tensors() -> None:
        cases.check_many(run, "global")

    def test_same_bits_for_any_grid() -> None:
        cases.check_grid(run, [5000, 1, 0, 1100])

    @pytest.mark.parametrize(
        ("k", "scope"), [(1, "global"), (2, "layer"), (5, "tensor"), (16, "global"), (16, "layer")]
    )
    def test_subspace(k: int, scope: str) -> None:
        cases.check_subspace(run, k, scope, [300, 60, 0, 1100, 90])

    def test_more_rows_than_one_launch_takes() -> None:
        cases.check_subspace(run, 20, "global", [300, 60])

    @pytest.mark.parametrize(("scope", "mix"), [("global", 0.5), ("layer", 300.0), ("tensor", 0.5)])
    def test_fused_step(monkeypatch: pytest.MonkeyPatch, scope: str, mix: float) -> None:
        cases.check_step(run, monkeypatch, scope, [50, 60, 70, 1030, 2001, 1, 0], mix)

    def test_refusals_and_edges() -> None:
        cases.check_refusals(run)
        cases.check_partly_negative_metric(run)
        cases.check_views_at_odd_addresses(run)
        cases.check_parallel(run)

    @pytest.mark.parametrize("scope", [*cases.SCOPES, "none"])
    def test_the_public_calls_agree_with_torch(scope: str) -> None:
        one, two = (cases.arena_of([700, 30, 1, 0], 7, -0.8) for _ in range(2))
        if scope != "none":
            for arena, name in ((one, "triton"), (two, "torch")):
                basis = Basis(arena, 2, scope=scope)
                basis.push(cases.arena_of([700, 30, 1, 0], 8).row("retain"))
                basis.push(cases.arena_of([700, 30, 1, 0], 9).row("retain"))
                project_k(arena, basis, backend=name)
            cases.close(one.row("forget"), two.row("forget").double(), two.row("forget"))
        two.row("forget").copy_(one.row("forget"))
        a, b = project(one, scope=scope, backend="triton"), project(two, scope=scope, backend="torch")
        assert (a.segments, a.conflicting_segments) == (b.segments, b.conflicting_segments)
        for name in ("cos_before", "cos_after", "norm_f", "norm_r", "norm_fperp", "removed"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-6, abs=1e-6)
        cases.close(one.row("forget"), two.row("forget").double(), two.row("forget"))
        for arena, name in ((one, "triton"), (two, "torch")):
            project_and_step(arena, lr=0.1, lam=2.0, scope=scope, backend=name)
        for p, q in zip(one.params, two.params, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)
