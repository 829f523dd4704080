"""Pages that the C library keeps after a large block was freed: two requests to it, where it knows them (glibc).

Several copies of a large file are made one after another, here and inside ONNX Runtime. With glibc's defaults the peak
of the process depends on which freed blocks happen to be kept.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of mallopt(3)."""

LARGE = 2**17
"""Bytes; glibc's own value before it adapts."""


def make_room() -> None:
    """Give freed pages back to the system."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def return_large_blocks() -> None:
    """From now on blocks of 128 KiB or more go back to the system when they are freed.

    It holds for the whole process: for commands, which own theirs, never for the library.
    """
    option = _glibc("mallopt")
    if option is not None:
        option(MMAP_THRESHOLD, LARGE)


def _glibc(name: str) -> Any:
    """A function of the C library; None where there is none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
