"""The error family, re-exported from :mod:`qunlearn_export.errors` (DESIGN: one family for all packages)."""

from qunlearn_export.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    DivergedError,
    InvariantError,
    MissingDependencyError,
    NotYetError,
    QunlearnError,
    UnsupportedError,
    VerificationError,
)

__all__ = [
    "ArtefactError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "InvariantError",
    "MissingDependencyError",
    "NotYetError",
    "QunlearnError",
    "UnsupportedError",
    "VerificationError",
]
