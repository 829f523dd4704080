"""Absent cross tools are never passed over in silence: a skip with its reason and a count, or a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qunlearn_export import qemu

HERE = Path(__file__)


@pytest.mark.cross
def test_tools_are_there() -> None:
    assert qemu.missing() == []


@pytest.mark.parametrize(("required", "code"), [("0", 0), ("1", 1)])
def test_absent_tools(required: str, code: int, tmp_path: Path) -> None:
    env = {**os.environ, "PATH": str(tmp_path), "QUNLEARN_REQUIRE_CROSS": required}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE), "-k", "tools_are_there"]
    done = subprocess.run(command, cwd=HERE.parent.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    assert "apt-get install --no-install-recommends gcc-arm-none-eabi" in done.stdout
    if required == "0":
        assert "1 firmware tests on emulated boards NOT RUN: arm-none-eabi-gcc" in done.stdout
    else:
        assert "QUNLEARN_REQUIRE_CROSS=1, but arm-none-eabi-gcc" in done.stdout


def test_the_installer_says_what_is_missing(tmp_path: Path) -> None:
    """Without apt and without tools: loud, and an error only where required."""
    for required, code in (("0", 0), ("1", 1)):
        env = {"PATH": str(tmp_path), "QUNLEARN_REQUIRE_CROSS": required}
        command = ["/bin/sh", str(HERE.parent / "install_cross.sh")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "NOT INSTALLED: arm-none-eabi-gcc" in done.stdout
