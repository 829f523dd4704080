"""A grid of experiments, read from one small TOML file."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qunlearn.data.request import Request
from qunlearn.errors import ConfigError, DataError, QunlearnError
from qunlearn.hyper import hypers
from qunlearn.quant import QuantSpec
from qunlearn.unlearn import METHODS

BN = ("source", "frozen")
TUNE_BY = ("reference", "no_reference")
LATER: dict[str, Any] = {"tune_by": "reference", "variants": {}}
VARIANT_KEYS = {"method", "settings", "search"}
MAX_BYTES = 1 << 20
NAME = re.compile(r"[a-z][a-z0-9_]*")
REMEDY = "docs/bench.md describes the file."


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Networks x bit widths x requests x methods x seeds on one data set, and how methods are tuned.

    ``requests`` are inline requests; ``group=*`` and ``class=*`` stand for every one. ``tune_requests`` (default: the
    requests) and ``tune_seeds`` name what configurations are chosen on; no tuning seed may be a seed. ``budget`` is the
    number of configurations drawn for every method, ``cost`` the largest share of retraining's sample gradients that a
    run may cost. ``shared`` are settings of every method that has them; ``settings`` and ``search`` those of one.
    ``variants`` are methods of their own: ``method`` with fixed ``settings`` and, where given, its own ``search``.
    ``tune_by`` is what configurations are chosen by: the gap to a retrained ``reference``, or ``no_reference``.
    ``train`` overrides the training recipe; ``subset`` takes so many training samples, balanced over classes.
    """

    data: str
    models: tuple[str, ...]
    requests: tuple[str, ...]
    methods: tuple[str, ...]
    bits: tuple[str, ...] = ("w8a8",)
    seeds: tuple[int, ...] = (0, 1, 2)
    tune_seeds: tuple[int, ...] = (100, 101)
    tune_requests: tuple[str, ...] = ()
    budget: int = 12
    cost: float = 0.2
    stop_rule: bool = False
    bn: str = "source"
    mia_nonmembers: str = "test"
    tune_by: str = "reference"
    subset: int | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    search: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        """Everything that is tuned and measured: the methods, then their variants."""
        return (*self.methods, *self.variants)

    def base(self, name: str) -> str:
        """The registered method behind a row."""
        return str(self.variants[name]["method"]) if name in self.variants else name

    def to_json(self) -> dict[str, Any]:
        """Plain data; keys that later versions added are left out at their defaults, so that old results stay valid."""
        value = dataclasses.asdict(self)
        return {k: v for k, v in value.items() if k not in LATER or v != LATER[k]}

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, as sentences."""
        bad = [f"{n} is empty" for n in ("models", "requests", "bits", "seeds") if not getattr(self, n)]
        if not self.rows:
            bad.append("methods is empty, and there are no variants")
        bad += [f"method {m!r} is unknown" for m in self.methods if m not in METHODS]
        both = set(self.seeds) & set(self.tune_seeds)
        if both:
            bad.append(f"seeds {sorted(both)} both tune and report")
        if self.budget < 1 or (self.budget > 1 and not self.tune_seeds):
            bad.append("budget must be at least 1, and more than 1 needs tune_seeds")
        if not 0 < self.cost <= 10:
            bad.append("cost must lie in 0..10")
        if self.bn not in BN:
            bad.append(f"bn must be one of {', '.join(BN)}")
        if self.tune_by not in TUNE_BY:
            bad.append(f"tune_by must be one of {', '.join(TUNE_BY)}")
        if self.mia_nonmembers not in ("test", "heldout"):
            bad.append("mia_nonmembers must be test or heldout")
        for text in self.bits:
            try:
                QuantSpec.parse(text)
            except QunlearnError as err:
                bad.append(err.message.rstrip("."))
        for text in (*self.requests, *self.tune_requests):
            try:
                if text not in ("group=*", "class=*"):
                    Request.parse(text)
            except DataError as err:
                bad.append(err.message.rstrip("."))
        for where in (self.settings, self.search):
            for name, values in where.items():
                known = hypers(METHODS[name]) if name in METHODS else None
                if known is None:
                    bad.append(f"settings of the unknown method {name!r}")
                else:
                    bad += [f"{name} has no setting {k!r}" for k in values if k not in known]
        return bad + [f"variant {n!r}: {p}" for n, v in self.variants.items() for p in _variant_problems(n, v)]


def _variant_problems(name: str, value: Any) -> list[str]:
    if not isinstance(value, dict) or value.get("method") not in METHODS:
        return ["it needs a table with the method that it is a variant of"]
    bad = [f"unknown key {k!r}" for k in value if k not in VARIANT_KEYS]
    if name in METHODS or not NAME.fullmatch(name):
        bad.append("its name must be letters, digits and _, and not that of a method")
    known = hypers(METHODS[value["method"]])
    for key in ("settings", "search"):
        own = value.get(key, {})
        if not isinstance(own, dict):
            bad.append(f"{key} must be a table")
        else:
            bad += [f"{value['method']} has no setting {k!r}" for k in own if k not in known]
    return bad


_TUPLES = {"models", "requests", "methods", "bits", "seeds", "tune_seeds", "tune_requests"}


def read_grid(path: str | Path) -> Grid:
    """The grid in a TOML file; ConfigError with all problems at once."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes.", remedy=REMEDY)
        value = tomllib.loads(raw.decode())
    except OSError as err:
        raise ConfigError(f"cannot read {path}: {err.strerror}.", remedy="Check the path.") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} is not TOML: {err}.", remedy=REMEDY) from err
    return grid_from(value, where=str(path))


def grid_from(value: Mapping[str, Any], *, where: str) -> Grid:
    """A grid from plain data; ``methods = "all"`` is every registered method."""
    known = {f.name: f for f in dataclasses.fields(Grid)}
    bad = [f"unknown key {k!r}" for k in value if k not in known]
    bad += [f"{n} is missing" for n in ("data", "models", "requests", "methods") if n not in value]
    fields: dict[str, Any] = {}
    for name, v in value.items():
        if name == "methods" and v == "all":
            v = list(METHODS)
        if name in _TUPLES:
            kind = int if name.endswith("seeds") else str
            if not isinstance(v, list) or not all(type(x) is kind for x in v):
                bad.append(f"{name} must be a list of {'whole numbers' if kind is int else 'texts'}")
                continue
            v = tuple(v)
        fields[name] = v
    plain = {"budget": int, "stop_rule": bool, "data": str, "bn": str, "mia_nonmembers": str, "tune_by": str}
    bad += [f"{n} must be {t.__name__}" for n, t in plain.items() if n in fields and type(fields[n]) is not t]
    bad += [
        f"{n} must be a table"
        for n in ("train", "shared", "settings", "search", "variants")
        if n in fields and not isinstance(fields[n], dict)
    ]
    if not bad:
        try:
            grid = Grid(**fields)
            bad = grid.problems()
        except TypeError as err:
            bad = [str(err)]
    if bad:
        raise ConfigError(f"{where}: {'; '.join(bad)}.", remedy=REMEDY)
    return grid
