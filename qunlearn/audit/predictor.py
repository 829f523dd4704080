"""One interface to everything that answers: the torch checkpoint, the int8 ONNX file, the integer oracle, generated C.

torch is imported only inside :class:`TorchPredictor`; ``predictor_files`` holds those over an ONNX file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.predictor_base import ALIASES, CHUNK, KINDS, OFFERED, Predictor
from qunlearn.audit.predictor_files import OnnxPredictor, OraclePredictor
from qunlearn.audit.predictor_firmware import FirmwarePredictor
from qunlearn.errors import ConfigError, UnsupportedError
from qunlearn.fingerprint import cpu_flags

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ALIASES",
    "CHUNK",
    "KINDS",
    "OFFERED",
    "FirmwarePredictor",
    "OnnxPredictor",
    "OraclePredictor",
    "Predictor",
    "TorchPredictor",
]


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
