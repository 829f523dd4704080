"""Hyper-parameters of methods and audits: dataclass fields with doc, unit and range.

Checks, tables and parsing are made from them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qunlearn.errors import ConfigError

_META = "hyper"


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """One hyper-parameter: ``low``/``high`` bound what runs (``low_open`` excludes ``low``), ``search`` is the tuner's
    range (log-uniform where ``log``), ``choices`` lists the allowed words."""

    name: str = ""
    default: Any = None
    doc: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    choices: tuple[str, ...] = ()
    search: tuple[float, ...] = ()
    log: bool = False
    types: tuple[type, ...] = ()

    @property
    def range(self) -> str:
        """The allowed values in one short text, for help and docs."""
        parts = list(self.choices)
        if self.low_open and self.high is None:
            parts.append(f"> {self.low:g}")
        elif self.low is not None or self.high is not None:
            left = "" if self.low is None else f"{'>' if self.low_open else ''}{self.low:g}"
            parts.append(f"{left}..{'' if self.high is None else f'{self.high:g}'}")
        if bool in self.types:
            parts.append("true, false")
        if type(None) in self.types:
            parts.append("none")
        return ", ".join(parts)

    def problem(self, value: Any) -> str | None:
        """What is wrong with ``value``, or None."""
        if value is None:
            return None if type(None) in self.types else f"{self.name} must not be empty"
        if isinstance(value, bool):
            return None if bool in self.types else f"{self.name} must be {self._kinds()}, not {value}"
        if isinstance(value, str):
            if str not in self.types:
                return f"{self.name} must be {self._kinds()}, not {value!r}"
            if self.choices and value not in self.choices:
                return f"{self.name} {value!r} is not one of {', '.join(self.choices)}"
            return None
        allowed = (int, float) if float in self.types else (int,) if int in self.types else ()
        if not isinstance(value, allowed):
            return f"{self.name} must be {self._kinds()}, not {value!r}"
        if not math.isfinite(value):
            return f"{self.name} = {value!r} must be finite"
        below = self.low is not None and (value <= self.low if self.low_open else value < self.low)
        if below or (self.high is not None and value > self.high):
            return f"{self.name} {value:g} is outside {self.range}"
        return None

    def parse(self, text: str) -> Any:
        """A value from the text of ``--set name=text``; ConfigError when it fits none of the types."""
        word = text.strip()
        if type(None) in self.types and word.lower() in ("none", "null"):
            return None
        if bool in self.types and word.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            return word.lower() in ("true", "yes", "on", "1")
        for kind in (int, float):
            if kind in self.types:
                try:
                    return kind(word)
                except ValueError:
                    continue
        if str in self.types:
            return word
        raise ConfigError(f"{self.name} must be {self._kinds()}, not {text!r}.", remedy=f"Allowed: {self.range}.")

    def _kinds(self) -> str:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
        return " or ".join(words[t] for t in self.types)


def hyper(
    default: Any,
    *,
    doc: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    choices: Iterable[str] = (),
    search: tuple[float, ...] = (),
    log: bool = False,
) -> Any:
    """A dataclass field that carries a :class:`Hyper`."""
    entry = Hyper(
        default=default,
        doc=doc,
        unit=unit,
        low=low,
        high=high,
        low_open=low_open,
        choices=tuple(choices),
        search=search,
        log=log,
    )
    return dataclasses.field(default=default, metadata={_META: entry})


def hypers(cls: type[Any]) -> dict[str, Hyper]:
    """All hyper-parameters of a method or audit by name, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    out = {}
    for f in dataclasses.fields(cls):
        entry = f.metadata.get(_META, Hyper())
        hint = hints[f.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        out[f.name] = dataclasses.replace(entry, name=f.name, default=f.default, types=tuple(kinds))
    return out


def problems(config: Any) -> list[str]:
    """Every field of the instance ``config`` that is of the wrong type or out of its range, as sentences."""
    found = (h.problem(getattr(config, name)) for name, h in hypers(type(config)).items())
    return [p for p in found if p is not None]


def parse_settings(cls: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Texts of ``--set key=value`` to typed values (other values stay); all problems are in one ConfigError."""
    known = hypers(cls)
    values, bad = {}, []
    for name, text in settings.items():
        if name not in known:
            bad.append(f"{name!r} is unknown")
            continue
        try:
            values[name] = known[name].parse(text) if isinstance(text, str) else text
        except ConfigError as err:
            bad.append(err.message.rstrip("."))
    if bad:
        raise ConfigError("; ".join(bad) + ".", remedy=f"Known: {', '.join(known)}.")
    return values
