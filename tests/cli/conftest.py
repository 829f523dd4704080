"""A small trained run on real digits, made once, and a way to call the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qunlearn.cli import run


@dataclass(frozen=True)
class Called:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    def inner(*argv: object) -> Called:
        capsys.readouterr()
        code = run([str(a) for a in argv])
        captured = capsys.readouterr()
        return Called(code, captured.out, captured.err)

    return inner


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and ``without`` (class 7 left out), ``oeu`` unlearned from base, and ``model.onnx`` of it."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--data", "digits", "--model", "resnet8@8", "--epochs", "4"]
    settings = ["--set", "lr=0.01", "--set", "max_steps=20"]
    steps = [
        ["train", *common, "-o", folder / "base"],
        ["train", *common, "--exclude", "class=7", "--seed", "5", "-o", folder / "without"],
        ["unlearn", folder / "base", "--forget", "class=7", "--method", "oeu", *settings, "-o", folder / "oeu"],
        ["export", folder / "oeu", "-o", folder / "model.onnx", "--parity-n", "64"],
    ]
    for step in steps:
        assert run([str(a) for a in step]) == 0, step
    return folder
