"""Do torch, ONNX Runtime and the integer oracle agree? The table that ends every export (artefact_audit 3.1).

Differences are counted in LSB, as integers. ``free``: errors may accumulate through the network. ``forced``: every
layer gets the oracle's integer input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from qunlearn_export import graph as g
from qunlearn_export.check import load_model
from qunlearn_export.coverage import Coverage, coverage
from qunlearn_export.errors import ConfigError
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.probe import Probe, compare_layer, host_saturates, layer_vector, recover, session_layer
from qunlearn_export.runtime import make_session, read_bytes, run, session_info
from qunlearn_export.ties import Tie, ties

MIN_N = 64
SHARE = 1e-3
ARGMAX = 0.999
ABSENT = {"c-host": "C generation is not part of this version"}

Codes = NDArray[np.int8]


class TorchColumn(Protocol):
    """The fake-quantized network as codes; ``qunlearn.quant.TorchColumn`` is one."""

    def run_all(self, x: NDArray[np.float32]) -> Mapping[str, Codes]: ...
    def run_layer(self, name: str, *inputs: Codes) -> Codes: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer compared between two columns: ``max_abs`` in LSB, ``share`` of outputs that differ, ``mean`` of d."""

    name: str
    op: str
    pair: str
    mode: str
    max_abs: int
    share: float
    mean: float
    uninformative: bool


@dataclass(frozen=True, kw_only=True)
class Logits:
    """Final codes of two columns: differences, argmax agreement outside tied margins, smallest top-2 margin (LSB)."""

    pair: str
    max_abs: int
    share: float
    argmax: float
    argmax_outside_margin: float
    smallest_margin: int
    unresolved: int


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The parity table with its verdict; ``reasons`` names every violated bound with its layer."""

    verdict: str
    reasons: tuple[str, ...]
    logits: tuple[Logits, ...]
    layers: tuple[Row, ...]
    saturation: tuple[Row, ...]
    ties: tuple[Tie, ...]
    coverage: Coverage
    host: Probe
    inputs: Mapping[str, Any]
    runtime: Mapping[str, Any]
    file_digest: str
    codes_digest: str
    absent: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain mapping (artefact_onnx 3.3)."""
        return {
            "format": self.runtime["format"],
            "file_digest": self.file_digest,
            "codes_digest": self.codes_digest,
            "host": self.host.to_json(),
            "runtime": dict(self.runtime),
            "inputs": dict(self.inputs),
            "layers": [asdict(r) for r in self.layers],
            "saturation": [asdict(r) for r in self.saturation],
            "logits": {r.pair: asdict(r) for r in self.logits},
            "ties": [asdict(t) for t in self.ties],
            "coverage": self.coverage.to_json(),
            "absent": dict(self.absent),
            "verdict": self.verdict,
            "reasons": list(self.reasons),
        }

    def render(self) -> str:
        """A few lines for the terminal."""
        lines = [f"parity: {self.verdict}   ({self.inputs['n']} inputs, {len(self.layers)} layer comparisons)"]
        for r in self.logits:
            note = "  (information only)" if "onnx-raw" in r.pair else ""
            lines.append(
                f"  {r.pair:<22} logits differ in {100 * r.share:6.3f} %, at most {r.max_abs} LSB; "
                f"same class {100 * r.argmax:6.2f} %{note}"
            )
        lines.append(f"  integer kernels: {self.coverage.render()}")
        lines += [f"  {name}: absent, {why}" for name, why in self.absent.items()]
        lines += [f"  reason: {r}" for r in self.reasons]
        return "\n".join(lines)


def parity(
    graph: g.Graph,
    file: str | os.PathLike[str] | bytes,
    x: NDArray[np.float32],
    *,
    torch_column: TorchColumn | None = None,
) -> ParityReport:
    """Compare all columns on ``x`` [N, ...] (N >= 64) and the corner vectors."""
    if len(x) < MIN_N:
        raise ConfigError(f"parity on {len(x)} samples says too little.", remedy=f"Give at least {MIN_N}.")
    data = read_bytes(file)
    a = graph.activations[graph.input]
    corners = corner_vectors(a)
    x = np.concatenate([np.asarray(x, dtype=np.float32), corners])
    oracle = Oracle(graph)
    codes = oracle.run_all(x)
    out = graph.activations[graph.output]
    final = {"oracle": codes[graph.output]}
    for name, settings in (("onnx-off", {"level": "off"}), ("onnx-all", {}), ("onnx-raw", {"raw": True})):
        final[name] = recover(run(make_session(data, **settings), x)["logits"], out)  # type: ignore[arg-type]
    rows = list(_onnx_rows(graph, data, x, codes))
    if torch_column is not None:
        free = torch_column.run_all(x)
        final["torch-fq"] = free[graph.output]
        rows += _torch_rows(graph, torch_column, free, codes)
    pairs = [("onnx-off", "oracle"), ("onnx-all", "onnx-off"), ("onnx-all", "oracle"), ("onnx-raw", "oracle")]
    if torch_column is not None:
        pairs.insert(0, ("torch-fq", "oracle"))
    logits = tuple(_logits(f"{p} vs {q}", final[p], final[q]) for p, q in pairs)
    saturation = tuple(_saturation(graph))
    reasons = [*_logit_reasons(logits), *_row_reasons(rows), *_saturation_reasons(saturation)]
    info = session_info(data)
    props = {p.key: p.value for p in load_model(data).metadata_props}
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
        runtime={**info.to_json(), "format": props.get("qunlearn.format", "")},
        file_digest=hashlib.sha256(data).hexdigest(),
        codes_digest=graph.codes_digest(),
        absent=dict(ABSENT) if torch_column is not None else {"torch-fq": "no network was given", **ABSENT},
    )


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


def _forced_inputs(layer: g.AnyLayer, codes: Mapping[str, Codes]) -> list[Codes]:
    return [codes[n] for n in layer.inputs]


def _onnx_rows(graph: g.Graph, data: bytes, x: NDArray[np.float32], codes: Mapping[str, Codes]) -> Iterator[Row]:
    tapped = tap(data)
    session = make_session(tapped, level="off")
    free = run(session, x)
    for layer in graph.layers:
        zero = graph.activations[layer.output].zero_point
        op, want = type(layer).__name__, codes[layer.output]
        yield _difference(layer.name, op, "onnx-off vs oracle", "free", free[f"{layer.name}.q"], want, zero)
        if len(layer.inputs) == 1 and isinstance(layer, g.Weighted | g.AveragePool | g.GlobalAveragePool | g.Requant):
            for level in ("off", "all"):
                got = session_layer(graph, layer, codes[layer.inputs[0]], level=level)
                yield _difference(layer.name, op, f"onnx-{level} vs oracle", "forced", got, want, zero)


def tap(data: bytes) -> bytes:
    """The file with every quantized intermediate tensor as a further output (for sessions at level ``off``)."""
    model = load_model(data)
    have = {o.name for o in model.graph.output}
    for value in model.graph.value_info:
        if value.name.endswith(".q") and value.name not in have:
            model.graph.output.append(value)
    out: bytes = onnx.ModelProto.SerializeToString(model, deterministic=True)
    return out


def _torch_rows(
    graph: g.Graph, column: TorchColumn, free: Mapping[str, Codes], codes: Mapping[str, Codes]
) -> Iterator[Row]:
    for layer in graph.layers:
        zero = graph.activations[layer.output].zero_point
        op, want = type(layer).__name__, codes[layer.output]
        yield _difference(layer.name, op, "torch-fq vs oracle", "free", free[layer.output], want, zero)
        forced = column.run_layer(layer.name, *_forced_inputs(layer, codes))
        yield _difference(layer.name, op, "torch-fq vs oracle", "forced", forced, want, zero)


def _saturation(graph: g.Graph) -> Iterator[Row]:
    for layer in graph.weighted():
        vector = layer_vector(graph, layer)
        for raw, name in ((False, "onnx-all"), (True, "onnx-raw")):
            share, top = compare_layer(graph, layer, vector, raw=raw)
            yield Row(
                name=layer.name,
                op=type(layer).__name__,
                pair=f"{name} vs oracle",
                mode="forced",
                max_abs=top,
                share=share,
                mean=0.0,
                uninformative=False,
            )


def _logits(pair: str, p: Codes, q: Codes) -> Logits:
    d = np.abs(p.astype(np.int64) - q.astype(np.int64))
    top = int(d.max(initial=0))
    ranked = np.sort(q.astype(np.int64), axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if q.shape[1] > 1 else np.full(len(q), 255)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    clear = margin > 2 * top if top else np.ones(len(q), dtype=bool)
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
    bounds = {
        "onnx-off vs oracle": (1, SHARE, 0.0),
        "onnx-all vs onnx-off": (1, SHARE, 0.0),
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
        if r.argmax < argmax:
            yield f"logits, {r.pair}: same class on {100 * r.argmax:.2f} %, less than {100 * argmax:g} %"
        if r.argmax_outside_margin < 1.0 and r.pair != "torch-fq vs oracle":
            yield f"logits, {r.pair}: the class flips outside the margin"


def _row_reasons(rows: list[Row]) -> Iterator[str]:
    for r in rows:
        if r.mode != "forced":
            continue
        if r.max_abs > 1:
            yield f"layer {r.name}, {r.pair}: {r.max_abs} LSB, more than 1"
        if r.pair.startswith("onnx") and r.share > SHARE:
            yield f"layer {r.name}, {r.pair}: {100 * r.share:.3g} % differ, more than {100 * SHARE:g} %"


def _saturation_reasons(rows: tuple[Row, ...]) -> Iterator[str]:
    for r in rows:
        if r.pair.startswith("onnx-all") and r.max_abs > 1:
            yield f"layer {r.name}: full-scale input differs by {r.max_abs} LSB: the runtime saturates"
