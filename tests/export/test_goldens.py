"""The bytes of both forms never change unnoticed: one SHA-256 per test network, in any process (acceptance 6)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn import models, quant
from qunlearn.cli import journey
from qunlearn_export import check, writer
from qunlearn_export import graph as g

# changes only when the format, a fixture or the protobuf major version changes
GOLDEN = {
    ("dscnn", "qdq"): "aa8fa9b1d9b98bf09166358542c3430f27ac2731eae80a2c9d3fa1df3554f396",
    ("dscnn", "qop"): "05f1db639bbcb3baf57a6560fd0e4cd483a32730f3083efaa42aa3f89df3069d",
    ("resnet8", "qdq"): "41c7eedb3aacc745bf09810c57fbe2b363ca15d8b24b51c113efcd196801bf4d",
    ("resnet8", "qop"): "a79ce79ec1a54cca4afb365903c174092288bfeda19c092edb60e64131679c66",
    ("tiny", "qdq"): "4754b2ea2aca4a1dba76e51450e73499eaa8e8348e081e1540014027287e9cfc",
    ("tiny", "qop"): "69f03c0b15539830709f74889183a4bf466af2b5b283eef345a0099e3e3f1994",
}


def with_numbers(graph: g.Graph, seed: int = 0) -> g.Graph:
    """The graph's structure with codes and scales drawn by numpy, so that no float arithmetic of a host is in them."""
    rng = np.random.default_rng(seed)
    acts, layers = {"input": dataclasses.replace(graph.activations["input"], scale=np.float32(0.02), zero_point=3)}, []
    for layer in graph.layers:
        old = graph.activations[layer.output]
        if isinstance(layer, g.Conv | g.Gemm | g.MatMul):
            k = len(layer.weight_scale)
            layer = dataclasses.replace(
                layer,
                weight=rng.integers(-127, 128, layer.weight.shape).astype(np.int8),
                weight_scale=rng.uniform(0.002, 0.01, k).astype(np.float32),
                bias=rng.integers(-3000, 3000, k).astype(np.int32),
            )
        if isinstance(layer, g.MaxPool | g.Flatten | g.Reshape):
            source = acts[layer.inputs[0]]
            grid = {"scale": source.scale, "zero_point": source.zero_point}
        else:
            grid = {"scale": np.float32(rng.uniform(0.05, 0.5)), "zero_point": -128 if layer.relu else 5}
        acts[layer.output] = dataclasses.replace(old, **grid)
        layers.append(layer)
    return dataclasses.replace(graph, activations=acts, layers=tuple(layers))


def network(name: str, nets: Any) -> g.Graph:
    if name == "tiny":
        tiny: g.Graph = nets.tiny(7)
        return tiny
    if name == "dscnn":
        return quant.lower(quant.load_run(journey.ASSETS / "base")[0], meta={"preprocess": {"layout": "NCHW"}})
    net = models.build("resnet8@8", in_shape=(1, 8, 8), num_classes=10, seed=0)
    example = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)
    return with_numbers(quant.lower(quant.prepare(net, quant.QuantSpec.parse("w8a8"), example)))


@pytest.mark.parametrize("name", ["dscnn", "resnet8", "tiny"])
def test_golden_digest(nets: Any, name: str) -> None:
    graph = network(name, nets)
    for form in ("qdq", "qop"):
        first = writer.serialize(graph, form=form)
        junk = [{str(i): object()} for i in range(1000)]
        assert first == writer.serialize(network(name, nets), form=form), len(junk)
        assert not [f for f in check.static_check(first) if f.level == "error" and f.code != "S10"]
        assert hashlib.sha256(first).hexdigest() == GOLDEN[name, form], (name, form)


SCRIPT = """
import importlib.util, hashlib, sys
sys.path.insert(0, {path!r}.rpartition("/")[0])
spec = importlib.util.spec_from_file_location("nets", {path!r})
module = importlib.util.module_from_spec(spec)
sys.modules["nets"] = module
spec.loader.exec_module(module)
from qunlearn_export import writer
graph = module.Nets().tiny(7, labels=["a", "b"], preprocess={{"b": 1, "a": 2}})
for form in ("qdq", "qop"):
    for io in ("float", "int8"):
        print(hashlib.sha256(writer.serialize(graph, form=form, io=io)).hexdigest())
"""


def test_bytes_do_not_depend_on_the_hash_seed(nets: Any, python: Callable[..., Any]) -> None:
    code = SCRIPT.format(path=str(Path(__file__).with_name("conftest.py")))
    done = [python(code, PYTHONHASHSEED=seed) for seed in ("0", "1")]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout
    assert len(set(done[0].stdout.split())) == 4
