"""The table of codes, lost updates and dead channels, from cells by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from bench_toys import made, tiny
from scripts import benchmark

from qunlearn.bench.store import Store


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("codes_table")


def test_codes_table(script: ModuleType, tmp_path: Path) -> None:
    lost = ["W-LOST-TO-ROUNDING: most of the update was lost"]
    cells = [
        made("original", 0.4, 0), made("retrained", 0.0, 0),
        made("ga", 0.1, 0, codes_changed=0.02, latents_moved=0.9, lost_to_rounding=0.88, dead=0, warnings=lost),
        made("ga", 0.1, 1, codes_changed=0.04, latents_moved=0.7, lost_to_rounding=0.66, dead=0, warnings=[]),
        made("ssd", 0.1, 0, codes_changed=0.3, dead=3),
        {**made("ssd", 0.1, 1), "error": "InvariantError: x"},
    ]  # fmt: skip
    store = Store(tmp_path)
    for i, cell in enumerate(cells):
        store.add({"id": str(i), "tuning": False, **cell})
    store.add({"id": "t", "tuning": True, **made("ga", 0.1, 9, codes_changed=1.0)})  # tuning is no result
    (tmp_path / "grid.json").write_text(json.dumps(tiny().to_json()))
    chosen = [{"model": "m", "bits": "w8a8", "kind": "class", "method": m, "config": {}} for m in ("ga", "ssd")]
    (tmp_path / "chosen.json").write_text(json.dumps(chosen))
    (section,) = script.sections([tmp_path])
    assert (section["data"], section["model"], section["kind"]) == ("digits", "m", "class")
    ssd, ga = section["rows"]  # most codes first
    assert (ga["method"], ga["cells"], ga["failed"], ga["warned"]) == ("ga", 2, 0, 1)
    assert ga["codes_changed"] == pytest.approx(0.03)
    assert ga["lost_of_moved"] == pytest.approx(0.77 / 0.8)
    assert (ssd["dead"], ssd["cells_with_dead"], ssd["failed"], ssd["latents_moved"]) == (3, 1, 1, None)
    text = script.text([section])
    assert "| ga | 3.0 | 80.0 | 77.0 | 96.2 | 0.0 | 0 | 1 | 2 |" in text
    assert "| ssd | 30.0 | - | - | - | 3.0 | 1 | 0 | 2 (1 failed) |" in text
    assert "original" not in text
