"""What the parity table holds: layers and logits compared, the verdict with its reasons (artefact_onnx 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qunlearn_export.coverage import Coverage
from qunlearn_export.probe import Probe
from qunlearn_export.ties import Tie


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer compared between two columns: ``max_abs`` in LSB, ``share`` of outputs that differ, ``mean`` of d."""

    name: str
    op: str
    pair: str
    mode: str
    max_abs: int
    share: float
    mean: float
    uninformative: bool


@dataclass(frozen=True, kw_only=True)
class Logits:
    """Final codes of two columns: differences, argmax agreement outside tied margins, smallest top-2 margin (LSB)."""

    pair: str
    max_abs: int
    share: float
    argmax: float
    argmax_outside_margin: float
    smallest_margin: int
    unresolved: int


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The parity table with its verdict; ``reasons`` names every violated bound with its layer."""

    verdict: str
    reasons: tuple[str, ...]
    logits: tuple[Logits, ...]
    layers: tuple[Row, ...]
    saturation: tuple[Row, ...]
    ties: tuple[Tie, ...]
    coverage: Coverage
    host: Probe
    inputs: Mapping[str, Any]
    runtime: Mapping[str, Any]
    file_digest: str
    codes_digest: str
    absent: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain mapping (artefact_onnx 3.3)."""
        return {
            "format": self.runtime["format"],
            "file_digest": self.file_digest,
            "codes_digest": self.codes_digest,
            "host": self.host.to_json(),
            "runtime": dict(self.runtime),
            "inputs": dict(self.inputs),
            "layers": [asdict(r) for r in self.layers],
            "saturation": [asdict(r) for r in self.saturation],
            "logits": {r.pair: asdict(r) for r in self.logits},
            "ties": [asdict(t) for t in self.ties],
            "coverage": self.coverage.to_json(),
            "absent": dict(self.absent),
            "verdict": self.verdict,
            "reasons": list(self.reasons),
        }

    def render(self) -> str:
        """A few lines for the terminal."""
        lines = [f"parity: {self.verdict}   ({self.inputs['n']} inputs, {len(self.layers)} layer comparisons)"]
        for r in self.logits:
            note = "  (information only)" if "onnx-raw" in r.pair else ""
            lines.append(
                f"  {r.pair:<22} logits differ in {100 * r.share:6.3f} %, at most {r.max_abs} LSB; "
                f"same class {100 * r.argmax:6.2f} %{note}"
            )
        lines.append(f"  integer kernels: {self.coverage.render()}")
        lines += [f"  {name}: absent, {why}" for name, why in self.absent.items()]
        lines += [f"  reason: {r}" for r in self.reasons]
        return "\n".join(lines)
