"""Which backend runs: by name, automatically, and what is said when one cannot run."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from qunlearn.errors import ConfigError, MissingDependencyError
from qunlearn_kernels import backends, cuda_backend, triton_backend
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.backends import choose_backend
from qunlearn_kernels.projection import Basis, project, project_k

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_cpu_has_torch() -> None:
    assert choose_backend("auto", CPU) == choose_backend("torch", CPU) == "torch"
    with pytest.raises(ConfigError, match="triton"):
        choose_backend("numpy", CPU)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_named_backend_never_falls_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arena = GradientArena([nn.Parameter(torch.zeros(3))])
    with pytest.raises(MissingDependencyError, match=r"on cpu.*CUDA device"):
        project(arena, backend=name)
    with pytest.raises(MissingDependencyError, match="cannot run"):
        project_k(arena, Basis(arena, 1), backend=name)


def test_the_interpreter_serves_the_cpu_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("triton", CPU) == "triton"
    assert choose_backend("auto", CPU) == "torch"


def test_without_triton_the_message_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qunlearn\[gpu\]'"):
        choose_backend("triton", GPU)


def test_without_tools_the_message_names_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    have = {"nvcc": "/bin/nvcc", "ninja": "/bin/ninja", "g++": "/bin/g++", "gcc": "/bin/gcc"}
    monkeypatch.setattr(cuda_backend.shutil, "which", lambda name, path=None: have.get(name))
    assert choose_backend("cuda", GPU) == "cuda"
    for tool, word in (("g++", r"C\+\+ compiler"), ("ninja", "ninja"), ("nvcc", "CUDA_HOME")):
        have.pop(tool)
        with pytest.raises(MissingDependencyError, match=word):
            choose_backend("cuda", GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(MissingDependencyError, match="sm_80"):
        choose_backend("cuda", GPU)


def test_auto_prefers_triton_then_cuda_then_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacks: dict[str, tuple[str, str] | None] = {"triton": None, "cuda": None}
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_backend, "missing", lambda device: lacks["triton"])
    monkeypatch.setattr(cuda_backend, "missing", lambda device: lacks["cuda"])
    monkeypatch.setattr(backends, "_announced", set())
    with caplog.at_level(logging.INFO, logger="qunlearn_kernels"):
        assert choose_backend("auto", GPU) == choose_backend("auto", GPU) == "triton"
        assert [r.getMessage() for r in caplog.records] == ["projection backend: triton on cuda:0"]
    lacks["triton"] = ("no triton.", "")
    assert choose_backend("auto", GPU) == "cuda"
    lacks["cuda"] = ("no nvcc.", "")
    assert choose_backend("auto", GPU) == "torch"


def test_projecting_on_the_cpu_imports_no_triton() -> None:
    code = (
        "import sys, torch; from torch import nn; from qunlearn_kernels.arena import GradientArena; "
        "from qunlearn_kernels.projection import project; project(GradientArena([nn.Parameter(torch.zeros(3))])); "
        "sys.exit('triton' in sys.modules or 'torch.utils.cpp_extension' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
