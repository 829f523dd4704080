"""What triton and nvcc make of the kernels for every target, read from the machine code: no spills, 16-byte loads."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from qunlearn.errors import InvariantError, MissingDependencyError
from qunlearn_kernels import compile_report, cuda_backend, two_launch
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.compile_report import TARGETS, KernelReport, cuda_report, triton_report, triton_variants
from qunlearn_kernels.triton_backend import interpreted

TRITON = importlib.util.find_spec("triton") is not None and not interpreted()
needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not installed, or its interpreter is on")
needs_nvcc = pytest.mark.skipif(cuda_backend.nvcc() is None, reason="nvcc is absent: the CUDA source is not compiled")


def tools() -> bool:
    try:
        return bool(compile_report.tool("cuobjdump") and compile_report.tool("nvdisasm"))
    except MissingDependencyError:
        return False


pytestmark = pytest.mark.skipif(not tools(), reason="cuobjdump or nvdisasm is absent: no machine code can be read")


def good(report: KernelReport, rows: int) -> None:
    """No local memory; at least one 16-byte load a row of floats; narrow loads are of tables and float64 sums only."""
    assert (report.spills, report.local_bytes) == (0, 0), report
    assert report.wide_loads >= rows, report
    assert 0 < report.registers <= 255, report


@needs_triton
@pytest.mark.parametrize("target", TARGETS)
def test_triton(target: int) -> None:
    reports = triton_report(target, every=False)
    assert len(reports) == len(triton_variants(every=False)) == 6
    for report in reports:
        assert report.target == f"sm_{target}"
        good(report, 3 if "METRIC=1" in report.kernel else 2)
        if report.kernel.startswith("dot_partials"):
            assert report.narrow_loads == 2, "start and length of the tile"


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_variant_of_triton(target: int) -> None:
    for report in triton_report(target):
        good(report, 2)


@needs_nvcc
@pytest.mark.parametrize("target", TARGETS)
def test_cuda(target: int) -> None:
    reports = cuda_report(target)
    assert [r.kernel for r in reports] == [
        *(f"{name}<{width}>" for name in ("basis_partials", "basis_update") for width in ("16", "2", "4", "8")),
        *(f"{name}<{metric}>" for name in ("dot_partials", "project_update") for metric in ("false", "true")),
    ]
    for report in reports:
        good(report, 3 if "<true>" in report.kernel else 2)
        if report.kernel.startswith(("dot_partials", "basis_partials")):
            assert report.narrow_loads == 2, "start and length of the tile"


@needs_nvcc
def test_spills_and_narrow_loads_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = cuda_backend.SOURCE.read_text()
    for old, new in (
        ("__launch_bounds__(LANES, 1)", "__launch_bounds__(LANES, 8)"),
        ("return *reinterpret_cast<const float4*>(p);", "return {p[0], p[1], p[2], p[3]};"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    source = tmp_path / "projection.cu"
    source.write_text(text)
    monkeypatch.setattr(cuda_backend, "SOURCE", source)
    reports = cuda_report(80)
    assert sum(r.spills for r in reports) > 0
    assert sum(r.local_bytes for r in reports) > 0
    dots = [r for r in reports if r.kernel.startswith("dot_partials")]
    assert len(dots) == 2
    assert all(r.wide_loads == 0 and r.narrow_loads > 8 for r in dots)
    source.write_text("not a program")
    with pytest.raises(InvariantError, match="nvcc refused"):
        cuda_report(80)


def test_what_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_backend, "nvcc", lambda: None)
    with pytest.raises(MissingDependencyError, match="CUDA_HOME"):
        cuda_report(90)
    with pytest.raises(MissingDependencyError, match="no-such-tool"):
        compile_report.tool("no-such-tool")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(MissingDependencyError):
        triton_report(90)


@needs_nvcc
def test_the_gpu_build_links_and_a_launch_without_a_gpu_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "projection.so"
    options = [*cuda_backend.FLAGS, "-arch=sm_90", "-shared", "-Xcompiler", "-fPIC", "-o", str(path)]
    subprocess.run([str(cuda_backend.nvcc()), *options, str(cuda_backend.SOURCE)], check=True, capture_output=True)
    run = cuda_backend.CudaLauncher(torch.device("cpu"), library=cuda_backend.load_library(path))
    if torch.cuda.is_available():
        pytest.skip("a GPU is present")
    arena = GradientArena([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(InvariantError, match="qunlearn_dots could not be launched: CUDA error"):
        two_launch.project(run, arena, arena.row("forget"), arena.row("retain"), "global")
