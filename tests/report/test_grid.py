"""The page of a grid: the noise floor, earned bold, marked rows, shared settings, several pictures on one page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from bench_toys import made, tiny

from qunlearn.bench import table
from qunlearn.bench.store import Store
from qunlearn.report import grid, plots


@pytest.fixture(scope="module")
def value(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two bit widths, three seeds: ga is best beyond the floor at the first, nobody is at the second."""
    folder = tmp_path_factory.mktemp("grid")
    store = Store(folder)
    settings = {"rl": {"batch_size": 64, "lr": 0.01, "clip": None}, "ga": {"batch_size": 32, "fresh": True}}
    for bits, best in (("w8a8", 0.1), ("w4a4", 0.19)):
        for seed in range(3):
            own = [made("original", 0.4, seed), made("retrained", 0.0, seed), made("second retrained", 0.03, seed)]
            own += [made("ga", best, seed, codes_changed=0.1, cka=0.875, entropy=0.5, dead=1)]
            own += [made("rl", 0.2, seed, utility=["F-UTILITY-RETAIN"])]
            for c in own:
                known = {**c, "bits": bits, "config": settings.get(c["method"], {})}
                store.add({"id": f"{bits}{c['method']}{seed}", "tuning": False, **known})
    (folder / "grid.json").write_text(json.dumps(tiny(stop_rule=True).to_json()))
    chosen = [
        {"model": "m", "bits": b, "kind": "class", "method": m, "config": c, "score": 0.123, "gate": m == "ga",
         "tried": 2, "failed": 0, "seconds": 90.0}
        for b in ("w8a8", "w4a4") for m, c in settings.items()
    ]  # fmt: skip
    (folder / "chosen.json").write_text(json.dumps(chosen))
    return table.tables(folder)


def test_the_page_is_the_same_for_the_same_data_and_stands_alone(value: dict[str, Any]) -> None:
    page = grid.build(value)
    assert page == grid.build(json.loads(json.dumps(value)))
    assert not re.search(r'(src|href)="(?!#)', page)


def test_only_earned_rows_are_bold(value: dict[str, Any]) -> None:
    first, second = grid.build(value).split("<h2>")[1:3]
    assert re.findall(r"<th><b>(\w+)</b>", first) == ["ga"]
    assert not re.findall(r"<th><b>", second)
    assert first.count('<table class="plain">') == 2, "the style of other tables makes every first column bold"


def test_the_noise_floor_is_drawn_and_marked_rows_are_pale(value: dict[str, Any]) -> None:
    svg = plots.gaps(["a", "b"], [(0.1, 0.0), (0.3, 0.0)], (), where="x", floor=0.05, marked=["b"])
    assert "noise floor" in svg
    assert svg.count("opacity: 0.4") == 1
    bare = plots.gaps(["a", "b"], [(0.1, 0.0), (0.3, 0.0)], (), where="x")
    assert "noise floor" not in bare
    assert "opacity: 0.4" not in bare
    page = grid.build(value)
    assert page.count("noise floor") == 2
    assert page.count("Pale: marked in the table.") == 2


def test_pictures_of_one_page_share_no_id(value: dict[str, Any]) -> None:
    ids = re.findall(r'\bid="([^"]+)"', grid.build(value))
    assert len(ids) > 20
    assert len(ids) == len(set(ids))


def test_every_figure_of_the_tables_is_there(value: dict[str, Any]) -> None:
    page = grid.build(value)
    for text in ("<td>0.88</td>", "<td>0.50</td>", "<th>entropy</th>", "<th>dead</th>", "&plusmn;0.0", "<td>1.5</td>"):
        assert text in page, text


def test_shared_settings_stand_once_and_as_the_command_line_takes_them(value: dict[str, Any]) -> None:
    page = grid.build(value)
    assert page.count("<code>batch_size=64</code>") == 1
    assert page.count("<code>stop_rule=true</code>") == 1
    for text in ("batch_size=32", "fresh=true", "clip=none", "lr=0.01"):
        assert page.count(f"<code>{text}</code>") == 2, text
    assert "utility lost" in page
    assert "True" not in page
