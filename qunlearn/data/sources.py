"""Where data come from: a built-in name, a ``.npz`` file, an image folder, or a user's function."""

from __future__ import annotations

import importlib
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.dataset import Dataset, Preprocess, content_hashes, name_some
from qunlearn.data.features import FrontEnd
from qunlearn.data.partition import assign_parts
from qunlearn.errors import DataError, MissingDependencyError
from qunlearn_export.files import write_atomic

ASSETS = Path(__file__).parent / "assets"
CIFAR_TAR, CIFAR_TITLE = "cifar10_jpeg_images.tar.xz", "CIFAR-10 (JPEG copy)"
FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
MAX_NPZ = 8 * 2**30
MAX_IMAGES = 2_000_000
_FIELDS = ("x", "y", "group", "id", "split")


def load(source: str, *, data_dir: Path | None = None, seed: int = 0) -> Dataset:
    """The data set that ``source`` names.

    ``kws``, ``digits``, ``cifar10``, ``fashion_mnist``; a ``.npz`` file with ``x`` [N,C,H,W] (uint8, int8, float32),
    ``y``, optional ``group``, ``id``, ``split``; a folder ``<split>/<class>/*.png`` or ``<class>/*.png``; or
    ``package.module:function`` that returns a :class:`Dataset` or such arrays. ``seed`` divides sets without a split.
    Raises DataError with every problem at once.
    """
    if source in BUILT_IN:
        return BUILT_IN[source](data_dir, seed)
    if ":" in source and not Path(source).exists():
        return _entry_point(source, seed)
    path = Path(source)
    if not path.exists() and data_dir is not None and (data_dir / source).exists():
        path = data_dir / source
    if path.is_dir():
        return _folder(path, seed)
    if path.suffix == ".npz":
        return from_arrays(path.stem, _read_npz(path), seed=seed)
    raise DataError(
        f"there is no data source {source[:200]!r}.",
        remedy=f"Use {', '.join(BUILT_IN)}, a .npz file, an image folder, or package.module:function.",
    )


def from_arrays(
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    *,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    class_names: tuple[str, ...] | None = None,
    augment: str = "none",
    title: str = "",
) -> Dataset:
    """A data set from arrays ``x``, ``y`` and, where given, ``group``, ``id``, ``split``; divided by seed without it."""
    missing = [f for f in ("x", "y") if f not in arrays]
    unknown = sorted(set(arrays) - set(_FIELDS))
    if missing or unknown:
        problems = [f"it lacks {m}" for m in missing] + [f"it has unknown fields {name_some(unknown)}"] * bool(unknown)
        raise DataError(f"data {name!r}: {'; '.join(problems)}.", remedy=f"The fields are {', '.join(_FIELDS)}.")
    x, y = np.asarray(arrays["x"]), np.asarray(arrays["y"])
    if y.dtype.kind not in "iu" or y.ndim != 1 or x.ndim != 4 or len(x) != len(y):
        raise DataError(
            f"data {name!r}: x has shape {x.shape}, y has shape {y.shape} and type {y.dtype}.",
            remedy="Give x [N,C,H,W] and y [N] with whole numbers.",
        )
    labels = y.astype(np.int64)
    group = np.asarray(arrays["group"]).astype(np.str_) if "group" in arrays else None
    ids = np.asarray(arrays["id"]) if "id" in arrays else np.arange(len(x))
    given = np.asarray(arrays["split"]).astype(np.str_) if "split" in arrays else None
    top = int(labels.max(initial=-1))
    if given is None or set(np.unique(given)) == {"train"} or not {"heldout", "test"} <= set(np.unique(given)):
        if len(x) < 10:
            raise DataError(f"data {name!r} has {len(x)} samples.", remedy="Give at least 10.")
        given = assign_parts(content_hashes(x, labels), labels, group, seed=seed, given=given)
    if preprocess is None:
        preprocess = Preprocess((0.0,), (1.0,), 255.0 if x.dtype == np.uint8 else 128.0 if x.dtype == np.int8 else 1.0)
    return Dataset(
        name=name,
        x=x,
        y=labels,
        ids=ids.astype(np.str_),
        part=given,
        class_names=class_names or tuple(str(i) for i in range(top + 1)),
        group=group,
        preprocess=preprocess,
        augment=augment,
        title=title,
    )


def _kws(_data_dir: Path | None, seed: int) -> Dataset:
    return from_arrays(
        "kws",
        _read_npz(ASSETS / "kws.npz"),
        seed=seed,
        preprocess=Preprocess((0.5,), (0.25,), 255.0, FrontEnd().spec()),
        class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        title="Free Spoken Digit Dataset (log-mel)",
    )


def _digits(_data_dir: Path | None, seed: int) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise _needs("scikit-learn") from err
    images, labels = load_digits(return_X_y=True)
    x = images.reshape(-1, 1, 8, 8).astype(np.uint8)
    return from_arrays(
        "digits",
        {"x": x, "y": labels.astype(np.int64)},
        seed=seed,
        preprocess=Preprocess((0.5,), (0.5,), 16.0),
        title="scikit-learn digits",
    )


def _cifar10(data_dir: Path | None, seed: int) -> Dataset:
    cache = _cache() / "cifar10_jpeg.npz"
    if not cache.is_file():
        folder = data_dir or (Path(os.environ["QUNLEARN_DATA"]) if os.environ.get("QUNLEARN_DATA") else None)
        tar = folder / CIFAR_TAR if folder is not None else None
        if tar is None or not tar.is_file():
            raise DataError(
                f"{CIFAR_TAR} was not found{f' in {folder}' if folder else ''}.",
                remedy="Give its folder by --data-dir or QUNLEARN_DATA.",
            )
        _decode_cifar(tar, cache)
    arrays = _read_npz(cache)
    names = tuple(str(n) for n in arrays.pop("names"))
    return from_arrays(
        "cifar10",
        arrays,
        seed=seed,
        preprocess=Preprocess((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        class_names=names,
        augment="crop_flip",
        title=CIFAR_TITLE,
    )


def _decode_cifar(tar: Path, cache: Path) -> None:
    image = _pillow()
    x, y, ids, split = [], [], [], []
    print(f"decoding {tar.name} once, into {cache}", file=sys.stderr)
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                parts = member.name.split("/")
                if member.isfile() and len(parts) == 3 and parts[0] in ("train", "test"):
                    handle = archive.extractfile(member)
                    if handle is None:
                        continue
                    with image.open(io.BytesIO(handle.read())) as picture:
                        x.append(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
                    y.append(parts[1])
                    ids.append(member.name.rsplit(".", 1)[0])
                    split.append(parts[0])
    except (OSError, tarfile.TarError, EOFError) as err:
        raise DataError(f"{tar} cannot be read: {err}.", remedy="Get an intact copy.") from err
    names = sorted(set(y))
    labels = np.array([names.index(n) for n in y])
    part = np.array(split)
    images = np.stack(x)
    part = assign_parts(content_hashes(images, labels), labels, None, seed=0, given=part, heldout=0.1)
    body = io.BytesIO()
    np.savez(body, x=images, y=labels, id=np.array(ids), split=part, names=np.array(names))
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cache, body.getvalue())


def _fashion_mnist(data_dir: Path | None, seed: int) -> Dataset:
    import gzip

    folder = data_dir if data_dir is not None and (data_dir / "train-images-idx3-ubyte.gz").exists() else FASHION_DIR
    x, y, split = [], [], []
    try:
        for prefix, part in (("train", "train"), ("t10k", "test")):
            with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as f:
                x.append(np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28))
            with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as f:
                y.append(np.frombuffer(f.read(), np.uint8, offset=8).astype(np.int64))
            split += [part] * len(y[-1])
    except (OSError, ValueError, EOFError) as err:
        raise DataError(
            f"Fashion-MNIST was not found in {folder}: {err}.",
            remedy="Install the Debian package dataset-fashion-mnist, or give its folder by --data-dir.",
        ) from err
    images, labels = np.concatenate(x), np.concatenate(y)
    part_of = assign_parts(content_hashes(images, labels), labels, None, seed=0, given=np.array(split), heldout=0.1)
    return from_arrays(
        "fashion_mnist",
        {"x": images, "y": labels, "split": part_of},
        seed=seed,
        preprocess=Preprocess((0.286,), (0.353,)),
        title="Fashion-MNIST",
    )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    remedy = "Save it with numpy.savez or numpy.savez_compressed, without objects."
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
        if size > MAX_NPZ:
            raise DataError(f"{path} unpacks to {size} bytes, more than {MAX_NPZ}.", remedy="Give a smaller file.")
        with np.load(path, allow_pickle=False) as raw:
            return {name: raw[name] for name in raw.files}
    except FileNotFoundError as err:
        raise DataError(f"there is no file {path}.", remedy="Check the path.") from err
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError, MemoryError) as err:
        raise DataError(f"{path} is not a readable .npz file: {err}.", remedy=remedy) from err


def _folder(path: Path, seed: int) -> Dataset:
    image = _pillow()
    parts = [p for p in ("train", "heldout", "test") if (path / p).is_dir()]
    roots = [(p, path / p) for p in parts] if "train" in parts else [("", path)]
    names = sorted({c.name for _, root in roots for c in root.iterdir() if c.is_dir()})
    files = [
        (part, names.index(c.name), f)
        for part, root in roots
        for c in sorted(root.iterdir())
        if c.is_dir()
        for f in sorted(c.iterdir())
        if f.suffix.lower() in IMAGE_ENDINGS
    ]
    if not files or len(files) > MAX_IMAGES:
        raise DataError(
            f"the folder {path} holds {len(files)} images in {len(names)} class folders.",
            remedy="Lay it out as <class>/*.png or train/<class>/*.png.",
        )
    x, wrong = [], []
    for _, _, f in files:
        try:
            with image.open(f) as picture:
                mode = "L" if picture.mode in ("1", "L", "I;16") else "RGB"
                pixels = np.asarray(picture.convert(mode))
        except (OSError, ValueError, image.DecompressionBombError) as err:
            wrong.append(f"{f.relative_to(path)} ({type(err).__name__})")
            continue
        x.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    if wrong:
        raise DataError(f"images that cannot be read: {name_some(wrong)}.", remedy="Remove or repair them.")
    shapes = {a.shape for a in x}
    if len(shapes) != 1:
        raise DataError(f"the images have different shapes: {name_some(sorted(shapes))}.", remedy="Bring them to one.")
    arrays: dict[str, NDArray[Any]] = {
        "x": np.stack(x),
        "y": np.array([c for _, c, _ in files]),
        "id": np.array([str(f.relative_to(path)) for _, _, f in files]),
    }
    if roots[0][0]:
        arrays["split"] = np.array([part for part, _, _ in files])
    channels = arrays["x"].shape[1]
    return from_arrays(
        path.name,
        arrays,
        seed=seed,
        preprocess=Preprocess((0.5,) * channels, (0.25,) * channels),
        class_names=tuple(names),
    )


def _entry_point(source: str, seed: int) -> Dataset:
    module_name, _, function = source.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        make: Callable[[], Any] = getattr(importlib.import_module(module_name), function)
    except (ImportError, ValueError, AttributeError) as err:
        raise DataError(
            f"data source {source!r} cannot be imported: {err}.",
            remedy="Write package.module:function, importable from here.",
        ) from err
    finally:
        sys.path.remove(here)
    try:
        value = make()
    except TypeError as err:
        raise DataError(f"data source {source!r}: {err}.", remedy="The function takes no arguments.") from err
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Mapping):
        return from_arrays(function, value, seed=seed)
    raise DataError(
        f"data source {source!r} returned {type(value).__name__}.", remedy="Return a Dataset or a mapping of arrays."
    )


def _cache() -> Path:
    given = os.environ.get("QUNLEARN_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "qunlearn"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise _needs("pillow") from err
    return Image


def _needs(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"this data source needs {package}.", remedy='Install it: pip install "qunlearn[workstation]".'
    )


BUILT_IN: dict[str, Callable[[Path | None, int], Dataset]] = {
    "kws": _kws,
    "digits": _digits,
    "cifar10": _cifar10,
    "fashion_mnist": _fashion_mnist,
}
