"""A crafted request: what leaves the data owner, and what stays private until the verdict. numpy only.

``submission.npz`` is the altered samples on the network's 8-bit input grid: it goes to the operator. ``request.npz``
also holds the private targets, bystanders and the samples that utility is read on: it stays with the owner.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.eve_grid import grid_values
from qunlearn.data.arrays import read_npz
from qunlearn.data.dataset import Dataset, Preprocess, Samples
from qunlearn.data.splits import Splits
from qunlearn.errors import ArtefactError, ConfigError, DataError
from qunlearn_export.files import canonical_json, write_atomic

FORMAT = 1
REQUEST, SUBMISSION = "request.npz", "submission.npz"
ROLES = ("target", "bystander", "erase", "retain", "heldout")
INPUT = "eve_request"
"""Key of the request in ``AuditContext.inputs``."""

_ARRAYS: Mapping[str, tuple[str, int | None]] = {
    "codes": ("b", 4), "y": ("i", 1), "ids": ("U", 1), "probe_x": ("f", 4), "probe_y": ("i", 1), "probe_role": ("U", 1),
    "y_adv": ("i", 1), "known": ("i", 2),
}  # fmt: skip
_FACTS = (
    "format", "scale", "zero_point", "num_classes", "eps", "cos_before", "cos_after", "model", "unlearner", "method",
    "config", "settings", "surrogate", "seed", "warnings", "output_scale", "output_zero",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class CraftedRequest:
    """``codes`` int8 [n_e, C, H, W] with ``scale`` and ``zero_point``: the altered samples; ``y`` their true labels,
    ``ids`` which samples they stand for. ``probe_x`` float32 [n, C, H, W], ``probe_y`` and ``probe_role`` [n]: private
    samples (target, bystander, clean erase, retain, heldout), targets first; ``y_adv`` [n_t] the wanted classes.
    ``known`` int16 [n, K]: output codes of the network before on the probe by the integer rule (empty without one).
    ``facts``: cosines, radius, digests of model, unlearner and configuration, seed, warnings.
    """

    codes: NDArray[np.int8]
    y: NDArray[np.int64]
    ids: NDArray[np.str_]
    probe_x: NDArray[np.float32]
    probe_y: NDArray[np.int64]
    probe_role: NDArray[np.str_]
    y_adv: NDArray[np.int64]
    known: NDArray[np.int16]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        bad = self._problems()
        if bad:
            raise ArtefactError(f"crafted request: {'; '.join(bad)}.", remedy="Make it anew with `qunlearn eve craft`.")

    def _problems(self) -> list[str]:
        bad = []
        for name, (kind, ndim) in _ARRAYS.items():
            a = getattr(self, name)
            if a.dtype.kind != ("i" if kind == "b" else kind) or a.ndim != ndim:
                bad.append(f"{name} has type {a.dtype} and shape {list(a.shape)}")
        missing = sorted(set(_FACTS) - set(self.facts))
        if missing:
            bad.append(f"it lacks {', '.join(missing)}")
        elif self.facts["format"] != FORMAT:
            bad.append(f"format {self.facts['format']!r} is unknown")
        if bad:
            return bad
        n, m, c = len(self.codes), len(self.probe_x), int(self.facts["num_classes"])
        if not n or len(self.y) != n or len(self.ids) != n or self.codes.dtype != np.int8:
            bad.append("codes, labels and ids do not belong together")
        if not m or len(self.probe_y) != m or len(self.probe_role) != m or len(self.known) not in (0, m):
            bad.append("the private samples do not belong together")
        if self.probe_x.shape[1:] != self.codes.shape[1:]:
            bad.append("altered and private samples have different shapes")
        roles = [str(r) for r in self.probe_role]
        if set(roles) != set(ROLES) or roles != sorted(roles, key=lambda r: ROLES.index(r) if r in ROLES else 9):
            bad.append(f"the private samples need the roles {', '.join(ROLES)}, in that order")
        elif len(self.y_adv) != roles.count("target"):
            bad.append("targets and wanted classes do not belong together")
        for name in ("y", "probe_y", "y_adv"):
            a = getattr(self, name)
            if a.size and not 0 <= a.min() <= a.max() < c:
                bad.append(f"{name} leaves the classes 0..{c - 1}")
        if not (np.isfinite(self.probe_x).all() and np.isfinite(self.facts["scale"]) and self.facts["scale"] > 0):
            bad.append("a value is not finite")
        return bad

    @property
    def x(self) -> NDArray[np.float32]:
        """The altered samples as network input, float32 [n_e, C, H, W]."""
        return grid_values(self.codes, float(self.facts["scale"]), int(self.facts["zero_point"]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything in it."""
        h = hashlib.sha256(canonical_json(dict(self.facts)).encode())
        for name in _ARRAYS:
            a = getattr(self, name)
            h.update(f"\0{name}\0{list(a.shape)}\0".encode())
            h.update("\0".join(a).encode() if a.dtype.kind == "U" else np.ascontiguousarray(a).tobytes())
        return h.hexdigest()

    @cached_property
    def probe(self) -> Dataset:
        """The private samples as a data set of network inputs: erase and retain are its training part."""
        part = {"erase": "train", "retain": "train", "heldout": "heldout"}
        return Dataset(
            name="eve-probe",
            x=self.probe_x,
            y=self.probe_y,
            ids=np.array([f"{role}-{i}" for i, role in enumerate(self.probe_role)]),
            part=np.array([part.get(str(r), "test") for r in self.probe_role]),
            class_names=tuple(str(k) for k in range(int(self.facts["num_classes"]))),
            preprocess=Preprocess(divisor=1.0),
        )

    def role(self, name: str) -> Samples:
        """The private samples of one role."""
        return Samples(self.probe, np.flatnonzero(self.probe_role == name))

    def splits(self) -> Splits:
        """Splits of the private samples alone: the clean erased samples are the forget set, held-out is halved."""
        heldout = self.role("heldout")
        half = np.arange(len(heldout)) % 2 == 0
        return Splits(
            forget=self.role("erase"),
            retain=self.role("retain"),
            heldout_stop=heldout.take(half),
            heldout_audit=heldout.take(~half),
            test=Samples(self.probe, np.flatnonzero(np.isin(self.probe_role, ("target", "bystander")))),
            request_kind="ids",
        )

    def to_bytes(self) -> bytes:
        """The private file; the same request gives the same bytes."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return _npz({**arrays, "facts": np.array(canonical_json(dict(self.facts)))})

    def submission(self) -> bytes:
        """The public file: codes, grid, labels and ids, nothing of the targets."""
        return _npz(
            {
                "codes": self.codes,
                "scale": np.float32(self.facts["scale"]),
                "zero_point": np.int32(self.facts["zero_point"]),
                "y": self.y,
                "ids": self.ids,
            }
        )

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write ``request.npz`` (mode 0600) and ``submission.npz`` into an existing folder."""
        return (
            write_atomic(folder / REQUEST, self.to_bytes(), mode=0o600),
            write_atomic(folder / SUBMISSION, self.submission()),
        )

    @classmethod
    def load(cls, path: Path) -> CraftedRequest:
        """From a private file or the folder that holds it; ArtefactError when it is damaged."""
        arrays = _read(path / REQUEST if path.is_dir() else path, {*_ARRAYS, "facts"})
        try:
            facts = json.loads(str(arrays.pop("facts")))
        except ValueError as err:
            raise ArtefactError(f"{path} is no crafted request.", remedy="Give the file request.npz.") from err
        if not isinstance(facts, dict):
            raise ArtefactError(f"{path} is no crafted request.", remedy="Give the file request.npz.")
        return cls(**arrays, facts=facts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Submission:
    """What the operator gets: ``x`` float32 [n, C, H, W] network inputs on the grid, ``y`` labels, ``ids``."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: NDArray[np.str_]

    @classmethod
    def load(cls, path: Path) -> Submission:
        """From ``submission.npz`` or the folder that holds it; ArtefactError when it is damaged."""
        a = _read(path / SUBMISSION if path.is_dir() else path, {"codes", "scale", "zero_point", "y", "ids"})
        shapes = a["codes"].ndim == 4 and a["codes"].dtype == np.int8 and a["y"].dtype.kind == "i"
        if not shapes or not len(a["codes"]) == len(a["y"]) == len(a["ids"]) or a["ids"].dtype.kind != "U":
            raise ArtefactError(f"{path} is no submission.", remedy="Give the file submission.npz.")
        return cls(x=grid_values(a["codes"], float(a["scale"]), int(a["zero_point"])), y=a["y"], ids=a["ids"])

    def applied(self, dataset: Dataset) -> Dataset:
        """The data set as network inputs (float32), the named training samples replaced by those submitted.

        DataError for an id that is no training sample; ConfigError for other shapes.
        """
        if self.x.shape[1:] != dataset.in_shape:
            raise ConfigError(
                f"submitted samples have shape {list(self.x.shape[1:])}, the data {list(dataset.in_shape)}.",
                remedy="Give the submission that belongs to these data.",
            )
        unknown = [str(i) for i in self.ids if str(i) not in dataset.id_index]
        if unknown:
            raise DataError(f"the data lack samples {', '.join(unknown[:5])}.", remedy="Give the original data.")
        rows = np.array([dataset.id_index[str(i)] for i in self.ids])
        return replaced(dataset, rows, self.x, self.y)


def replaced(dataset: Dataset, rows: NDArray[np.int64], x: NDArray[np.float32], y: NDArray[np.int64]) -> Dataset:
    """A copy as network inputs float32, with the samples at ``rows`` replaced; ids, parts and groups stay."""
    inputs = dataset.preprocess.apply(dataset.x)
    labels = dataset.y.copy()
    inputs[rows], labels[rows] = x, y
    kept = {f.name: getattr(dataset, f.name) for f in fields(Dataset)}
    return Dataset(**{**kept, "x": inputs, "y": labels, "preprocess": Preprocess(divisor=1.0), "augment": "none"})


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _read(path: Path, names: set[str]) -> dict[str, NDArray[Any]]:
    try:
        arrays = read_npz(path)
    except DataError as err:
        raise ArtefactError(f"{path} cannot be read.", remedy="Give the file that `qunlearn eve craft` wrote.") from err
    if set(arrays) != names:
        raise ArtefactError(f"{path} has other contents than expected.", remedy="Give what `qunlearn eve craft` wrote.")
    return arrays
