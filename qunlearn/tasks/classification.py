"""Single-label classification with cross-entropy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn.data.dataset import Samples
from qunlearn.tasks.base import Batch, Task


class Classification(Task):
    """Inputs [n, C, H, W] float32, targets class indices int64 [n], logits [n, K]."""

    name = "classification"

    def batch(self, samples: Samples, index: NDArray[np.int64] | Tensor) -> Batch:
        rows = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index, dtype=np.int64)
        return Batch(
            x=torch.from_numpy(samples.inputs(rows)),
            y=torch.from_numpy(samples.targets(rows)),
            index=torch.from_numpy(rows),
        )

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = model(batch.x)
        return out

    def loss(self, logits: Tensor, batch: Batch, *, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(logits, batch.y, reduction=reduction)

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        log_p = torch.log_softmax(logits.double(), dim=1)
        true = log_p.gather(1, batch.y[:, None])[:, 0]
        return {
            "accuracy": float((logits.argmax(1) == batch.y).double().mean()),
            "confidence": float(true.exp().mean()),
            "loss": float(-true.mean()),
        }
