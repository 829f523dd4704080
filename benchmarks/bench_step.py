"""What a step costs: quantization-aware training over float training, and OEU over one pass of the retain batch.

    python benchmarks/bench_step.py [--repeats 9] [--batch 128] [--net NAME ...] [--json FILE]

All variants of a network run interleaved in one process; medians are printed as milliseconds and as ratios. The float
step is the same network as plain torch modules, with its usual layout in memory and with channels last; the
quantized network chooses channels last itself. ``one pass`` is forward and backward of the retain batch as OEU runs
it; ``projection`` is the projection alone, ``composition`` also builds the update, ``inner products`` are the numbers
of the trace. ``OEU`` is a step without the costly diagnostics, which run every ``diag_every`` steps.
The clock is CPU time with one thread (a busy machine changes it little), wall time with more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn import models
from qunlearn.data.dataset import Dataset, Preprocess
from qunlearn.quant import QuantModel, QuantSpec, prepare
from qunlearn.quant.calibrate import calibrate
from qunlearn.quant.model import clamp_scales
from qunlearn.tasks import Classification
from qunlearn.unlearn import diagnostics
from qunlearn.unlearn.context import Context, Data
from qunlearn.unlearn.oeu import OEU
from qunlearn.unlearn.oeu_run import OEURun
from qunlearn_kernels.projection import project

NETS = {"dscnn": (1, 49, 32), "resnet8": (3, 32, 32), "resnet18": (3, 32, 32)}
FEWER = {"resnet18": 3}
HERE = Path(__file__).parent
LIMITS = {"QAT / float": 1.6, "OEU / one pass": 2.1, "projection / one pass": 0.05}


def settled(name: str, x: Tensor) -> QuantModel:
    """A fresh quantized network whose running statistics and grids fit ``x``."""
    model = prepare(models.build(name, in_shape=NETS[name], num_classes=10, seed=0), QuantSpec(), x[:8])
    model.set_enabled(False)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(x[:16])
    calibrate(model, [x[:16]])
    return model


def training(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One step of SGD on everything, scales included."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clamp_scales(model)

    return step


def oeu(model: QuantModel, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """The parts of an OEU step, and the whole of it."""
    rows = np.arange(len(x))
    channels = x.shape[1]
    data = Dataset(
        name="noise",
        x=x.numpy(),
        y=y.numpy(),
        ids=rows.astype(str),
        part=np.full(len(x), "train"),
        class_names=tuple(str(i) for i in range(10)),
        preprocess=Preprocess((0.0,) * channels, (1.0,) * channels),
    )
    samples = data.samples("train")
    batch = len(x) // 2
    method = OEU(batch_size=batch, retain_batch_size=batch, diag_every=100_000)
    ctx = Context(
        model=method._copy(model.eval()),
        before=model,
        data=Data(forget=samples.take(rows[:batch]), retain=samples.take(rows[batch:]), stop=samples),
        task=Classification(),
        request_kind="ids",
        card=None,
        seed=0,
        identity="",
    )
    run, count = OEURun(method, ctx, owner=method), iter(range(1, 100_000))
    run.step(next(count))
    r, f = run.arena.row("retain"), run.arena.row("forget")
    vector, update = f.clone(), run.composer(r, f, 1e-3)
    order = rows[:batch]
    return {
        "one pass": lambda: run._backward("retain", order),
        "OEU": lambda: run.step(next(count)),
        "projection": lambda: project(run.arena, forget=vector, retain=r),
        "composition": lambda: run.composer(r, f, 1e-3),
        "inner products": lambda: diagnostics.geometry(run.arena, "global", r, f, update),
    }


def measure(name: str, batch: int, repeats: int) -> dict[str, float]:
    """Median seconds per variant."""
    generator = torch.Generator().manual_seed(0)
    shape = NETS[name]
    x, y = torch.randn(2 * batch, *shape, generator=generator), torch.randint(0, 10, (2 * batch,), generator=generator)
    last = models.build(name, in_shape=shape, num_classes=10, seed=0).to(memory_format=torch.channels_last)
    half, labels = x[:batch], y[:batch]
    n, c, h, w = half.shape
    reordered = half.permute(0, 2, 3, 1).contiguous().view(n, h, w, c).permute(0, 3, 1, 2)
    variants = {
        "float": training(models.build(name, in_shape=shape, num_classes=10, seed=0), half, labels),
        "float, channels last": training(last, reordered, labels),
        "QAT": training(settled(name, x), half, labels),
        **oeu(settled(name, x), x, y),
    }
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {key: [] for key in variants}
    for _ in range(repeats + 1):
        for key, run in variants.items():
            start = clock()
            run()
            times[key].append(clock() - start)
    return {key: statistics.median(t[1:]) for key, t in times.items()}


def ratios(t: dict[str, float]) -> dict[str, float]:
    """The figures that have a limit, and what they are made of."""
    return {
        "QAT / float": t["QAT"] / t["float"],
        "QAT / float, channels last": t["QAT"] / t["float, channels last"],
        "OEU / one pass": t["OEU"] / t["one pass"],
        "projection / one pass": t["projection"] / t["one pass"],
        "composition / one pass": t["composition"] / t["one pass"],
        "inner products / one pass": t["inner products"] / t["one pass"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--net", nargs="+", choices=sorted(NETS), default=list(NETS))
    parser.add_argument("--json", type=Path, default=HERE / "results" / "step.json")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{threads} threads, {'CPU' if threads == 1 else 'wall'} time, batch {args.batch}")
    out = []
    for name in args.net:
        repeats = min(args.repeats, FEWER.get(name, args.repeats))
        seconds = measure(name, args.batch, repeats)
        figures = ratios(seconds)
        print(f"{name} ({repeats} repeats): " + ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in seconds.items()))
        for key, value in figures.items():
            limit = LIMITS.get(key)
            note = "" if limit is None else f"  (limit {limit:g}: {'ok' if value <= limit else 'MISSED'})"
            print(f"  {key:28s}{value:8.3f}{note}", flush=True)
        out.append({"net": name, "repeats": repeats, "seconds": seconds, "ratios": figures})
    args.json.parent.mkdir(exist_ok=True)
    args.json.write_text(
        json.dumps({"threads": threads, "batch": args.batch, "torch": torch.__version__, "nets": out}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
