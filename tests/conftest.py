"""Tests marked ``cross`` need the Arm cross compiler and the emulator: skipped with a line and counted where those are
absent, failed instead with QUNLEARN_REQUIRE_CROSS=1."""

from __future__ import annotations

import os

import pytest

from qunlearn_export import qemu
from qunlearn_export.crossbuild import missing_tools

APT = "apt-get install --no-install-recommends gcc-arm-none-eabi qemu-system-arm make"
SKIPPED = pytest.StashKey[int]()


def absent() -> list[str]:
    """What of cross compiler, emulator and make is not installed."""
    return sorted({*missing_tools(), *qemu.missing()})


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cross") is None or not (missing := absent()):
        return
    reason = f"{', '.join(missing)} not installed ({APT})"
    if os.environ.get("QUNLEARN_REQUIRE_CROSS") == "1":
        pytest.fail(f"QUNLEARN_REQUIRE_CROSS=1, but {reason}", pytrace=False)
    item.config.stash[SKIPPED] = item.config.stash.get(SKIPPED, 0) + 1
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count = config.stash.get(SKIPPED, 0)
    if count:
        missing = ", ".join(absent())
        terminalreporter.write_sep("=", f"{count} firmware tests on emulated boards NOT RUN: {missing} absent")
        terminalreporter.write_line(f"install them: {APT}")
