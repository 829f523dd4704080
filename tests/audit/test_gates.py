"""Collapse checks one by one, bounded calls, and the same JSON from two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AUDITS
from qunlearn.audit.predictor import CHUNK


@pytest.mark.parametrize("factor", [0.1, 0.3])
def test_flattened_confidences_are_a_collapse_though_no_answer_changed(factor: float, world: Any, lab: Any) -> None:
    soft = lab.TableModel(world.retrained.table * factor)
    result = AUDITS["accuracy"]()(world.context(world.original, soft, world.retrained))
    assert result.reasons == ("F-COLLAPSE-ENTROPY",)
    assert result.failure_side == "utility"


def test_small_entropies_have_an_absolute_band(world: Any, lab: Any) -> None:
    sharp = 12.0 * (np.arange(5) == world.dataset.y[:, None])
    before = lab.TableModel(sharp)
    z = sharp.copy()
    z[world.splits.forget.index] = world.retrained.table[world.splits.forget.index]
    after = lab.TableModel(np.where(z == 12.0, 9.0, z))
    result = AUDITS["accuracy"]()(world.context(before, after, world.retrained))
    row = result.tables["metrics"]["entropy"]["heldout_all"]
    assert row["after"]["value"] > 5 * row["before"]["value"]
    assert result.verdict == "pass"


def test_one_class_taking_over_is_a_collapse_whatever_the_floor(world: Any, lab: Any) -> None:
    z = world.retrained.table.copy()
    rest = np.setdiff1d(np.arange(len(z)), world.splits.forget.index)
    rows = rest[rest % 4 == 0]
    z[rows] = np.roll(z[rows], 1, axis=1)
    top = z[rows].max(axis=1)
    z[rows] = 0
    z[rows, 2] = top
    audit = AUDITS["accuracy"].from_config({"utility_floor": 1.0})
    result = audit(world.context(world.original, lab.TableModel(z), world.retrained))
    assert result.reasons == ("F-COLLAPSE-CLASS",)


def test_r15_model_calls_are_bounded(world: Any, lab: Any) -> None:
    sizes = []

    class Watched(lab.TableModel):  # type: ignore[misc,name-defined]
        """Notes the size of every call."""

        def logits(self, x: Any) -> Any:
            sizes.append(len(x))
            return super().logits(x)

    model = Watched(world.retrained.table)
    AUDITS["mia"]()(world.context(world.original, model, world.retrained))
    assert max(sizes) == CHUNK < len(world.splits.retain)


_SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("world_of_tables", sys.argv[1])
lab = importlib.util.module_from_spec(spec); sys.modules["world_of_tables"] = lab; spec.loader.exec_module(lab)
from qunlearn.audit import AUDITS
from qunlearn_export.files import canonical_json
d = lab.make_dataset()
w = lab.World(d, lab.make_splits(d, lab.Request.parse("group=s0"), seed=0))
for name in AUDITS:
    r = AUDITS[name]()(w.context(w.original, w.near(w.retrained, 3), w.retrained))
    print(canonical_json(r.without_timings()))
"""


def test_r14_two_processes_give_the_same_json() -> None:
    conftest = str(Path(__file__).with_name("conftest.py"))
    texts = [
        subprocess.run(
            [sys.executable, "-c", _SCRIPT, conftest],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0].count("\n") == len(AUDITS)
    assert texts[0] == texts[1]
