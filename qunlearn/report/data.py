"""What a report is made of: plain values, no models, no predictors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

METRICS = ("forget", "retain", "heldout", "test", "mia")


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Fractions lie in 0..1 and are printed as per cent; None is printed as a dash.

    ``columns`` maps a column label (base, unlearned, retrained) to the five metrics; ``confidences`` maps the same
    labels to true-class probabilities on the forget set; ``trajectory`` holds trace rows (``step``, ``a_f``, ``a_r``,
    ``cos_before``, ``cos_after``), ``chosen`` the step that was kept; ``changes``, ``parity`` and ``audit`` are the
    JSON forms of those reports; ``sections`` has one mapping an audit: ``result`` (its JSON form), ``about``,
    ``cannot`` and ``entry`` (the metric's glossary fields); ``codes`` maps reason codes to sentences; ``source`` is the
    artefact kind that ``columns`` were read from. ``reasons`` and ``warnings`` are sentences.
    """

    title: str
    verdict: str
    reasons: Sequence[str] = ()
    warnings: Sequence[str] = ()
    request: str = ""
    method: str = ""
    columns: Mapping[str, Mapping[str, float | None]]
    reference: str | None = None
    source: str = "onnx-all"
    subject: str = "unlearned"
    confidences: Mapping[str, Sequence[float]] = field(default_factory=dict)
    trajectory: Sequence[Mapping[str, Any]] = ()
    band: tuple[float, float] | None = None
    chosen: int | None = None
    changes: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None
    codes: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, Any] = field(default_factory=dict)
    limits: Sequence[str] = ()
    sections: Sequence[Mapping[str, Any]] = ()
