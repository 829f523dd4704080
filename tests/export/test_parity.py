"""The parity table: passes for a sound file, and names the layer of a file that was changed (R1, acceptance 4)."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qunlearn_export import graph as g
from qunlearn_export import parity as p
from qunlearn_export import writer
from qunlearn_export.errors import ConfigError, DataError, VerificationError
from qunlearn_export.oracle import Oracle


class FakeTorch:
    """The oracle as a torch column, with a chosen error on one layer or on the logits."""

    def __init__(self, graph: g.Graph, *, layer: str = "", forced: int = 0, free: int = 0) -> None:
        self.graph, self.oracle = graph, Oracle(graph)
        self.layer, self.forced, self.free = layer, forced, free

    def run_all(self, x: Any) -> dict[str, Any]:
        out = self.oracle.run_all(x)
        out[self.graph.output] = np.clip(out[self.graph.output].astype(int) + self.free, -128, 127).astype(np.int8)
        return out

    def run_layer(self, name: str, *codes: Any) -> Any:
        out = self.oracle.run_layer(name, *codes)
        return np.clip(out.astype(int) + self.forced * (name == self.layer), -128, 127).astype(np.int8)


def mutate(data: bytes, name: str, kind: str, value: Any) -> bytes:
    model = onnx.load_from_string(data)
    t = next(t for t in model.graph.initializer if t.name == name)
    codes = np.frombuffer(t.raw_data, kind).copy()
    codes[0] = value(codes[0])
    t.raw_data = codes.tobytes()
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("io", ["float", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_a_sound_file_passes(nets: Any, seed: int, io: str) -> None:
    graph = nets.tiny(seed)
    data = writer.serialize(graph, io=io)
    report = p.parity(graph, data, nets.inputs(graph, 64), torch_column=FakeTorch(graph))
    assert (report.verdict, report.reasons) == ("pass", ())
    assert {r.pair for r in report.logits} == {
        "torch-fq vs oracle",
        "onnx-off vs oracle",
        "onnx-all vs onnx-off",
        "onnx-all vs oracle",
        "onnx-raw vs oracle",
        "c-host vs oracle",
    }
    names = {layer.name for layer in graph.layers}
    forced = {(r.name, r.pair) for r in report.layers if r.mode == "forced"}
    for pair in ("onnx-off vs oracle", "onnx-all vs onnx-off", "torch-fq vs oracle"):
        assert {n for n, q in forced if q == pair} == names
    assert {r.name for r in report.saturation} == {layer.name for layer in graph.weighted()}
    assert report.coverage.total == 6
    assert report.coverage.integer > 0


def test_report_is_plain_json_with_the_written_fields(nets: Any) -> None:
    graph = nets.tiny()
    report = p.parity(graph, writer.serialize(graph), nets.inputs(graph, 64))
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    want = {"format", "file_digest", "codes_digest", "host", "runtime", "inputs", "layers", "logits", "ties"}
    assert want | {"coverage", "verdict", "reasons", "absent", "saturation"} == set(record)
    assert record["absent"].keys() == {"torch-fq"}
    assert record["inputs"] == {"n": 69, "corner_vectors": 5, "digest": record["inputs"]["digest"]}
    assert {"entries", "level", "version", "threads", "cpu"} <= record["runtime"].keys()
    assert {"name", "op", "pair", "max_abs", "share", "mean", "uninformative"} <= record["layers"][0].keys()
    text = report.render()
    assert "parity: pass" in text
    assert "c-host vs oracle" in text
    assert "torch-fq: absent" in text


@pytest.mark.parametrize("layer", ["conv1", "side", "fc"])
def test_one_weight_code_is_found_and_named(nets: Any, layer: str) -> None:
    graph = nets.tiny()
    data = mutate(writer.serialize(graph), f"{layer}.weight", "i1", lambda c: c - 1 if c > 0 else c + 1)
    report = p.parity(graph, data, nets.inputs(graph, 64))
    assert report.verdict == "fail"
    assert any(r.startswith(f"layer {layer}: weight") for r in report.reasons)
    assert any("S13" in r for r in report.reasons)


def test_consistent_digest_does_not_hide_a_change(nets: Any) -> None:
    """A file that was made whole again after a change is still not the network's."""
    graph = nets.tiny()
    fc = graph.layers[-1]
    assert isinstance(fc, g.Gemm)
    other = nets.with_layer(graph, "fc", weight=(fc.weight // 2).astype(np.int8))
    report = p.parity(graph, writer.serialize(other), nets.inputs(graph, 64))
    assert any(r.startswith("layer fc: weight") for r in report.reasons)
    assert any(r.startswith("layer fc, onnx-off vs oracle") for r in report.reasons)
    assert not any("conv1" in r for r in report.reasons)


def test_bias_scale_one_ulp_is_refused_statically(nets: Any) -> None:
    graph = nets.tiny()
    data = mutate(writer.serialize(graph), "conv1.bias_scale", "<f4", lambda s: np.nextafter(s, np.float32(9)))
    report = p.parity(graph, data, nets.inputs(graph, 64))
    assert any("S6 conv1" in r for r in report.reasons)


def test_activation_scale_and_swapped_channels(nets: Any) -> None:
    graph = nets.tiny()
    scaled = nets.with_scale(graph, "pw.out", graph.activations["pw.out"].scale * np.float32(1.01))
    report = p.parity(graph, writer.serialize(scaled), nets.inputs(graph, 64))
    assert any(r.startswith("layer pw: out_scale") for r in report.reasons)
    pw = next(one for one in graph.weighted() if one.name == "pw")
    swapped = nets.with_layer(graph, "pw", weight=np.ascontiguousarray(pw.weight[:, ::-1]))
    report = p.parity(graph, writer.serialize(swapped), nets.inputs(graph, 64))
    assert any(r.startswith("layer pw, onnx-off vs oracle") for r in report.reasons)


def test_attributes_outside_the_digest_are_compared(nets: Any) -> None:
    graph = nets.tiny()
    other = nets.with_layer(graph, "avg", pads=(0, 0, 2, 2))
    assert other.codes_digest() == graph.codes_digest()
    report = p.parity(graph, writer.serialize(other), nets.inputs(graph, 64))
    assert "layer avg: pads in the file is not the network's" in report.reasons
    assert any(r.startswith("layer avg, onnx-off vs oracle") for r in report.reasons)


def test_a_file_of_another_network_is_refused(nets: Any) -> None:
    graph = nets.tiny()
    for other in (nets.with_layer(graph, "fc", name="head"), nets.random("gemm", np.random.default_rng(0)).graph):
        with pytest.raises(VerificationError, match="does not hold this network"):
            p.parity(graph, writer.serialize(other), nets.inputs(graph, 64))


def test_torch_column_bounds(nets: Any) -> None:
    graph = nets.tiny()
    data, x = writer.serialize(graph), nets.inputs(graph, 64)
    assert p.parity(graph, data, x, torch_column=FakeTorch(graph, layer="dw", forced=1, free=2)).verdict == "pass"
    forced = p.parity(graph, data, x, torch_column=FakeTorch(graph, layer="dw", forced=2))
    assert forced.reasons == ("layer dw, torch-fq vs oracle: 2 LSB, more than 1",)
    free = p.parity(graph, data, x, torch_column=FakeTorch(graph, free=3))
    assert free.reasons == ("logits, torch-fq vs oracle: 3 LSB, more than 2",)


def row(**changes: Any) -> p.Row:
    base = {"name": "c", "op": "Conv", "pair": "onnx-all vs onnx-off", "mode": "forced", "max_abs": 1, "share": 1e-3}
    return p.Row(**{**base, "mean": 0.0, "uninformative": False, **changes})


def test_share_and_lsb_bounds_of_rows() -> None:
    assert list(p._row_reasons([row()])) == []
    assert list(p._row_reasons([row(share=0.0011)])) == [
        "layer c, onnx-all vs onnx-off: 0.11 % differ, more than 0.1 %"
    ]
    assert list(p._row_reasons([row(max_abs=2)])) == ["layer c, onnx-all vs onnx-off: 2 LSB, more than 1"]
    assert list(p._row_reasons([row(max_abs=9, share=1.0, mode="free")])) == []
    assert list(p._row_reasons([row(pair="torch-fq vs oracle", share=0.5)])) == []


def test_free_running_logits_are_bounded_in_lsb_and_class_not_in_share() -> None:
    a = np.tile(np.array([[50, 0, -50]], np.int8), (100, 1))
    b = a.copy()
    b[0, 1] = 1
    found = {
        q: list(p._logit_reasons((p.compare_logits(q, a, b),))) for q in ("onnx-off vs oracle", "onnx-all vs onnx-off")
    }
    assert found == {"onnx-off vs oracle": [], "onnx-all vs onnx-off": []}
    b[0, 1] = 2
    for q in found:
        assert list(p._logit_reasons((p.compare_logits(q, a, b),))) == [f"logits, {q}: 2 LSB, more than 1"]


def test_share_is_bounded_layer_by_layer() -> None:
    row = p.Row(
        name="conv",
        op="Conv",
        pair="onnx-all vs onnx-off",
        mode="forced",
        max_abs=1,
        share=2e-3,
        mean=0.0,
        uninformative=False,
    )
    assert list(p._row_reasons([row])) == ["layer conv, onnx-all vs onnx-off: 0.2 % differ, more than 0.1 %"]
    assert list(p._row_reasons([dataclasses.replace(row, share=1e-3)])) == []
    assert list(p._row_reasons([dataclasses.replace(row, mode="free")])) == []


def test_argmax_ties_take_the_lowest_index_and_are_unresolved() -> None:
    a = np.array([[5, 5, 0], [7, 2, 0]], np.int8)
    b = np.array([[5, 5, 0], [7, 2, 0]], np.int8)
    same = p.compare_logits("x", a, b)
    assert (same.argmax, same.max_abs, same.smallest_margin, same.unresolved) == (1.0, 0, 0, 1)
    flipped = p.compare_logits("x", np.array([[5, 6, 0], [7, 2, 0]], np.int8), b)
    assert (flipped.argmax, flipped.argmax_outside_margin, flipped.unresolved) == (0.5, 1.0, 1)
    assert list(p._logit_reasons((dataclasses.replace(flipped, pair="torch-fq vs oracle"),))) == []
    lost = dataclasses.replace(flipped, pair="torch-fq vs oracle", argmax_outside_margin=0.998)
    assert list(p._logit_reasons((lost,))) == [
        "logits, torch-fq vs oracle: same class on 99.80 % outside the margin, less than 99.9 %"
    ]


def test_corner_vectors(nets: Any) -> None:
    a = nets.act("input", (2, 3), 0.5, 7)
    corners = p.corner_vectors(a)
    codes = (corners / 0.5 + 7).astype(int)
    assert codes.shape == (5, 2, 3)
    assert [set(np.unique(c)) for c in codes[:3]] == [{-128}, {127}, {7}]
    assert codes[3].tolist() == [[127, -128, 127], [-128, 127, -128]]
    assert (codes[3] + codes[4] == -1).all()
    assert not corners[2].any()


def test_all_zero_tensors_are_uninformative(nets: Any) -> None:
    graph = nets.tiny()
    dead = nets.with_layer(graph, "side", weight=np.zeros((4, 8, 1, 1), np.int8), bias=np.full(4, -1, np.int32))
    report = p.parity(dead, writer.serialize(dead), nets.inputs(dead, 64))
    flags = {r.name: r.uninformative for r in report.layers}
    assert flags["side"]
    assert not flags["conv1"]


def test_few_or_wrong_inputs_are_refused(nets: Any) -> None:
    graph = nets.tiny()
    data = writer.serialize(graph)
    with pytest.raises(ConfigError, match="63 samples"):
        p.parity(graph, data, nets.inputs(graph, 63))
    with pytest.raises(DataError, match="shape"):
        p.parity(graph, data, nets.inputs(graph, 64)[:, :1])


def test_taps_expose_every_coded_tensor(nets: Any) -> None:
    graph = nets.tiny()
    tapped = onnx.load_from_string(p.tap(writer.to_model(graph)))
    assert {o.name for o in tapped.graph.output} == {"logits", "input.q", *(f"{one.name}.q" for one in graph.layers)}


def test_parity_counts_in_whole_steps() -> None:
    """Lint: a float tolerance in the comparison would hide LSB errors."""
    folder = Path(p.__file__).parent
    for name in ("parity.py", "parity_c.py", "parity_report.py", "extract.py", "probe.py"):
        assert not re.search(r"allclose|isclose|approx|atol|rtol", (folder / name).read_text()), name


def test_full_scale_input_finds_what_random_input_does_not() -> None:
    """A runtime that saturates at full scale alone passes every other row."""
    rows = (row(pair="onnx-all vs oracle", mode="full-scale", max_abs=40, share=0.5),)
    assert list(p._row_reasons(list(rows))) == []
    assert list(p._saturation_reasons(rows)) == ["layer c: full-scale input differs by 40 LSB: the runtime saturates"]
    for harmless in ({"max_abs": 1}, {"pair": "onnx-raw vs oracle"}):
        assert list(p._saturation_reasons((dataclasses.replace(rows[0], **harmless),))) == []


def test_negative_weights_taken_as_zero_are_found(nets: Any) -> None:
    graph = nets.tiny()
    pw = next(one for one in graph.weighted() if one.name == "pw")
    other = nets.with_layer(graph, "pw", weight=np.maximum(pw.weight, 0))
    report = p.parity(graph, writer.serialize(other), nets.inputs(graph, 64))
    assert any(r.startswith("layer pw: weight") for r in report.reasons)
    assert any(r.startswith("layer pw, onnx-off vs oracle") for r in report.reasons)


def test_a_stale_file_is_found(nets: Any) -> None:
    """The same structure, another training."""
    report = p.parity(nets.tiny(0), writer.serialize(nets.tiny(1)), nets.inputs(nets.tiny(0), 64))
    for layer in ("conv1", "fc"):
        assert any(r.startswith(f"layer {layer}: weight in the file differs") for r in report.reasons)
