"""Data sets from arrays and from ``.npz`` files, checked before anything is computed from them."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qunlearn.data.dataset import Dataset, Preprocess, content_hashes, name_some
from qunlearn.data.partition import assign_parts
from qunlearn.errors import DataError

MAX_BYTES = 8 * 2**30
"""Largest unpacked size of a file, bytes."""
MAX_CLASSES = 100_000
MIN_SAMPLES = 10
"""Fewest samples that are divided by seed."""
FIELDS = ("x", "y", "group", "id", "split")
UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError)
UNREADABLE += (zipfile.BadZipFile, zlib.error, struct.error)
"""What numpy and zipfile raise on a damaged or hostile file (encrypted and unknown methods are RuntimeError)."""


def from_arrays(
    name: str,
    arrays: Mapping[str, ArrayLike],
    *,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    class_names: tuple[str, ...] | None = None,
    augment: str = "none",
    title: str = "",
) -> Dataset:
    """A data set from ``x`` [N,C,H,W], ``y`` [N] and, where given, ``group``, ``id`` and ``split``, each [N].

    What ``split`` lacks of ``heldout`` and ``test`` is drawn from its ``train`` by ``seed``. Default preprocessing:
    uint8 / 255, int8 / 128, float32 as it is. Default class names: ``0``, ``1``, ... Problems are reported together in
    one DataError.
    """
    bad: list[str] = []
    data = _checked(arrays, bad)
    if bad:
        raise DataError(
            f"data {name!r}: {'; '.join(bad)}.",
            remedy="Give x [N,C,H,W] and y [N] with whole numbers; group, id and split [N] are optional.",
        )
    x, labels = data["x"], data["y"].astype(np.int64)
    group, given = data.get("group"), data.get("split")
    if given is None or not {"heldout", "test"} <= set(np.unique(given)):
        if len(x) < MIN_SAMPLES:
            raise DataError(
                f"data {name!r} has {len(x)} samples, too few to divide.",
                remedy=f"Give at least {MIN_SAMPLES}, or a split with train, heldout and test.",
            )
        given = assign_parts(content_hashes(x, labels), labels, group, seed=seed, given=given)
    if preprocess is None:
        preprocess = Preprocess((0.0,), (1.0,), {"uint8": 255.0, "int8": 128.0}.get(x.dtype.name, 1.0))
    return Dataset(
        name=name,
        x=x,
        y=labels,
        ids=data["id"] if "id" in data else np.arange(len(x)).astype(np.str_),
        part=given,
        class_names=class_names or tuple(str(i) for i in range(int(labels.max(initial=-1)) + 1)),
        group=group,
        preprocess=preprocess,
        augment=augment,
        title=title,
    )


def _checked(arrays: Mapping[str, ArrayLike], bad: list[str]) -> dict[str, NDArray[Any]]:
    """The arrays with texts as str and float64 as float32; problems go to ``bad``."""
    bad += [f"it lacks {f}" for f in ("x", "y") if f not in arrays]
    unknown = sorted(str(f) for f in set(arrays) - set(FIELDS))
    if unknown:
        bad.append(f"unknown fields: {name_some(unknown)} (the fields are {', '.join(FIELDS)})")
    data: dict[str, NDArray[Any]] = {}
    for field in FIELDS:
        if field in arrays:
            try:
                data[field] = _array(field, arrays[field])
            except ValueError as err:
                bad.append(f"{field} is no array: {err}")
    if "x" not in data or "y" not in data:
        return data
    x, y = data["x"], data["y"]
    if x.ndim != 4:
        bad.append(f"x must have shape [N,C,H,W], not {list(x.shape)}")
    n = x.shape[:1]
    bad += [
        f"{f} must have shape {list(n)} like x, not {list(a.shape)}"
        for f, a in data.items()
        if f != "x" and a.shape != n
    ]
    if y.dtype.kind not in "iu":
        bad.append(f"y must hold whole numbers, not {y.dtype}")
    elif y.size and int(y.max()) >= MAX_CLASSES:
        bad.append(f"y holds the label {int(y.max())}, the limit is {MAX_CLASSES - 1}")
    return data


def _array(field: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind in "OV":
        raise ValueError(f"it holds {array.dtype}, not plain numbers or text")
    if field == "x" and array.dtype == np.float64:
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    if field in ("group", "id", "split"):
        if array.dtype.kind == "S":
            return np.asarray(np.char.decode(array, "utf-8"))
        if array.dtype.kind not in "iuUT":
            raise ValueError(f"it must hold text or whole numbers, not {array.dtype}")
        return array.astype(np.str_)
    return array


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a ``.npz`` file by name. Objects are refused, sizes bounded; every problem is a DataError."""
    remedy = "Save it with numpy.savez or numpy.savez_compressed, without objects."
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{path} unpacks to {size} bytes, more than {MAX_BYTES}.", remedy="Give a smaller file.")
        with np.load(path, allow_pickle=False) as raw:
            return {name: np.asarray(raw[name]) for name in raw.files}
    except FileNotFoundError as err:
        raise DataError(f"there is no file {path}.", remedy="Check the path.") from err
    except UNREADABLE as err:
        reason = str(err) if isinstance(err, ValueError) else f"{type(err).__name__}: {err}"
        raise DataError(f"{path} is not a readable .npz file: {reason.rstrip('.')}.", remedy=remedy) from err
