"""Runs firmware under an emulator: exit code, console, instruction counts, stack (firmware.md 2.5, 2.7).

"Instructions" are those the emulator executes with one unit of virtual time each (``-icount shift=0``), read from the
SysTick counter; they are neither cycles nor time.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qunlearn_export.boards import QEMU, Board
from qunlearn_export.errors import ConfigError, InvariantError, MissingDependencyError

EMULATOR = "qemu-system-arm"
COMPILER = "arm-none-eabi-gcc"
PACKAGES = {
    EMULATOR: "qemu-system-arm",
    COMPILER: "gcc-arm-none-eabi",
    "arm-none-eabi-objdump": "binutils-arm-none-eabi",
}
TIME_LIMIT = 60.0
TIMED_OUT, HARD_FAULT, EXCEPTION, ABORTED = 124, 125, 126, 134
MEANING = {
    0: "all outputs equal",
    1: "an output differs",
    2: "bind refused layout, size or alignment",
    3: "wrong blob digest",
    TIMED_OUT: "time limit",
    HARD_FAULT: "hard fault",
    EXCEPTION: "exception",
    ABORTED: "the emulator gave up (double fault)",
}
"""Exit codes; 10 to 21 are those of an update."""
HOOKS_TIMED = 64
_ROW = re.compile(r"^qul (stack|ticks|hooks64) (\d{1,10})$")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left: exit ``code``, the program's own console text, ``stack`` bytes used (None if it did not reach
    its end), and emulated instructions of every node of the last inference (empty without hooks)."""

    code: int
    stdout: str
    stack: int | None
    insn: tuple[int, ...]

    @property
    def meaning(self) -> str:
        """The exit code in words."""
        if 10 <= self.code <= 21:
            return "update refused"
        return MEANING.get(self.code, "unknown")


def find(tool: str) -> str:
    """Path of ``tool``; MissingDependencyError with the apt line."""
    found = shutil.which(tool)
    if found is None:
        package = PACKAGES.get(tool, tool)
        raise MissingDependencyError(
            f"{tool} was not found.", remedy=f"Install it: apt-get install --no-install-recommends {package}."
        )
    return found


def missing() -> list[str]:
    """Which of cross compiler and emulator are absent."""
    return [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]


def command(elf: Path, board: Board) -> list[str]:
    """The emulator's command line; ConfigError for a board without a machine."""
    if not board.machine:
        raise ConfigError(f"{board.name} is not an emulated board.", remedy="Use one of the mps2 and mps3 boards.")
    return [find(EMULATOR), "-M", board.machine, *QEMU, "-kernel", str(elf)]


def run(elf: Path, board: Board, time_limit: float = TIME_LIMIT, *, folder: Path | None = None) -> Run:
    """Run ``elf`` at most ``time_limit`` seconds, in ``folder`` (files that the program opens)."""
    arguments = command(elf, board)
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder
    )
    try:
        out, err = process.communicate(timeout=time_limit)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        code = TIMED_OUT
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code == -signal.SIGABRT:
        code = ABORTED
    elif code < 0:
        raise InvariantError(f"the emulator died of signal {-code}.", remedy="Run it again; report it if it stays.")
    elif code == 1 and err and not out:
        text = err.decode(errors="replace").strip().splitlines()
        raise InvariantError(f"the emulator did not start: {text[0]:.200}.", remedy="Check the emulator's version.")
    return parse(code, out.decode(errors="replace"), board)


def parse(code: int, text: str, board: Board) -> Run:
    """Console text without the measuring lines, and what those say."""
    rows: list[tuple[str, int]] = []
    kept = []
    for line in text.splitlines():
        match = _ROW.match(line)
        if match is None:
            kept.append(line)
        else:
            rows.append((match[1], int(match[2])))
    stack = next((v for name, v in rows if name == "stack"), None)
    ticks = [v for name, v in rows if name == "ticks"]
    hooks = next((v for name, v in rows if name == "hooks64"), None)
    return Run(
        code=code, stdout="\n".join(kept), stack=stack, insn=() if hooks is None else instructions(ticks, hooks, board)
    )


def instructions(ticks: Sequence[int], hooks64: int, board: Board) -> tuple[int, ...]:
    """Ticks between hooks as instructions, less the cost of a hook (measured as ticks of 64 of them)."""
    if board.insn_per_tick is None:
        raise ConfigError(f"{board.name} has no insn_per_tick.", remedy="Calibrate it and add it to boards.toml.")
    hook = board.insn_per_tick * hooks64 / HOOKS_TIMED
    return tuple(max(0, round(t * board.insn_per_tick - hook)) for t in ticks)
