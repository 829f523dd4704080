"""The predictor over generated C: the oracle's answers, the codes of the file, features by taps, no silent fallback."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qunlearn.audit import FirmwarePredictor, OraclePredictor, TorchPredictor
from qunlearn.errors import ConfigError, MissingDependencyError, UnsupportedError
from qunlearn.models import build
from qunlearn.quant import QuantModel, QuantSpec, lower, prepare
from qunlearn.quant.detie import detie
from qunlearn_export.writer import serialize

SHAPE = (1, 12, 8)
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def net() -> tuple[QuantModel, bytes]:
    example = torch.from_numpy(np.random.default_rng(0).normal(size=(64, *SHAPE)).astype(np.float32))
    model = prepare(build("dscnn@8", in_shape=SHAPE, num_classes=3, seed=0), QuantSpec(), example).eval()
    detie(model)
    return model, serialize(lower(model))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(300, *SHAPE)).astype(np.float32)


def test_host_answers_are_the_oracles(net: tuple[QuantModel, bytes], x: np.ndarray) -> None:
    c, oracle = FirmwarePredictor(net[1]), OraclePredictor(net[1])
    assert c.kind == "c-host"
    assert c.logits(x).tobytes() == oracle.logits(x).tobytes()
    assert c.digest == oracle.digest
    assert c.codes_digest() == oracle.codes_digest() == TorchPredictor(net[0]).codes_digest()
    assert c.meta["threads"] == 1
    assert c.meta["runtime"]


def test_features_by_taps(net: tuple[QuantModel, bytes], x: np.ndarray) -> None:
    c, torch_p = FirmwarePredictor(net[1]), TorchPredictor(net[0])
    names = ["penultimate", "stem.0", "pool", "input"]
    mine, theirs = c.features(x, names), torch_p.features(x, names)
    for name in names:
        assert mine[name].shape == theirs[name].shape
        step = np.diff(np.unique(mine[name])).min()
        assert np.abs(mine[name] - theirs[name]).max() <= 3.5 * step, name
    assert np.array_equal(mine["input"], theirs["input"])
    with pytest.raises(ConfigError, match="no feature named nothing"):
        c.features(x, ["nothing"])


def test_wrong_kinds_and_absent_tools(
    net: tuple[QuantModel, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot be of kind 'oracle'"):
        FirmwarePredictor(net[1], kind="oracle")
    with pytest.raises(ConfigError, match="not an emulated board"):
        FirmwarePredictor(net[1], kind="c-target", board="generic-m4")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingDependencyError, match="no C compiler"):
        FirmwarePredictor(net[1])
    with pytest.raises(MissingDependencyError, match="apt-get install"):
        FirmwarePredictor(net[1], kind="c-target")


@pytest.mark.cross
def test_an_emulated_board_answers_the_same(net: tuple[QuantModel, bytes], x: np.ndarray) -> None:
    target = FirmwarePredictor(net[1], kind="c-target", board="mps2-an385")
    assert target.kind == "c-target"
    assert target.logits(x[:16]).tobytes() == FirmwarePredictor(net[1]).logits(x[:16]).tobytes()
    assert "mps2-an385" in target.meta["runtime"]
    with pytest.raises(UnsupportedError, match="no features"):
        target.features(x, ["penultimate"])
