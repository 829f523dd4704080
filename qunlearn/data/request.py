"""Deletion requests: which training samples are to be forgotten.

A request selects by sample id, by class, by group, or at random. It comes inline (``class=7``, ``group=NAME``,
``ids=a,b`` or ``ids=@file``, ``random=10%``) or as a small file:

- JSON: one object with one of ``ids`` (list), ``class``, ``group`` (a value or a list), ``random`` (a fraction in 0..1
  or ``"10%"``), and optionally ``"version": 1``;
- CSV: a header ``id``, ``class`` or ``group`` and one value a row.

A request chooses from the part ``train`` only. It is never embedded anywhere: ``describe()`` and ``repr`` name no
sample and no group, ``digest()`` is over contents.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.dataset import MAX_TEXT, Dataset, digest_lines, name_some, printable
from qunlearn.data.partition import check_seed
from qunlearn.errors import DataError

KINDS = ("random", "group", "class", "ids")
MAX_BYTES = 64 * 2**20
MAX_VALUES = 2_000_000
VERSION = 1
_INLINE = re.compile(r"(random|group|class|ids)=(.*)", re.DOTALL)
_FRACTION = re.compile(r"[0-9]{0,3}(\.[0-9]{1,9})?%?")
_FORMS = "Write class=7, group=NAME, ids=@file, random=10%, or give a JSON or CSV file."


@dataclass(frozen=True, repr=False)
class Request:
    """A deletion request: ``kind`` is ``random``, ``group``, ``class`` or ``ids``.

    ``values`` are the ids, classes or groups as text (empty for ``random``); ``fraction`` is the share of the training
    samples for ``random``, in 0..1, else None. Build one by :meth:`parse`.
    """

    kind: str
    values: tuple[str, ...] = ()
    fraction: float | None = None

    def __post_init__(self) -> None:
        bad = []
        if self.kind not in KINDS:
            bad.append(f"kind must be one of {', '.join(KINDS)}")
        elif self.kind == "random":
            if self.values or not isinstance(self.fraction, float) or not 0.0 < self.fraction < 1.0:
                bad.append("random wants a fraction above 0 and below 1 (such as 0.1 or 10%)")
        else:
            if self.fraction is not None or not self.values:
                bad.append(f"{self.kind} wants at least one value")
            if len(self.values) > MAX_VALUES:
                bad.append(f"it has more than {MAX_VALUES} values")
            if not all(isinstance(v, str) and 0 < len(v) <= MAX_TEXT for v in self.values):
                bad.append(f"values must have 1..{MAX_TEXT} characters")
            elif len(set(self.values)) != len(self.values):
                seen: set[str] = set()
                twice = [v for v in self.values if v in seen or seen.add(v)]  # type: ignore[func-returns-value]
                bad.append(f"values occur twice: {name_some(dict.fromkeys(twice))}")
        if bad:
            raise DataError(f"deletion request: {'; '.join(bad)}.", remedy=_FORMS)

    def __repr__(self) -> str:
        return f"Request({self.describe()!r})"

    @classmethod
    def parse(cls, text: str | Path) -> Request:
        """Read an inline request or the file of that path; every problem is a DataError."""
        match = _INLINE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            return _from_file(Path(text))
        kind, value = match.groups()
        if kind == "random":
            return cls("random", fraction=_fraction(value))
        if kind == "ids" and value.startswith("@"):
            return _ids_file(Path(value[1:]))
        if kind == "ids":
            return cls("ids", tuple(v.strip() for v in value.split(",")))
        return cls(kind, (value,))

    def describe(self) -> str:
        """What is asked for, safe to print and to store: names no sample, no group, no person."""
        if self.kind == "random":
            return f"random {100 * (self.fraction or 0):.4g} % of the training samples"
        if self.kind == "class":
            return (
                f"class {name_some(self.values)}" if len(self.values) > 1 else f"class {printable(self.values[0][:80])}"
            )
        noun = "group" if self.kind == "group" else "sample id"
        return f"{len(self.values)} {noun}{'s' if len(self.values) > 1 else ''}"

    def classes(self, dataset: Dataset) -> tuple[int, ...]:
        """The classes that a ``class`` request forgets (ascending); empty for other kinds.

        A value with commas that is no class name itself lists several, so that ``class=3,8`` can be written inline.
        """
        if self.kind != "class":
            return ()
        names = dataset.class_names
        values = [w.strip() for v in self.values for w in ([v] if v in names else v.split(","))]
        return tuple(sorted(set(_lookup(values, names, "class"))))

    def groups(self, dataset: Dataset) -> tuple[str, ...]:
        """The groups that a ``group`` request forgets (sorted); empty for other kinds."""
        if self.kind != "group":
            return ()
        if dataset.group is None:
            raise DataError(
                f"data set {dataset.name!r} has no groups.", remedy="Ask by id or class, or add a group column."
            )
        return tuple(sorted({dataset.group_names[i] for i in _lookup(self.values, dataset.group_names, "group")}))

    def select(self, dataset: Dataset, seed: int) -> NDArray[np.int64]:
        """Positions in ``dataset`` of the samples to forget, ascending, all from the part ``train``.

        ``seed`` matters for ``random`` only: ``round(fraction * n)`` samples without replacement; a sample whose
        content equals a chosen one's is chosen too. Ids that do not exist, or lie in another part, are a DataError
        that lists them; so is a class or group without training samples.
        """
        train = dataset.where("train")
        if self.kind == "random":
            count = round((self.fraction or 0.0) * len(train))
            check_seed(seed)
            rng = np.random.default_rng([int(seed), *b"request.random"])
            first = train[rng.permutation(len(train))[:count]]
            wanted = {dataset.hashes[i] for i in first}
            chosen = np.array([i for i in train if dataset.hashes[i] in wanted], np.int64)
        elif self.kind == "ids":
            chosen = self._by_id(dataset)
        elif self.kind == "class":
            chosen = train[np.isin(dataset.y[train], self.classes(dataset))]
        else:
            groups = self.groups(dataset)
            chosen = train[np.isin(dataset.group[train], groups)]  # type: ignore[index]
        if not len(chosen):
            raise DataError(
                f"the deletion request ({self.describe()}) selects no training sample of {dataset.name!r}.",
                remedy="Ask for samples that the network was trained on.",
            )
        return chosen

    def _by_id(self, dataset: Dataset) -> NDArray[np.int64]:
        unknown = [v for v in self.values if v not in dataset.id_index]
        found = [dataset.id_index[v] for v in self.values if v in dataset.id_index]
        outside = [str(dataset.ids[i]) for i in found if dataset.part[i] != "train"]
        bad = []
        if unknown:
            bad.append(f"ids that do not exist: {name_some(unknown)}")
        if outside:
            bad.append(f"ids that are not training samples: {name_some(outside)}")
        if bad:
            raise DataError(
                f"deletion request on {dataset.name!r}: {'; '.join(bad)}.",
                remedy="A request may only name samples of the part train.",
            )
        return np.array(sorted(found), np.int64)

    def canonical_bytes(self, dataset: Dataset, seed: int) -> bytes:
        """Sorted content hashes of the selection, one a line: what a salted commitment is computed over."""
        return "".join(f"{h}\n" for h in sorted(dataset.hashes[i] for i in self.select(dataset, seed))).encode()

    def digest(self, dataset: Dataset, seed: int = 0) -> str:
        """SHA-256 (hex) of the selected samples' sorted content hashes: equal selections have equal digests.

        Whoever holds the data can guess a request from it: it belongs in a run folder, not in a published bundle
        (there, use a salted commitment over :meth:`canonical_bytes`).
        """
        return digest_lines(dataset.hashes[i] for i in self.select(dataset, seed))


def _lookup(values: Sequence[str], names: Sequence[str], noun: str) -> list[int]:
    """Indices of ``values`` among ``names``. A number is the index of a class where no class name looks like one."""
    numeric = noun == "group" or any(re.fullmatch(r"-?[0-9]+", n) for n in names)
    position = {n: i for i, n in enumerate(names)}
    out, unknown = [], []
    for value in values:
        if value in position:
            out.append(position[value])
        elif not numeric and re.fullmatch(r"[0-9]{1,9}", value) and int(value) < len(names):
            out.append(int(value))
        else:
            unknown.append(value)
    if unknown:
        plural = {"class": "classes", "group": "groups"}[noun]
        raise DataError(
            f"{plural} that do not exist: {name_some(unknown)}.", remedy=f"The {plural} are {name_some(names)}."
        )
    return out


def _fraction(text: str) -> float:
    if not _FRACTION.fullmatch(text) or text in ("", "%", "."):
        raise DataError(f"{text[:40]!r} is no fraction.", remedy="Write random=10% or random=0.1.")
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise DataError(f"{str(path)[:200]!r} is neither an inline request nor a file.", remedy=_FORMS)
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DataError(f"request file {path} is larger than {MAX_BYTES} bytes.", remedy="Split the request.")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise DataError(f"request file {path} is not UTF-8 text.", remedy="Save it as UTF-8.") from err
    except (OSError, ValueError) as err:
        raise DataError(f"request file {str(path)[:200]!r} cannot be read: {err}.", remedy=_FORMS) from err


def _from_file(path: Path) -> Request:
    text = _read(path)
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        return _from_json(text, path)
    return _from_csv(text, path)


def _ids_file(path: Path) -> Request:
    """Ids from a JSON or CSV request file, or from plain text with one id a line."""
    text = _read(path)
    if text.lstrip()[:1] in ("{", "["):
        request = _from_json(text, path)
    elif next(iter(text.splitlines()), "").strip() in ("id", "class", "group"):
        request = _from_csv(text, path)
    else:
        request = Request("ids", tuple(line.strip() for line in text.splitlines() if line.strip()))
    if request.kind != "ids":
        raise DataError(f"{path} holds a request of kind {request.kind}, not ids.", remedy="Give the file by its path.")
    return request


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({k for k, _ in pairs}) != len(pairs):
        raise ValueError("a field occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _from_json(text: str, path: Path) -> Request:
    try:
        value = json.loads(text, object_pairs_hook=_no_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        raise DataError(f"request file {path} is not valid JSON: {err}.", remedy=_FORMS) from err
    bad = []
    if not isinstance(value, dict):
        raise DataError(f"request file {path} must hold one JSON object.", remedy='Such as {"version": 1, "class": 7}.')
    version = value.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        bad.append(f"version must be {VERSION}")
    unknown = sorted(set(value) - {*KINDS, "version"})
    if unknown:
        bad.append(f"unknown fields: {name_some(unknown)}")
    kinds = [k for k in KINDS if k in value]
    if len(kinds) != 1:
        bad.append(f"exactly one of {', '.join(KINDS)} must be given")
    if bad:
        raise DataError(
            f"request file {path}: {'; '.join(bad)}.", remedy='Write such as {"version": 1, "ids": ["a", "b"]}.'
        )
    kind, body = kinds[0], value[kinds[0]]
    if kind == "random":
        if isinstance(body, str):
            return Request("random", fraction=_fraction(body))
        if isinstance(body, bool) or not isinstance(body, int | float):
            raise DataError(f"request file {path}: random must be a fraction.", remedy='Write 0.1 or "10%".')
        return Request("random", fraction=float(body) if abs(body) <= 1 else -1.0)
    items = body if isinstance(body, list) else [body]
    if (kind == "ids" and not isinstance(body, list)) or not all(
        isinstance(v, str) or (isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**63) for v in items
    ):
        raise DataError(
            f"request file {path}: {kind} must hold {'a list of ' if kind == 'ids' else ''}strings or whole numbers.",
            remedy='Write such as {"version": 1, "ids": ["a", "b"]}.',
        )
    return Request(kind, tuple(str(v) for v in items))


def _from_csv(text: str, path: Path) -> Request:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as err:
        raise DataError(f"request file {path} is not valid CSV: {err}.", remedy=_FORMS) from err
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    header = rows[0] if rows else []
    if len(header) != 1 or header[0] not in ("id", "class", "group"):
        raise DataError(
            f"request file {path} must begin with a header line of one column: id, class or group.", remedy=_FORMS
        )
    wide = [str(i + 2) for i, row in enumerate(rows[1:]) if len(row) != 1]
    if wide:
        raise DataError(
            f"request file {path} has rows with more than one column: {name_some(wide)}.", remedy="Keep one column."
        )
    kind = "ids" if header[0] == "id" else header[0]
    return Request(kind, tuple(row[0] for row in rows[1:]))
