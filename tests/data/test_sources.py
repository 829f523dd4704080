"""What a source may be: names, paths found in folders, functions; and what is none."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.data.dataset import Dataset
from qunlearn.data.sources import BUILT_IN, load
from qunlearn.errors import ConfigError, DataError, NotYetError

Write = Callable[[str], str]
BODY = """
    import numpy as np
    from qunlearn.data.dataset import Dataset
    from qunlearn.errors import DataError

    X = np.arange(80, dtype=np.uint8).reshape(20, 1, 2, 2)
    ARRAYS = {"x": X, "y": np.arange(20) % 2}

    def arrays():
        import lazy_{name}
        return {"x": X, "y": np.arange(20) % 2}

    def whole():
        return Dataset(
            name="mine", x=X, y=np.arange(20) % 2, ids=np.arange(20), class_names=("a", "b"),
            part=np.array(["train"] * 10 + ["heldout"] * 5 + ["test"] * 5),
        )

    def text():
        return "kws"

    def wants(path):
        return path

    def fails():
        return 1 / 0

    def says():
        raise DataError("the store is closed.", remedy="Open it.")

    def ragged():
        return {"x": [[1], [1, 2]], "y": [0, 1]}
"""


@pytest.fixture
def module(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a module in the working directory, which no other test uses."""
    name = f"source_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(BODY).replace("{name}", name))
    (tmp_path / f"lazy_{name}.py").write_text("")
    (tmp_path / f"broken_{name}.py").write_text("def f(:\n")
    return name


def save(path: Path) -> Path:
    np.savez(path, x=np.arange(80, dtype=np.uint8).reshape(20, 1, 2, 2), y=np.arange(20) % 2)
    return path


def test_a_function_gives_a_data_set_or_arrays(module: str) -> None:
    before = list(sys.path)
    assert load(f"{module}:whole").name == "mine"
    arrays = load(f"{module}:arrays", seed=3)
    assert arrays.name == "arrays"
    assert {p: len(arrays.where(p)) for p in ("train", "heldout", "test")} == {"train": 13, "heldout": 3, "test": 4}
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("nothing", "cannot be imported: AttributeError"),
        ("ARRAYS", "is not a function"),
        ("text", "returned str"),
        ("wants", "failed: TypeError"),
        ("fails", "failed: ZeroDivisionError: division by zero"),
        ("says", "the store is closed"),
        ("ragged", "x is no array"),
        ("", "cannot be imported"),
    ],
)
def test_functions_that_give_no_data(module: str, function: str, match: str) -> None:
    before = list(sys.path)
    with pytest.raises(DataError, match=match) as caught:
        load(f"{module}:{function}")
    assert caught.value.remedy
    assert sys.path == before


def test_modules_that_cannot_be_imported(module: str) -> None:
    for name, kind in ((f"broken_{module}", "SyntaxError"), (f"absent_{module}", "ModuleNotFoundError"), ("", "Value")):
        with pytest.raises(DataError, match=f"cannot be imported: {kind}"):
            load(f"{name}:f")


def test_a_file_is_found_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    path = save(folder / "mine.npz")
    want = load(str(path)).digest()
    assert load("mine.npz", data_dir=folder).digest() == want
    monkeypatch.setenv("QUNLEARN_DATA", str(folder))
    assert load("mine.npz").digest() == want
    with pytest.raises(DataError, match=r"no file mine\.npz \(looked for in the working directory or "):
        load("mine.npz", data_dir=tmp_path)


def test_a_colon_in_a_path_is_no_function(tmp_path: Path) -> None:
    assert load(str(save(tmp_path / "a:b.npz"))).name == "a:b"


@pytest.mark.parametrize("source", ["", "mnist", "no/folder", "a\0b", "a" * 5000])
def test_no_source(source: str) -> None:
    with pytest.raises(DataError, match="there is no data source") as caught:
        load(source)
    assert all(name in caught.value.remedy for name in BUILT_IN)


def test_a_missing_file() -> None:
    with pytest.raises(DataError, match=r"no file no/x\.npz \(looked for in the working directory\)"):
        load("no/x.npz")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(DataError, match=r"a\.txt' is neither a \.npz file nor a folder"):
        load("a.txt")


@pytest.mark.parametrize("source", ["tiny_authors", "tofu:forget01"])
def test_text_sets_are_not_offered_yet(source: str) -> None:
    with pytest.raises(NotYetError, match="not offered yet"):
        load(source)


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_wrong_seeds(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        load("kws", seed=seed)


def test_the_digits_are_divided_by_seed() -> None:
    data = load("digits")
    assert data.digest() == "da344292c4c3634bdec752e56b732b00af5053340e59896fa24891d56aa4ffba"
    assert data.x.dtype == np.uint8
    assert data.x.max() == 16
    assert data.in_shape == (1, 8, 8)
    assert {p: len(data.where(p)) for p in ("train", "heldout", "test")} == {"train": 1150, "heldout": 288, "test": 359}
    other = load("digits", seed=1)
    assert other.digest() != data.digest()
    assert isinstance(other, Dataset)
    assert sorted(other.hashes) == sorted(data.hashes)
