"""Fashion-MNIST from its four IDX files, with tiny ones made here."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from qunlearn.data import builtin
from qunlearn.data.request import Request
from qunlearn.data.sources import load
from qunlearn.errors import DataError


def idx(path: Path, body: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    head = struct.pack(f">{1 + body.ndim}I", 0x800 + body.ndim, *body.shape)
    path.write_bytes(gzip.compress(head + body.tobytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 training and 20 test images."""
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 40), ("t10k", 20)):
        idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28)).astype(np.uint8))
        idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (np.arange(n) % 10).astype(np.uint8))
    return tmp_path


def test_read(folder: Path) -> None:
    data = load("fashion_mnist", data_dir=folder)
    assert (data.title, data.in_shape, len(data)) == ("Fashion-MNIST", (1, 28, 28), 60)
    assert {p: len(data.where(p)) for p in ("train", "heldout", "test")} == {"train": 36, "heldout": 4, "test": 20}
    assert (data.part[40:] == "test").all()
    assert list(data.y[:12]) == [*range(10), 0, 1]
    want = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    np.testing.assert_array_equal(data.x[:40, 0], want)
    assert load("fashion_mnist", data_dir=folder, seed=4).digest() == data.digest()
    by_number, by_name = Request.parse("class=9").select(data, 0), Request.parse("class=ankle boot").select(data, 0)
    np.testing.assert_array_equal(by_number, by_name)


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "FASHION_DIR", tmp_path / "none")
    with pytest.raises(DataError, match=r"was not found in .*none\. Install the Debian package dataset-fashion-mnist"):
        load("fashion_mnist")


def test_one_file_missing(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="was not found in"):
        load("fashion_mnist", data_dir=folder)


def test_damaged(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    data = path.read_bytes()
    broken = bytearray(data)
    broken[200:260] = bytes(60)
    wrong_size = gzip.compress(gzip.decompress(data)[:-1])
    wrong_kind = gzip.compress(bytes(8) + gzip.decompress(data)[8:])
    for body, match in (
        (data[:500], "damaged"),
        (bytes(broken), "damaged"),
        (b"text", "damaged"),
        (gzip.compress(b""), "no IDX file"),
        (wrong_kind, "no IDX file"),
        (wrong_size, r"has 31359 bytes of data, not 40 samples"),
    ):
        path.write_bytes(body)
        with pytest.raises(DataError, match=match):
            load("fashion_mnist", data_dir=folder)


def test_labels_and_images_must_agree(folder: Path) -> None:
    idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(39, np.uint8))
    with pytest.raises(DataError, match="train has 40 images and 39 labels"):
        load("fashion_mnist", data_dir=folder)
