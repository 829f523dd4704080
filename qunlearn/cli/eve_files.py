"""What commands do with crafted requests, submissions and calibrations. Needs no torch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from qunlearn.audit import eve_calibration, eve_request
from qunlearn.audit.eve_calibration import Calibration
from qunlearn.audit.eve_request import CraftedRequest, Submission
from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError

PROBE = "probe.npz"


def inputs(request: str | None, calibration: str | None) -> dict[str, Any]:
    """Inputs of the audit ``eve`` by key; a calibration alone is a ConfigError."""
    if request is None:
        if calibration is not None:
            raise ConfigError("--calibration without --eve.", remedy="Give the crafted request by --eve.")
        return {}
    out: dict[str, Any] = {eve_request.INPUT: CraftedRequest.load(Path(request))}
    if calibration is not None:
        out[eve_calibration.INPUT] = Calibration.load(Path(calibration))
    return out


def as_submitted(splits: Splits, path: Path) -> Splits:
    """The same splits with the forget samples as they were submitted; ConfigError unless exactly those were given."""
    submission = Submission.load(path)
    asked, given = {str(i) for i in splits.forget.ids}, {str(i) for i in submission.ids}
    if asked != given:
        raise ConfigError(
            f"{len(given)} samples were submitted, the request names {len(asked)}, {len(asked & given)} are the same.",
            remedy="Give the request that the samples were crafted for (and the same --seed).",
        )
    dataset = submission.applied(splits.dataset)
    moved: dict[str, Any] = {
        f.name: Samples(dataset, value.index) if isinstance(value := getattr(splits, f.name), Samples) else value
        for f in fields(Splits)
    }
    return Splits(**moved)
