"""The predictor over generated C: compiled for this computer, or run on an emulated board."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.predictor_files import FilePredictor
from qunlearn.errors import ConfigError
from qunlearn.fingerprint import cpu_flags
from qunlearn_export.oracle import Oracle, dequantize

BOARD = "mps2-an386"


class FirmwarePredictor(FilePredictor):
    """The C that is generated from an ONNX file.

    ``kind`` is ``c-host`` (compiled by the host's C compiler, looped in C) or ``c-target`` (cross-compiled for
    ``board`` and run under the emulator: a few inputs a second). MissingDependencyError where a compiler or the
    emulator is absent, UnsupportedError for a network without kernels; neither ever falls back. The digest is that of
    the ONNX file, from which everything follows. Features are read by taps, on the host only.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"logits", "codes", "features"})

    def __init__(self, source: str | os.PathLike[str] | bytes, *, kind: str = "c-host", board: str = BOARD) -> None:
        super().__init__(source)
        if kind not in ("c-host", "c-target"):
            raise ConfigError(f"generated C cannot be of kind {kind!r}.", remedy="Use c-host or c-target.")
        self.kind = kind
        self._oracle = Oracle(self.graph)
        self._board = board
        if kind == "c-target":
            from qunlearn_export.target import Target

            self._target = Target(self.graph, board=board)
        else:
            from qunlearn_export.hostlib import HostLibrary

            self._library = HostLibrary(self.graph)
            self._taps: HostLibrary | None = None

    @property
    def meta(self) -> Mapping[str, Any]:
        host = self.kind == "c-host"
        return {
            "runtime": " ".join(self._library.compiler) if host else self._target.runtime,
            "optimisation_level": "-O2",
            "cpu_flags": list(cpu_flags()) if host else [self._board],
            "threads": 1,
        }

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        codes = self._oracle.quantize(np.ascontiguousarray(x, np.float32))
        out = self._library.run(codes) if self.kind == "c-host" else self._target.run(codes)
        return dequantize(out, self.graph.activations[self.graph.output])

    def features(self, x: NDArray[np.float32], names: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        if self.kind != "c-host":
            return super().features(x, names)
        if self._taps is None:
            from qunlearn_export.hostlib import HostLibrary

            self._taps = HostLibrary(self.graph, taps=True, like=self._library)
        found = self._taps.run_all(self._oracle.quantize(np.ascontiguousarray(x, np.float32)))
        by_layer = {"input": self.graph.input, **{one.name: one.output for one in self.graph.layers}}
        by_layer["penultimate"] = list(self.graph.weighted())[-1].inputs[0]
        unknown = sorted(n for n in names if n not in by_layer)
        if unknown:
            raise ConfigError(
                f"no feature named {', '.join(unknown)}.", remedy=f"Known: penultimate, {', '.join(sorted(by_layer))}."
            )
        values = self._aliases(found)
        return {
            name: dequantize(values[at], self.graph.activations[at]).reshape(len(x), -1)
            for name, at in ((n, by_layer[n]) for n in names)
        }

    def _aliases(self, found: Mapping[str, NDArray[np.int8]]) -> dict[str, NDArray[np.int8]]:
        """Every activation; those that move no data are read from their source."""
        values = dict(found)
        for layer in self.graph.layers:
            if layer.output not in values:
                source = values[layer.inputs[0]]
                values[layer.output] = source.reshape(len(source), *self.graph.activations[layer.output].shape)
        return values
