"""The reference networks: generated C on this host against the oracle, bit for bit, on real samples."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qunlearn import models, quant
from qunlearn.cli import journey
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.errors import DataError
from qunlearn.quant.detie import detie
from qunlearn_export import graph as g
from qunlearn_export import selftest
from qunlearn_export.hostlib import HostLibrary
from qunlearn_export.layout import unpack
from qunlearn_export.oracle import Oracle

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
BATCH = 100


def prepared(name: str, dataset: Dataset, seed: int = 0) -> g.Graph:
    """A network whose scales were fixed on real samples; its weights need no training for this comparison."""
    net = models.build(name, in_shape=dataset.in_shape, num_classes=dataset.num_classes, seed=seed)
    rows = dataset.where("train")[:64]
    example = torch.from_numpy(Samples(dataset, rows).inputs())
    model = quant.prepare(net, quant.QuantSpec(), example).eval()
    detie(model)
    return quant.lower(model, meta={"task": "classification"})


def compare(graph: g.Graph, samples: Samples) -> int:
    """Every layer on a batch, then the release build on all samples and the corner codes; how many inputs."""
    release = HostLibrary(graph)
    oracle = Oracle(graph)
    tapped = HostLibrary(graph, taps=True, like=release)
    first = samples.inputs(np.arange(min(16, len(samples))))
    codes, want = oracle.quantize(first), oracle.run_all(first)
    found = tapped.run_all(codes)
    assert [n for n in found if not np.array_equal(found[n], want[n])] == []
    assert len(found) > len(graph.layers) / 2
    corners = selftest.vectors(graph, selftest.CORNERS)
    assert np.array_equal(release.run(corners), selftest.outputs(graph, selftest.CORNERS))
    for start in range(0, len(samples), BATCH):
        x = samples.inputs(np.arange(start, min(start + BATCH, len(samples))))
        assert np.array_equal(release.run(oracle.quantize(x)), oracle.run(x)), start
    assert unpack(release.blob, release.layout, graph).codes_digest() == graph.codes_digest()
    arena = release.site.arena
    assert arena.bound <= arena.size <= 1.1 * arena.bound + 16
    return len(samples)


def real(dataset: Dataset, n: int) -> Samples:
    rows = np.concatenate([dataset.where(part) for part in ("test", "heldout", "train")])
    return Samples(dataset, np.sort(rows[:n]))


def images() -> Dataset:
    """CIFAR-10 from its folder or cache, else Fashion-MNIST, else digits."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    folders = [Path(p) for p in (os.environ.get("QUNLEARN_DATA"), shared) if p and Path(p).is_dir()] or [None]
    for source in ("cifar10", "fashion_mnist"):
        for folder in folders:
            try:
                return sources.load(source, data_dir=folder)
            except DataError:
                continue
    return sources.load("digits")


def test_dscnn_as_shipped() -> None:
    dataset = sources.load("kws")
    graph = quant.lower(journey.shipped(dataset).base.eval(), meta={"task": "classification"})
    assert compare(graph, real(dataset, 1000)) == 1000


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2@0.35"])
def test_small_image_networks(name: str) -> None:
    dataset = sources.load("digits")
    assert compare(prepared(name, dataset), real(dataset, 1000)) == 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2@0.35", "resnet18"])
def test_image_networks(name: str) -> None:
    dataset = images()
    assert compare(prepared(name, dataset), real(dataset, 1000)) == 1000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_two_thousand_inputs_of_further_seeds(seed: int) -> None:
    for name, source in (("dscnn", "kws"), ("resnet8@8", "digits")):
        dataset = sources.load(source)
        samples = real(dataset, 2000)
        assert compare(prepared(name, dataset, seed), samples) == len(samples) >= 1500
