"""The one error family of the project. Standard library only.

Every error says what is wrong and what to do next. ``exit_code`` is what the command line returns.
"""

from __future__ import annotations

from typing import ClassVar


class QunlearnError(Exception):
    """Base of all errors that the project raises on purpose.

    ``message`` is one sentence or more on what is wrong; ``remedy`` says what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class ConfigError(QunlearnError):
    """An option, a hyper-parameter, a name or an output path is wrong."""

    exit_code = 2


class DataError(QunlearnError):
    """A data set, a deletion request or a split is wrong."""

    exit_code = 2


class ArtefactError(QunlearnError):
    """A checkpoint, ONNX file or bundle cannot be read, is malformed, or is of an unknown version."""

    exit_code = 2


class VerificationError(QunlearnError):
    """A readable artefact fails a written check (parity, degenerate scales, ties, digest)."""

    exit_code = 3


class InvariantError(QunlearnError):
    """A check of our own work failed: nothing changed, a frozen tensor moved, a self-check of a method."""

    exit_code = 3


class UnsupportedError(QunlearnError):
    """Never possible for this input."""

    exit_code = 5


class NotYetError(QunlearnError):
    """Could be possible, is not offered yet."""

    exit_code = 5


class MissingDependencyError(QunlearnError):
    """Something asked for by name (an extra, a compiler, a processor) is absent; the remedy is the install line."""

    exit_code = 5


class DivergedError(QunlearnError):
    """A run became non-finite or exploded; the last good state is kept."""

    exit_code = 6
