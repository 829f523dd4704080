"""Boards and profiles: the table, verdicts at their boundaries, a user's own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from qunlearn_export import boards, qemu
from qunlearn_export.boards import Profile, fits, flash_need
from qunlearn_export.errors import ConfigError, MissingDependencyError

PROFILE = Profile(name="p", core="m4", flash=1000, ram=500)


def test_the_table() -> None:
    """Names, cores and memory maps that the emulator and the documentation rely on."""
    emulated = {b.name: (b.core, b.flash_start, b.ram_start) for b in boards.BOARDS.values() if b.machine}
    assert emulated == {
        "mps2-an385": ("m3", 0, 0x20000000),
        "mps2-an386": ("m4", 0, 0x20000000),
        "mps2-an500": ("m7", 0, 0x20000000),
        "mps3-an547": ("m55", 0x10000000, 0x30000000),
    }
    assert {f"generic-{core}" for core in ("m3", "m4", "m7", "m55")} <= set(boards.BOARDS)
    assert boards.BOARDS["mps3-an547"].flash == 512 * 1024
    assert {p.core for p in boards.profiles()} == set(boards.CORES)
    assert "-ffp-contract=off" in boards.COMMON
    assert {"-fno-builtin", "-ffreestanding"} <= set(boards.BARE)


@pytest.mark.parametrize(
    ("flash", "ram", "verdict", "missing"),
    [
        (800, 400, "FITS", (0, 0)),
        (801, 400, "TIGHT", (0, 0)),
        (800, 401, "TIGHT", (0, 0)),
        (1000, 500, "TIGHT", (0, 0)),
        (1001, 500, "TOO BIG", (1, 0)),
        (1000, 501, "TOO BIG", (0, 1)),
        (1300, 900, "TOO BIG", (300, 400)),
        (0, 0, "FITS", (0, 0)),
    ],
)
def test_verdict_flips_at_the_boundary_byte(flash: int, ram: int, verdict: str, missing: tuple[int, int]) -> None:
    found = fits(PROFILE, flash=flash, ram=ram)
    assert (found.verdict, found.missing_flash, found.missing_ram) == (verdict, *missing)


def test_reserves_are_taken_off() -> None:
    tight = Profile(name="p", core="m4", flash=1000, ram=500, reserve_flash=100, reserve_ram=50)
    assert fits(tight, flash=900, ram=450).verdict == "TIGHT"
    assert fits(tight, flash=901, ram=450).missing_flash == 1
    both = fits(tight, flash=801, ram=400, reserve_flash=100, reserve_ram=25)
    assert (both.have_flash, both.have_ram, both.missing_flash) == (800, 425, 1)
    nothing = fits(PROFILE, flash=1, ram=1, reserve_flash=2000)
    assert (nothing.have_flash, nothing.missing_flash) == (0, 1)


def test_need_by_update_mode() -> None:
    parts = {"code": 10, "blob": 200, "slot": 256, "staging": 64, "journal": 32}
    assert flash_need("none", **parts) == 210
    assert flash_need("ab", **parts) == 10 + 512 + 64
    assert flash_need("inplace", **parts) == 10 + 256 + 32 + 64
    with pytest.raises(ConfigError, match="update mode"):
        flash_need("both", code=1)


def test_a_users_profiles(tmp_path: Path) -> None:
    """They join the package's, and win over equal names."""
    file = tmp_path / "mine.toml"
    file.write_text(
        '[profile.mine]\ncore = "m33"\nflash = 128\nram = 32\nreserve_flash = 64\nreserve_ram = 8\n'
        '[profile.nrf52840]\ncore = "m4"\nflash = 1\nram = 1\n'
    )
    found = {p.name: p for p in boards.profiles(file)}
    assert found["mine"] == Profile(
        name="mine", core="m33", flash=131072, ram=32768, reserve_flash=65536, reserve_ram=8192
    )
    assert found["nrf52840"].flash == 1024
    assert len(found) == len(boards.profiles()) + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[profile.a]\ncore = 1\nflash = 1\nram = 1\n", "needs core"),
        ('[profile.a]\ncore = "m4"\nflash = 1\n', "needs ram"),
        ('[profile.a]\ncore = "m4"\nflash = -1\nram = 1\n', "needs flash"),
        ('[profile.a]\ncore = "m4"\nflash = true\nram = 1\n', "needs flash"),
        ('[profile.a]\ncore = "m4"\nflash = 1\nram = 1\ncolour = 3\n', "unknown key 'colour'"),
        ("[chip.a]\nram = 1\n", "neither"),
        ("[profile]\na = 1\n", "is not a table"),
        ('[board.a]\ncore = "m4"\nflash_start = 0\nflash = 1\nram_start = 0\nram = 1\nmachine = 4\n', "not text"),
        (
            '[board.a]\ncore = "m4"\nflash_start = 0\nflash = 1\nram_start = 0\nram = 1\ninsn_per_tick = "1/0"\n',
            "not a number",
        ),
        ("this is not toml", "mine.toml"),
    ],
)
def test_a_malformed_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        boards.profiles(file)
    assert caught.value.remedy


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        boards.profiles(tmp_path / "none.toml")


def test_board_files() -> None:
    """The memory map is filled in; a real board gets no semihosting."""
    for board in boards.BOARDS.values():
        files = boards.board_files(board)
        script = files[f"board/{board.name}/link.ld"].decode()
        assert f"ORIGIN = 0x{board.flash_start:08X}, LENGTH = 0x{board.flash:08X}" in script
        assert f"ORIGIN = 0x{board.ram_start:08X}, LENGTH = 0x{board.ram:08X}" in script
        assert "@" not in script
        assert (b"bkpt" in files[f"board/{board.name}/startup.c"]) == bool(board.machine)


def test_absent_tools_and_boards_without_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not an emulated board"):
        qemu.command(tmp_path / "fw.elf", boards.BOARDS["generic-m4"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="qemu-system-arm was not found") as caught:
        qemu.run(tmp_path / "fw.elf", boards.BOARDS["mps2-an386"])
    assert "apt-get install" in caught.value.remedy
    assert qemu.missing() == [qemu.COMPILER, qemu.EMULATOR]


def test_console_lines_are_read() -> None:
    board = boards.BOARDS["mps3-an547"]
    text = "hello\nqul stack 312\nqul ticks 100\nqul ticks 3\nqul stack x\nqul hooks64 128\n"
    run = qemu.parse(0, text, board)
    assert run.stdout == "hello\nqul stack x"
    assert run.stack == 312
    assert run.insn == (3062, 31)
    assert qemu.parse(12, "", board).meaning == "update refused"
    assert qemu.parse(124, "", board).insn == ()
