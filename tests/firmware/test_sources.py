"""Rules of the C sources that a compiler does not enforce."""

from __future__ import annotations

import re
from pathlib import Path

from clib import SOURCES

FILES = sorted(p for p in SOURCES.rglob("*") if p.suffix in (".c", ".h"))


def code(path: Path) -> str:
    """Text without comments."""
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)


def test_there_are_sources() -> None:
    names = {p.name for p in FILES}
    assert {"qul_rt.h", "qul_kernels_ref.c", "qul_kernels_dsp.c", "qul_kernels_mve.c", "startup.c"} <= names


def test_assembly_is_breakpoints_and_barriers_only() -> None:
    for path in FILES:
        for text in re.findall(r"__?asm(?:__)?\s*(?:volatile)?\s*\(\"([^\"]*)\"", code(path)):
            assert text.split()[0] in ("bkpt", "dsb", "isb", "r0", "r1"), (path.name, text)


def test_no_debug_cycle_counter() -> None:
    """It reads 0 under the emulator."""
    for path in FILES:
        assert not re.search(r"0xE000100[0-9A-F]|DWT|CYCCNT", code(path), re.I), path.name


def test_no_rotate_intrinsic() -> None:
    """The header of GCC 12 lacks it."""
    assert not [p.name for p in FILES if re.search(r"__rorl?l?\b", code(p))]


def test_no_library_and_no_double() -> None:
    allowed = {"stdint.h", "stddef.h", "float.h", "arm_acle.h", "arm_mve.h"}
    for path in FILES:
        text = code(path)
        assert set(re.findall(r"#include <([^>]+)>", text)) <= allowed, path.name
        assert not re.search(r"\b(double|malloc|calloc|realloc|free|printf|alloca)\b", text), path.name
        assert not re.search(r"\b\d+\.\d+(?:e[+-]?\d+)?(?![\dfFe])", text), path.name
