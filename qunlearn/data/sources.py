"""Where data come from: a built-in name, a ``.npz`` file, an image folder, or a user's function."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from qunlearn.data.arrays import from_arrays, read_npz
from qunlearn.data.builtin import BUILT_IN
from qunlearn.data.dataset import Dataset
from qunlearn.data.folder import read_folder
from qunlearn.data.partition import check_seed
from qunlearn.errors import DataError, NotYetError, QunlearnError

__all__ = ["BUILT_IN", "from_arrays", "load"]

_FORMS = f"Use {', '.join(BUILT_IN)}, a .npz file, an image folder, or package.module:function."


def load(source: str, *, data_dir: Path | None = None, seed: int = 0) -> Dataset:
    """The data set that ``source`` names.

    ``kws``, ``digits``, ``cifar10``, ``fashion_mnist``; a ``.npz`` file with ``x`` [N,C,H,W] (uint8, int8, float32),
    ``y``, optional ``group``, ``id``, ``split``; a folder ``<split>/<class>/*.png`` or ``<class>/*.png``; or
    ``package.module:function`` that returns a :class:`Dataset` or such arrays. ``data_dir`` (default: the environment
    variable ``QUNLEARN_DATA``) is where data files are looked for, and relative paths that the working directory
    lacks. ``seed`` divides sets without a split. Raises DataError; MissingDependencyError where a package is absent.
    """
    check_seed(seed)
    if data_dir is None and os.environ.get("QUNLEARN_DATA"):
        data_dir = Path(os.environ["QUNLEARN_DATA"])
    if source in BUILT_IN:
        return BUILT_IN[source](data_dir, seed)
    if source == "tiny_authors" or source.startswith("tofu:"):
        raise NotYetError(f"the text data set {source[:80]!r} is not offered yet.", remedy=_FORMS)
    path = _find(source, data_dir)
    if path is not None and path.is_dir():
        return read_folder(path, seed)
    if path is not None and path.suffix.lower() == ".npz":
        return from_arrays(path.stem, read_npz(path), seed=seed)
    if path is None and ":" in source:
        return _entry_point(source, seed)
    if path is None and source.lower().endswith(".npz"):
        places = "the working directory" if data_dir is None else f"the working directory or {data_dir}"
        raise DataError(f"data source: there is no file {source[:200]} (looked for in {places}).", remedy="Check it.")
    what = f"{str(path)!r} is neither a .npz file nor a folder" if path else f"there is no data source {source[:200]!r}"
    raise DataError(f"{what}.", remedy=_FORMS)


def _find(source: str, data_dir: Path | None) -> Path | None:
    """The file or folder that ``source`` names, in the working directory or in ``data_dir``, or None."""
    for path in [Path(source)] + ([data_dir / source] if data_dir is not None else []):
        try:
            if source and path.exists():
                return path
        except (OSError, ValueError):
            return None
    return None


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """Modules of the working directory can be imported inside; ``sys.path`` is as before afterwards."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _entry_point(source: str, seed: int) -> Dataset:
    module_name, _, function = source.partition(":")
    with _working_directory_first():
        try:
            make = getattr(importlib.import_module(module_name), function)
        except Exception as err:
            raise DataError(
                f"data source {source[:200]!r} cannot be imported: {type(err).__name__}: {err}.",
                remedy="Write package.module:function, importable from here.",
            ) from err
        if not callable(make):
            raise DataError(f"data source {source[:200]!r} is not a function.", remedy="Name a function.")
        try:
            value = make()
        except QunlearnError:
            raise
        except Exception as err:
            raise DataError(
                f"data source {source[:200]!r} failed: {type(err).__name__}: {err}.",
                remedy="It is called without arguments and returns a Dataset or a mapping of arrays.",
            ) from err
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Mapping):
        return from_arrays(function, value, seed=seed)
    raise DataError(
        f"data source {source[:200]!r} returned {type(value).__name__}.",
        remedy="Return a Dataset or a mapping of arrays.",
    )
