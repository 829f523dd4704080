"""One layer of a file as a file of its own, for teacher-forced comparison: the file's nodes, the file's constants.

The small file quantizes float inputs and dequantizes its result, because ONNX Runtime treats a layer whose int8 code
is a graph input or output differently (artefact_onnx 2.6), and then the comparison would be of another kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qunlearn_export import graph as g
from qunlearn_export.check import form_of
from qunlearn_export.errors import VerificationError
from qunlearn_export.runtime import make_session, run_many

OUTPUT = "x/out"
SUFFIX = "/q"


@dataclass(frozen=True)
class Coded:
    """Where the quantized tensors of a model are: ``tensor`` by activation owner (layer name, or ``input``)."""

    tensor: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Coded:
        """Read from the names of the nodes: ``<module>/q`` in a QDQ file, the last one of a module in a QOperator file;
        and from the graph input."""
        if form_of(model) == "qop":
            nodes = [n for n in model.graph.node if n.op_type != "DequantizeLinear"]
            last = {n.name.rpartition("/")[0]: n.output[0] for n in nodes}
            return cls({"input": model.graph.input[0].name, **last})
        found = {n.name[: -len(SUFFIX)]: n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
        return cls({"input": model.graph.input[0].name, **found})


def layer_model(model: onnx.ModelProto, name: str) -> tuple[bytes, list[str]]:
    """A file that holds only layer ``name`` of ``model``, and the quantized tensors it reads, in order of reading.

    Its inputs ``x/0``, ``x/1`` ... are float32 on the grids of these tensors; its output is float32 ``x/out``.
    """
    makers = {o: n for n in model.graph.node for o in n.output}
    coded = set(Coded.of(model).tensor.values())
    constants = {t.name: t for t in model.graph.initializer}
    last = next((n for n in model.graph.node if n.name == name + SUFFIX), None)
    if last is None:
        raise VerificationError(f"the file has no layer {name}.", remedy="Export it anew from its run.")
    nodes: list[onnx.NodeProto] = []
    sources: dict[str, onnx.NodeProto] = {}

    def visit(node: onnx.NodeProto) -> None:
        if node in nodes:
            return
        if node.op_type == "DequantizeLinear" and node.input[0] in coded:
            sources.setdefault(node.input[0], node)
        else:
            for tensor in node.input:
                if tensor in makers:
                    visit(makers[tensor])
        nodes.append(node)

    visit(last)
    grids = [
        helper.make_node("QuantizeLinear", [f"x/{i}", *dq.input[1:3]], [t], name=f"x/{i}/q")
        for i, (t, dq) in enumerate(sources.items())
    ]
    tail = helper.make_node("DequantizeLinear", [last.output[0], *last.input[1:3]], [OUTPUT], name="x/out/dq")
    everything = [*grids, *nodes, tail]
    return _file(model, everything, list(sources), last.output[0], constants), list(sources)


def qop_layer_model(model: onnx.ModelProto, graph: g.Graph, layer: g.AnyLayer) -> tuple[bytes, list[str]]:
    """:func:`layer_model` for a QOperator file; its ends are on the grids of ``graph``: some layers carry none."""
    tensor = Coded.of(model).tensor
    if layer.name not in tensor:
        raise VerificationError(f"the file has no layer {layer.name}.", remedy="Export it anew from its run.")
    nodes = [n for n in model.graph.node if n.name.rpartition("/")[0] == layer.name]
    nodes = [n for n in nodes if n.op_type != "DequantizeLinear"]
    coded, made = set(tensor.values()), {n.output[0] for n in nodes}
    sources = list(dict.fromkeys(i for n in nodes for i in n.input if i in coded - made))
    constants = {t.name: t for t in model.graph.initializer}

    def ends(name: str, a: g.Activation) -> list[str]:
        step, zero = np.asarray(a.scale, dtype=np.float32), np.asarray(a.zero_point, dtype=np.int8)
        for end, value in ((f"{name}/s", step), (f"{name}/z", zero)):
            constants[end] = onnx.numpy_helper.from_array(value, end)
        return [f"{name}/s", f"{name}/z"]

    owners = {t: owner for owner, t in tensor.items()}
    by_owner = {"input": graph.input, **{one.name: one.output for one in graph.layers}}
    grids = [
        helper.make_node(
            "QuantizeLinear", [f"x/{i}", *ends(f"x/{i}", graph.activations[by_owner[owners[t]]])], [t], name=f"x/{i}/q"
        )
        for i, t in enumerate(sources)
    ]
    result, a = tensor[layer.name], graph.activations[layer.output]
    tail = helper.make_node("DequantizeLinear", [result, *ends(OUTPUT, a)], [OUTPUT], name="x/out/dq")
    return _file(model, [*grids, *nodes, tail], sources, result, constants), sources


def _file(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    sources: list[str],
    result: str,
    constants: Mapping[str, onnx.TensorProto],
) -> bytes:
    """The nodes as a file: float32 ``x/0`` ... shaped like ``sources``, float32 ``x/out`` shaped like ``result``."""
    shapes = {v.name: v for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    used = {i for n in nodes for i in n.input}

    def value(name: str, like: str) -> onnx.ValueInfoProto:
        out = onnx.ValueInfoProto()
        out.CopyFrom(shapes[like])
        out.name, out.type.tensor_type.elem_type = name, TensorProto.FLOAT
        return out

    inputs = [value(f"x/{i}", t) for i, t in enumerate(sources)]
    held = [t for n, t in constants.items() if n in used]
    small = helper.make_model(
        helper.make_graph(nodes, "layer", inputs, [value(OUTPUT, result)], held), opset_imports=list(model.opset_import)
    )
    small.ir_version = model.ir_version
    for entry in model.metadata_props:
        if entry.key == "qunlearn.format":
            small.metadata_props.append(entry)
    return bytes(small.SerializeToString(deterministic=True))


def run_layer(
    model: onnx.ModelProto,
    graph: g.Graph,
    layer: g.AnyLayer,
    codes: Mapping[str, NDArray[np.int8]],
    *,
    settings: Sequence[Mapping[str, object]],
) -> list[NDArray[np.int8]]:
    """Output codes of the file's ``layer`` for input ``codes`` by activation name, once per session setting.

    A setting holds keyword arguments of ``make_session`` (``level``, ``raw``).
    """
    qop = form_of(model) == "qop"
    data, sources = qop_layer_model(model, graph, layer) if qop else layer_model(model, layer.name)
    owners = {t: owner for owner, t in Coded.of(model).tensor.items()}
    by_owner = {"input": graph.input, **{one.name: one.output for one in graph.layers}}
    feeds = {}
    for i, tensor in enumerate(sources):
        name = by_owner[owners[tensor]]
        a = graph.activations[name]
        feeds[f"x/{i}"] = np.multiply(
            codes[name].astype(np.float32) - np.float32(a.zero_point), np.float32(a.scale), dtype=np.float32
        )
    out = graph.activations[layer.output]
    return [recover(run_many(make_session(data, **s), feeds)[OUTPUT], out) for s in settings]  # type: ignore[arg-type]


def recover(real: NDArray[np.float32], a: g.Activation) -> NDArray[np.int8]:
    """Codes of dequantized values."""
    return np.asarray((np.rint(real / np.float32(a.scale)) + a.zero_point).astype(np.int8))
