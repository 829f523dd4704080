"""Strict JSON: canonical bytes, and schemas that name every problem. Standard library only.

A schema is a function of (value, where) that yields problems; the functions below make schemas. Everything is an
allow-list: a field that is not named is a problem, as is one that is missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from qunlearn_export.errors import ArtefactError

Check: TypeAlias = Callable[[Any, str], Iterator[str]]
SHOWN = 8


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, ASCII with escapes, shortest floats, one newline at the end; NaN is a ValueError."""
    return (json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def parse(data: bytes, check: Check, name: str) -> Any:
    """The value of canonical ``data`` that satisfies ``check``; ArtefactError for anything else."""
    remedy = "Fetch the bundle again from its maker."
    try:
        value = json.loads(data.decode("ascii"), object_pairs_hook=_unique, parse_constant=_constant)
        again = canonical(value)
    except (ValueError, RecursionError) as err:
        raise ArtefactError(f"{name} is not strict JSON ({type(err).__name__}).", remedy=remedy) from err
    if again != data:
        raise ArtefactError(f"{name} is not written in its canonical form.", remedy=remedy)
    require(value, check, name)
    return value


def require(value: Any, check: Check, name: str) -> None:
    """ArtefactError that lists what is wrong with ``value``."""
    bad = list(check(value, name))
    if bad:
        more = f" (and {len(bad) - SHOWN} more)" if len(bad) > SHOWN else ""
        raise ArtefactError(
            f"{name} is malformed: {'; '.join(bad[:SHOWN])}{more}.", remedy="Make it with this version of qunlearn."
        )


def text(most: int = 400, pattern: str | None = None) -> Check:
    """A string of 1 to ``most`` characters that matches ``pattern`` as a whole."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, str) or not 0 < len(value) <= most:
            yield f"{where} is not a text of 1 to {most} characters"
        elif pattern is not None and re.fullmatch(pattern, value) is None:
            yield f"{where} has the wrong form"

    return check


def sha256() -> Check:
    """64 lower-case hexadecimal digits."""
    return text(64, r"[0-9a-f]{64}")


def one_of(*values: Any) -> Check:
    """One of the values; 1 and True are different."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not any(type(value) is type(v) and value == v for v in values):
            yield f"{where} is not one of {', '.join(map(str, values))}"

    return check


def fixed(wanted: Any) -> Check:
    """Exactly this value."""

    def check(value: Any, where: str) -> Iterator[str]:
        if value != wanted:
            yield f"{where} is not the text of this version"

    return check


def whole(low: int, high: int) -> Check:
    """An integer in ``low`` .. ``high``."""

    def check(value: Any, where: str) -> Iterator[str]:
        if type(value) is not int or not low <= value <= high:
            yield f"{where} is not a whole number from {low} to {high}"

    return check


def number(low: float = -1e9, high: float = 1e9) -> Check:
    """A finite number in ``low`` .. ``high``."""

    def check(value: Any, where: str) -> Iterator[str]:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            yield f"{where} is not a number from {low:g} to {high:g}"

    return check


def nullable(inner: Check) -> Check:
    """null, or what ``inner`` allows."""

    def check(value: Any, where: str) -> Iterator[str]:
        if value is not None:
            yield from inner(value, where)

    return check


def listing(inner: Check, *, least: int = 0, most: int = 64) -> Check:
    """A list of ``least`` to ``most`` values."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            yield f"{where} is not a list of {least} to {most} values"
            return
        for i, item in enumerate(value):
            yield from inner(item, f"{where}[{i}]")

    return check


def record(fields: Mapping[str, Check]) -> Check:
    """An object with exactly these fields."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where} is not an object"
            return
        yield from (f"{where} lacks {k}" for k in fields if k not in value)
        yield from (f"{where} has the unknown field {k[:40]!r}" for k in value if k not in fields)
        for k, inner in fields.items():
            if k in value:
                yield from inner(value[k], f"{where}.{k}")

    return check


def table(key: str, inner: Check, *, most: int = 64) -> Check:
    """An object with up to ``most`` fields whose names match ``key``."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict) or len(value) > most:
            yield f"{where} is not an object of at most {most} fields"
            return
        for k, item in value.items():
            if re.fullmatch(key, k) is None:
                yield f"{where} has a field of the wrong form"
            else:
                yield from inner(item, f"{where}.{k}")

    return check


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice")
    return out


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
