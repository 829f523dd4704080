"""Do torch, ONNX Runtime and the integer oracle agree? The table that ends every export (artefact_audit 3.1).

Differences are counted in LSB, as integers. ``free``: errors may accumulate through the network. ``forced``: every
layer gets the oracle's integer input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.check import examine, form_of, load_model
from qunlearn_export.coverage import coverage
from qunlearn_export.errors import ConfigError, VerificationError
from qunlearn_export.extract import Coded, recover, run_layer
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.oracle import run_layer as oracle_layer
from qunlearn_export.parity_c import COLUMN, PAIR, c_column, c_reasons
from qunlearn_export.parity_report import Logits, ParityReport, Row
from qunlearn_export.probe import host_saturates, layer_vector
from qunlearn_export.runtime import make_session, read_bytes, run, session_info
from qunlearn_export.ties import ties

MIN_N = 64
SHARE = 1e-3
ARGMAX = 0.999
EXACT = ("Conv", "Gemm", "MatMul")
"""Operators whose QOperator node must equal the oracle in every output, at both levels (artefact_audit 3.1)."""

__all__ = ["Logits", "ParityReport", "Row", "TorchColumn", "compare_logits", "corner_vectors", "parity", "tap"]

Codes = NDArray[np.int8]


class TorchColumn(Protocol):
    """The fake-quantized network as codes; ``qunlearn.quant.TorchColumn`` is one."""

    def run_all(self, x: NDArray[np.float32]) -> Mapping[str, Codes]: ...
    def run_layer(self, name: str, *inputs: Codes) -> Codes: ...


def parity(
    graph: g.Graph,
    file: str | os.PathLike[str] | bytes,
    x: NDArray[np.float32],
    *,
    torch_column: TorchColumn | None = None,
) -> ParityReport:
    """Compare all columns on ``x`` [N, ...] (N >= 64) and the corner vectors.

    ``graph`` is the network's own, ``file`` what was written of it: codes, scales and zero points are compared too.
    VerificationError when the file holds another network; DataError and ConfigError for unusable ``x``.
    """
    if len(x) < MIN_N:
        raise ConfigError(f"parity on {len(x)} samples says too little.", remedy=f"Give at least {MIN_N}.")
    data = read_bytes(file)
    model = load_model(data)
    oracle = Oracle(graph)
    oracle.quantize(x)
    corners = corner_vectors(graph.activations[graph.input])
    x = np.concatenate([np.asarray(x, dtype=np.float32), corners])
    file_reasons = _file_reasons(graph, model)
    codes = oracle.run_all(x)
    coded = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT8
    feed: NDArray[Any] = codes[graph.input] if coded else x
    out = graph.activations[graph.output]
    final = {"oracle": codes[graph.output]}
    settings: dict[str, dict[str, Any]] = {"onnx-off": {"level": "off"}, "onnx-all": {}, "onnx-raw": {"raw": True}}
    for name, one in settings.items():
        result = run(make_session(data, **one), feed)["logits"]
        final[name] = result if coded else recover(result, out)
    rows = list(_onnx_rows(graph, model, feed, codes))
    if torch_column is not None:
        free = torch_column.run_all(x)
        final["torch-fq"] = free[graph.output]
        rows += _torch_rows(graph, torch_column, free, codes)
    generated = c_column(graph, codes[graph.input])
    absent = {COLUMN: generated.absent} if generated.absent else {}
    pairs = [("onnx-off", "oracle"), ("onnx-all", "onnx-off"), ("onnx-all", "oracle"), ("onnx-raw", "oracle")]
    if torch_column is not None:
        pairs.insert(0, ("torch-fq", "oracle"))
    else:
        absent = {"torch-fq": "no network was given", **absent}
    if generated.output is not None and generated.layers is not None:
        final[COLUMN] = generated.output
        pairs.append((COLUMN, "oracle"))
        rows += [
            _difference(one.name, type(one).__name__, PAIR, "free", generated.layers[one.output], codes[one.output], z)
            for one in graph.layers
            if one.output in generated.layers
            for z in (graph.activations[one.output].zero_point,)
        ]
    logits = tuple(compare_logits(f"{p} vs {q}", final[p], final[q]) for p, q in pairs)
    saturation = tuple(_saturation(graph, model))
    exact = EXACT if form_of(model) == "qop" else ()
    reasons = [
        *file_reasons,
        *_row_reasons(rows, exact=exact),
        *_logit_reasons(logits),
        *_saturation_reasons(saturation),
        *c_reasons(graph, generated, codes),
    ]
    props = {p.key: p.value for p in model.metadata_props}
    return ParityReport(
        verdict="fail" if reasons else "pass",
        reasons=tuple(reasons),
        logits=logits,
        layers=tuple(rows),
        saturation=saturation,
        ties=tuple(ties(graph)),
        coverage=coverage(data, graph),
        host=host_saturates(),
        inputs={"n": len(x), "digest": hashlib.sha256(x.tobytes()).hexdigest(), "corner_vectors": len(corners)},
        runtime={**session_info(data).to_json(), "format": props.get("qunlearn.format", "")},
        file_digest=hashlib.sha256(data).hexdigest(),
        codes_digest=graph.codes_digest(),
        absent=absent,
    )


def _file_reasons(graph: g.Graph, model: onnx.ModelProto) -> list[str]:
    """Violations of the static check, and every tensor of the file that is not the network's, bit for bit."""
    held, findings = examine(model, tie_limit=1.0)
    reasons = [f"file, {f.code} {f.where}: {f.message}" for f in findings if f.level == "error"]
    own = graph.quantized_tensors()
    theirs = {} if held is None else held.quantized_tensors()
    kinds = [] if held is None else [_kind(one) for one in held.layers]
    shapes = [{n: t.shape for n, t in tensors.items()} for tensors in (own, theirs)]
    if held is None or kinds != [_kind(one) for one in graph.layers] or shapes[0] != shapes[1]:
        raise VerificationError(
            f"the file does not hold this network{': ' + '; '.join(reasons[:3]) if reasons else ''}.",
            remedy="Give the file that was exported from it.",
        )
    for name, tensor in own.items():
        differ = int((tensor.reshape(-1).view(np.uint8) != theirs[name].reshape(-1).view(np.uint8)).sum())
        if differ:
            layer, _, part = name.rpartition(".")
            reasons.append(f"layer {layer}: {part} in the file differs from the network's in {differ} bytes")
    for mine, other in zip(graph.layers, held.layers, strict=True):
        facts, written = _facts(mine), _facts(other)
        reasons += [
            f"layer {mine.name}: {key} in the file is not the network's" for key in facts if facts[key] != written[key]
        ]
    return reasons


def _facts(layer: g.AnyLayer) -> dict[str, Any]:
    """Everything about a layer that is not in a tensor: strides, pads, clamps, inputs."""
    facts = {f.name: getattr(layer, f.name) for f in fields(layer) if not f.name.startswith(("weight", "bias"))}
    return {**facts, "relu": layer.relu or layer.clip is not None}


def _kind(layer: g.AnyLayer) -> tuple[str, str]:
    return layer.name, type(layer).__name__


def corner_vectors(a: g.Activation) -> NDArray[np.float32]:
    """Real values of: all q_min, all q_max, all zero, and both checkerboards; [5, ...]."""
    index = np.indices(a.shape).sum(axis=0) % 2 == 0
    board = np.where(index, 127, -128)
    full = [np.full(a.shape, v) for v in (-128, 127, a.zero_point)]
    return dequantize(np.stack([*full, board, -1 - board]).astype(np.int8), a)


def _difference(name: str, op: str, pair: str, mode: str, p: Codes, q: Codes, zero: int) -> Row:
    d = p.astype(np.int64) - q.astype(np.int64)
    return Row(
        name=name,
        op=op,
        pair=pair,
        mode=mode,
        max_abs=int(np.abs(d).max(initial=0)),
        share=float((d != 0).mean()),
        mean=float(d.mean()),
        uninformative=bool((q == zero).all()),
    )


def _onnx_rows(graph: g.Graph, model: onnx.ModelProto, feed: NDArray[Any], codes: Mapping[str, Codes]) -> Iterator[Row]:
    tensors = Coded.of(model).tensor
    free = run(make_session(tap(model), level="off"), feed)
    for layer in graph.layers:
        zero = graph.activations[layer.output].zero_point
        op, want = type(layer).__name__, codes[layer.output]
        if tensors[layer.name] in free and layer.output != graph.output:
            yield _difference(layer.name, op, "onnx-off vs oracle", "free", free[tensors[layer.name]], want, zero)
        off, full = run_layer(model, graph, layer, codes, settings=[{"level": "off"}, {"level": "all"}])
        yield _difference(layer.name, op, "onnx-off vs oracle", "forced", off, want, zero)
        yield _difference(layer.name, op, "onnx-all vs onnx-off", "forced", full, off, zero)


def tap(model: onnx.ModelProto) -> bytes:
    """The file with every quantized intermediate tensor as a further output (for sessions at level ``off``)."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    coded, have = set(Coded.of(model).tensor.values()), {o.name for o in model.graph.output}
    tapped.graph.output.extend(v for v in model.graph.value_info if v.name in coded and v.name not in have)
    return bytes(tapped.SerializeToString(deterministic=True))


def _torch_rows(
    graph: g.Graph, column: TorchColumn, free: Mapping[str, Codes], codes: Mapping[str, Codes]
) -> Iterator[Row]:
    for layer in graph.layers:
        zero = graph.activations[layer.output].zero_point
        op, want = type(layer).__name__, codes[layer.output]
        yield _difference(layer.name, op, "torch-fq vs oracle", "free", free[layer.output], want, zero)
        forced = column.run_layer(layer.name, *(codes[n] for n in layer.inputs))
        yield _difference(layer.name, op, "torch-fq vs oracle", "forced", forced, want, zero)


def _saturation(graph: g.Graph, model: onnx.ModelProto) -> Iterator[Row]:
    for layer in graph.weighted():
        vector = {layer.inputs[0]: layer_vector(graph, layer)}
        want, zero = oracle_layer(graph, layer, vector[layer.inputs[0]]), graph.activations[layer.output].zero_point
        found = run_layer(model, graph, layer, vector, settings=[{}, {"raw": True}])
        for name, got in zip(("onnx-all", "onnx-raw"), found, strict=True):
            yield _difference(layer.name, type(layer).__name__, f"{name} vs oracle", "full-scale", got, want, zero)


def compare_logits(pair: str, p: Codes, q: Codes) -> Logits:
    """Final codes [N, K] of two columns. A sample whose top-2 margin in ``q`` is at most max |d| is unresolved."""
    d = np.abs(p.astype(np.int64) - q.astype(np.int64))
    top = int(d.max(initial=0))
    ranked = np.sort(q.astype(np.int64), axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if q.shape[1] > 1 else np.full(len(q), 255)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    clear = margin > top if top else margin > 0
    return Logits(
        pair=pair,
        max_abs=top,
        share=float((d != 0).mean()),
        argmax=float(same.mean()),
        argmax_outside_margin=float(same[clear].mean()) if clear.any() else 1.0,
        smallest_margin=int(margin.min()),
        unresolved=int((~clear).sum()),
    )


def _logit_reasons(logits: tuple[Logits, ...]) -> Iterator[str]:
    """Free-running logits are bounded in LSB and class; the share of differing outputs is bounded layer by layer, with
    teacher forcing, since float sums of the ``off`` reading accumulate through the network."""
    bounds = {
        "onnx-off vs oracle": (1, 1.0, 0.0),
        "onnx-all vs onnx-off": (1, 1.0, 1.0),
        "torch-fq vs oracle": (2, 1.0, ARGMAX),
    }
    for r in logits:
        if r.pair not in bounds:
            continue
        top, share, argmax = bounds[r.pair]
        if r.max_abs > top:
            yield f"logits, {r.pair}: {r.max_abs} LSB, more than {top}"
        if r.share > share:
            yield f"logits, {r.pair}: {100 * r.share:.3g} % differ, more than {100 * share:g} %"
        if r.argmax_outside_margin < argmax:
            share = 100 * r.argmax_outside_margin
            yield f"logits, {r.pair}: same class on {share:.2f} % outside the margin, less than {100 * argmax:g} %"


def _row_reasons(rows: list[Row], *, exact: Sequence[str] = ()) -> Iterator[str]:
    """``exact``: operators whose rows of ONNX Runtime must not differ at all."""
    for r in rows:
        if r.mode != "forced":
            continue
        bound = 0 if r.op in exact and r.pair.startswith("onnx") else 1
        if r.max_abs > bound:
            yield f"layer {r.name}, {r.pair}: {r.max_abs} LSB, more than {bound}"
        if r.pair.startswith("onnx") and r.share > SHARE:
            yield f"layer {r.name}, {r.pair}: {100 * r.share:.3g} % differ, more than {100 * SHARE:g} %"


def _saturation_reasons(rows: tuple[Row, ...]) -> Iterator[str]:
    for r in rows:
        if r.pair.startswith("onnx-all") and r.max_abs > 1:
            yield f"layer {r.name}: full-scale input differs by {r.max_abs} LSB: the runtime saturates"
