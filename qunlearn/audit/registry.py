"""The registry of verifiers: checks what a class declares before it takes it in."""

from __future__ import annotations

from qunlearn.audit.base import Audit
from qunlearn.audit.glossary import GLOSSARY
from qunlearn.audit.sets import NAMES
from qunlearn.errors import ConfigError
from qunlearn.hyper import hypers
from qunlearn.registry import Registry

AUDITS: Registry[type[Audit]] = Registry("audit")


def register(cls: type[Audit]) -> type[Audit]:
    """Add a verifier. ConfigError lists everything that its declaration lacks: attributes, field documentation."""
    bad = [
        f"{attribute} is not declared"
        for attribute in ("name", "version", "metric", "direction", "cannot", "higher_side")
        if not isinstance(getattr(cls, attribute, None), str) or not getattr(cls, attribute)
    ]
    if not bad:
        if cls.metric not in GLOSSARY:
            bad.append(f"metric {cls.metric!r} has no glossary entry")
        if cls.higher_side not in ("under", "over"):
            bad.append(f"higher_side {cls.higher_side!r} is neither under nor over")
        bad += [f"unknown sample set {s!r}" for s in cls.sets if s not in NAMES]
        if not cls.tasks:
            bad.append("no task is served")
    if not (cls.__doc__ or "").strip():
        bad.append("it has no docstring")
    bad += [f"field {h.name!r} has no documentation" for h in hypers(cls).values() if not h.doc]
    if cls.__dataclass_params__.frozen is not True:  # type: ignore[attr-defined]
        bad.append("it is not frozen")
    if bad:
        raise ConfigError(f"audit class {cls.__name__}: {'; '.join(bad)}.", remedy="Complete the declaration.")
    return AUDITS.register(cls.name, cls)


__all__ = ["AUDITS", "register"]
