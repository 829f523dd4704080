"""``qunlearn inspect`` from the outside: every label with its exit codes (artefact_onnx acceptance 10)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qunlearn_export import graph as g
from qunlearn_export import writer
from qunlearn_export.probe import probe_graph

FLOAT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
CODES = np.arange(-60, 60, 10, dtype=np.int8).reshape(4, 3)


def matmul(kind: str) -> bytes:
    """A 4 x 3 product: float, on weights that pass QuantizeLinear, or on int8 weights beside float input."""
    dequantize = helper.make_node("DequantizeLinear", ["w" if kind == "weight only" else "wq", "s", "z"], ["wf"])
    nodes = {
        "float": [],
        "fake": [helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"]), dequantize],
        "weight only": [dequantize],
    }[kind]
    nodes.append(helper.make_node("MatMul", ["input", "wf" if nodes else "w"], ["logits"]))
    constants = {"w": CODES if kind == "weight only" else FLOAT, "s": np.float32(0.02), "z": np.int8(0)}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("input", 4), ("logits", 3))]
    inits = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items() if kind != "float" or n == "w"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


FILES: dict[str, tuple[Callable[[], bytes], str, int]] = {
    "qdq": (lambda: writer.serialize(probe_graph()), "int8-qdq", 0),
    "qop": (lambda: writer.serialize(probe_graph(), form="qop"), "int8-qop", 0),
    "float": (lambda: matmul("float"), "float", 3),
    "fake": (lambda: matmul("fake"), "fake-quant only", 3),
    "weight only": (lambda: matmul("weight only"), "int8 weight-only", 3),
}


@pytest.mark.parametrize("name", FILES)
def test_label_and_exit_codes(call: Callable[..., Any], tmp_path: Path, name: str) -> None:
    make, label, required = FILES[name]
    (tmp_path / "m.onnx").write_bytes(make())
    done = call("inspect", tmp_path / "m.onnx")
    assert done.code == 0, done.err
    assert f"label      {label}" in done.out
    assert done.out.count("loads      yes") == 1
    asked = call("inspect", tmp_path / "m.onnx", "--require", "int8", "--json")
    assert (asked.code, asked.json["label"]) == (required, label)
    assert {"dtypes", "n_bytes", "ops", "opsets", "ir_version", "loads", "findings", "ties", "seven_bit"} <= set(
        asked.json
    )
    if required == 0:
        assert "integer    1 of 1 nodes, 100 % of MACs, by onnxruntime" in done.out
        assert asked.json["codes_digest"] == probe_graph().codes_digest()
    else:
        assert "not met: --require int8" in asked.err


@pytest.mark.parametrize("option", [[], ["--require", "int8"]])
def test_unreadable_files(call: Callable[..., Any], tmp_path: Path, option: list[str]) -> None:
    data = writer.serialize(probe_graph())
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with (tmp_path / "large.onnx").open("wb") as f:
        f.write(data)
        f.truncate(300 * 2**20)
    for name, text in (("cut.onnx", "not an ONNX model"), ("large.onnx", "314572800 bytes, more than 268435456")):
        start = time.perf_counter()
        done = call("inspect", tmp_path / name, *option)
        assert (done.code, done.out) == (2, "")
        assert text in done.err
        assert time.perf_counter() - start < 2


def test_a_changed_file_of_ours_is_not_int8_enough(call: Callable[..., Any], tmp_path: Path) -> None:
    for form in ("qdq", "qop"):
        model = writer.to_model(probe_graph(), form=form)
        weight = next(t for t in model.graph.initializer if t.name == "conv.weight")
        weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
        onnx.save(model, str(tmp_path / "m.onnx"))
        done = call("inspect", tmp_path / "m.onnx", "--require", "int8")
        assert done.code == 3
        assert "S13 metadata" in done.out


MEMORY = """
import sys
from qunlearn.cli import run

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

assert run(["inspect", sys.argv[1]]) == 0
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
assert run(["inspect", sys.argv[2]]) == 0
print("peak", status("VmHWM") - before)
"""


def product() -> g.Graph:
    """One matrix of 16 MB: every copy of it is a copy of the file."""
    n = 4096
    weight = np.random.default_rng(0).integers(-127, 128, (n, n)).astype(np.int8)
    numbers = {"weight": weight, "weight_scale": np.full(n, 3e-3, np.float32), "bias": np.zeros(n, np.int32)}
    layer = g.Gemm(name="fc", inputs=("input",), output="fc.out", **numbers)
    return graph((n,), layer)


def convolutions() -> g.Graph:
    """Eight layers of 600 kB."""
    n, rng = 256, np.random.default_rng(0)
    layers = [
        g.Conv(
            name=f"c{i}",
            inputs=(f"c{i - 1}.out" if i else "input",),
            output=f"c{i}.out",
            relu=True,
            weight=rng.integers(-127, 128, (n, n, 3, 3)).astype(np.int8),
            weight_scale=np.full(n, 3e-3, np.float32),
            bias=np.zeros(n, np.int32),
            strides=(1, 1),
            pads=(1, 1, 1, 1),
            dilations=(1, 1),
            group=1,
        )
        for i in range(8)
    ]
    return graph((n, 8, 8), *layers)


def graph(shape: tuple[int, ...], *layers: Any) -> g.Graph:
    ends = {"input": (0.02, 3), **{layer.output: (3.0, -128 if layer.relu else 0) for layer in layers}}
    acts = {n: g.Activation(name=n, shape=shape, scale=np.float32(s), zero_point=z) for n, (s, z) in ends.items()}
    meta = {"task": "classification", "preprocess": {}, "weight_bits": 8, "weight_range": "8bit"}
    return g.Graph(activations=acts, layers=layers, input="input", output=layers[-1].output, meta=meta)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("form", ["qdq", "qop"])
@pytest.mark.parametrize("make", [product, convolutions])
def test_it_takes_at_most_four_times_the_file(tmp_path: Path, make: Callable[[], g.Graph], form: str) -> None:
    """Whole-process peak, ONNX Runtime included, beyond what the command holds after a small file."""
    (tmp_path / "small.onnx").write_bytes(writer.serialize(probe_graph(), form=form))
    data = writer.serialize(make(), form=form)
    (tmp_path / "m.onnx").write_bytes(data)
    argv = [sys.executable, "-c", MEMORY, str(tmp_path / "small.onnx"), str(tmp_path / "m.onnx")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"label      int8-{form}") == 2
    assert int(done.stdout.rpartition("peak ")[2]) <= 4 * len(data)
