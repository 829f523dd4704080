"""Names of an untrusted file as C identifiers, and nothing else of them in generated text (firmware.md 5, trap 16)."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX = 32
_WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while asm fortran typeof
bool true false main errno assert memcpy memset memcmp memmove strlen abs exit abort linux unix arm near far interrupt
"""
RESERVED = frozenset(_WORDS.split())


def identifier(name: str) -> str:
    """``name`` reduced to [a-z0-9_], at most 32 characters, beginning with a letter, no word of C; never empty."""
    text = re.sub(r"_+", "_", re.sub(r"[^a-z0-9_]", "_", name.lower()))[:MAX].strip("_")
    if not text or not text[0].isalpha():
        text = f"m_{text}".rstrip("_")
    if text in RESERVED or text.startswith("qul"):
        text = f"m_{text}"
    return text[:MAX]


def identifiers(names: Iterable[str]) -> list[str]:
    """One identifier a name, in order; equal ones get a number."""
    out: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = identifier(name)
        text, number = base, 2
        while text in taken:
            tail = f"_{number}"
            text, number = base[: MAX - len(tail)] + tail, number + 1
        taken.add(text)
        out.append(text)
    return out
