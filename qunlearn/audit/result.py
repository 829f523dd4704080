"""The one result type of every audit: frozen, complete by construction, canonical as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from qunlearn.audit.codes import known_reason, known_warning
from qunlearn.audit.glossary import GLOSSARY
from qunlearn.errors import InvariantError
from qunlearn.fingerprint import plain
from qunlearn_export.files import canonical_json

VERDICTS = ("pass", "inconclusive", "fail")
"""From best to worst."""
SIDES = ("under", "over", "utility", "parity", "none")
REFERENCE_KINDS = ("retrained", "none", "calibration")

_KEYS: Mapping[str, frozenset[str]] = {
    "interval": frozenset({"lo", "hi", "level", "method"}),
    "reference": frozenset({"kind", "value", "interval", "digest"}),
    "artefact": frozenset(
        {"kind", "file_digest", "codes_digest", "runtime", "optimisation_level", "cpu_flags", "threads"}
    ),
    "digests": frozenset({"model_before", "model_after", "data_split", "config", "code"}),
}
_TABLES = frozenset({"metrics", "parity", "change", "per_class"})
_SHA = re.compile(r"[0-9a-f]{64}")


def frozen(value: Any) -> Any:
    """Plain data with read-only mappings and tuples in place of dictionaries and lists, copied deeply."""
    if isinstance(value, Mapping):
        return MappingProxyType({str(k): frozen(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(frozen(v) for v in value)
    return value


def worst(verdicts: list[str]) -> str:
    """The worst of the verdicts: fail, then inconclusive, then pass. An empty list is an InvariantError."""
    if not verdicts:
        raise InvariantError("a verdict over nothing was asked for.", remedy="Run at least one audit.")
    return max(verdicts, key=VERDICTS.index)


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found on one artefact. JSON holds shares as fractions in 0..1.

    ``value`` and ``interval`` are null only where the audit stopped at a gate that ``reasons`` names. ``direction`` is
    a sentence on which values mean what. ``tables`` holds ``metrics`` (glossary key to set to column), ``parity``,
    ``change``, ``per_class`` (null where they do not apply) and what only one audit reports. A missing or empty field
    is an InvariantError that lists every problem.
    """

    audit: str
    version: str
    metric: str
    value: float | None
    interval: Mapping[str, Any] | None
    direction: str
    headline: bool
    reference: Mapping[str, Any]
    verdict: str
    failure_side: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    artefact: Mapping[str, Any]
    digests: Mapping[str, str]
    seeds: Mapping[str, int]
    n: Mapping[str, int]
    timings: Mapping[str, float]
    tables: Mapping[str, Any]

    def __post_init__(self) -> None:
        bad = self._problems()
        if bad:
            raise InvariantError(
                f"result of audit {self.audit!r} is not complete: {'; '.join(bad)}.",
                remedy="Report this as a defect of the audit.",
            )
        for f in fields(self):
            object.__setattr__(self, f.name, frozen(plain(getattr(self, f.name))))

    def _problems(self) -> list[str]:
        bad = [
            f"{name} is empty"
            for name in ("audit", "version", "metric", "direction")
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip()
        ]
        if self.metric not in GLOSSARY:
            bad.append(f"metric {self.metric!r} has no glossary entry")
        if self.verdict not in VERDICTS:
            bad.append(f"verdict {self.verdict!r}")
        if self.failure_side not in SIDES or (self.verdict == "fail") != (self.failure_side != "none"):
            bad.append(f"failure side {self.failure_side!r} with verdict {self.verdict!r}")
        if not isinstance(self.headline, bool):
            bad.append("headline is not a truth value")
        for name, keys in _KEYS.items():
            value = getattr(self, name)
            if value is None and name == "interval":
                continue
            if not isinstance(value, Mapping) or set(value) != keys:
                bad.append(f"{name} must have exactly the keys {', '.join(sorted(keys))}")
                continue
            bad += [f"{name}.{k} is empty" for k, v in value.items() if v == "" or v == [] or v == ()]
        if bad:
            return bad
        return self._value_problems()

    def _value_problems(self) -> list[str]:
        bad = []
        if self.reference["kind"] not in REFERENCE_KINDS:
            bad.append(f"reference kind {self.reference['kind']!r}")
        if (self.reference["kind"] == "none") != (self.reference["digest"] is None):
            bad.append("a reference has a digest, a declared absence has none")
        if (self.value is None) != (self.interval is None):
            bad.append("value and interval stand or fall together")
        if self.value is None and (not self.reasons or self.verdict == "pass"):
            bad.append("value is missing and no gate is named")
        if (self.verdict == "pass") == bool(self.reasons):
            bad.append("a pass has no reasons, every other verdict has at least one")
        if (
            self.value is not None
            and self.interval is not None
            and math.isfinite(self.value)
            and not self.interval["lo"] <= self.value <= self.interval["hi"]
        ):
            bad.append("value lies outside its interval")
        for k, v in {**self.artefact, **self.digests}.items():
            if v is None:
                bad.append(f"{k} is missing")
        for k, v in self.digests.items():
            if k != "code" and not _SHA.fullmatch(str(v)):
                bad.append(f"digest {k} is not a SHA-256")
        for name in ("seeds", "n", "timings"):
            if not isinstance(getattr(self, name), Mapping) or not getattr(self, name):
                bad.append(f"{name} is empty")
        bad += [f"unknown reason {c!r}" for c in self.reasons if not known_reason(c)]
        bad += [f"unknown warning {c!r}" for c in self.warnings if not known_warning(c)]
        bad += [f"tables lack {k}" for k in sorted(_TABLES - set(self.tables))]
        bad += [f"metric {k!r} has no glossary entry" for k in self.tables.get("metrics", {}) if k not in GLOSSARY]
        if not bad:
            try:
                canonical_json(plain({f.name: getattr(self, f.name) for f in fields(self)}))
            except ValueError:
                bad.append("a number is not finite")
        return bad

    def to_json(self) -> dict[str, Any]:
        """Every field as plain data; ``canonical_json`` of it is the canonical text."""
        out: dict[str, Any] = plain(self)
        return out

    def without_timings(self) -> dict[str, Any]:
        """:meth:`to_json` less the timings: what two runs with the same seed have in common, key for key."""
        out = self.to_json()
        del out["timings"]
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AuditResult:
        """The inverse of :meth:`to_json`; unknown or missing fields are an InvariantError."""
        names = {f.name for f in fields(cls)}
        if set(value) != names:
            raise InvariantError(
                f"an audit result has the wrong fields: {', '.join(sorted(set(value) ^ names))}.",
                remedy="Read it with the version that wrote it.",
            )
        return cls(**{**value, "reasons": tuple(value["reasons"]), "warnings": tuple(value["warnings"])})
