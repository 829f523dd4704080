"""Data sets from folders of images: ``<class>/*.png``, or ``train/<class>/*.png`` with ``heldout`` and ``test``."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.arrays import MAX_BYTES, from_arrays
from qunlearn.data.dataset import PARTS, Dataset, Preprocess, name_some
from qunlearn.errors import DataError, MissingDependencyError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
MAX_IMAGES = 2_000_000
MAX_PIXELS = 2**24
_LAYOUT = "Lay it out as <class>/*.png, or as train/<class>/*.png with heldout and test beside train."


def needs(package: str) -> MissingDependencyError:
    """The error for a package that a data source needs and that is absent."""
    return MissingDependencyError(
        f"this data source needs {package}.", remedy='Install it: pip install "qunlearn[workstation]".'
    )


def pillow() -> Any:
    """Pillow's ``Image`` module, or a MissingDependencyError."""
    try:
        from PIL import Image
    except ImportError as err:
        raise needs("pillow") from err
    return Image


def decode(image: Any, file: Any, mode: str = "") -> NDArray[np.uint8]:
    """One picture, uint8 [C,H,W]: ``mode`` L or RGB; without it grey pictures are L and the others RGB.

    An alpha channel is dropped. ``image`` is Pillow's module. Whatever is wrong with the picture is a ValueError.
    """
    try:
        with image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"more than {MAX_PIXELS} pixels")
            if picture.mode[:1] in ("I", "F"):
                raise ValueError("more than 8 bits a channel")
            if picture.mode in ("P", "PA"):
                picture = picture.convert("RGBA")
            pixels = np.asarray(picture.convert(mode or ("L" if picture.mode in ("1", "L", "LA") else "RGB")))
    except image.UnidentifiedImageError as err:
        raise ValueError("no image") from err
    except (OSError, SyntaxError, EOFError, zlib.error, struct.error, image.DecompressionBombError) as err:
        raise ValueError(str(err)) from err
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def read_folder(path: Path, seed: int) -> Dataset:
    """The data set in a folder. Classes are the sorted names of folders with images; hidden ones are left out.

    Ids are paths within the folder. All images need one size and one number of channels. Unreadable or differing
    images, stray folders beside ``train`` and folders without images are a DataError that lists them.
    """
    image = pillow()
    try:
        files, has_parts = _listing(path)
    except OSError as err:
        raise DataError(f"the folder {path} cannot be read: {err.strerror}.", remedy="Check its permissions.") from err
    if not files or len(files) > MAX_IMAGES:
        raise DataError(
            f"the folder {path} holds {len(files)} images ({', '.join(ENDINGS)}) in class folders, "
            f"wanted are 1 to {MAX_IMAGES}.",
            remedy=_LAYOUT,
        )
    x: list[NDArray[np.uint8]] = []
    wrong: list[str] = []
    shapes: dict[tuple[int, ...], str] = {}
    for _, _, file in files:
        name = file.relative_to(path).as_posix()
        try:
            pixels = decode(image, file)
        except ValueError as err:
            wrong.append(f"{name} ({err})")
            continue
        if pixels.nbytes * len(files) > MAX_BYTES:
            raise DataError(f"the images of {path} take more than {MAX_BYTES} bytes.", remedy="Make them smaller.")
        shapes.setdefault(pixels.shape, name)
        x.append(pixels)
    bad = [f"images that cannot be read: {name_some(wrong)}"] if wrong else []
    if len(shapes) > 1:
        kinds = name_some(f"{list(shape)} such as {name}" for shape, name in shapes.items())
        bad.append(f"images of different shapes [C,H,W]: {kinds}")
    if bad:
        raise DataError(f"folder {path}: {'; '.join(bad)}.", remedy="Repair or remove them, or bring them to one size.")
    names = sorted({c for _, c, _ in files})
    arrays: dict[str, NDArray[Any]] = {
        "x": np.stack(x),
        "y": np.array([names.index(c) for _, c, _ in files]),
        "id": np.array([file.relative_to(path).as_posix() for _, _, file in files]),
    }
    if has_parts:
        arrays["split"] = np.array([part for part, _, _ in files])
    channels = arrays["x"].shape[1]
    preprocess = Preprocess((0.5,) * channels, (0.25,) * channels)
    return from_arrays(
        path.resolve().name or "folder", arrays, seed=seed, preprocess=preprocess, class_names=tuple(names)
    )


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))


def _listing(path: Path) -> tuple[list[tuple[str, str, Path]], bool]:
    """(part, class, file) of every image, and whether the folder is divided into parts."""
    top = _folders(path)
    parts = [d for d in top if d.name in PARTS]
    stray = [d.name for d in top if d.name not in PARTS]
    if parts and (stray or not any(d.name == "train" for d in parts)):
        what = f"also {name_some(stray)}" if stray else "no train"
        raise DataError(f"the folder {path} holds {', '.join(d.name for d in parts)}, but {what}.", remedy=_LAYOUT)
    return [
        (root.name if parts else "", c.name, f)
        for root in (parts or [path])
        for c in _folders(root)
        for f in sorted(c.iterdir())
        if f.suffix.lower() in ENDINGS and not f.name.startswith(".")
    ], bool(parts)
