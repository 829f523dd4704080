"""What everything that answers has in common: logits of a sample set, and the identity of what answered."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.dataset import Samples
from qunlearn.errors import ArtefactError, InvariantError, UnsupportedError
from qunlearn_export.graph import codes_digest

KINDS = ("torch-fq", "onnx-off", "onnx-all", "oracle", "c-host", "c-target", "torch-reloaded")
"""Artefact kinds, DESIGN: one predictor class serves one or two of them."""

OFFERED = KINDS
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
