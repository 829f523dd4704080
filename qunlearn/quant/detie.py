"""Move output scales off simple fractions, so that no integer sum lands on a half (artefact_onnx 2.5)."""

from __future__ import annotations

import torch

from qunlearn.quant.lower import lower
from qunlearn.quant.model import QuantModel
from qunlearn_export.ties import TRIES, detie_scale, ties


@torch.no_grad()
def detie(model: QuantModel) -> int:
    """Move the output scale of every node with ties (``detie_scale``); returns how many scales moved.

    Called once, when training fixes the scales; unlearning keeps them. MaxPool and Flatten share the grid of their
    input and so move with it.
    """
    moved = set()
    for _ in range(TRIES):
        graph = lower(model, repair_dead=True)
        tied = {t.layer for t in ties(graph) if t.share > 0}
        if not tied:
            break
        for layer in graph.layers:
            if layer.name in tied:
                model.quantizer_of(layer.name).scale.fill_(float(detie_scale(layer, graph)))
                moved.add(layer.name)
    return len(moved)
