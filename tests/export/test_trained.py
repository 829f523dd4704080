"""Trained networks as files of both forms, three each: full parity table, one codes digest, no ties, sizes.

The networks: a tiny CNN and ResNet-8 trained here on digits, and three of the DS-CNN keyword spotters that travel with
the package (acceptance 3 and 5 of the file format; R7 and the size expectation).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from qunlearn import models, quant, tasks
from qunlearn.cli import journey
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn_export import graph as g
from qunlearn_export import parity, reader, writer
from qunlearn_export.oracle import Oracle
from qunlearn_export.parity_c import CColumn
from qunlearn_export.runtime import make_session, run

NETWORKS = ("tiny", "resnet8", "dscnn")
SPEAKERS = ("base", "without_george", "without_theo")
SAMPLES = 64


class Tiny(nn.Module):
    """Five convolutions (one depthwise, one 1x1), MaxPool, residual Add, global mean, Linear; 21,488 weights."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()

        def block(i: int, o: int, kernel: int, **kw: Any) -> nn.Sequential:
            layers = [nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=False, **kw), nn.BatchNorm2d(o), nn.ReLU()]
            return nn.Sequential(*layers)

        self.stem = block(in_shape[0], 24, 3)
        self.depthwise = block(24, 24, 3, groups=24)
        self.pointwise = block(24, 24, 1)
        self.pool = nn.MaxPool2d(2)
        self.wide = block(24, 40, 3)
        self.last = block(40, 32, 3)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.pool(x + self.pointwise(self.depthwise(x)))
        out: torch.Tensor = self.head(self.mean(self.last(self.wide(x))).flatten(1))
        return out


def trained(net: nn.Module, dataset: Dataset, seed: int) -> quant.QuantModel:
    """Two short epochs, the second quantization-aware."""
    train = dataset.where("train")
    model = quant.prepare(net, quant.QuantSpec.parse("w8a8"), torch.from_numpy(Samples(dataset, train[:32]).inputs()))
    recipe = quant.Recipe(epochs=2, batch_size=32, lr=0.05, float_share=0.5)
    return quant.train(model, tasks.get("classification"), Samples(dataset, train), recipe, seed=seed).eval()


class Mlp(nn.Module):
    """A flattened image, two hidden layers, a head."""

    def __init__(self, in_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(int(np.prod(in_shape)), 48), nn.Linear(48, 32)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x.flatten(1)))))
        out: torch.Tensor = self.head(x)
        return out


def make(name: str, seed: int) -> tuple[quant.QuantModel, Dataset]:
    if name == "dscnn":
        dataset = sources.load("kws")
        where = Path(journey.__file__).parent / "assets" / SPEAKERS[seed]
        return quant.load_run(where)[0].eval(), dataset
    dataset = sources.load("digits")
    torch.manual_seed(seed)
    shape, classes = dataset.in_shape, dataset.num_classes
    net = (
        Tiny(shape, classes)
        if name == "tiny"
        else models.build("resnet8@8", in_shape=shape, num_classes=classes, seed=seed)
    )
    return trained(net, dataset, seed), dataset


class Written:
    """One network, its graph, 64 samples and its two files."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name, self.seed = name, seed
        self.model, dataset = make(name, seed)
        rows = np.concatenate([dataset.where("test"), dataset.where("heldout")])[:SAMPLES]
        self.x: NDArray[np.float32] = Samples(dataset, rows).inputs()
        self.graph = quant.lower(self.model)
        self.files = {form: folder / f"{name}{seed}.{form}.onnx" for form in ("qdq", "qop")}
        self.reports = {f: writer.export(self.graph, path, form=f) for f, path in self.files.items()}


@pytest.fixture(scope="module", params=[(n, s) for n in NETWORKS for s in range(3)], ids=lambda p: f"{p[0]}-{p[1]}")
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(*request.param, tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_full_parity_table(written: Written, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "qop" or written.seed:  # generated C follows from the graph: once a network is enough here
        monkeypatch.setattr(parity, "c_column", lambda *_: CColumn(absent="compared once"))
    column = quant.TorchColumn(written.model)
    report = parity.parity(written.graph, written.files[form], written.x, torch_column=column)
    assert (report.verdict, report.reasons) == ("pass", ())
    in_c = [r for r in report.layers if r.pair == "c-host vs oracle"]
    assert {r.max_abs for r in in_c} == (set() if "c-host" in report.absent else {0})
    forced = [r for r in report.layers if r.mode == "forced"]
    pairs = {r.pair for r in forced}
    assert pairs == {"onnx-off vs oracle", "onnx-all vs onnx-off", "torch-fq vs oracle"}
    for pair in pairs:
        assert {r.name for r in forced if r.pair == pair} == {layer.name for layer in written.graph.layers}
    clean = ("Add", "MaxPool", "GlobalAveragePool", "AveragePool")
    onnx_rows = [r for r in forced if r.pair.startswith("onnx") and r.op in clean]
    assert onnx_rows
    assert {r.max_abs for r in onnx_rows if r.pair == "onnx-all vs onnx-off"} == {0}, "after detie"
    if form == "qop":
        exact = [r for r in forced if r.pair.startswith("onnx") and r.op in parity.EXACT]
        assert {r.max_abs for r in exact} == {0}
        assert (report.coverage.integer, report.coverage.macs) == (report.coverage.total, 1.0)
    assert report.coverage.integer > 0


def test_one_digest_in_checkpoint_and_both_files(written: Written) -> None:
    digests = {quant.codes_digest(written.model), *(reader.read(f).codes_digest() for f in written.files.values())}
    digests |= {r.codes_digest for r in written.reports.values()}
    assert len(digests) == 1


def test_no_node_ties_after_the_scales_were_fixed(written: Written) -> None:
    assert all(report.ties == () for report in written.reports.values())
    assert [t for t in parity.ties(written.graph) if t.share] == []
    assert [layer for layer in written.graph.layers if isinstance(layer, g.Add | g.GlobalAveragePool)]


def test_both_forms_answer_as_the_oracle_does(written: Written) -> None:
    want = Oracle(written.graph).logits(written.x)
    for level in ("off", "all"):
        got = run(make_session(written.files["qop"], level=level), written.x)["logits"]
        np.testing.assert_array_equal(got, want)


def test_files_are_hardly_larger_than_their_codes(written: Written) -> None:
    codes = sum(layer.weight.size for layer in written.graph.weighted())
    sizes = {form: report.n_bytes for form, report in written.reports.items()}
    assert sizes["qop"] < sizes["qdq"] <= 1.3 * codes + 16_384
    assert all(report.warnings == () for report in written.reports.values())


@pytest.mark.parametrize("form", ["qdq", "qop"])
@pytest.mark.parametrize("seed", range(3))
def test_a_multilayer_perceptron(seed: int, form: str, tmp_path: Path) -> None:
    """The full table of a network without convolutions; a flattened map comes before its first linear layer."""
    dataset = sources.load("digits")
    torch.manual_seed(seed)
    model = trained(Mlp(dataset.in_shape, dataset.num_classes), dataset, seed)
    graph, x = quant.lower(model), Samples(dataset, dataset.where("test")[:SAMPLES]).inputs()
    file = writer.export(graph, tmp_path / "m.onnx", form=form).path
    report = parity.parity(graph, file, x, torch_column=quant.TorchColumn(model))
    assert (report.verdict, report.reasons) == ("pass", ())
    exact = {
        r.max_abs for r in (*report.layers, *report.logits) if r.pair in ("c-host vs oracle", "onnx-all vs oracle")
    }
    assert "c-host" in report.absent or exact == {0}
    assert quant.codes_digest(model) == reader.read(file).codes_digest() == report.codes_digest
