"""A labelled data set in memory, and views of it. numpy only.

``Dataset`` holds raw samples (as stored, before preprocessing), labels, unique ids, an optional group (a speaker, a
user) and the part each sample belongs to. ``Samples`` is a view: a data set and an index array. Both are immutable.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qunlearn.errors import ConfigError, DataError

PARTS = ("train", "heldout", "test")
AUGMENTS = ("none", "crop_flip")
MAX_TEXT = 512


def name_some(ids: Iterable[object], limit: int = 10) -> str:
    """The first ``limit`` ids and the count, for messages: ``a, b, c (3 in all)``."""
    items = [str(i) for i in ids]
    shown = ", ".join(printable(i if len(i) <= 80 else i[:77] + "...") for i in items[:limit])
    return f"{shown}{', ...' if len(items) > limit else ''} ({len(items)} in all)"


def printable(text: str) -> str:
    """``text`` with control characters and lone surrogates escaped: an id from a file must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def content_hashes(x: NDArray[Any], y: NDArray[np.int64]) -> list[str]:
    """SHA-256 (hex) of every sample: dtype and shape, raw little-endian bytes, label as 8 bytes."""
    little = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<"))
    head = f"{x.dtype.name}{list(x.shape[1:])}".encode()
    labels = np.ascontiguousarray(y, dtype="<i8")
    return [hashlib.sha256(head + little[i].tobytes() + labels[i].tobytes()).hexdigest() for i in range(len(little))]


@dataclass(frozen=True)
class Preprocess:
    """What turns stored samples into network input: ``(x / divisor - mean) / std`` per channel, float32.

    ``mean`` and ``std`` have one value for every channel, or one for all. ``front_end`` names what made the stored
    samples from the sensor's signal: ``none``, or a string that :class:`qunlearn.data.features.FrontEnd` reads.
    The built-in sets use fixed constants, not statistics of the samples, so that nothing of a forgotten sample stays
    behind in the preprocessing.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    divisor: float = 255.0
    front_end: str = "none"

    def __post_init__(self) -> None:
        bad = []
        try:
            object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
            object.__setattr__(self, "std", tuple(float(v) for v in self.std))
            object.__setattr__(self, "divisor", float(self.divisor))
        except (TypeError, ValueError):
            bad.append("mean, std and divisor must be numbers")
        else:
            if not self.mean or len(self.mean) != len(self.std):
                bad.append("mean and std must have the same length, at least 1")
            if not all(map(math.isfinite, self.mean)):
                bad.append("mean must be finite")
            if not all(math.isfinite(v) and v > 0 for v in self.std):
                bad.append("std must be finite and positive")
            if not (math.isfinite(self.divisor) and self.divisor > 0):
                bad.append("divisor must be finite and positive")
        if not isinstance(self.front_end, str) or not self.front_end or len(self.front_end) > MAX_TEXT:
            bad.append(f"front_end must be a string of 1..{MAX_TEXT} characters")
        if bad:
            raise ConfigError(f"preprocessing: {'; '.join(bad)}.", remedy="Correct the preprocessing constants.")

    def apply(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Network input for stored samples ``x`` [N,C,H,W] (uint8, int8 or float32): float32 [N,C,H,W]."""
        if x.ndim != 4 or len(self.mean) not in (1, x.shape[1]):
            raise DataError(
                f"preprocessing has {len(self.mean)} channels, the samples have shape {list(x.shape)}.",
                remedy="Give samples [N,C,H,W] with that number of channels.",
            )
        mean, std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
        out: NDArray[np.float32] = (x.astype(np.float32) / np.float32(self.divisor) - mean) / std
        return out

    def to_json(self) -> dict[str, Any]:
        """A mapping for JSON: layout, mean, std, divisor, front_end."""
        return {
            "layout": "NCHW",
            "mean": list(self.mean),
            "std": list(self.std),
            "divisor": self.divisor,
            "front_end": self.front_end,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocess:
        """The inverse of :meth:`to_json`; unknown or missing fields are a ConfigError."""
        want = {"layout", "mean", "std", "divisor", "front_end"}
        if not isinstance(value, Mapping) or set(value) != want or value["layout"] != "NCHW":
            raise ConfigError("the preprocessing record is malformed.", remedy=f"It has the fields {sorted(want)}.")
        if not isinstance(value["mean"], list) or not isinstance(value["std"], list):
            raise ConfigError("the preprocessing record is malformed.", remedy="mean and std are lists of numbers.")
        return cls(tuple(value["mean"]), tuple(value["std"]), value["divisor"], value["front_end"])


def _plain(value: ArrayLike, name: str, bad: list[str]) -> NDArray[Any]:
    """``value`` as an array; ragged lists are a problem."""
    try:
        return np.asarray(value)
    except ValueError:
        bad.append(f"{name} is ragged")
        return np.zeros(0, np.uint8)


def _strings(value: ArrayLike, name: str, bad: list[str]) -> NDArray[np.str_]:
    """Coerce whole numbers and text to an array of str; anything else is a problem."""
    array = _plain(value, name, bad)
    if array.dtype.kind in "iu":
        array = array.astype(np.str_)
    if array.dtype.kind == "T":
        array = array.astype(np.str_)
    if array.dtype.kind != "U" and array.size:
        bad.append(f"{name} must hold text or whole numbers, not {array.dtype}")
        return np.zeros(array.shape, dtype="<U1")
    return array.astype(np.str_)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Labelled samples with ids, groups and parts. All problems of the fields are reported in one DataError.

    ``x`` [N,C,H,W] uint8, int8 or float32 (as stored); ``y`` int64 [N]; ``ids`` str [N], unique; ``group`` str [N] or
    None; ``part`` str [N] of ``train``, ``heldout``, ``test``; ``augment``: what the training loop does to training
    batches. ``title`` is how tables name the set (default: ``name``); ``notes`` are remarks a report should print.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[np.int64]
    ids: NDArray[np.str_]
    part: NDArray[np.str_]
    class_names: tuple[str, ...]
    group: NDArray[np.str_] | None = None
    preprocess: Preprocess = Preprocess()
    augment: str = "none"
    title: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bad: list[str] = []
        x, y = _plain(self.x, "x", bad), _plain(self.y, "y", bad)
        if x.dtype == np.float64:
            with np.errstate(over="ignore"):
                x = x.astype(np.float32)
        if x.dtype not in (np.uint8, np.int8, np.float32):
            bad.append(f"x must be uint8, int8 or float32, not {x.dtype}")
        if x.ndim != 4 or 0 in x.shape:
            bad.append(f"x must have shape [N,C,H,W] with no empty axis, not {list(x.shape)}")
        if y.dtype.kind not in "iu":
            bad.append(f"y must hold whole numbers, not {y.dtype}")
            y = np.zeros(y.shape, np.int64)
        ids = _strings(self.ids, "ids", bad)
        part = _strings(self.part, "part", bad)
        group = None if self.group is None else _strings(self.group, "group", bad)
        names = tuple(str(c) for c in self.class_names)
        for label, array in (("y", y), ("ids", ids), ("part", part), ("group", group)):
            if array is not None and array.shape != x.shape[:1]:
                bad.append(f"{label} must have shape [{x.shape[0] if x.ndim else 0}] like x, not {list(array.shape)}")
        if not bad:
            bad += _value_problems(x, y, ids, part, group, names)
            if len(self.preprocess.mean) not in (1, x.shape[1]):
                bad.append(f"preprocess has {len(self.preprocess.mean)} channels, x has {x.shape[1]}")
        if self.augment not in AUGMENTS:
            bad.append(f"augment must be one of {', '.join(AUGMENTS)}, not {self.augment!r}")
        if bad:
            raise DataError(
                f"data set {self.name!r}: " + "; ".join(bad) + ".", remedy="Correct the data set and load it again."
            )
        fixed = {"x": x, "y": y.astype(np.int64), "ids": ids, "part": part, "group": group}
        for field, array in fixed.items():
            object.__setattr__(self, field, None if array is None else _frozen(array))
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "title", self.title or self.name)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} samples {list(self.in_shape)}, {len(self.class_names)} classes)"

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, (C, H, W)."""
        _, c, h, w = self.x.shape
        return int(c), int(h), int(w)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """The groups, sorted; empty where the set has none."""
        return () if self.group is None else tuple(str(g) for g in np.unique(self.group))

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """Content hash of every sample, see :func:`content_hashes`; computed once."""
        return tuple(content_hashes(self.x, self.y))

    @cached_property
    def id_index(self) -> Mapping[str, int]:
        """Position of every id."""
        return {str(name): i for i, name in enumerate(self.ids)}

    def where(self, part: str) -> NDArray[np.int64]:
        """Positions of the samples of one part, ascending; an unknown part is a ConfigError."""
        if part not in PARTS:
            raise ConfigError(f"unknown part {part!r}.", remedy=f"Parts are {', '.join(PARTS)}.")
        return np.flatnonzero(self.part == part).astype(np.int64)

    def samples(self, part: str) -> Samples:
        """The samples of one part as a view."""
        return Samples(self, self.where(part))

    def digest(self) -> str:
        """SHA-256 (hex) over the sorted (content hash, part) pairs; order, ids and paths do not matter."""
        return digest_lines(f"{h} {p}" for h, p in zip(self.hashes, self.part, strict=True))


def _value_problems(
    x: NDArray[Any],
    y: NDArray[Any],
    ids: NDArray[np.str_],
    part: NDArray[np.str_],
    group: NDArray[np.str_] | None,
    names: tuple[str, ...],
) -> list[str]:
    bad = []
    if x.dtype == np.float32:
        finite = np.array([bool(np.isfinite(row).all()) for row in x])
        if not finite.all():
            bad.append(f"x holds NaN or infinity in samples {name_some(ids[~finite])}")
    if not names or len(set(names)) != len(names) or not all(0 < len(n) <= MAX_TEXT for n in names):
        bad.append("class_names must be different, non-empty names")
    out = (y < 0) | (y >= len(names))
    if out.any():
        bad.append(f"y lies outside 0..{len(names) - 1} in samples {name_some(ids[out])}")
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        bad.append(f"ids occur twice: {name_some(unique[counts > 1])}")
    for label, array in (("ids", ids), ("group", group)):
        if array is not None:
            lengths = np.char.str_len(array)
            if ((lengths == 0) | (lengths > MAX_TEXT)).any():
                bad.append(f"{label} must have 1..{MAX_TEXT} characters each")
    wrong = ~np.isin(part, PARTS)
    if wrong.any():
        bad.append(f"part must be one of {', '.join(PARTS)}; it is not in samples {name_some(ids[wrong])}")
    elif not (part == "train").any():
        bad.append("no sample belongs to the part train")
    return bad


def digest_lines(lines: Iterable[str]) -> str:
    """SHA-256 (hex) of text lines, sorted, each ended by a newline."""
    h = hashlib.sha256()
    for line in sorted(lines):
        h.update(line.encode() + b"\n")
    return h.hexdigest()


@dataclass(frozen=True, eq=False)
class Samples:
    """A view of a data set: ``dataset`` and positions ``index`` int64 [n], all different.

    Methods that take ``idx`` want positions within this view (int array, bool mask, slice, or None for all).
    """

    dataset: Dataset
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        index = np.asarray(self.index)
        if index.size == 0:
            index = index.astype(np.int64)
        n = len(self.dataset)
        if index.ndim != 1 or index.dtype.kind not in "iu" or (index.size and not 0 <= index.min() <= index.max() < n):
            raise DataError(f"an index must be whole numbers in 0..{n - 1}.", remedy="Give positions in the data set.")
        if len(np.unique(index)) != len(index):
            raise DataError("an index names a sample twice.", remedy="Give every position once.")
        object.__setattr__(self, "index", _frozen(index.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Samples({len(self)} of {self.dataset.name!r})"

    def _rows(self, idx: NDArray[np.int64] | Sequence[int] | slice | None) -> NDArray[np.int64]:
        if idx is None:
            return self.index
        if isinstance(idx, slice):
            return self.index[idx]
        where = np.asarray(idx)
        if where.size == 0:
            where = where.astype(np.int64)
        if where.dtype.kind not in "iub":
            raise DataError(f"an index must hold whole numbers, not {where.dtype}.", remedy="Give positions.")
        try:
            rows: NDArray[np.int64] = self.index[where]
        except IndexError as err:
            raise DataError(f"an index leaves 0..{len(self) - 1}.", remedy="Give positions in this view.") from err
        return rows

    def raw(self, idx: NDArray[np.int64] | Sequence[int] | slice | None = None) -> NDArray[Any]:
        """Samples as stored, [n,C,H,W], a copy."""
        out: NDArray[Any] = self.dataset.x[self._rows(idx)]
        return out

    def inputs(self, idx: NDArray[np.int64] | Sequence[int] | slice | None = None) -> NDArray[np.float32]:
        """Preprocessed network input, float32 [n,C,H,W]."""
        return self.dataset.preprocess.apply(self.raw(idx))

    def targets(self, idx: NDArray[np.int64] | Sequence[int] | slice | None = None) -> NDArray[np.int64]:
        """Labels, int64 [n]."""
        return self.dataset.y[self._rows(idx)]

    @property
    def ids(self) -> NDArray[np.str_]:
        """Ids, str [n]."""
        return self.dataset.ids[self.index]

    @property
    def group(self) -> NDArray[np.str_] | None:
        """Groups, str [n], or None."""
        return None if self.dataset.group is None else self.dataset.group[self.index]

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return self.dataset.num_classes

    def take(self, idx: NDArray[np.int64] | Sequence[int] | slice) -> Samples:
        """The view of the positions ``idx`` of this view."""
        return Samples(self.dataset, self._rows(idx))

    def content_hashes(self) -> list[str]:
        """SHA-256 (hex) of the raw bytes and label of every sample, in order."""
        return [self.dataset.hashes[i] for i in self.index]

    def digest(self) -> str:
        """SHA-256 (hex) over the sorted content hashes: order and ids do not matter, content does."""
        return digest_lines(self.content_hashes())
