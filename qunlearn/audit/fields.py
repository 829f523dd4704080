"""Hyper-parameters of audits: a data-class field that carries its own documentation and range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from qunlearn.errors import ConfigError


def param(
    default: Any,
    *,
    doc: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A data-class field with ``doc``, ``unit``, range: ``low <= x <= high``, ``x > above``, or one of ``choices``."""
    if choices:
        text = ", ".join(choices)
    elif above is not None:
        text = f"> {above:g}" if high is None else f"> {above:g}, <= {high:g}"
    else:
        text = f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"
    return dataclasses.field(
        default=default,
        metadata={
            "doc": doc,
            "unit": unit,
            "range": text,
            "low": low,
            "high": high,
            "above": above,
            "choices": choices,
        },
    )


def problems(config: Any) -> list[str]:
    """Every field of the data-class instance ``config`` that is of the wrong type or out of its range, as sentences."""
    out = []
    for f in dataclasses.fields(config):
        value, meta = getattr(config, f.name), f.metadata
        if meta["choices"]:
            if value not in meta["choices"]:
                out.append(f"{f.name} = {value!r} is none of {meta['range']}")
            continue
        wanted: tuple[type, ...] = (int, float) if isinstance(f.default, float) else (type(f.default),)
        if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(f.default, bool)):
            out.append(f"{f.name} = {value!r} is not of type {type(f.default).__name__}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            low, high, above = meta["low"], meta["high"], meta["above"]
            if (
                not math.isfinite(value)
                or (low is not None and value < low)
                or (high is not None and value > high)
                or (above is not None and value <= above)
            ):
                out.append(f"{f.name} = {value!r} is outside {meta['range']}")
    return out


def known(cls: type, names: Iterable[str]) -> None:
    """ConfigError that lists every name which is no field of the data class ``cls``."""
    fields = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(names) - set(fields))
    if unknown:
        raise ConfigError(
            f"unknown field {', '.join(map(repr, unknown))} for audit {getattr(cls, 'name', cls.__name__)!r}.",
            remedy=f"Known: {', '.join(fields)}.",
        )


def parsed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with strings (as the command line gives them) turned into the type of each field's default."""
    known(cls, values)
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    out: dict[str, Any] = {}
    for name, value in values.items():
        default = defaults[name]
        if not isinstance(value, str) or isinstance(default, str):
            out[name] = value
            continue
        try:
            if isinstance(default, bool):
                out[name] = {"true": True, "false": False, "1": True, "0": False}[value.lower()]
            else:
                out[name] = int(value) if isinstance(default, int) else float(value)
        except (ValueError, KeyError) as err:
            raise ConfigError(
                f"{name} = {value!r} is not of type {type(default).__name__}.", remedy="Give a plain number."
            ) from err
    return out


def describe(cls: type) -> list[dict[str, Any]]:
    """One row a field for help and docs: name, default, doc, unit, range."""
    return [
        {
            "name": f.name,
            "default": f.default,
            "doc": f.metadata["doc"],
            "unit": f.metadata["unit"],
            "range": f.metadata["range"],
        }
        for f in dataclasses.fields(cls)
    ]
