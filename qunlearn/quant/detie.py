"""Move output scales off simple fractions, so that no integer sum lands on a half (artefact_onnx 2.5)."""

from __future__ import annotations

import torch

from qunlearn.quant.lower import lower
from qunlearn.quant.model import QuantModel
from qunlearn_export.ties import ties

FACTOR = 1.0007
TRIES = 8


@torch.no_grad()
def detie(model: QuantModel) -> int:
    """Multiply the output scale of every node with ties by 1.0007, up to 8 times; returns how many scales moved.

    Called once, when training fixes the scales; unlearning keeps them. MaxPool and Flatten share the grid of their
    input and so move with it.
    """
    moved = set()
    for _ in range(TRIES):
        tied = [t.layer for t in ties(lower(model, repair_dead=True)) if t.share > 0]
        if not tied:
            break
        for name in tied:
            model.quantizer_of(name).scale.mul_(FACTOR)
            moved.add(name)
    return len(moved)
