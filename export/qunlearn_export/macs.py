"""Multiply-accumulates and weights of a node, as reports count them."""

from __future__ import annotations

import math

from qunlearn_export import graph as g
from qunlearn_export.nodes import Node, Program


def macs(program: Program, node: Node) -> int:
    """Multiply-accumulates of one inference: weighted nodes only, padding counted as if inside."""
    if isinstance(node.layer, g.Conv):
        h, w, k = program.shapes[node.output]
        return h * w * k * math.prod(node.layer.weight.shape[1:])
    return weights(node)


def weights(node: Node) -> int:
    """Weight codes of a node (0 without weights)."""
    return node.layer.weight.size if isinstance(node.layer, g.Conv | g.Gemm | g.MatMul) else 0
