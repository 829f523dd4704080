"""Rules of the house: import directions, import budget, public API, one session opener, file sizes, wheel contents."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"qunlearn": ROOT / "qunlearn", "qunlearn_export": ROOT / "export" / "qunlearn_export"}
PACKAGES["qunlearn_kernels"] = ROOT / "kernels" / "qunlearn_kernels"

BASE = {"errors", "registry", "fingerprint", "hyper", "qunlearn"}
MAY = {
    "cli": {"bench", "report", "search", "guard", "diagnose", "unlearn", "audit", "tasks", "models", "data", "quant"},
    "bench": {"report", "search", "guard", "diagnose", "unlearn", "audit", "tasks", "models", "data", "quant"},
    "report": set(),
    "search": {"unlearn", "tasks", "models", "data", "quant"},
    "guard": {"tasks", "models", "data", "quant"},
    "diagnose": {"tasks", "models", "data", "quant"},
    "unlearn": {"tasks", "models", "data", "quant"},
    "audit": {"tasks", "models", "data", "quant"},
    "tasks": {"models", "data"},
    "quant": {"models"},
    "models": set(),
    "data": set(),
}
"""Which room may import which; every room may import errors, registry, fingerprint, hyper and the lower packages."""


def sources(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(path: Path) -> set[str]:
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
    return out


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("path", sources("qunlearn"), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGES["qunlearn"]).parts
    if len(parts) == 1:
        allowed = {"cli"} if parts == ("__main__.py",) else set()
        mine = ""
    else:
        mine = parts[0]
        allowed = MAY[mine] | {mine}
    for module in imports(path):
        if module.split(".")[0] == "qunlearn":
            target = room(module)
            assert target in allowed | BASE or target.startswith("__"), f"{mine or path.name} imports {module}"


def test_lower_packages_import_nothing_above() -> None:
    for path in sources("qunlearn_export"):
        tops = {m.split(".")[0] for m in imports(path)}
        assert not tops & {"qunlearn", "qunlearn_kernels", "torch", "brevitas", "sklearn"}, path
    for path in sources("qunlearn_kernels"):
        found = {m for m in imports(path) if m.split(".")[0] in ("qunlearn", "qunlearn_export")}
        assert all(m.startswith("qunlearn_export.errors") or m == "qunlearn_export.errors" for m in found), path


def test_audits_and_methods_never_meet() -> None:
    assert "unlearn" not in MAY["audit"]
    assert "audit" not in MAY["unlearn"]


def test_only_one_file_opens_sessions() -> None:
    opened = [p for name in PACKAGES for p in sources(name) if "InferenceSession(" in p.read_text()]
    assert [p.name for p in opened] == ["runtime.py"]


def test_no_pickle_and_no_torch_load() -> None:
    pattern = re.compile(r"import pickle|(?<!safetensors\.)torch\.load\(|allow_pickle=True")
    assert not [p for name in PACKAGES for p in sources(name) if pattern.search(p.read_text())]


def test_files_stay_small() -> None:
    long = {str(p): n for name in PACKAGES for p in sources(name) if (n := len(p.read_text().splitlines())) > 600}
    assert not long


def test_a_method_is_one_short_file() -> None:
    from qunlearn.unlearn import METHODS

    files = {Path(inspect.getfile(METHODS[name])) for name in METHODS}
    assert len(files) > 10
    assert not {f.name: n for f in files if (n := len(f.read_text().splitlines())) > 200}


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_scripts_import_names_that_exist(folder: str) -> None:
    """Scripts are not run by the tests: what they import from the packages must be there all the same."""
    checked = 0
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in PACKAGES:
                continue
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                checked += 1
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
    assert checked


def test_help_is_light() -> None:
    code = (
        "import sys; from qunlearn.cli import run; code = run(['--help']); "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'sklearn', 'brevitas'} & set(sys.modules); "
        "sys.stderr.write(','.join(sorted(heavy))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "demo" in done.stdout


def test_help_is_quick() -> None:
    command = [sys.executable, "-c", "from qunlearn.cli import run; run(['--help'])"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.4, times


def modules() -> list[str]:
    out = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        out += [name, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{name}."))]
    return out


@pytest.mark.parametrize("name", modules())
def test_public_names_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or not dir(module), name
    missing = []
    for key, item in vars(module).items():
        if key.startswith("_") or getattr(item, "__module__", None) != name:
            continue
        if inspect.isfunction(item) or inspect.isclass(item):
            if not inspect.getdoc(item):
                missing.append(key)
            if inspect.isclass(item) and not getattr(item, "_is_protocol", False):
                missing += [
                    f"{key}.{n}"
                    for n, f in vars(item).items()
                    if inspect.isfunction(f)
                    and not n.startswith("_")
                    and not inspect.getdoc(getattr(item, n))
                    and n not in ("forward", "backward")
                ]
    assert not missing


def test_wheel_carries_its_data(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "qunlearn/data/assets/kws.npz",
        "qunlearn/data/assets/kws.LICENSE.txt",
        "qunlearn/report/templates/report.html.j2",
        "qunlearn/cli/assets/base/model.safetensors",
        "qunlearn/cli/assets/base/card.json",
        "qunlearn_export/runtime.py",
        "qunlearn_kernels/projection.py",
        "qunlearn_kernels/csrc/projection.cu",
    }
    firmware = ROOT / "export" / "firmware"
    wanted |= {f"qunlearn_export/firmware/{p.relative_to(firmware)}" for p in firmware.rglob("*") if p.is_file()}
    assert "qunlearn_export/firmware/board/link.ld" in wanted
    assert wanted <= names, wanted - names
    assert not [n for n in names if n.startswith("tests/")]
    _generate_from(wheel, tmp_path)


def _generate_from(wheel: Path, folder: Path) -> None:
    """The installed package, not this checkout, generates C from a file."""
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    code = (
        "import sys, numpy as np, qunlearn_export; from qunlearn_export import graph as g, writer; "
        "from qunlearn.cli import run; "
        "a = lambda n, s: g.Activation(name=n, shape=s, scale=np.float32(.1), zero_point=0); "
        "fc = g.Gemm(name='fc', inputs=('input',), output='fc.out', weight=np.eye(3, 4, dtype=np.int8), "
        "weight_scale=np.full(3, .5, np.float32)); "
        "net = g.Graph(activations={'input': a('input', (4,)), 'fc.out': a('fc.out', (3,))}, layers=(fc,), "
        "input='input', output='fc.out', meta={'task': 'classification', 'preprocess': {}, 'weight_bits': 8, "
        "'weight_range': '8bit'}); writer.export(net, 'net.onnx'); print(qunlearn_export.__file__); "
        "sys.exit(run(['firmware', 'net.onnx', '-o', 'fw', '--check', 'none']))"
    )
    env = {**os.environ, "PYTHONPATH": str(folder / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(folder / "installed"))
    assert (folder / "fw" / "board" / "mps2-an386" / "startup.c").is_file()
    assert (folder / "fw" / "qul_kernels_mve.c").is_file()
