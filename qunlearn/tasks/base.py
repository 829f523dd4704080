"""What a batch means: the contract between data, networks and methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.data.dataset import Samples


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``x`` network input; ``y`` targets; ``index`` position of every row in the samples it came from (int64 [n])."""

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return int(self.index.shape[0])


class Task(ABC):
    """Loss, logits and metrics of one kind of problem. Methods and audits are written against this class."""

    name: ClassVar[str]

    @abstractmethod
    def batch(self, samples: Samples, index: NDArray[np.int64] | Tensor) -> Batch:
        """The rows ``index`` of ``samples`` as tensors, preprocessed as the network expects them."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scores before the softmax; the last axis is the class or vocabulary axis."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch, *, reduction: str = "mean") -> Tensor:
        """Training loss; ``reduction`` is ``mean`` (a scalar) or ``none`` (one value a sample)."""

    @abstractmethod
    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """``accuracy`` (argmax, lowest index wins), ``confidence`` (mean true-class probability), ``loss`` (nats)."""

    def predict(self, model: nn.Module, samples: Samples, *, batch_size: int = 256) -> NDArray[np.float32]:
        """Logits of all ``samples`` in evaluation mode, without gradient; every module's mode is restored."""
        modes = [(m, m.training) for m in model.modules()]
        model.eval()
        parts = []
        try:
            with torch.no_grad():
                for start in range(0, len(samples), batch_size):
                    rows = np.arange(start, min(start + batch_size, len(samples)))
                    parts.append(self.logits(model, self.batch(samples, rows)))
        finally:
            for module, training in modes:
                module.training = training
        out: NDArray[np.float32] = torch.cat(parts).to(torch.float32).cpu().numpy()
        return out
