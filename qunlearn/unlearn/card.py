"""The reference card: what networks that never saw a group do on it, measured once at training time.

For every group the training recipe is run without it, and accuracy and confidence on the left-out group are written
down. After a deletion request the stop rule then knows where a retrained network would stand, without retraining.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qunlearn.errors import ArtefactError, ConfigError
from qunlearn_export.files import write_atomic

VERSION = 2
READS = (1, 2)
"""Version 1 had no ``similarity``."""
KIND = "qunlearn reference card"
MAX_BYTES = 4 * 2**20
MAX_GROUPS = 10_000


@dataclass(frozen=True, kw_only=True)
class GroupValue:
    """Of a network trained without a group, on that group: ``accuracy``, mean true-class probability, sample count."""

    accuracy: float
    confidence: float
    samples: int

    def problems(self) -> list[str]:
        """What is wrong with the values, one sentence each."""
        bad = []
        for name in ("accuracy", "confidence"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                bad.append(f"{name} is not a number")
            elif not 0 <= value <= 1:
                bad.append(f"{name} {value} is outside 0..1")
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            bad.append("samples is not a positive whole number")
        return bad


@dataclass(frozen=True, kw_only=True)
class ReferenceCard:
    """Leave-one-group-out values by group name. ``model_digest`` is the digest of the network the card belongs to.

    ``similarity`` has, under ``group=NAME`` or ``class=NAME``, for every feature layer the CKA between the network and
    one trained without that group or class: (on what was left out, on the rest). All problems of the values are
    reported in one ConfigError.
    """

    groups: Mapping[str, GroupValue]
    model_digest: str = ""
    seed: int = 0
    similarity: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = [f"group {name!r}: {p}" for name, value in self.groups.items() for p in value.problems()]
        bad += [
            f"similarity {key!r} of layer {layer!r} is not a pair of numbers up to 1"
            for key, layers in self.similarity.items()
            for layer, pair in layers.items()
            if len(pair) != 2 or not all(isinstance(v, int | float) and -2 <= v <= 1.0001 for v in pair)
        ]
        if not (self.groups or self.similarity) or len(self.groups) > MAX_GROUPS:
            bad.append(f"the number of groups must lie in 1..{MAX_GROUPS}")
        if bad:
            raise ConfigError(f"reference card: {'; '.join(bad)}.", remedy="Make the card anew.")

    def to_json(self) -> dict[str, Any]:
        """Plain mapping with the format's name and version."""
        return {
            "kind": KIND,
            "version": VERSION,
            "model_digest": self.model_digest,
            "seed": self.seed,
            "groups": {
                name: {"accuracy": v.accuracy, "confidence": v.confidence, "samples": v.samples}
                for name, v in sorted(self.groups.items())
            },
            "similarity": {key: {n: list(v) for n, v in layers.items()} for key, layers in self.similarity.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the card as JSON, whole or not at all."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return write_atomic(path, text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReferenceCard:
        """Read a card; ArtefactError when it cannot be read, is malformed or of an unknown version."""
        target = Path(path)
        remedy = "Make it anew with `qunlearn train --reference-card`."
        try:
            size = target.stat().st_size
            if size > MAX_BYTES:
                raise ArtefactError(f"{target} has {size} bytes, more than {MAX_BYTES}.", remedy=remedy)
            value = json.loads(target.read_text(encoding="utf-8"), object_pairs_hook=_no_twice, parse_constant=_no_nan)
        except OSError as err:
            raise ArtefactError(f"cannot read {target}: {err.strerror}.", remedy="Check the path.") from err
        except (ValueError, RecursionError) as err:
            raise ArtefactError(f"{target} is not a reference card: {err}.", remedy=remedy) from err
        return cls.from_json(value, where=str(target))

    @classmethod
    def from_json(cls, value: Any, *, where: str = "card.json") -> ReferenceCard:
        """Strict inverse of :meth:`to_json`."""
        remedy = "Make it anew with `qunlearn train --reference-card`."
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise ArtefactError(f"{where} is not a reference card.", remedy=remedy)
        if value.get("version") not in READS:
            raise ArtefactError(
                f"{where} has format version {value.get('version')!r}; this package reads versions up to {VERSION}.",
                remedy=remedy,
            )
        want = {"kind", "version", "model_digest", "seed", "groups"} | (
            {"similarity"} if value["version"] > 1 else set()
        )
        bad = [f"missing {k}" for k in sorted(want - set(value))] + [f"unknown {k}" for k in sorted(set(value) - want)]
        if not bad:
            if not isinstance(value["model_digest"], str):
                bad.append("model_digest is not text")
            if isinstance(value["seed"], bool) or not isinstance(value["seed"], int):
                bad.append("seed is not a whole number")
            if not isinstance(value["groups"], dict):
                bad.append("groups is not an object")
            else:
                fields = {"accuracy", "confidence", "samples"}
                bad += [
                    f"group {name!r} must hold exactly {', '.join(sorted(fields))}"
                    for name, entry in value["groups"].items()
                    if not isinstance(entry, dict) or set(entry) != fields
                ]
            layers = value.get("similarity", {})
            if not isinstance(layers, dict) or not all(
                isinstance(v, dict) and all(isinstance(pair, list) for pair in v.values()) for v in layers.values()
            ):
                bad.append("similarity is not an object of objects of pairs")
        if bad:
            raise ArtefactError(f"{where}: {'; '.join(bad[:8])}.", remedy=remedy)
        try:
            return cls(
                groups={name: GroupValue(**entry) for name, entry in value["groups"].items()},
                model_digest=value["model_digest"],
                seed=value["seed"],
                similarity={k: {n: tuple(v) for n, v in e.items()} for k, e in value.get("similarity", {}).items()},
            )
        except ConfigError as err:
            raise ArtefactError(f"{where}: {err.message}", remedy=remedy) from err


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice")
    return out


def _no_nan(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")
