"""Scripts of folders that are no packages, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def loaded(path: Path) -> ModuleType:
    """A fresh copy, whose names a test may change; it can import its neighbours, and dataclasses find their module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        if before is not None:
            sys.modules[spec.name] = before
    return module


def generator() -> ModuleType:
    """docs/generate.py."""
    return loaded(ROOT / "docs" / "generate.py")


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/."""
    return loaded(ROOT / "benchmarks" / f"{name}.py")


def example(name: str) -> ModuleType:
    """A script of examples/."""
    return loaded(ROOT / "examples" / f"{name}.py")
