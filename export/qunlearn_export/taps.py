"""A file whose internal tensors can be read: extra float outputs beside the logits, weights and graph unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qunlearn_export.errors import ConfigError
from qunlearn_export.extract import Coded
from qunlearn_export.graph import Graph


def feature_tensor(graph: Graph, name: str) -> str:
    """The layer (or ``input``) whose output a feature name means; ``penultimate`` is what the last weighted one reads.

    ConfigError lists the known names for any other.
    """
    owners = {layer.output: layer.name for layer in graph.layers} | {graph.input: "input"}
    if name == "penultimate":
        return owners[list(graph.weighted())[-1].inputs[0]]
    if name not in owners.values():
        raise ConfigError(f"no feature named {name}.", remedy=f"Known: penultimate, {', '.join(owners.values())}.")
    return name


def tapped(data: bytes, graph: Graph, names: Sequence[str]) -> tuple[bytes, Mapping[str, str]]:
    """(file with one more float output a name, output by name) for layers of ``graph``, the network in ``data``.

    Every tap ends in its own DequantizeLinear: an int8 graph output would keep ONNX Runtime from fusing the layer
    (artefact_onnx 2.6), and then another kernel would be read.
    """
    model = onnx.load_model_from_string(data)
    coded = Coded.of(model).tensor
    activations = {layer.name: graph.activations[layer.output] for layer in graph.layers}
    activations["input"] = graph.activations[graph.input]
    outputs = {}
    for i, name in enumerate(dict.fromkeys(feature_tensor(graph, n) for n in names)):
        a = activations[name]
        out = f"tap/{i}"
        constants = (np.asarray(a.scale, np.float32), np.asarray(a.zero_point, np.int8))
        inputs = [coded[name]]
        for label, value in zip(("scale", "zp"), constants, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(value, f"{out}.{label}"))
            inputs.append(f"{out}.{label}")
        model.graph.node.append(helper.make_node("DequantizeLinear", inputs, [out], name=f"{out}/dq"))
        model.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, ["N", *a.shape]))
        outputs[name] = out
    return bytes(model.SerializeToString()), {n: outputs[feature_tensor(graph, n)] for n in names}
