"""A predictor that only reads answers out: rows of integer logits that a board or an emulator dumped. numpy only."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.predictor_base import Predictor
from qunlearn.data.dataset import Dataset
from qunlearn.errors import ArtefactError, ConfigError
from qunlearn.fingerprint import digest_bytes
from qunlearn_export.graph import Graph

MAX_BYTES = 1 << 28


class LogitsPredictor(Predictor):
    """Answers of artefact kind ``kind`` on the samples of one data set, row by row.

    ``codes`` int [N, K] as the device computes them; logits are ``(codes - zero_point) * scale``. ``graph`` is the file
    that the firmware was generated from, where it is known: it then gives the codes of the network. Without it only the
    answers are known (``answers_only``).
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __init__(
        self,
        codes: NDArray[np.int64],
        dataset: Dataset,
        *,
        scale: float,
        zero_point: int,
        kind: str = "c-target",
        graph: Graph | None = None,
    ) -> None:
        super().__init__()
        if codes.shape != (len(dataset), dataset.num_classes):
            raise ConfigError(
                f"there are {list(codes.shape)} logits for {len(dataset)} samples of {dataset.num_classes} classes.",
                remedy="Dump one row for every row of probe.npz, in its order.",
            )
        if np.abs(codes).max(initial=0) >= 2**31:
            raise ConfigError("logits leave 32 bits.", remedy="Dump the integer logits, not what was made of them.")
        self.kind = kind
        self.step = float(scale)
        self.answers_only = graph is None
        self._graph = graph
        self._codes = codes
        self._z = ((codes - zero_point) * np.float32(scale)).astype(np.float32)
        inputs = dataset.preprocess.apply(dataset.x)
        self._rows = {row.tobytes(): i for i, row in enumerate(inputs)}

    @property
    def digest(self) -> str:
        return digest_bytes(np.ascontiguousarray(self._codes, dtype="<i8").tobytes())

    @property
    def meta(self) -> Mapping[str, Any]:
        return {
            "runtime": "logits read from a file",
            "optimisation_level": "unknown",
            "cpu_flags": ["unknown"],
            "threads": 1,
        }

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            rows = [self._rows[row.tobytes()] for row in np.ascontiguousarray(x, np.float32)]
        except KeyError:
            raise ConfigError(
                "an audit asks for a sample that was not run on the device.", remedy="Dump all rows of probe.npz."
            ) from None
        out: NDArray[np.float32] = self._z[rows]
        return out

    def codes(self) -> Mapping[str, NDArray[Any]]:
        return {"logits": self._codes.astype(np.int32)} if self._graph is None else self._graph.quantized_tensors()


def read_rows(path: Path) -> NDArray[np.int64]:
    """Integer logits [N, K] from a CSV file: one row a sample, in order; a line of names and ``#`` lines are skipped.

    A first column named ``row`` gives the order in place of the lines'. Everything else is an ArtefactError.
    """
    remedy = "Write one line of whole numbers a sample."
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path} is too large.", remedy=remedy)
        with open(path, newline="", encoding="utf-8") as f:
            lines = [row for row in csv.reader(f) if row and not row[0].lstrip().startswith("#")]
        named = bool(lines) and not lines[0][0].strip().lstrip("+-").isdigit()
        ordered = named and lines[0][0].strip().lower() == "row"
        found = np.array([[int(cell) for cell in row] for row in lines[named:]], dtype=np.int64)
    except (OSError, ValueError, OverflowError, csv.Error) as err:
        raise ArtefactError(f"{path} holds no rows of whole numbers: {err}.", remedy=remedy) from err
    if found.ndim != 2 or not found.size:
        raise ArtefactError(f"{path} holds no rows of one length.", remedy=remedy)
    if ordered:
        order, found = found[:, 0], found[:, 1:]
        if sorted(order.tolist()) != list(range(len(found))):
            raise ArtefactError(f"{path} lacks rows, or has one twice.", remedy=remedy)
        found = found[np.argsort(order)]
    return found
