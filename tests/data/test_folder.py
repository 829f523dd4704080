"""Image folders, with pictures made here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qunlearn.data import folder as module
from qunlearn.data.sources import load
from qunlearn.errors import DataError, MissingDependencyError


def picture(path: Path, seed: int, mode: str = "L", size: tuple[int, int] = (5, 4)) -> None:
    """Writes one picture of ``size`` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "P": (3,), "I;16": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels))
    if mode == "I;16":
        Image.fromarray((pixels * 200).astype(np.uint16)).save(path)
    elif mode == "P":
        Image.fromarray(pixels.astype(np.uint8)).quantize(200).save(path, transparency=bytes([0, 128]))
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def fill(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 8, start: int = 0, mode: str = "L") -> None:
    for c, name in enumerate(classes):
        for i in range(each):
            picture(root / name / f"{i}.png", start + 100 * c + i, mode)


def test_classes_without_parts(tmp_path: Path) -> None:
    fill(tmp_path / "pets")
    (tmp_path / "pets" / ".cache").mkdir()
    picture(tmp_path / "pets" / ".cache" / "0.png", 0)
    (tmp_path / "pets" / "empty").mkdir()
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no picture")
    data = load("pets", seed=2)
    assert (data.name, data.class_names, data.in_shape, len(data)) == ("pets", ("cat", "dog"), (1, 4, 5), 16)
    assert data.ids[0] == "cat/0.png"
    assert data.x.dtype == np.uint8
    np.testing.assert_array_equal(data.x[9, 0], np.asarray(Image.open(tmp_path / "pets" / "dog" / "1.png")))
    assert {p: len(data.where(p)) for p in ("train", "heldout", "test")} == {"train": 10, "heldout": 3, "test": 3}
    assert data.digest() != load("pets", seed=3).digest()


def test_parts_are_kept(tmp_path: Path) -> None:
    for k, part in enumerate(("train", "heldout", "test")):
        fill(tmp_path / part, each=4, start=1000 * k)
    data = load(".", seed=2)
    assert data.name == tmp_path.name
    assert [str(i).split("/")[0] for i in data.ids] == list(data.part)
    assert data.digest() == load(str(tmp_path), seed=3).digest()


def test_heldout_may_be_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "test", start=1000)
    assert {p: len(load(".").where(p)) for p in ("train", "heldout", "test")} == {"train": 13, "heldout": 3, "test": 16}


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("RGBA", 3), ("LA", 1), ("P", 3)])
def test_colours(tmp_path: Path, mode: str, channels: int) -> None:
    fill(tmp_path / "pets", mode=mode)
    data = load("pets")
    assert data.in_shape == (channels, 4, 5)
    assert len(data.preprocess.mean) == channels
    if mode != "P":
        got = np.asarray(Image.open(tmp_path / "pets" / "cat" / "0.png"))[..., :channels].transpose(2, 0, 1)
        np.testing.assert_array_equal(data.x[0], got)


def test_all_pictures_that_differ_or_cannot_be_read_are_named(tmp_path: Path) -> None:
    fill(tmp_path / "pets")
    picture(tmp_path / "pets" / "cat" / "wide.png", 7, size=(6, 4))
    picture(tmp_path / "pets" / "dog" / "colour.png", 7, mode="RGB")
    picture(tmp_path / "pets" / "dog" / "deep.png", 7, mode="I;16")
    (tmp_path / "pets" / "cat" / "text.jpg").write_text("no picture")
    data = (tmp_path / "pets" / "dog" / "0.png").read_bytes()
    (tmp_path / "pets" / "dog" / "cut.png").write_bytes(data[:50])
    with pytest.raises(DataError) as caught:
        load("pets")
    text = str(caught.value)
    assert "images that cannot be read: cat/text.jpg (no image), dog/cut.png (" in text
    assert "dog/deep.png (more than 8 bits a channel) (3 in all)" in text
    assert "[1, 4, 5] such as cat/0.png, [1, 4, 6] such as cat/wide.png, [3, 4, 5] such as dog/colour.png" in text


def test_pictures_and_folders_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "pets")
    monkeypatch.setattr(module, "MAX_BYTES", 300)
    with pytest.raises(DataError, match="take more than 300 bytes"):
        load("pets")
    monkeypatch.setattr(module, "MAX_PIXELS", 10)
    with pytest.raises(DataError, match=r"cat/0\.png \(more than 10 pixels\)"):
        load("pets")
    monkeypatch.setattr(module, "MAX_IMAGES", 15)
    with pytest.raises(DataError, match=r"holds 16 images .* wanted are 1 to 15"):
        load("pets")


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    picture(tmp_path / "pets" / "loose.png", 1)
    with pytest.raises(DataError, match=r"holds 0 images .*Lay it out as <class>/\*\.png"):
        load("pets")


def test_folders_that_are_no_parts(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "valid", start=1000)
    with pytest.raises(DataError, match=r"holds train, but also valid \(1 in all\)"):
        load(".")
    fill(tmp_path / "b" / "test")
    with pytest.raises(DataError, match="holds test, but no train"):
        load("b")


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"needs pillow\. Install it"):
        load(str(tmp_path))
