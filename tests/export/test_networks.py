"""The reference networks as files: ONNX Runtime at both levels, the oracle and the fake-quantized network agree.

Differences are counted in codes (LSB), free-running through the whole network on real samples.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference_networks import images, real_samples, trained

from qunlearn import quant
from qunlearn.cli import journey
from qunlearn.data import sources
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.quant import QuantModel
from qunlearn_export import reader, writer
from qunlearn_export.extract import recover
from qunlearn_export.graph import Graph
from qunlearn_export.oracle import Oracle
from qunlearn_export.parity import compare_logits, parity
from qunlearn_export.runtime import make_session, run

BATCH = 50
KNOWN = ("mobilenetv2@0.35 w8a8 free", "mobilenetv2@0.35 w4a4 free")
"""Networks whose free-running logits leave the bound on the free grid, and are refused by ``export``. Every layer alone
is within 1 LSB; a difference of one code in the first blocks, from float sums of the ``off`` reading, grows by half per
block through fifty layers. Longer training does not mend it (3 LSB after 8 epochs on 20,000 images); the exact grid
does."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Final codes compared: largest difference (LSB) and share that differ per pair, top-1 agreement with torch.

    ``agreement`` leaves exact ties of the oracle out, ``clear`` all samples whose margin is within the difference.
    """

    name: str
    accuracy: float
    off: tuple[int, float]
    level_all: tuple[int, float]
    torch: tuple[int, float]
    agreement: float
    clear: float
    ties: int
    seconds: float

    def inside(self) -> bool:
        """Whether the free-running bounds hold: 1 LSB between sessions and oracle, 2 LSB and 99.9 % against torch."""
        bounds = ((self.off, 1), (self.level_all, 1), (self.torch, 2))
        return all(pair[0] <= bound for pair, bound in bounds) and self.clear >= 0.999

    def identical(self) -> bool:
        """Whether sessions, oracle and network gave the same codes."""
        return not any(pair[0] for pair in (self.off, self.level_all, self.torch))

    def check(self) -> None:
        assert self.inside(), self

    def row(self) -> str:
        pairs = " | ".join(f"{top} LSB, {100 * share:.3f} %" for top, share in (self.off, self.level_all, self.torch))
        same = f"{100 * self.agreement:.2f} % ({self.ties} ties) | {100 * self.clear:.2f} %"
        return f"| {self.name} | {100 * self.accuracy:.1f} % | {pairs} | {same} | {self.seconds:.0f} s |"


HEADER = (
    "| network | top-1 | off vs oracle | all vs off | torch vs oracle | torch same class | outside margin | seconds |\n"
    "|---|---|---|---|---|---|---|---|"
)


def pair(a: NDArray[np.int8], b: NDArray[np.int8]) -> tuple[int, float]:
    d = np.abs(a.astype(np.int64) - b.astype(np.int64))
    return int(d.max()), float((d != 0).mean())


def exported(model: QuantModel, folder: Path) -> tuple[Graph, Path]:
    """Lower and write twice; the bytes are the same, and what is read back is what was lowered."""
    files = [folder / "a.onnx", folder / "b.onnx"]
    for file in files:
        writer.export(quant.lower(model, meta={"task": "classification"}), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    graph = reader.read(files[0])
    own = quant.codes(model)
    held = graph.quantized_tensors()
    assert set(own) == set(held)
    assert all(np.array_equal(own[n], held[n]) for n in own)
    return graph, files[0]


def compare(name: str, model: QuantModel, samples: Samples, folder: Path) -> Found:
    start = time.perf_counter()
    graph, file = exported(model.eval(), folder)
    oracle, out = Oracle(graph), graph.activations[graph.output]
    sessions = {"off": make_session(file, level="off"), "all": make_session(file)}
    parts: dict[str, list[NDArray[np.int8]]] = {n: [] for n in ("oracle", "off", "all", "torch")}
    quantizer = model.quantizer_of(model.steps[-1].name)
    for i in range(0, len(samples), BATCH):
        x = samples.inputs(np.arange(i, min(i + BATCH, len(samples))))
        parts["oracle"].append(oracle.run(x))
        for level, session in sessions.items():
            parts[level].append(recover(run(session, x)["logits"], out))
        with torch.no_grad():
            parts["torch"].append(quantizer.codes(model(torch.from_numpy(x))).numpy())
    final = {n: np.concatenate(p) for n, p in parts.items()}
    ranked = np.sort(final["oracle"].astype(np.int64), axis=1)
    clear = ranked[:, -1] > ranked[:, -2]
    same = final["torch"].argmax(axis=1) == final["oracle"].argmax(axis=1)
    return Found(
        name=name,
        accuracy=float((final["oracle"].argmax(axis=1) == samples.targets()).mean()),
        off=pair(final["off"], final["oracle"]),
        level_all=pair(final["all"], final["off"]),
        torch=pair(final["torch"], final["oracle"]),
        agreement=float(same[clear].mean()),
        clear=compare_logits("torch-fq vs oracle", final["torch"], final["oracle"]).argmax_outside_margin,
        ties=int((~clear).sum()),
        seconds=time.perf_counter() - start,
    )


def test_shipped_dscnn(tmp_path: Path) -> None:
    dataset = sources.load("kws")
    model = journey.shipped(dataset).base
    found = compare("dscnn w8a8", model, real_samples(dataset, 200), tmp_path)
    found.check()
    assert found.accuracy > 0.95


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_resnet8_on_digits(bits: str, tmp_path: Path) -> None:
    dataset = sources.load("digits")
    model = trained("resnet8@8", dataset, bits, epochs=6)
    found = compare(f"resnet8@8 {bits}", model, real_samples(dataset, 400), tmp_path)
    found.check()
    assert found.accuracy > 0.9
    report = parity(
        reader.read(tmp_path / "a.onnx"),
        tmp_path / "a.onnx",
        real_samples(dataset, 64).inputs(),
        torch_column=quant.TorchColumn(model),
    )
    assert not [r for r in report.layers if r.mode == "forced" and r.max_abs > 1]
    assert not [r for r in report.reasons if not r.startswith("logits")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the exact grid all four networks give identical codes; on the free one all but ``KNOWN`` stay in the bound."""
    kws, pictures = sources.load("kws"), images()
    wide = int(os.environ.get("QUNLEARN_TEST_WIDTH", "16"))
    cases = [(f"dscnn shipped w8a8 free, {kws.name}", lambda: journey.shipped(kws).base, kws)]
    networks = (("dscnn", kws, 1000), ("resnet8", pictures, 2000), (f"resnet18@{wide}", pictures, 1000))
    for grid in ("exact", "free"):
        for bits in ("w8a8", "w4a4"):
            for name, data, n in (*networks, ("mobilenetv2@0.35", pictures, 2000)):

                def make(name: str = name, d: Dataset = data, b: str = bits, k: int = n, g: str = grid) -> QuantModel:
                    return trained(name, d, b, samples=k, grid=g)

                cases.append((f"{name} {bits} {grid}, {data.name}", make, data))
    rows = []
    for label, make, dataset in cases:
        folder = tmp_path / str(len(rows))
        folder.mkdir()
        rows.append(compare(label, make(), real_samples(dataset, 1000), folder))
        with capsys.disabled():
            print(
                f"\n{HEADER}" if len(rows) == 1 else "", rows[-1].row(), sep="\n" if len(rows) == 1 else "", flush=True
            )
    exact = [found for found in rows if " exact" in found.name]
    assert len(exact) == 8
    assert [found.name for found in exact if not found.identical() or found.agreement < 0.999] == []
    outside = [found.name for found in rows if not found.inside()]
    assert not [name for name in outside if not name.startswith(KNOWN)], outside
