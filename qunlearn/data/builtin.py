"""The data sets with names of their own: kws, digits, cifar10, fashion_mnist."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.arrays import from_arrays, read_npz
from qunlearn.data.dataset import Dataset, Preprocess, content_hashes, name_some
from qunlearn.data.features import FrontEnd
from qunlearn.data.folder import decode, needs, pillow
from qunlearn.data.partition import assign_parts
from qunlearn.errors import DataError
from qunlearn_export.files import write_atomic

ASSETS = Path(__file__).parent / "assets"
CIFAR_TAR, CIFAR_TITLE = "cifar10_jpeg_images.tar.xz", "CIFAR-10 (JPEG copy)"
FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_MAX_PICTURE = 2**20


def kws(data_dir: Path | None, seed: int) -> Dataset:
    """Spoken digits of six speakers as log-mel spectrograms, from the package. Its split is fixed."""
    return from_arrays(
        "kws",
        read_npz(ASSETS / "kws.npz"),
        seed=seed,
        preprocess=Preprocess((0.5,), (0.25,), 255.0, FrontEnd().spec()),
        class_names=DIGITS,
        title="Free Spoken Digit Dataset (log-mel)",
    )


def digits(data_dir: Path | None, seed: int) -> Dataset:
    """scikit-learn's 1,797 written digits, uint8 [N,1,8,8] in 0..16, divided by seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise needs("scikit-learn") from err
    images, labels = load_digits(return_X_y=True)
    return from_arrays(
        "digits",
        {"x": images.reshape(-1, 1, 8, 8).astype(np.uint8), "y": labels.astype(np.int64)},
        seed=seed,
        preprocess=Preprocess((0.5,), (0.5,), 16.0),
        title="scikit-learn digits",
    )


def cifar10(data_dir: Path | None, seed: int) -> Dataset:
    """The JPEG copy of CIFAR-10, decoded once into the cache. Its own test set; heldout is a fixed tenth of train."""
    tar = data_dir / CIFAR_TAR if data_dir is not None else None
    if tar is not None and tar.is_file():
        cache = cache_folder() / f"cifar10_jpeg-{hashlib.sha256(tar.read_bytes()).hexdigest()[:16]}.npz"
        if not cache.is_file():
            _decode_cifar(tar, cache)
    else:
        decoded = sorted(cache_folder().glob("cifar10_jpeg-*.npz"))
        if len(decoded) != 1:
            what = "is decoded from different archives" if decoded else "was not found"
            raise DataError(
                f"{CIFAR_TAR} {what}{f' in {data_dir}' if data_dir else ''}.",
                remedy="Give its folder by --data-dir or QUNLEARN_DATA.",
            )
        cache = decoded[0]
    try:
        arrays = read_npz(cache)
        names = tuple(str(n) for n in arrays.pop("names"))
    except (DataError, KeyError) as err:
        raise DataError(f"the decoded copy {cache} is damaged: {err}", remedy="Delete it and run again.") from err
    return from_arrays(
        "cifar10",
        arrays,
        seed=seed,
        preprocess=Preprocess((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        class_names=names,
        augment="crop_flip",
        title=CIFAR_TITLE,
    )


def cache_folder() -> Path:
    """Where decoded copies lie: ``QUNLEARN_CACHE``, else ``~/.cache/qunlearn``."""
    given = os.environ.get("QUNLEARN_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "qunlearn"


def _decode_cifar(tar: Path, cache: Path) -> None:
    image = pillow()
    x: list[NDArray[np.uint8]] = []
    y: list[str] = []
    ids: list[str] = []
    split: list[str] = []
    print(f"decoding {tar.name} once, into {cache}", file=sys.stderr)
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                parts = name.split("/")
                if not member.isfile() or len(parts) != 3 or parts[0] not in ("train", "test"):
                    continue
                if member.size > _MAX_PICTURE:
                    raise ValueError(f"{name} has {member.size} bytes, too many for a picture")
                handle = archive.extractfile(member)
                try:
                    x.append(decode(image, io.BytesIO(handle.read() if handle else b""), "RGB"))
                except ValueError as err:
                    raise ValueError(f"{name}: {err}") from err
                split.append(parts[0])
                y.append(parts[1])
                ids.append(name.rsplit(".", 1)[0])
        if {"train", "test"} - set(split):
            raise ValueError("it holds no train/<class>/*.jpg or no test/<class>/*.jpg")
        if len({p.shape for p in x}) != 1:
            raise ValueError(f"the pictures have different shapes: {name_some(sorted({p.shape for p in x}))}")
    except (OSError, ValueError, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as err:
        raise DataError(f"{tar} cannot be read: {err}.", remedy="Get an intact copy.") from err
    names = sorted(set(y))
    labels = np.array([names.index(n) for n in y])
    images = np.stack(x)
    part = assign_parts(content_hashes(images, labels), labels, None, seed=0, given=np.array(split), heldout=0.1)
    body = io.BytesIO()
    np.savez(body, x=images, y=labels, id=np.array(ids), split=part, names=np.array(names))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise DataError(
            f"cannot make the folder {cache.parent}: {err.strerror}.", remedy="Name another by QUNLEARN_CACHE."
        ) from err
    write_atomic(cache, body.getvalue())


def fashion_mnist(data_dir: Path | None, seed: int) -> Dataset:
    """Fashion-MNIST from its four ``.gz`` files. Its own test set; heldout is a fixed tenth of train."""
    folder = data_dir if data_dir is not None and (data_dir / "train-images-idx3-ubyte.gz").exists() else FASHION_DIR
    x: list[NDArray[np.uint8]] = []
    y: list[NDArray[np.uint8]] = []
    split: list[str] = []
    try:
        for prefix, part in (("train", "train"), ("t10k", "test")):
            x.append(_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (28, 28)))
            y.append(_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", ()))
            if len(x[-1]) != len(y[-1]):
                raise ValueError(f"{prefix} has {len(x[-1])} images and {len(y[-1])} labels")
            split += [part] * len(y[-1])
    except (OSError, ValueError, EOFError, zlib.error) as err:
        missing = isinstance(err, FileNotFoundError)
        raise DataError(
            f"Fashion-MNIST was not found in {folder}." if missing else f"Fashion-MNIST in {folder} is damaged: {err}.",
            remedy="Install the Debian package dataset-fashion-mnist, or give the folder by --data-dir.",
        ) from err
    images, labels = np.concatenate(x)[:, None], np.concatenate(y).astype(np.int64)
    given = assign_parts(content_hashes(images, labels), labels, None, seed=0, given=np.array(split), heldout=0.1)
    return from_arrays(
        "fashion_mnist",
        {"x": images, "y": labels, "split": given},
        seed=seed,
        preprocess=Preprocess((0.286,), (0.353,)),
        class_names=CLOTHES,
        title="Fashion-MNIST",
    )


def _idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of an IDX file of samples of that shape: uint8 [n, *shape]; a wrong file is a ValueError."""
    with gzip.open(path) as f:
        data = f.read(2**27)
    head = np.frombuffer(data[: 4 * (2 + len(shape))], ">u4")
    if len(head) != 2 + len(shape) or head[0] != 0x801 + len(shape) or tuple(head[2:]) != shape:
        raise ValueError(f"{path.name} is no IDX file of that kind")
    body = np.frombuffer(data, np.uint8, offset=4 * len(head))
    if len(body) != int(head[1]) * int(np.prod(shape)):
        raise ValueError(f"{path.name} has {len(body)} bytes of data, not {head[1]} samples")
    return body.reshape(-1, *shape)


BUILT_IN: dict[str, Callable[[Path | None, int], Dataset]] = {
    "kws": kws,
    "digits": digits,
    "cifar10": cifar10,
    "fashion_mnist": fashion_mnist,
}
"""The loader of every named set: (folder with data files or None, seed)."""
