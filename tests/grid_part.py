"""One part of a committed grid, as the tests of the pages read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qunlearn.bench import compare
from qunlearn.bench import table as tables
from qunlearn.bench.scene import ROWS
from qunlearn.bench.store import Store

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Part:
    """The rows of one part of a grid (one network, bit width and kind of request) by method, and its cells."""

    def __init__(self, name: str, kind: str) -> None:
        (part,) = [p for p in tables.tables(RESULTS / name)["sections"] if p["kind"] == kind]
        self.rows: dict[str, dict[str, Any]] = {r["method"]: r for r in part["rows"]}
        self.ranked = [r["method"] for r in part["rows"] if r["method"] not in ROWS]
        self.cells = [c for c in tables.load(RESULTS / name)["cells"] if c["request"].startswith(kind)]
        tuning = [c for c in Store(RESULTS / name) if c["tuning"] and c["request"].startswith(kind)]
        self.gate = {r["method"]: r for r in compare.gated(tuning)}
        self.standing = {r["measure"]: r for r in compare.standing(self.cells, "oeu")}

    def of(self, method: str, key: str = "forget_accuracy") -> list[float]:
        return [c["onnx"][key] for c in self.cells if c["method"] == method]

    def gap(self, method: str) -> float:
        return float(self.rows[method]["gap"][0])

    def fa(self, method: str) -> float:
        return float(self.rows[method]["forget_accuracy"][0])

    def kept(self, method: str) -> bool:
        """No mark, and no accuracy lost on retain data."""
        return "utility" not in self.rows[method]["marks"] and self.rows[method]["retain_accuracy"][0] > 0.99


def words(page: str) -> str:
    """A page of docs, white space made single spaces."""
    return " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
