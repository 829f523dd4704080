"""Variants of methods in a grid, and tuning without a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_toys import TINY, made, tiny

from qunlearn import bench, tasks
from qunlearn.bench import table
from qunlearn.bench.cell import Bench, identity
from qunlearn.bench.draw import check, draw
from qunlearn.bench.grid import grid_from
from qunlearn.bench.networks import load_dataset
from qunlearn.bench.plan import choose, score, tuning_jobs
from qunlearn.bench.scene import Spot
from qunlearn.bench.store import Store
from qunlearn.errors import ConfigError
from qunlearn.unlearn import METHODS

FREE = {"oeu_free": {"method": "oeu", "settings": {"scope": "none"}}}


def test_a_variant_is_drawn_as_its_method_with_its_settings_on_top() -> None:
    grid = tiny(
        methods=["oeu"], budget=6, search={"oeu": {"loss": ["e1", "e2"]}}, settings={"oeu": {"max_steps": 7}},
        variants={**FREE, "oeu_e1": {"method": "oeu", "settings": {"loss": "e1", "clip": "none"}},
                  "oeu_slow": {"method": "oeu", "search": {"lr": [1e-6, 1e-2]}}},
    )  # fmt: skip
    assert grid.rows == ("oeu", "oeu_free", "oeu_e1", "oeu_slow")
    base = draw(grid, "oeu")
    assert draw(grid, "oeu_free") == [{**c, "scope": "none"} for c in base]
    assert draw(grid, "oeu_e1") == [{**c, "loss": "e1", "clip": None} for c in base]
    slow = draw(grid, "oeu_slow")
    assert [c["lr"] / 10 for c in base] == pytest.approx([c["lr"] for c in slow], rel=0.02)  # the same draws, shifted
    assert [{**c, "lr": 0} for c in slow] == [{**c, "lr": 0} for c in base]
    for row in grid.rows:
        assert len(draw(grid, row)) == 6
        for config in draw(grid, row):
            METHODS[grid.base(row)](**config).validate()
    jobs = [j.method for j in tuning_jobs(grid, load_dataset(grid, None))]
    assert {m: jobs.count(m) for m in grid.rows} == dict.fromkeys(grid.rows, 6)  # each has the budget of a method


def test_a_variant_is_no_other_row() -> None:
    grid = tiny(methods=["oeu"], variants={"a": FREE["oeu_free"], "b": {"method": "ft"}})
    spot = Spot(model="resnet8@4", bits="w8a8", request="class=3", seed=0)
    other = tiny(methods=["oeu"], variants={"a": {"method": "ft"}, "b": {"method": "ft"}})
    names = [identity(g, spot, n, {}, tuning=False) for g in (grid, other) for n in ("oeu", "a", "b")]
    assert len(set(names)) == 4  # oeu and b are the same in both grids, a is not


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": {"settings": {}}}, "needs a table with the method"),
        ({"a": {"method": "magic"}}, "needs a table with the method"),
        ({"a": 3}, "needs a table with the method"),
        ({"ft": {"method": "oeu"}}, "not that of a method"),
        ({"second retrained": {"method": "oeu"}}, "letters, digits and _"),
        ({"a": {"method": "oeu", "speed": 1}}, "unknown key 'speed'"),
        ({"a": {"method": "oeu", "settings": {"speed": 1}}}, "oeu has no setting 'speed'"),
        ({"a": {"method": "oeu", "search": {"speed": [1]}}}, "oeu has no setting 'speed'"),
        ({"a": {"method": "oeu", "search": 3}}, "search must be a table"),
    ],
)
def test_wrong_variants_are_refused(value: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny(variants=value)


def test_settings_that_do_not_go_together_are_found_before_anything_runs(tmp_path: Path) -> None:
    grid = tiny(variants={"bad": {"method": "oeu", "settings": {"ema_only": True}}})
    with pytest.raises(ConfigError, match=r"variant .bad.: ema_only needs"):
        bench.run(grid, work=tmp_path / "work", out=tmp_path / "out", say=lambda text: None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="methods is empty, and there are no variants"):
        tiny(methods=[])
    assert tiny(methods=[], variants=FREE).rows == ("oeu_free",)


def test_committed_ablations_hold_together() -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "grids"
    oeu, ec = (bench.read_grid(folder / f"ablation_{n}.toml") for n in ("oeu", "ec"))
    for grid in (oeu, ec):
        check(grid)
    said = {json.dumps(oeu.variants.get(row), sort_keys=True) for row in oeu.rows}
    assert len(said) == len(oeu.rows) == 9
    assert {c["scope"] for c in draw(oeu, "oeu_no_projection")} == {"none"}
    assert {v["settings"].get("tau") for v in ec.variants.values()} >= {0.1, 1.0}
    assert {v["settings"].get("lam") for v in ec.variants.values()} >= {0.03, 0.3, 1.0}


def test_old_results_stay_valid() -> None:
    """Keys that came later are not written at their defaults: a folder of before goes on."""
    plain = json.dumps(tiny().to_json(), indent=2, sort_keys=True)
    assert "variants" not in plain
    assert "tune_by" not in plain
    assert tiny(variants=FREE).to_json()["variants"] == FREE
    assert tiny(tune_by="no_reference").to_json()["tune_by"] == "no_reference"
    assert grid_from(json.loads(plain), where="x") == tiny()


def test_a_grid_of_variants_without_a_reference(tmp_path: Path) -> None:
    """From nothing to the table: the variant has its own row, and J alone chose."""
    grid = tiny(
        methods=["oeu"], variants=FREE, tune_by="no_reference", settings={"oeu": {"max_steps": 12}},
        search={"oeu": {"lr": [1e-3, 3e-2]}},
    )  # fmt: skip
    bench.run(grid, work=tmp_path / "work", out=tmp_path, say=lambda text: None)
    store = Store(tmp_path)
    tuned = [c for c in store if c["tuning"]]
    assert {c["method"]: c.get("of") for c in store if "original" not in c["method"]} | {} == {
        "oeu": None, "oeu_free": "oeu", "retrained": None, "second retrained": None,
    }  # fmt: skip
    assert all(c["J"] >= 0 and isinstance(c["J_utility"], bool) for c in tuned)
    for chosen in json.loads((tmp_path / "chosen.json").read_text()):
        own = [c for c in tuned if c["method"] == chosen["method"]]
        best = min(own, key=lambda c: (not c["J_utility"], c["J"]))
        assert (chosen["config"], chosen["score"]) == (best["config"], best["J"])
    rows = {r["method"]: r for r in bench.tables(tmp_path)["sections"][0]["rows"]}
    assert rows["oeu"]["gap"] != rows["oeu_free"]["gap"]
    assert table.text(bench.tables(tmp_path)).startswith("Configurations were chosen by the stop rule's J alone")


def test_j_is_the_stop_rules_and_knows_no_retrained_network(tmp_path: Path) -> None:
    grid = tiny()
    runner = Bench(grid, load_dataset(grid, None), tmp_path)
    spot = Spot(model="resnet8@4", bits="w8a8", request="class=3", seed=100)
    config = {"stop_rule": True, "eval_every": 2, "probe": 500, "max_steps": 20, "lr": 0.01}
    found = runner.run(spot, "oeu", config, tuning=True)
    again = METHODS["oeu"](**config)(
        runner.scene(spot).original.model, runner.scene(spot).splits, tasks.get("classification"),
        request_kind="class", seed=100,
    )  # fmt: skip
    assert found["J"] == pytest.approx(again.fields["chosen"]["J"], abs=1e-9)


def test_without_a_reference_j_ranks_whatever_the_gap() -> None:
    by_gap, by_j = tiny(methods=["rl"], budget=2), tiny(methods=["rl"], budget=2, tune_by="no_reference")
    dataset = load_dataset(by_gap, None)
    first, second = (j.id(by_gap) for j in tuning_jobs(by_gap, dataset))

    def tuned(gap: float, j: float | None, ok: bool = True) -> dict[str, Any]:
        value = dict.fromkeys(("forget_accuracy", "retain_accuracy", "heldout_accuracy", "mia"), 0.5)
        return {"onnx": {k: v + gap for k, v in value.items()}, "retrained": value, "passes": 1.0, "utility": [],
                "seconds": 1.0, "J": j, "J_utility": ok}  # fmt: skip

    cells = {first: tuned(0.01, 0.4), second: tuned(0.3, 0.2)}
    configs = draw(by_gap, "rl")
    assert [choose(g, dataset, cells)[0].config for g in (by_gap, by_j)] == configs
    assert choose(by_j, dataset, {**cells, second: tuned(0.3, 0.2, ok=False)})[0].config == configs[0]
    assert score(by_j, dataset, tuned(0.0, None))[0] == 2  # no band, no J
    assert score(by_j, dataset, {"error": "x"})[0] == 2
    with pytest.raises(ConfigError, match="tune_by must be"):
        grid_from({**TINY, "tune_by": "luck"}, where="x")


def test_variants_stand_in_the_table_beside_their_method() -> None:
    cells = [made(m, g, 0) for m, g in (("original", 0.4), ("retrained", 0.0), ("oeu", 0.1), ("oeu_free", 0.2))]
    assert [r["method"] for r in table.rows_of(cells)] == ["oeu", "oeu_free", "original", "retrained"]
