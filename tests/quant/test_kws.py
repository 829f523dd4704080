"""The shipped keyword spotter on real recordings: torch, oracle and exported file are one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qunlearn.cli
from qunlearn import quant
from qunlearn.data import sources
from qunlearn.data.dataset import Samples
from qunlearn_export import reader, writer
from qunlearn_export.oracle import Oracle


@pytest.fixture(scope="module")
def model() -> quant.QuantModel:
    return quant.load_run(Path(qunlearn.cli.__file__).parent / "assets" / "base")[0]


@pytest.fixture(scope="module")
def recordings() -> Samples:
    return sources.load("kws").samples("test").take(np.arange(200))


def test_one_lsb_and_the_same_class(model: quant.QuantModel, recordings: Samples) -> None:
    x = recordings.inputs()
    graph = quant.lower(model)
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    got = Oracle(graph).logits(x)
    assert np.abs(want - got).max() <= 1.01 * graph.activations[graph.output].scale
    assert np.array_equal(want.argmax(1), got.argmax(1))
    assert (got.argmax(1) == recordings.targets()).mean() > 0.9


def test_digest_of_checkpoint_and_file(model: quant.QuantModel, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    writer.export(quant.lower(model), path)
    assert reader.read(path).codes_digest() == quant.codes_digest(model)
