"""Attacks with shadow models from the command line: trained by the run's recipe and method, cached, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qunlearn.cli import artefact
from qunlearn.cli.shadows import method_of, recipe_of
from qunlearn.data.request import Request
from qunlearn.data.sources import load
from qunlearn.data.splits import make_splits
from qunlearn.errors import ConfigError


def test_recipe_and_method_are_the_run_s_own(home: Path) -> None:
    _, config = artefact.open_run(home / "base")
    splits = make_splits(load("digits"), Request.parse("class=7"), seed=0)
    assert recipe_of(config, splits).epochs == 4
    method = method_of(home / "oeu")
    assert (method.name, method.config()["max_steps"]) == ("oeu", 20)
    with pytest.raises(ConfigError, match="which method"):
        method_of(home / "base")


def test_by_default_no_shadow_model_is_trained(home: Path, call: Any, tmp_path: Path) -> None:
    from qunlearn.cli.assess import parse_audits

    assert [a.name for a in parse_audits(None)] == ["accuracy", "mia", "smi"]
    assert [a.name for a in parse_audits("rmia, loss")] == ["rmia", "loss"]
    refused = call(
        "audit", home / "model.onnx", "--before", home / "base", "--forget", "class=7", "--audit", "u_lira",
        "-o", tmp_path / "x",
    )  # fmt: skip
    assert refused.code == 2
    assert "run folder" in refused.err


@pytest.mark.slow
def test_shadow_models_are_trained_unlearned_and_cached(home: Path, call: Any, tmp_path: Path) -> None:
    common = [
        "audit", home / "oeu", "--before", home / "base", "--reference", home / "without", "--forget", "random=25%",
        "--audit", "smi,loss,lira,rmia,u_lira", "--shadows", 2, "--shadow-cache", tmp_path / "cache",
    ]  # fmt: skip
    first = call(*common, "-o", tmp_path / "one", "--json")
    assert first.code in (3, 4), first.err
    files = sorted((tmp_path / "cache").glob("*.npz"))
    assert len(files) == 4
    stamps = [f.stat().st_mtime_ns for f in files]
    second = call(*common, "-o", tmp_path / "two")
    assert [f.stat().st_mtime_ns for f in files] == stamps
    assert "models" in second.out
    results = {r["audit"]: r for r in first.json["results"]["onnx-all"]}
    assert results["u_lira"]["tables"]["attack"]["models_unlearned"] == 2
    assert results["rmia"]["timings"]["training_s"] > 0
    assert results["loss"]["tables"]["attack"]["models_trained"] == 0
