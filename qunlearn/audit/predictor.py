"""One interface to everything that answers: the torch checkpoint, the int8 ONNX file, the integer oracle.

torch is imported only inside :class:`TorchPredictor`, ONNX Runtime only inside :class:`OnnxPredictor`.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.dataset import Samples
from qunlearn.errors import ArtefactError, ConfigError, InvariantError, UnsupportedError
from qunlearn.fingerprint import cpu_flags, digest_bytes
from qunlearn_export.graph import Graph, codes_digest

if TYPE_CHECKING:
    from torch import nn

KINDS = ("torch-fq", "onnx-off", "onnx-all", "oracle", "c-host", "c-target", "torch-reloaded")
"""Artefact kinds, DESIGN: one predictor class serves one or two of them."""

OFFERED = ("torch-fq", "onnx-off", "onnx-all", "oracle", "torch-reloaded")
"""The kinds that this version can run."""

ALIASES: Mapping[str, str] = {"torch": "torch-fq", "onnx": "onnx-all", "c": "c-host"}
"""Short names of the command line's ``--on``."""

CHUNK = 256
"""Samples per model call; the peak memory of an audit is that of one chunk plus the logits."""


class Predictor(ABC):
    """Something that answers, with the identity of what answered. Subclasses set ``kind``."""

    kind: str
    capabilities: ClassVar[frozenset[str]] = frozenset({"logits", "codes"})

    def __init__(self) -> None:
        self._cache: dict[str, NDArray[np.float32]] = {}

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the file's bytes, or of the checkpoint's tensors; read anew at every call."""

    @property
    @abstractmethod
    def meta(self) -> Mapping[str, Any]:
        """``runtime`` (name and version), ``optimisation_level``, ``cpu_flags`` (list of str), ``threads`` (int)."""

    @abstractmethod
    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 [N, C] of preprocessed inputs float32 [N, C, H, W]."""

    @abstractmethod
    def codes(self) -> Mapping[str, NDArray[Any]]:
        """Integer codes, scales and zero points by tensor name: what the codes digest covers."""

    def features(self, x: NDArray[np.float32], names: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Named features float32 [N, d]; ``penultimate`` is the input of the last weighted layer."""
        raise UnsupportedError(
            f"artefact kind {self.kind!r} shows no features.", remedy="Audit it on its logits, or use torch-fq."
        )

    @final
    def codes_digest(self) -> str:
        """SHA-256 over :meth:`codes`; the same for checkpoint and file of one model."""
        return codes_digest(self.codes())

    @final
    def on(self, samples: Samples) -> NDArray[np.float32]:
        """Logits float32 [n, C] of all samples, in their order, read-only; one pass a sample set, then remembered.

        Non-finite logits are returned as they are. A wrong shape is an ArtefactError.
        """
        if len(samples) == 0:
            raise InvariantError("logits of an empty sample set were asked for.", remedy="Check the splits.")
        key = _order(samples)
        if key not in self._cache:
            parts = []
            for start in range(0, len(samples), CHUNK):
                x = samples.inputs(np.arange(start, min(start + CHUNK, len(samples))))
                z = np.asarray(self.logits(x), dtype=np.float32)
                if z.ndim != 2 or z.shape != (len(x), samples.num_classes):
                    raise ArtefactError(
                        f"{self.kind} gave logits of shape {list(z.shape)} for {len(x)} samples of "
                        f"{samples.num_classes} classes.",
                        remedy="Audit the model on the data that it was made for.",
                    )
                parts.append(z)
            out = np.concatenate(parts)
            out.flags.writeable = False
            self._cache[key] = out
        return self._cache[key]

    @final
    def features_on(self, samples: Samples, name: str) -> NDArray[np.float32]:
        """Feature ``name`` float32 [n, d] of all samples, in their order, read-only; one pass, then remembered."""
        key = f"{name} {_order(samples)}"
        if key not in self._cache:
            parts = []
            for start in range(0, len(samples), CHUNK):
                x = samples.inputs(np.arange(start, min(start + CHUNK, len(samples))))
                parts.append(self.features(x, (name,))[name])
            out = np.concatenate(parts)
            out.flags.writeable = False
            self._cache[key] = out
        return self._cache[key]

    @final
    def forget_cache(self) -> None:
        """Drop the remembered logits and features (tests that two evaluations are bit-equal need this)."""
        self._cache.clear()


def _order(samples: Samples) -> str:
    """Digest of the samples in their order."""
    return hashlib.sha256(samples.digest().encode() + b"\0".join(str(i).encode() for i in samples.ids)).hexdigest()


class TorchPredictor(Predictor):
    """A fake-quantized network in evaluation mode, observers and BatchNorm frozen; its mode is restored after a call.

    ``kind`` is ``torch-fq``, or ``torch-reloaded`` for a checkpoint that a fresh process has loaded.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"logits", "codes", "features"})

    def __init__(self, model: nn.Module, *, kind: str = "torch-fq") -> None:
        super().__init__()
        if kind not in ("torch-fq", "torch-reloaded"):
            raise ConfigError(f"a torch model cannot be of kind {kind!r}.", remedy="Use torch-fq or torch-reloaded.")
        self.kind = kind
        self.model = model

    @property
    def digest(self) -> str:
        from qunlearn.quant import state_digest

        return state_digest(self.model)

    @property
    def meta(self) -> Mapping[str, Any]:
        import torch

        return {
            "runtime": f"torch {torch.__version__}",
            "optimisation_level": "eager",
            "cpu_flags": list(cpu_flags()),
            "threads": torch.get_num_threads(),
        }

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                out: NDArray[np.float32] = self.model(torch.from_numpy(x)).to(torch.float32).cpu().numpy()
        finally:
            self.model.train(was_training)
        return out

    def features(self, x: NDArray[np.float32], names: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        import torch

        from qunlearn.quant.model import WEIGHTED, QuantModel

        if not isinstance(self.model, QuantModel):
            raise UnsupportedError(
                "only a quantized model names its features.", remedy="Prepare it with quant.prepare."
            )
        last = next(s for s in reversed(self.model.steps) if s.kind in WEIGHTED)
        where = {name: last.inputs[0] if name == "penultimate" else name for name in names}
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                values = self.model.activations(torch.from_numpy(x))
        finally:
            self.model.train(was_training)
        missing = sorted(set(where.values()) - set(values))
        if missing:
            raise ConfigError(
                f"no feature named {', '.join(missing)}.", remedy=f"Known: penultimate, {', '.join(sorted(values))}."
            )
        return {name: values[at].flatten(1).to(torch.float32).cpu().numpy() for name, at in where.items()}

    def codes(self) -> Mapping[str, NDArray[Any]]:
        from qunlearn.quant import codes
        from qunlearn.quant.model import QuantModel

        if not isinstance(self.model, QuantModel):
            raise UnsupportedError(
                "a model that is not quantized has no codes.", remedy="Prepare it with quant.prepare."
            )
        return codes(self.model)


class _FilePredictor(Predictor):
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


class OnnxPredictor(_FilePredictor):
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


class OraclePredictor(_FilePredictor):
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
