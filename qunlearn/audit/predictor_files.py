"""Predictors over an int8 ONNX file: ONNX Runtime, and the integer oracle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.predictor_base import CHUNK, Predictor
from qunlearn.errors import ConfigError, UnsupportedError
from qunlearn.fingerprint import cpu_flags, digest_bytes
from qunlearn_export.graph import Graph


class FilePredictor(Predictor):
    """What predictors over an ONNX file share: the bytes, read once, and the graph in them."""

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        super().__init__()
        from qunlearn_export.runtime import read_bytes

        self.data = read_bytes(source)
        self._graph: Graph | None = None

    @property
    def digest(self) -> str:
        return digest_bytes(self.data)

    @property
    def graph(self) -> Graph:
        """The network in the file, checked while it is read (bounds, operators, codes)."""
        if self._graph is None:
            from qunlearn_export.reader import read

            self._graph = read(self.data)
        return self._graph

    def codes(self) -> Mapping[str, NDArray[Any]]:
        return self.graph.quantized_tensors()


class OnnxPredictor(FilePredictor):
    """An int8 ONNX file under ONNX Runtime, opened by the project's one session helper; one thread.

    ``level`` is ``all`` (kind ``onnx-all``) or ``off`` (kind ``onnx-off``). Features are the file's own internal
    tensors, read through extra outputs of the same graph in the same kind of session.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"logits", "codes", "features"})

    def __init__(self, source: str | os.PathLike[str] | bytes, *, level: str = "all") -> None:
        if level not in ("all", "off"):
            raise ConfigError(f"optimisation level {level!r}.", remedy="Use all or off.")
        super().__init__(source)
        self.kind = f"onnx-{level}"
        from qunlearn_export.runtime import make_session, session_info

        self._session = make_session(self.data, level=level, threads=1)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            raise UnsupportedError(
                "an audit needs a file with one float input.", remedy="Export it with --io float; codes are the same."
            )
        self._info = session_info(self.data, level=level, threads=1)
        self._taps: dict[tuple[str, ...], tuple[Any, Mapping[str, str]]] = {}

    @property
    def meta(self) -> Mapping[str, Any]:
        entries = "".join(f", {k}={v}" for k, v in sorted(self._info.entries.items()))
        return {
            "runtime": f"onnxruntime {self._info.version}{entries}",
            "optimisation_level": self._info.level,
            "cpu_flags": list(self._info.cpu) or ["unknown"],
            "threads": self._info.threads,
        }

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        from qunlearn_export.runtime import run

        outputs = run(self._session, np.ascontiguousarray(x, dtype=np.float32), batch=CHUNK)
        return np.asarray(next(iter(outputs.values())), dtype=np.float32)

    def features(self, x: NDArray[np.float32], names: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        from qunlearn_export.runtime import make_session, run
        from qunlearn_export.taps import tapped

        key = tuple(names)
        if key not in self._taps:
            data, outputs = tapped(self.data, self.graph, names)
            self._taps[key] = make_session(data, level=self.kind.removeprefix("onnx-"), threads=1), outputs
        session, outputs = self._taps[key]
        found = run(session, np.ascontiguousarray(x, dtype=np.float32), batch=CHUNK)
        return {n: np.asarray(found[outputs[n]], np.float32).reshape(len(x), -1) for n in names}


class OraclePredictor(FilePredictor):
    """The written integer rounding rule, executed in numpy on the codes of an ONNX file. Slow and exact."""

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        super().__init__(source)
        self.kind = "oracle"
        from qunlearn_export.oracle import Oracle

        self._oracle = Oracle(self.graph)

    @property
    def meta(self) -> Mapping[str, Any]:
        return {
            "runtime": f"qunlearn_export oracle, numpy {np.__version__}",
            "optimisation_level": "none",
            "cpu_flags": list(cpu_flags()),
            "threads": 1,
        }

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._oracle.logits(np.ascontiguousarray(x, np.float32)), dtype=np.float32)
