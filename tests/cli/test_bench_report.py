"""``qunlearn bench report``: page and tables from committed cells, the README's among them; else it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_report_makes_the_page_and_the_readme_table(call: Callable[..., Any], tmp_path: Path) -> None:
    source = ROOT / "benchmarks" / "results" / "kws"
    for name in ("cells.jsonl", "chosen.json", "grid.json"):
        shutil.copy(source / name, tmp_path)
    assert call("bench", "report", tmp_path).code == 0
    table = (tmp_path / "table.md").read_text()
    shown = re.search(r"<!-- generated:grid-kws:begin -->\n(.*?)<!--", (ROOT / "README.md").read_text(), re.S)
    assert shown is not None
    assert shown[1].strip() in table
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("noise floor") == 1
    (part,) = json.loads((tmp_path / "table.json").read_text())["sections"]
    assert {r["method"] for r in part["rows"]} >= {"oeu", "ec", "original", "retrained", "second retrained"}
    assert all(f"<th>{r['method']}</th>" in page or f"<b>{r['method']}</b>" in page for r in part["rows"])


def test_a_folder_without_a_grid_is_refused(call: Callable[..., Any], tmp_path: Path) -> None:
    found = call("bench", "report", tmp_path)
    assert found.code == 2
    assert "holds no finished grid" in found.err
    assert not list(tmp_path.iterdir())
