"""A small data set with classes, groups and parts, and a place where nothing of the user's environment is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.data.dataset import Dataset, Preprocess

CLASSES = ("ant", "bee", "cat")
GROUPS = ("ann", "bob", "cleo", "dan")


def fields(copies: int = 5) -> dict[str, Any]:
    """Fields of a data set: ``copies`` samples of every class, group and part, all of different content."""
    rows = [
        (c, g, p)
        for p in ("train", "heldout", "test")
        for g in GROUPS
        for c in range(len(CLASSES))
        for _ in range(copies)
    ]
    n = len(rows)
    x = np.random.default_rng(3).integers(0, 256, (n, 2, 3, 3)).astype(np.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    return {
        "name": "toy",
        "x": x,
        "y": np.array([c for c, _, _ in rows]),
        "ids": np.array([f"s{i:03d}" for i in range(n)]),
        "group": np.array([g for _, g, _ in rows]),
        "part": np.array([p for _, _, p in rows]),
        "class_names": CLASSES,
        "preprocess": Preprocess((0.5,), (0.25,)),
    }


@pytest.fixture
def make() -> Callable[..., Dataset]:
    """Builds the toy data set with some fields replaced."""
    return lambda copies=5, **changes: Dataset(**{**fields(copies), **changes})


@pytest.fixture
def toy(make: Callable[..., Dataset]) -> Dataset:
    """The toy data set: 3 classes, 4 groups, 5 of each in each part."""
    return make()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see no data folder or cache of the user, and run in a folder of their own."""
    monkeypatch.delenv("QUNLEARN_DATA", raising=False)
    monkeypatch.setenv("QUNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
