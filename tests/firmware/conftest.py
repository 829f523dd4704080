"""The C libraries that the tests of this room call, compiled once."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
from clib import Delta, build


@pytest.fixture(scope="session")
def c_delta(tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """The delta applier."""
    return Delta(build(tmp_path_factory.mktemp("delta") / "delta.so", ("qul_delta.c", "harness.c")))


@pytest.fixture(scope="session")
def c_crypto(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """SHA and Ed25519."""
    path: Path = build(tmp_path_factory.mktemp("crypto") / "crypto.so", ("qul_sha.c", "qul_ed25519.c"))
    return ctypes.CDLL(str(path))


@pytest.fixture
def clang() -> str:
    """Path of clang; a test that needs it is skipped, with a line, where it is not installed."""
    found = shutil.which("clang")
    if found is None:
        pytest.skip("clang is not installed")
    return found
