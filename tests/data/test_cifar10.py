"""CIFAR-10 as JPEG pictures in a tar: a tiny stand-in is decoded once into the cache; everything wrong is named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qunlearn.data.builtin import CIFAR_TAR, CIFAR_TITLE
from qunlearn.data.sources import load
from qunlearn.errors import DataError

CLASSES = ("airplane", "cat")


def jpeg(seed: int, size: int = 32) -> bytes:
    body = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(body, "JPEG")
    return body.getvalue()


def members(train: int = 20, test: int = 4) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    for part, each in (("train", train), ("test", test)):
        for name in CLASSES:
            for i in range(each):
                out[f"{part}/{name}/{i:04d}.jpg"] = jpeg(len(out))
    return out


def tar(folder: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / CIFAR_TAR, "w:xz", preset=0) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / CIFAR_TAR


@pytest.mark.parametrize("prefix", ["", "./"])
def test_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    files = {"README": b"text", **members()}
    path = tar(tmp_path / "store", files, prefix)
    monkeypatch.setenv("QUNLEARN_DATA", str(path.parent))
    data = load("cifar10")
    assert "decoding cifar10_jpeg_images.tar.xz once" in capsys.readouterr().err
    assert (data.title, data.class_names, data.in_shape) == (CIFAR_TITLE, CLASSES, (3, 32, 32))
    assert data.augment == "crop_flip"
    assert {p: len(data.where(p)) for p in ("train", "heldout", "test")} == {"train": 36, "heldout": 4, "test": 8}
    assert data.ids[0] == "train/airplane/0000"
    want = np.asarray(Image.open(io.BytesIO(files["train/airplane/0000.jpg"]))).transpose(2, 0, 1)
    np.testing.assert_array_equal(data.x[0], want)
    path.unlink()
    assert load("cifar10", seed=5).digest() == data.digest()
    assert capsys.readouterr().err == ""


def test_another_archive_is_decoded_anew(tmp_path: Path) -> None:
    one = load("cifar10", data_dir=tar(tmp_path / "one", members()).parent)
    two = load("cifar10", data_dir=tar(tmp_path / "two", members(3, 2)).parent)
    assert one.digest() != two.digest()
    assert load("cifar10", data_dir=tmp_path / "one").digest() == one.digest()
    with pytest.raises(DataError, match="decoded from different archives"):
        load("cifar10")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tar\.xz was not found\. Give its folder by --data-dir or QUNLEARN_DATA"):
        load("cifar10")
    with pytest.raises(DataError, match=f"was not found in {tmp_path}"):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "no train/<class>"),
        ({"train/cat/0.jpg": jpeg(0)}, "no test/<class>"),
        ({**members(2, 2), "train/cat/9.jpg": b"text"}, r"train/cat/9\.jpg: no image"),
        ({**members(2, 2), "train/cat/9.jpg": jpeg(99)[:400]}, r"train/cat/9\.jpg: .*([Tt]runcated|[Bb]roken)"),
        ({**members(2, 2), "train/cat/9.jpg": jpeg(99, 16)}, r"different shapes: \(3, 16, 16\), \(3, 32, 32\)"),
        ({**members(2, 2), "train/cat/9.jpg": bytes(2**20 + 1)}, "too many for a picture"),
    ],
)
def test_wrong_contents(tmp_path: Path, files: dict[str, bytes], match: str) -> None:
    tar(tmp_path / "store", files)
    with pytest.raises(DataError, match=match) as caught:
        load("cifar10", data_dir=tmp_path / "store")
    assert "intact copy" in caught.value.remedy
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("keep", [0, 40, 3000, -3000])
def test_damaged_tar(tmp_path: Path, keep: int) -> None:
    path = tar(tmp_path / "store", members(3, 2))
    data = bytearray(path.read_bytes())
    data = data[:keep] if keep >= 0 else data[: len(data) + keep] + bytes(-keep)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        load("cifar10", data_dir=path.parent)


@pytest.mark.parametrize("names", [True, False])
def test_damaged_cache(tmp_path: Path, names: bool) -> None:
    (tmp_path / "cache").mkdir()
    cache = tmp_path / "cache" / "cifar10_jpeg-0123456789abcdef.npz"
    if names:
        cache.write_bytes(b"nothing")
    else:
        np.savez(cache, x=np.zeros(3))
    with pytest.raises(DataError, match=r"cifar10_jpeg-0123456789abcdef\.npz is damaged.*Delete it and run again"):
        load("cifar10")


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    path = tar(tmp_path / "store", members(3, 2))
    with pytest.raises(DataError, match=r"cannot make the folder .*Name another by QUNLEARN_CACHE"):
        load("cifar10", data_dir=path.parent)
