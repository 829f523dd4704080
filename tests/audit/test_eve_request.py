"""The crafted request as data: the input grid, 8-bit storage, files, what is private."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import CraftedRequest, Submission
from qunlearn.audit.eve_grid import InputGrid, default_radius
from qunlearn.data.dataset import Samples
from qunlearn.errors import ArtefactError, ConfigError, DataError


@pytest.mark.parametrize("scale", [0.031, 0.03125, 0.0078])
@pytest.mark.parametrize("eps", [0.04, 0.5])
def test_snapped_samples_lie_on_the_grid_in_the_ball_and_in_the_range(scale: float, eps: float) -> None:
    rng = np.random.default_rng(1)
    grid = InputGrid.of(scale, 7, (np.full((2, 1, 1), -1.5), np.full((2, 1, 1), 1.2)))
    x = rng.normal(0, 1.0, (40, 2, 3, 3)).astype(np.float32)
    codes = grid.snap(x + rng.normal(0, 1.0, x.shape), x, eps)
    values = grid.values(codes)
    assert codes.dtype == np.int8
    assert np.array_equal(grid.snap(values, values, eps), codes)  # every value is on the grid
    assert np.abs(values - grid.inside(x)).max() <= eps + 1e-6
    assert (values >= grid.low - 1e-6).all()
    assert (values <= grid.high + 1e-6).all()
    stored = np.frombuffer(codes.tobytes(), np.int8).reshape(codes.shape)
    assert grid.values(stored).tobytes() == values.tobytes()
    quantized = np.clip(np.rint(values / np.float32(scale)) + 7, -128, 127).astype(np.int8)
    assert np.array_equal(quantized, codes)  # the network's own input quantizer reads the very codes


def test_a_radius_below_one_input_step_is_refused() -> None:
    grid = InputGrid.of(0.1, 0)
    with pytest.raises(ConfigError, match="less than one step"):
        grid.require_radius(0.099)
    grid.require_radius(0.1)


def test_default_radius() -> None:
    x = np.random.default_rng(0).normal(0, 2.0, (4000, 3, 1, 1)).astype(np.float32)
    assert default_radius(x, np.dtype(np.float32), 1.0, (1.0,), 0.1) == pytest.approx(1.0, abs=0.05)
    image = default_radius(x, np.dtype(np.uint8), 255.0, (0.5,), 0.009)
    assert image == pytest.approx(6 * 0.009)  # 8/255/0.5 = 0.0627 in whole steps
    assert default_radius(x, np.dtype(np.uint8), 255.0, (0.5,), 0.1) == pytest.approx(0.1)


def test_files_round_trip_and_the_submission_holds_nothing_private(world: Any, lab: Any, tmp_path: Path) -> None:
    request = lab.eve_request(world)
    private, public = request.save(tmp_path)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    again = CraftedRequest.load(tmp_path)
    assert again.digest == request.digest
    assert again.to_bytes() == request.to_bytes() == private.read_bytes()
    given = Submission.load(public)
    assert given.x.tobytes() == request.x.tobytes()
    with np.load(public) as f:
        assert set(f.files) == {"codes", "scale", "zero_point", "y", "ids"}
    target = request.role("target").raw()[0].tobytes()
    assert target in private.read_bytes()
    assert all(target != x.tobytes() for x in given.x)
    assert [len(request.role(r)) for r in ("target", "bystander", "erase", "retain", "heldout")] == [1, 20, 20, 40, 40]
    assert request.splits().counts() == {
        "forget": 20, "retain": 40, "heldout.stop": 20, "heldout.audit": 20, "test": 21,
    }  # fmt: skip


@pytest.mark.parametrize("change", ["facts", "role", "class", "shape", "nan", "format", "truncated", "other"])
def test_damaged_requests_are_refused(change: str, world: Any, lab: Any, tmp_path: Path) -> None:
    good = lab.eve_request(world)
    path = tmp_path / "request.npz"
    if change in ("truncated", "other"):
        path.write_bytes(good.to_bytes()[:500] if change == "truncated" else good.submission())
        with pytest.raises(ArtefactError):
            CraftedRequest.load(path)
        return
    x = good.probe_x.copy()
    x[0] = np.nan
    changes: dict[str, dict[str, Any]] = {
        "facts": {"facts": {k: v for k, v in good.facts.items() if k != "model"}},
        "role": {"probe_role": np.where(good.probe_role == "retain", "other", good.probe_role)},
        "class": {"y_adv": np.array([77])},
        "shape": {"y": good.y[:-1]},
        "nan": {"probe_x": x},
        "format": {"facts": {**good.facts, "format": 9}},
    }
    with pytest.raises(ArtefactError, match="crafted request"):
        dataclasses.replace(good, **changes[change])


def test_a_submission_replaces_exactly_the_named_samples(world: Any, lab: Any, tmp_path: Path) -> None:
    request = lab.eve_request(world)
    request.save(tmp_path)
    given = Submission.load(tmp_path)
    out = given.applied(world.dataset)
    rows = np.array([world.dataset.id_index[str(i)] for i in given.ids])
    assert Samples(out, rows).inputs().tobytes() == given.x.tobytes()
    rest = np.setdiff1d(np.arange(len(out)), rows)
    assert np.array_equal(Samples(out, rest).inputs(), Samples(world.dataset, rest).inputs())
    assert np.array_equal(out.part, world.dataset.part)
    strange = dataclasses.replace(given, ids=np.array([f"no{i}" for i in range(len(given.ids))]))
    with pytest.raises(DataError, match="lack samples no0"):
        strange.applied(world.dataset)
    with pytest.raises(ConfigError, match="shape"):
        dataclasses.replace(given, x=np.zeros((len(given.y), 1, 2, 1), np.float32)).applied(world.dataset)
