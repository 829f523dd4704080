"""Rules of the house: import directions, import budget, public API, one session opener, file sizes, wheel contents."""

from __future__ import annotations

import ast
import importlib
import inspect
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
    assert wanted <= names, wanted - names
    assert not [n for n in names if n.startswith("tests/")]
