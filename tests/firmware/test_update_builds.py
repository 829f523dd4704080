"""The update code compiles without a warning for every core and compiler, and calls nothing that a board has not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from clib import SOURCES

from qunlearn_export import boards

FILES = ("qul_sha", "qul_ed25519", "qul_delta", "qul_slots", "qul_inplace", "qul_update", "qul_flash_sim")
FORBIDDEN = ("malloc", "free", "printf", "__aeabi_d", "__aeabi_uldiv", "__aeabi_ldiv", "__udivdi3", "__divdi3")


def undefined(nm: str, objects: list[Path]) -> set[str]:
    """What the objects together ask of others."""
    done = subprocess.run([nm, *map(str, objects)], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines() if line.strip() and not line.endswith(":")]
    defined = {r[-1] for r in rows if len(r) == 3}
    return {r[-1] for r in rows if len(r) == 2 and r[0] == "U"} - defined


@pytest.mark.parametrize(
    ("target", "opt"),
    [("gcc", "-O0"), ("gcc", "-O2"), ("clang", "-O2"), ("m3", "-Os"), ("m4", "-Os"), ("m4", "-O2"), ("m55", "-Os")],
)
def test_compiles(tmp_path: Path, target: str, opt: str):
    core = boards.CORES.get(target)
    compiler, nm = (target, "nm") if core is None else ("arm-none-eabi-gcc", "arm-none-eabi-nm")
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}: apt-get install {'gcc-arm-none-eabi' if core else compiler}")
    flags = [*(core or ()), *boards.COMMON, "-Wconversion", "-ffreestanding", "-fno-builtin", "-ffunction-sections"]
    objects = []
    for name in FILES:
        objects.append(tmp_path / f"{name}.o")
        command = [compiler, *flags, opt, "-c", str(SOURCES / f"{name}.c"), "-o", str(objects[-1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    wanted = undefined(nm, objects)
    assert not {n for n in wanted if n.startswith(FORBIDDEN)}
    allowed = {"memcpy", "memset", "memmove", "memcmp", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert {n for n in wanted if not n.startswith("__aeabi_ll") and not n.startswith("__aeabi_l")} <= allowed, wanted
