"""The fake-quantized network as a column of the parity table: its results as integer codes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qunlearn.quant.lower import activation_name
from qunlearn.quant.model import QuantModel


class TorchColumn:
    """Codes of every activation, free-running or teacher-forced, in evaluation mode and without gradient."""

    def __init__(self, model: QuantModel) -> None:
        self.model = model

    def run_all(self, x: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
        """Codes by activation name for input float32 [N, C, H, W]."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                values = self.model.activations(torch.from_numpy(np.ascontiguousarray(x)))
                return {
                    activation_name(n): self.model.quantizer_of(n).codes(v).cpu().numpy() for n, v in values.items()
                }
        finally:
            self.model.train(was_training)

    def run_layer(self, name: str, *inputs: NDArray[np.int8]) -> NDArray[np.int8]:
        """Output codes of step ``name`` for given input codes."""
        step = self.model.step(name)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                values = []
                for source, q_in in zip(step.inputs, inputs, strict=True):
                    q = self.model.quantizer_of(source)
                    values.append((torch.from_numpy(q_in).float() - float(q.zero_point)) * q.scale)
                out = self.model.run_step(step, *values)
                result: NDArray[np.int8] = self.model.quantizer_of(name).codes(out).cpu().numpy()
                return result
        finally:
            self.model.train(was_training)
