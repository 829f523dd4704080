"""Data from arrays and ``.npz`` files: with and without split, group and id; everything wrong is named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qunlearn.data import arrays as module
from qunlearn.data.sources import from_arrays, load
from qunlearn.errors import DataError


def some(n: int = 40, dtype: str = "uint8") -> dict[str, Any]:
    """x [n,1,2,3] of different contents and y of 4 classes."""
    x = (np.arange(6 * n).reshape(n, 1, 2, 3) % 128).astype(dtype)
    x[:, 0, 0, 0] = np.arange(n)
    return {"x": x, "y": np.arange(n) % 4}


def words(n: int = 40) -> np.ndarray[Any, Any]:
    return np.array(["train"] * (n - 20) + ["heldout"] * 10 + ["test"] * 10)


def test_a_file_without_split_group_and_id(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "plain.npz", **some())
    data = load("plain.npz", seed=1)
    assert data.name == "plain"
    assert {p: len(data.where(p)) for p in ("train", "heldout", "test")} == {"train": 26, "heldout": 6, "test": 8}
    assert data.group is None
    assert list(data.ids[:3]) == ["0", "1", "2"]
    assert data.class_names == ("0", "1", "2", "3")
    assert data.digest() == load("plain.npz", seed=1).digest() != load("plain.npz", seed=2).digest()


def test_a_file_with_split_group_and_id(tmp_path: Path) -> None:
    extra: dict[str, Any] = {"split": words(), "group": np.arange(40) % 3, "id": np.array([f"i{k}" for k in range(40)])}
    np.savez(tmp_path / "full.npz", **some(), **extra)
    data = load("full.npz", seed=1)
    assert data.digest() == load("full.npz", seed=2).digest()
    np.testing.assert_array_equal(data.part, extra["split"])
    assert data.group_names == ("0", "1", "2")
    assert data.ids[39] == "i39"


def test_what_a_split_lacks_is_drawn_from_train(tmp_path: Path) -> None:
    part = np.where(np.arange(40) < 30, "train", "test")
    data = from_arrays("d", {**some(), "split": part})
    assert (data.part[30:] == "test").all()
    assert len(data.where("heldout")) == 6
    assert len(from_arrays("d", {**some(), "split": np.full(40, "train")}).where("test")) == 8


def test_equal_contents_go_to_one_part() -> None:
    for seed in range(6):
        data = some()
        data["x"][1::8] = data["x"][1]
        made = from_arrays("d", data, seed=seed)
        assert len(set(made.part[1::8])) == 1


def test_contents_equal_after_rounding_to_float32_are_equal() -> None:
    data = some(dtype="float64")
    data["x"][1::8] = data["x"][1] + 1e-12 * np.arange(5)[:, None, None, None]
    assert len({from_arrays("d", data, seed=s).part[1::8].tobytes() for s in range(30)}) > 1
    assert all(len(set(from_arrays("d", data, seed=s).part[1::8])) == 1 for s in range(30))


@pytest.mark.parametrize(("dtype", "divisor"), [("uint8", 255.0), ("int8", 128.0), ("float32", 1.0), ("float64", 1.0)])
def test_default_preprocessing(dtype: str, divisor: float) -> None:
    data = from_arrays("d", some(dtype=dtype))
    assert (data.preprocess.mean, data.preprocess.std, data.preprocess.divisor) == ((0.0,), (1.0,), divisor)
    assert data.x.dtype == np.dtype("float32" if dtype == "float64" else dtype)


def test_bytes_are_read_as_utf8() -> None:
    group = np.array([g.encode() for g in ("Jörg", "Ann")] * 20)
    assert from_arrays("d", {**some(), "group": group}).group_names == ("Ann", "Jörg")
    with pytest.raises(DataError, match=r"group is no array: .*utf-8"):
        from_arrays("d", {**some(), "group": np.array([b"\xff", b"a"] * 20)})


def test_problems_of_arrays_are_reported_at_once() -> None:
    with pytest.raises(DataError) as caught:
        from_arrays("d", {"x": np.zeros((4, 2)), "y": np.zeros((3, 1)), "speaker": [], "id": [0.5] * 4, "split": [1]})
    text = str(caught.value)
    for part in (
        "unknown fields: speaker (1 in all) (the fields are x, y, group, id, split)",
        "id is no array: it must hold text or whole numbers, not float64",
        "x must have shape [N,C,H,W], not [4, 2]",
        "y must have shape [4] like x, not [3, 1]",
        "split must have shape [4] like x, not [1]",
        "y must hold whole numbers, not float64",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": None}, "y is no array: it holds object"),
        ({"x": np.zeros((40, 1, 2, 3), np.int64)}, "x must be uint8, int8 or float32, not int64"),
        ({"x": np.full((40, 1, 2, 3), np.nan, np.float32)}, r"NaN or infinity in samples 0, 1, .*\(40 in all\)"),
        ({"x": np.full((40, 1, 2, 3), 1e300)}, "NaN or infinity"),
        ({"y": np.arange(40) - 1}, r"y lies outside 0\.\.38 in samples 0 \(1 in all\)"),
        ({"y": np.full(40, 10**9)}, "y holds the label 1000000000, the limit is 99999"),
        ({"id": np.zeros(40, np.int64)}, r"ids occur twice: 0 \(1 in all\)"),
        ({"group": np.array(["a"])}, "group must have shape"),
        ({"split": np.full(40, "trainee")}, "part must be one of train, heldout, test"),
        ({"split": np.where(words() == "heldout", "heldouts", words())}, r"it is not in samples 20, .*\(10 in all\)"),
        ({"split": np.full(40, "test")}, "no sample belongs to the part train"),
    ],
)
def test_wrong_arrays(change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        from_arrays("d", {**some(), **change})
    assert caught.value.remedy


def test_missing_fields_and_too_few_samples() -> None:
    with pytest.raises(DataError, match="it lacks x; it lacks y"):
        from_arrays("d", {})
    with pytest.raises(DataError, match="9 samples, too few to divide"):
        from_arrays("d", some(9))


def npz(members: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return body.getvalue()


def good() -> bytes:
    body = io.BytesIO()
    np.savez_compressed(body, **some())
    return body.getvalue()


def test_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", **{**some(), "id": np.array([{"a": 1}] * 40, dtype=object)})
    with pytest.raises(DataError, match=r"o\.npz is not a readable \.npz file: Object arrays cannot be loaded"):
        load("o.npz")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 nothing more",
        good()[:-30],
        npz({"x.npy": b"\x93NUMPY\x01\x00"}),
        npz({"x.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'"}),
    ],
    ids=["empty", "no-zip", "cut", "no-header", "half-header"],
)
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"d\.npz is not a readable \.npz file") as caught:
        load("d.npz")
    assert "numpy.savez" in caught.value.remedy


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(npz({"x": b"abc", "y": b"abc"}))
    with pytest.raises(DataError, match=r"x must have shape \[N,C,H,W\], not \[\]"):
        load("d.npz")


def test_unpacked_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.npz").write_bytes(good())
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes, more than 100"):
        load("d.npz")


@settings(max_examples=150, deadline=None)
@given(where=st.integers(0, 2000), value=st.integers(0, 255))
def test_one_changed_byte_is_a_data_error_or_data(
    tmp_path_factory: pytest.TempPathFactory, where: int, value: int
) -> None:
    data = bytearray(good())
    data[where % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    path.write_bytes(data)
    try:
        made = load(str(path))
    except DataError:
        return
    assert made.x.shape == (40, 1, 2, 3)
