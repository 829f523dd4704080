"""MobileNetV2 and ResNet-18 on the emulated boards: the same codes where they fit, and why where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import EMULATED
from reference_networks import images, real_samples, trained

from qunlearn import models, quant
from qunlearn.data.dataset import Dataset, Samples
from qunlearn_export import boards, codegen, writer
from qunlearn_export import graph as g
from qunlearn_export.errors import UnsupportedError
from qunlearn_export.fwbuild import Settings, firmware
from qunlearn_export.oracle import Oracle
from qunlearn_export.target import Target

pytestmark = [pytest.mark.cross, pytest.mark.slow]
N = 16


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return images()


def on_board(file: Path, folder: Path, board: str) -> Mapping[str, Any]:
    """The report of a folder whose self-test and made-up inputs ran on the board without one differing code."""
    options = codegen.Options(boards=(board,), vectors=4)
    report = firmware(file, folder / board, options, Settings(check="qemu", time_limit=300)).report
    return report


@pytest.mark.timeout(1800)
def test_mobilenetv2(pictures: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on the exact grid (on the free one `export` refuses it); 16 images and 16 made-up inputs a board."""
    model = trained("mobilenetv2@0.35", pictures, "w8a8", samples=2000, grid="exact").eval()
    graph = quant.lower(model, meta={"task": "classification"})
    file = writer.export(graph, tmp_path / "m.onnx").path
    oracle, x = Oracle(graph), real_samples(pictures, N).inputs()
    codes, want = oracle.quantize(x), oracle.run(x)
    assert len(np.unique(want, axis=0)) > N / 2
    lines = []
    for board in EMULATED:
        report = on_board(file, tmp_path, board)["boards"][board]
        assert report["parity"] == {"inputs": N, "mismatches": 0}
        found = Target(graph, board=board, time_limit=300).run(codes)
        np.testing.assert_array_equal(found, want)
        sizes = f"flash {report['flash']['total']:,} B, RAM {report['ram']['total']:,} B"
        lines.append(f"{board}: {sizes}, {report['insn']['total']:,} insn, 0 LSB on {2 * N} inputs")
    with capsys.disabled():
        print("", f"mobilenetv2@0.35 exact, {pictures.name}", *lines, sep="\n")


def wide(pictures: Dataset) -> g.Graph:
    """ResNet-18 of full width, not trained: its size is what counts."""
    net = models.build("resnet18", in_shape=pictures.in_shape, num_classes=pictures.num_classes, seed=0)
    example = torch.from_numpy(Samples(pictures, pictures.where("train")[:8]).inputs())
    return quant.lower(quant.prepare(net, quant.QuantSpec.parse("w8a8", grid="exact"), example).eval(), meta={})


@pytest.mark.timeout(900)
def test_resnet18_is_too_large_for_every_board(pictures: Dataset) -> None:
    found = codegen.site(wide(pictures))
    assert found.layout.blob_bytes > 11e6 > max(boards.BOARDS[name].flash for name in EMULATED)
    for board in EMULATED:
        with pytest.raises(UnsupportedError, match=r"blob has 11,\d{3},\d{3} bytes, more than 8,388,608") as caught:
            codegen.generate(found, codegen.Options(boards=(board,)))
        assert "--board host" in caught.value.remedy
    assert "model.c" in codegen.generate(found, codegen.Options(boards=("host",)))
