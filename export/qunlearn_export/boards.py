"""Boards: compiler flags, memory maps, start-up files, and whether a network fits (firmware.md 2.5, 2.6, 2.8).

The one table of compiler flags is here; addresses and sizes are in ``firmware/boards.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from qunlearn_export.errors import ConfigError

FIRMWARE = Path(__file__).resolve().parent / "firmware"
COMMON = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
"""Every build, host or board."""
BARE = ("-ffreestanding", "-fno-builtin", "-ffunction-sections", "-fdata-sections", "-fstack-usage")
LINK = ("-nostdlib", "-Wl,--gc-sections", "-lgcc")
_FP5 = ("-mfpu=fpv5-sp-d16", "-mfloat-abi=hard")
CORES: Mapping[str, tuple[str, ...]] = {
    "m3": ("-mcpu=cortex-m3", "-mthumb"),
    "m4": ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"),
    "m7": ("-mcpu=cortex-m7", "-mthumb", *_FP5),
    "m33": ("-mcpu=cortex-m33", "-mthumb", *_FP5),
    "m55": ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard", "-fno-tree-slp-vectorize"),
}
"""Flags by core. On M55 the compiler would fill the parameters of a call with vectors: 168 B of stack for nothing."""
CONSOLE_CHARDEV = "stdio,id=sh0,mux=off"
QEMU = tuple(
    f"-nographic -monitor none -serial none -chardev {CONSOLE_CHARDEV} "
    "-semihosting-config enable=on,target=native,chardev=sh0,arg=fw -icount shift=0".split()
)
"""Options of every emulator run. Without a named chardev, semihosting text goes to stderr."""
KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Board:
    """A build target. Starts are addresses, ``flash`` and ``ram`` bytes; ``machine`` is the emulator's name ("" for a
    real board), ``insn_per_tick`` the emulated instructions of one SysTick tick."""

    name: str
    core: str
    machine: str
    flash_start: int
    flash: int
    ram_start: int
    ram: int
    insn_per_tick: Fraction | None

    @property
    def cpu(self) -> tuple[str, ...]:
        """Compiler flags of the core."""
        return CORES[self.core]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A product's memory in bytes; ``reserve_flash`` and ``reserve_ram`` belong to the rest of the application."""

    name: str
    core: str
    flash: int
    ram: int
    reserve_flash: int = 0
    reserve_ram: int = 0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """``verdict`` is ``FITS`` (at most 80 % of flash and of RAM), ``TIGHT`` (at most 100 %) or ``TOO BIG``.

    Bytes: what is needed, what is there after the reserves, and what is missing.
    """

    profile: str
    verdict: str
    need_flash: int
    need_ram: int
    have_flash: int
    have_ram: int
    missing_flash: int
    missing_ram: int


def load(path: Path) -> tuple[dict[str, Board], dict[str, Profile]]:
    """Boards and profiles of a TOML file; ConfigError names what is wrong with it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(f"{path.name}: {err}.", remedy="Write it like the boards.toml of the package.") from err
    found: dict[str, dict[str, Any]] = {"board": {}, "profile": {}}
    for kind, rows in data.items():
        if kind not in found or not isinstance(rows, dict):
            raise _bad(path, kind, "is neither [board.NAME] nor [profile.NAME]")
        for name, row in rows.items():
            if not isinstance(row, dict):
                raise _bad(path, name, f"is not a table; write [{kind}.{name}]")
            found[kind][name] = (_board if kind == "board" else _profile)(path, name, row)
    return found["board"], found["profile"]


def profiles(*files: Path) -> tuple[Profile, ...]:
    """The package's profiles and those of ``files``, which win over equal names, by name."""
    out = dict(_PROFILES)
    for path in files:
        out |= load(path)[1]
    return tuple(out[name] for name in sorted(out))


def flash_need(ota: str, *, code: int, blob: int = 0, slot: int = 0, staging: int = 0, journal: int = 0) -> int:
    """Bytes of flash: ``none`` code + blob; ``ab`` code + 2 slots + staging; ``inplace`` code + slot + journal +
    staging."""
    match ota:
        case "none":
            return code + blob
        case "ab":
            return code + 2 * slot + staging
        case "inplace":
            return code + slot + journal + staging
    raise ConfigError(f"update mode {ota!r}.", remedy="Use none, ab or inplace.")


def fits(profile: Profile, *, flash: int, ram: int, reserve_flash: int = 0, reserve_ram: int = 0) -> Fit:
    """The verdict for a need of ``flash`` and ``ram`` bytes; the reserves add to the profile's own."""
    have_flash = max(0, profile.flash - profile.reserve_flash - reserve_flash)
    have_ram = max(0, profile.ram - profile.reserve_ram - reserve_ram)
    missing_flash, missing_ram = max(0, flash - have_flash), max(0, ram - have_ram)
    if missing_flash or missing_ram:
        verdict = "TOO BIG"
    else:
        easy = 5 * flash <= 4 * have_flash and 5 * ram <= 4 * have_ram
        verdict = "FITS" if easy else "TIGHT"
    return Fit(
        profile=profile.name,
        verdict=verdict,
        need_flash=flash,
        need_ram=ram,
        have_flash=have_flash,
        have_ram=have_ram,
        missing_flash=missing_flash,
        missing_ram=missing_ram,
    )


def board_files(board: Board) -> dict[str, bytes]:
    """``qul_board.h`` and ``board/NAME/{startup.c,link.ld}`` by path: start-up, console, memory map."""
    source = FIRMWARE / "board"
    console = "semihosting.c" if board.machine else "silent.c"
    script = (source / "link.ld").read_text(encoding="utf-8")
    for name, value in (
        ("FLASH_START", board.flash_start),
        ("FLASH_SIZE", board.flash),
        ("RAM_START", board.ram_start),
        ("RAM_SIZE", board.ram),
    ):
        script = script.replace(f"@{name}@", f"0x{value:08X}")
    startup = (source / "startup.c").read_bytes() + b"\n" + (source / console).read_bytes()
    return {
        "qul_board.h": (source / "qul_board.h").read_bytes(),
        f"board/{board.name}/startup.c": startup,
        f"board/{board.name}/link.ld": script.encode(),
    }


def _bad(path: Path, name: object, what: str) -> ConfigError:
    return ConfigError(f"{path.name}: {name!s:.60} {what}.", remedy="Write it like the boards.toml of the package.")


def _number(path: Path, name: str, row: Mapping[str, Any], key: str, *, least: int, default: int | None = None) -> int:
    value = row.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32:
        raise _bad(path, name, f"needs {key}, a whole number of at least {least}")
    return value


def _common(path: Path, name: str, row: Mapping[str, Any], allowed: set[str]) -> str:
    unknown = sorted(set(row) - allowed)
    if unknown:
        raise _bad(path, name, f"has an unknown key {unknown[0]!r}")
    core = row.get("core")
    if core not in CORES:
        raise _bad(path, name, f"needs core, one of {', '.join(CORES)}")
    return str(core)


def _board(path: Path, name: str, row: Mapping[str, Any]) -> Board:
    core = _common(path, name, row, {"core", "machine", "flash_start", "flash", "ram_start", "ram", "insn_per_tick"})
    machine, tick = row.get("machine", ""), row.get("insn_per_tick")
    if not isinstance(machine, str) or (tick is not None and not isinstance(tick, str)):
        raise _bad(path, name, "has a machine or insn_per_tick that is not text")
    try:
        ratio = None if tick is None else Fraction(tick)
    except (ValueError, ZeroDivisionError) as err:
        raise _bad(path, name, "has an insn_per_tick that is not a number") from err
    return Board(
        name=name,
        core=core,
        machine=machine,
        flash_start=_number(path, name, row, "flash_start", least=0),
        flash=KIB * _number(path, name, row, "flash", least=1),
        ram_start=_number(path, name, row, "ram_start", least=0),
        ram=KIB * _number(path, name, row, "ram", least=1),
        insn_per_tick=ratio,
    )


def _profile(path: Path, name: str, row: Mapping[str, Any]) -> Profile:
    return Profile(
        name=name,
        core=_common(path, name, row, {"core", "flash", "ram", "reserve_flash", "reserve_ram"}),
        flash=KIB * _number(path, name, row, "flash", least=1),
        ram=KIB * _number(path, name, row, "ram", least=1),
        reserve_flash=KIB * _number(path, name, row, "reserve_flash", least=0, default=0),
        reserve_ram=KIB * _number(path, name, row, "reserve_ram", least=0, default=0),
    )


BOARDS, _PROFILES = load(FIRMWARE / "boards.toml")
