"""What the two forms of the file cost: bytes on disk, nodes and multiplications in integer kernels, time of a sample.

    python benchmarks/bench_forms.py [--repeats 20]

The DS-CNN that travels with the package, and ResNet-8 and MobileNetV2 (width 0.35) as prepared, untrained: sizes and
kernels do not depend on the numbers. Both forms and, for comparison, an unprepared session of the QDQ file run
interleaved on batches of 32, one thread; times are medians of CPU time, a sample. Writes benchmarks/results/forms.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from qunlearn import models, quant
from qunlearn.cli import journey
from qunlearn_export import coverage, writer
from qunlearn_export.runtime import cpu_flags, make_session, ort, run

HERE = Path(__file__).parent
BATCH = 32
NETS = {"resnet8": (3, 32, 32), "mobilenetv2@0.35": (3, 32, 32)}
COLUMNS = ("network", "form", "bytes", "bytes a code", "integer nodes", "MACs in integer", "CPU time, ms")


def networks() -> dict[str, quant.QuantModel]:
    """The networks by name, in evaluation mode."""
    out = {"dscnn": quant.load_run(journey.ASSETS / "base")[0].eval()}
    for name, shape in NETS.items():
        example = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
        net = models.build(name, in_shape=shape, num_classes=10, seed=0)
        out[name] = quant.prepare(net, quant.QuantSpec.parse("w8a8"), example).eval()
    return out


def rows(name: str, model: quant.QuantModel, repeats: int, folder: Path) -> list[str]:
    """One line a form, and one for the QDQ file in a session without entries."""
    graph = quant.lower(model)
    codes = sum(layer.weight.size for layer in graph.weighted())
    files = {form: folder / f"{form}.onnx" for form in ("qdq", "qop")}
    for form, file in files.items():
        writer.export(graph, file, form=form, tie_limit=1.0)
    sessions = {form: make_session(file) for form, file in files.items()}
    sessions["qdq, unprepared"] = make_session(files["qdq"], raw=True)
    x = np.random.default_rng(0).normal(size=(BATCH, *model.in_shape)).astype(np.float32)
    seconds: dict[str, list[float]] = {form: [] for form in sessions}
    for _ in range(repeats):
        for form, session in sessions.items():
            start = time.process_time()
            run(session, x)
            seconds[form].append((time.process_time() - start) / BATCH)
    out = []
    for form, times in seconds.items():
        ms = f"{1e3 * statistics.median(times[1:]):.3f}"
        if form not in files:
            out.append(f"| {name} | {form} | | | | | {ms} |")
            continue
        size, found = files[form].stat().st_size, coverage.coverage(files[form], graph)
        share = f"{found.integer} of {found.total} | {100 * (found.macs or 0.0):.0f} %"
        out.append(f"| {name} | {form} | {size:,} | {size / codes:.2f} | {share} | {ms} |")
    return out


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks().items():
            lines += rows(name, model, args.repeats, Path(folder))
    lines += ["", f"onnxruntime {ort.__version__}, one thread, CPU flags {' '.join(cpu_flags())}.", ""]
    text = "\n".join(lines)
    print(text)
    (HERE / "results" / "forms.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
