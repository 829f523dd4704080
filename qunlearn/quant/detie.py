"""Move output scales until no integer sum lands on or next to a half, where runtimes differ (artefact_onnx 2.5)."""

from __future__ import annotations

import torch

from qunlearn.quant.lower import lower
from qunlearn.quant.model import QuantModel
from qunlearn_export.ties import detie_scale, reading_share


@torch.no_grad()
def detie(model: QuantModel) -> int:
    """Move the output scale of every node with ties (``detie_scale``); returns how many scales moved.

    Called once, when training fixes the scales; unlearning keeps them. MaxPool and Flatten share the grid of their
    input and so move with it. In execution order, so that a node's inputs stand when its output is moved.
    """
    graph = lower(model, repair_dead=True)
    moved = 0
    for i in range(len(graph.layers)):
        layer = graph.layers[i]
        if reading_share(layer, graph) > 0:
            model.quantizer_of(layer.name).scale.fill_(float(detie_scale(layer, graph)))
            graph = lower(model, repair_dead=True)
            moved += 1
    return moved
