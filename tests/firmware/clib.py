"""Compiles the C of ``export/firmware`` for the tests: a shared library for ctypes, or a program under sanitizers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "export" / "firmware"
HERE = Path(__file__).resolve().parent
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-ffp-contract=off")
SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def compiler() -> str:
    """The host's C compiler; a test without one is an error, not a skip: the project needs one anyway."""
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return name
    raise RuntimeError("the C tests need a compiler (apt-get install gcc)")


def build(out: Path, names: tuple[str, ...], *extra: str, flags: tuple[str, ...] = ("-O2", "-fPIC", "-shared")) -> Path:
    """Compile files of ``export/firmware`` or of this folder into ``out``."""
    files = [str(SOURCES / n if (SOURCES / n).exists() else HERE / n) for n in names]
    command = [compiler(), *STRICT, *flags, *extra, f"-I{SOURCES}", f"-I{HERE}", "-o", str(out), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class Delta:
    """The C applier, called with layouts and bytes."""

    def __init__(self, library: Path) -> None:
        self.call = ctypes.CDLL(str(library)).harness_delta

    def __call__(self, old: bytes, body: bytes, layout: object, *, page: int = 4096, fail_at: int = -1) -> bytes | int:
        """The new blob, or the return code. ``layout`` has ``sizes`` and ``folds``."""
        sizes, folds = layout.sizes, layout.folds  # type: ignore[attr-defined]
        rows = [(f.weight, f.count, f.channels, f.inner, f.bias, f.zero) for f in folds]
        table = (ctypes.c_uint32 * max(6 * len(rows), 1))(*np.array(rows, dtype=np.uint32).ravel().tolist())
        slots = sum(f.channels for f in folds)
        out, buffer = ctypes.create_string_buffer(len(old) or 1), ctypes.create_string_buffer(page)
        rc: int = self.call(
            (ctypes.c_uint32 * 4)(*sizes),
            table,
            len(rows),
            old,
            body,
            len(body),
            buffer,
            page,
            out,
            (ctypes.c_int32 * max(slots, 1))(),
            ctypes.c_uint32(fail_at & 0xFFFFFFFF),
        )
        return out.raw[: len(old)] if rc == 0 else rc
