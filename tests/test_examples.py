"""The examples run in their quick mode; the device's program runs without torch and without the onnx package."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qunlearn.cli import run
from qunlearn.data.sources import load

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
BARE = """
import runpy, sys
for name in ("torch", "brevitas", "onnx", "sklearn", "qunlearn", "qunlearn_kernels"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "-o", str(folder)])
    monkeypatch.syspath_prepend(EXAMPLES)
    example(name).main()


def test_keyword_spotter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start("keyword_spotter", tmp_path, monkeypatch)
    assert "\nverdict: " in capsys.readouterr().out
    assert (tmp_path / "audit" / "report.html").exists()
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["shipping"] == ["onnx-all"]


def test_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start("own_data", tmp_path, monkeypatch)
    assert "parity: pass" in capsys.readouterr().out
    assert json.loads((tmp_path / "oeu" / "config.json").read_text())["model"] == "own_data:network"


def test_projection_only_needs_the_kernel_package_alone() -> None:
    blocked = BARE.replace('"torch", ', "").replace('"qunlearn_kernels"', '"qunlearn_export.graph"')
    command = [sys.executable, "-c", blocked, str(EXAMPLES / "projection_only.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trained, *_, unlearned = (
        dict(p.rsplit(" ", 1) for p in line.split(": ")[1].split(", ")) for line in done.stdout.splitlines()
    )
    assert float(trained["forget"][:-1]) > 90
    assert float(unlearned["forget"][:-1]) < 50
    assert float(unlearned["retain"][:-1]) > 90


def test_classify_on_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, file, samples = tmp_path / "base", tmp_path / "model.onnx", tmp_path / "samples.npz"
    recipe = ["--data", "digits", "--model", "resnet8@8", "--epochs", "4"]
    assert run(["train", *recipe, "-o", str(base)]) == 0
    assert run(["export", str(base), "-o", str(file), "--labels", "--parity-n", "64"]) == 0
    data = load("digits")
    rows = data.where("test")[:50]
    np.savez(samples, x=data.x[rows], y=data.y[rows])
    command = [sys.executable, "-c", BARE, str(EXAMPLES / "on_device_onnx" / "classify.py"), str(file)]
    done = subprocess.run([*command, str(samples)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 51
    assert {line.split()[1] for line in lines[:-1]} <= set(data.class_names)
    assert float(lines[-1].split()[1]) > 80
    bad = subprocess.run([*command, str(tmp_path / "none.npz")], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: ")
