"""The examples run in their quick mode; the device's program runs without torch and without the onnx package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scripts import example

from qunlearn.bench import read_grid
from qunlearn.cli import run
from qunlearn.data.features import FrontEnd
from qunlearn.data.sources import load

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ON_DEVICE, SIGNED = EXAMPLES / "on_device_onnx", EXAMPLES / "signed_update"
KINDS = ["onnx-all", "c-host"] if shutil.which("cc") or os.environ.get("CC") else ["onnx-all"]
BARE = """
import runpy, sys
for name in ("torch", "brevitas", "onnx", "sklearn", "qunlearn", "qunlearn_kernels"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "-o", str(folder)])
    monkeypatch.syspath_prepend(EXAMPLES)
    example(name).main()


def test_keyword_spotter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start("keyword_spotter", tmp_path, monkeypatch)
    assert "\nverdict: " in capsys.readouterr().out
    assert (tmp_path / "audit" / "report.html").exists()
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["shipping"] == KINDS


def test_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start("own_data", tmp_path, monkeypatch)
    assert "parity: pass" in capsys.readouterr().out
    assert json.loads((tmp_path / "oeu" / "config.json").read_text())["model"] == "own_data:network"


def test_erasure_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start("erasure_check", tmp_path / "out", monkeypatch)
    assert "\neve: INCONCLUSIVE on onnx-all\n" in capsys.readouterr().out  # eight trials of four steps prove nothing
    assert (tmp_path / "out" / "verdict" / "eve.json").exists()


def test_strict_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The quick form runs SMI on the int8 file and prints why it decides nothing there."""
    start("strict_audit", tmp_path / "out", monkeypatch)
    out = capsys.readouterr().out
    lines = out[out.index("on the int8 file") :].splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["accuracy", "mia", "smi", "cka"]
    assert re.match(r"  smi: inconclusive .*I-SMI-NO-SIGNAL", lines[3])
    assert (tmp_path / "out" / "audit" / "after.onnx").exists()
    assert "--suite strict" in (EXAMPLES / "strict_audit.py").read_text()


def test_compare_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole grid is valid and small; its quick form runs, prints what it found, and computes nothing twice."""
    grid = read_grid(EXAMPLES / "compare_methods.toml")
    assert (len(grid.rows), len(grid.seeds), grid.budget) == (5, 3, 4)
    start("compare_methods", tmp_path, monkeypatch)
    out = capsys.readouterr().out
    assert re.search(r"^nearest to retraining: (oeu|ft), \d+\.\d points", out, re.M)
    assert "a difference that means something: no" in out  # one seed
    assert re.search(r"^oeu, Avg Gap: place [12] of 2$", out, re.M)
    cells = (tmp_path / "results" / "cells.jsonl").read_bytes()
    start("compare_methods", tmp_path, monkeypatch)
    assert (tmp_path / "results" / "cells.jsonl").read_bytes() == cells


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
    sound = subprocess.run([*command, str(ON_DEVICE / "seven.wav")], capture_output=True, text=True, check=False)
    assert sound.returncode == 2
    assert "no log-mel front end" in sound.stderr


def python(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=False)


def test_sound_on_the_device(tmp_path: Path) -> None:
    """A WAV, with numpy and onnxruntime alone; the self-test stops a file that is not the one it was made for."""
    vectors, other = tmp_path / "selftest.npz", tmp_path / "other.onnx"
    assert python(ON_DEVICE / "make_selftest.py", SIGNED / "base.onnx", vectors).returncode == 0
    command = ["-c", BARE, ON_DEVICE / "classify.py"]
    done = python(*command, SIGNED / "base.onnx", ON_DEVICE / "seven.wav", "--selftest", vectors)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "self-test: 8 of 8 vectors equal\n   0  7\n"
    with zipfile.ZipFile(SIGNED / "demo.qulb") as bundle:
        other.write_bytes(bundle.read("model.onnx"))
    done = python(*command, other, ON_DEVICE / "seven.wav", "--selftest", vectors)
    assert done.returncode == 3
    assert "   0  " not in done.stdout
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    done = python(*command, other, tmp_path / "noise.wav")
    assert (done.returncode, done.stderr.count("is no WAV file")) == (2, 1)


def test_front_end_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's front end gives the package's codes, for the WAV and for loud noise."""
    monkeypatch.syspath_prepend(ON_DEVICE)
    logmel, front = example("on_device_onnx/logmel"), FrontEnd()
    noise = np.random.default_rng(0).integers(-(2**15), 2**15, 8000).astype(np.int16)
    for pcm in (logmel.read_wav(ON_DEVICE / "seven.wav", 8000), noise):
        assert np.array_equal(logmel.features(pcm, logmel.parameters(front.spec())), front.apply(pcm[None]))


def test_update_on_the_device(tmp_path: Path) -> None:
    command = [ON_DEVICE / "update.py", SIGNED / "base.onnx", SIGNED / "demo.qulb", ON_DEVICE / "seven.wav", "--store"]
    done = python(*command, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "model 1: self-test passed, heard 7",
        "update 2 installed, 3 old files erased",
        "model 2: self-test passed, heard 7",
        "the same update again: refused with code 16, counter 2",
    ]
    bad = tmp_path / "bad.qulb"
    bad.write_bytes((SIGNED / "demo.qulb").read_bytes().replace(b"QUP1", b"QUP2", 1))
    command[2] = bad
    done = python(*command, tmp_path / "second")
    assert done.returncode in (2, 3)
    assert done.stdout == "model 1: self-test passed, heard 7\n"


def shell(script: Path, *args: object, **env: object) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHON": sys.executable, **{k: str(v) for k, v in env.items()}}
    return subprocess.run(["sh", script, *map(str, args)], capture_output=True, text=True, env=settings, check=False)


@pytest.mark.cross
def test_firmware_on_a_cortex_m4(tmp_path: Path) -> None:
    """Model 1 hears the digit, takes the update, model 2 hears it, refuses the update again, starts from flash."""
    done = shell(EXAMPLES / "firmware_m4" / "run.sh", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith(("==", "self", "new", "model", "update"))]
    assert told == [
        "== generate, compare with the integer rule on this computer",
        "== self-test of the generated weights on the board",
        "selftest: 8 vectors equal",
        "== build the application",
        "== first start",
        "new device: the first model is written",
        "model 1 heard 7",
        "== an update arrives",
        "model 1 heard 7",
        "update of 5228 bytes: code 0, installed, the old model is erased",
        "model 2 heard 7",
        "== the same update again",
        "model 2 heard 7",
        "update of 5228 bytes: code 16, refused",
        "model 2 heard 7",
        "== a start after all that",
        "model 2 heard 7",
        "== done",
    ]


@pytest.mark.cross
def test_firmware_integration(tmp_path: Path) -> None:
    """The happy path; then each step fails with its message for what it is there to find."""
    folder, out = EXAMPLES / "firmware_integration", tmp_path / "build"
    done = shell(folder / "ci.sh", OUT=out, REQUIRE_BOARD=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("selftest: 8 vectors equal") == 2
    assert done.stdout.endswith("== passed\n")

    budget = tmp_path / "budget.json"
    budget.write_text('{"flash": 20000, "ram": 65536}')
    done = shell(folder / "size.sh", OUT=out, BUDGET=budget)
    assert done.returncode == 1
    assert "bytes over the budget" in done.stderr
    assert "FAIL: the firmware does not keep its size budget" in done.stderr
    whole = shell(folder / "ci.sh", OUT=tmp_path / "second", BUDGET=budget)
    assert whole.returncode == 1
    assert "== verify" not in whole.stdout

    done = shell(folder / "verify.sh", OUT=out, VERDICT="pass")
    assert (done.returncode, "FAIL: the bundle" in done.stderr) == (4, True)
    other = tmp_path / "other.qulb"
    other.write_bytes((SIGNED / "demo.qulb").read_bytes().replace(b'"method":', b'"nethod":', 1))
    done = shell(folder / "verify.sh", OUT=out, BUNDLE=other)
    assert done.returncode != 0
    assert "FAIL: the bundle" in done.stderr

    weights = out / "firmware" / "weights.c"
    text = weights.read_text()
    weights.write_text(re.sub(r"(\n    \{\n    )-?\d+", r"\g<1>1", text, count=1))
    assert weights.read_text() != text
    done = shell(folder / "verify.sh", OUT=out)
    assert (done.returncode, "were changed after they were generated" in done.stderr) == (3, True)
    done = shell(folder / "selftest.sh", OUT=out)
    assert (done.returncode, "FAIL: the self-test fails on this computer" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("report", "budget", "code", "word"),
    [
        ({"flash": 100, "need": 300, "ram": 50}, {"flash": 100, "flash_with_slots": 300, "ram": 50}, 0, ""),
        ({"flash": 100, "need": 300, "ram": 50}, {"flash_with_slots": 299}, 1, "1 bytes over"),
        ({"flash": 100, "need": 300, "ram": 50}, {"flashh": 100}, 2, "flashh"),
        ({"flash": 100, "need": 300, "ram": 50}, {}, 2, "nothing"),
        (None, {"flash": 100}, 2, "no sizes"),
    ],
)
def test_size_budget(
    report: dict[str, int] | None, budget: dict[str, int], code: int, word: str, tmp_path: Path
) -> None:
    value: dict[str, object] = {"flash": {"blob": 1}, "ram": {"arena": 1}, "fits": []}
    if report is not None:
        fits = [{"need_flash": report["need"]}]
        value = {"flash": {"total": report["flash"]}, "ram": {"total": report["ram"]}, "fits": fits}
    (tmp_path / "report.json").write_text(json.dumps(value))
    (tmp_path / "budget.json").write_text(json.dumps(budget))
    script = EXAMPLES / "firmware_integration" / "budget.py"
    done = python(script, tmp_path / "report.json", tmp_path / "budget.json")
    assert (done.returncode, word in done.stderr) == (code, True), done.stderr
