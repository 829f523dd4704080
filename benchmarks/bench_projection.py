"""Cost of one global projection: three naive forms, the arena, its limit, and a plain copy of a row.

    python benchmarks/bench_projection.py [--threads 1 2] [--seconds 6] [--nets NAME ...] [--json FILE]

`concatenate` and `per tensor` are the forms that papers' code has; `in place` is tensor by tensor without temporaries,
the best that can be done without one buffer. `steep` is the arena where forget and retain gradient are nearly parallel
(cosine 0.9), so that the result is measured and not foreseen; `layer` is the arena's scope of that name, every tensor a
layer. `limit` is one look at both rows (a single inner product) and the update: no projection in two passes of torch is
faster. All run interleaved in one process (small networks ten times in a row, so that code and data are in the cache
for every form); medians are reported. With one thread, the processor time of the thread is taken, which other jobs on
the machine disturb less than the wall clock; with more, the wall clock. The floor is the time in which the measured
copy (8 bytes a float) would move the 20 bytes a float that sums and update must move. The bars are those of the
specification: arena at least 4 times faster than the better of the papers' forms, and at most 1.3 floors from a million
parameters on. Where there is a CUDA device, projection_gpu.py measures its backends too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import projection_gpu
import torch
from torch import Tensor, nn

from qunlearn import models
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import project

NETS = {"dscnn": (1, 49, 32), "resnet8": (3, 32, 32), "mobilenetv2": (3, 32, 32), "resnet18": (3, 32, 32)}
TRANSFORMER = "transformer-135m"
RATIO, FLOORS, LARGE = 4.0, 1.3, 1_000_000
BYTES = {
    "concatenate": 64,
    "per tensor": 56,
    "in place": 24,
    "arena": 20,
    "steep": 20,
    "layer": 20,
    "limit": 20,
    "copy": 8,
}
"""Bytes a float that every form moves to and from memory when nothing stays in a cache: reads and writes of its tensor
operations, counted by hand (the copy's read of the line it overwrites is left out everywhere)."""


def transformer() -> list[tuple[int, ...]]:
    """Shapes of a 135 M-parameter decoder (SmolLM-135M: 30 layers of width 576, 9 heads, 3 key-value heads, tied)."""
    width, inner, kv = 576, 1536, 192
    block = [(width, width), (kv, width), (kv, width), (width, width), (inner, width), (inner, width), (width, inner)]
    return [(49_152, width), *[*block, (width,), (width,)] * 30, (width,)]


def shapes(name: str) -> list[tuple[int, ...]]:
    """The parameter shapes of a network."""
    if name == TRANSFORMER:
        return transformer()
    return [tuple(p.shape) for p in models.build(name, in_shape=NETS[name], num_classes=10, seed=0).parameters()]


def by_concatenation(f: Sequence[Tensor], r: Sequence[Tensor]) -> None:
    """As papers write it: flatten, project, cut, copy back."""
    flat_f, flat_r = torch.cat([t.flatten() for t in f]), torch.cat([t.flatten() for t in r])
    flat_f = flat_f - torch.dot(flat_f, flat_r) / (torch.dot(flat_r, flat_r) + 1e-12) * flat_r
    offset = 0
    for t in f:
        t.copy_(flat_f[offset : offset + t.numel()].view_as(t))
        offset += t.numel()


def by_tensor(f: Sequence[Tensor], r: Sequence[Tensor]) -> None:
    """As papers write it: inner products tensor by tensor, then a new gradient for every tensor."""
    dot = sum((a * b).sum() for a, b in zip(f, r, strict=True))
    norm = sum((b * b).sum() for b in r)
    for a, b in zip(f, r, strict=True):
        a.copy_(a - dot / (norm + 1e-12) * b)


def in_place(f: Sequence[Tensor], r: Sequence[Tensor]) -> None:
    """Tensor by tensor with BLAS' dot product and one update in place; no temporaries."""
    dot = sum(torch.dot(a.flatten(), b.flatten()) for a, b in zip(f, r, strict=True))
    norm = sum(torch.dot(b.flatten(), b.flatten()) for b in r)
    factor = float(dot / (norm + 1e-12))
    for a, b in zip(f, r, strict=True):
        a.sub_(b, alpha=factor)


def measure(sizes: Sequence[tuple[int, ...]], seconds: float) -> tuple[dict[str, float], int]:
    """Median seconds of every form, and the number of runs."""
    arena = GradientArena([nn.Parameter(torch.empty(s), requires_grad=False) for s in sizes])
    generator = torch.Generator().manual_seed(0)
    for role in arena.roles:
        for view in arena.views(role):
            view.copy_(torch.randn(view.shape, generator=generator))
    f, r = ([v.clone() for v in arena.views(role)] for role in arena.roles)
    row, other = arena.row("forget"), arena.row("retain")
    target, parallel = torch.empty_like(row), row + 2 * other
    forms: dict[str, Callable[[], object]] = {
        "concatenate": lambda: by_concatenation(f, r),
        "per tensor": lambda: by_tensor(f, r),
        "in place": lambda: in_place(f, r),
        "arena": lambda: project(arena),
        "steep": lambda: project(arena),
        "layer": lambda: project(arena, scope="layer"),
        "limit": lambda: (torch.dot(row, other), row.sub_(other, alpha=1e-9)),
        "copy": lambda: target.copy_(other),
    }
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    burst = 10 if arena.size < LARGE else 1
    times: dict[str, list[float]] = {name: [] for name in forms}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 7 or (time.perf_counter() < end and rounds < 2000):
        for name, run in forms.items():
            for _ in range(burst):
                if name == "steep":
                    row.copy_(parallel)
                start = clock()
                run()
                times[name].append(clock() - start)
        rounds += 1
    return {name: statistics.median(t[2 * burst :]) for name, t in times.items()}, (rounds - 2) * burst


def judged(name: str, sizes: Sequence[tuple[int, ...]], seconds: float) -> dict[str, object]:
    """One network: times, ratios, rates, and whether the bars are met, with the reason where not."""
    t, runs = measure(sizes, seconds)
    count = sum(torch.Size(s).numel() for s in sizes)
    floor = t["copy"] * BYTES["arena"] / BYTES["copy"]
    ratio, over = min(t["concatenate"], t["per tensor"]) / t["arena"], t["arena"] / floor
    missed = []
    if ratio < RATIO:
        best = min(t["concatenate"], t["per tensor"]) / t["limit"]
        why = "out of reach" if best < RATIO else "the rest is calls, or the cache"
        missed.append(f"{ratio:.2f} < {RATIO:g} times the papers' form; at the limit it would be {best:.1f}: {why}")
    if over > FLOORS and count >= LARGE:
        missed.append(f"{over:.2f} > {FLOORS:g} floors")
    if t["steep"] > FLOORS * floor and count >= LARGE:
        missed.append(f"steep: {t['steep'] / floor:.2f} > {FLOORS:g} floors")
    return {
        "network": name,
        "parameters": count,
        "tensors": len(sizes),
        "runs": runs,
        "seconds": t,
        "gigabytes_per_second": {k: BYTES[k] * 1e-9 * count / v for k, v in t.items()},
        "ratio_papers": ratio,
        "ratio_papers_at_limit": min(t["concatenate"], t["per tensor"]) / t["limit"],
        "ratio_in_place": t["in place"] / t["arena"],
        "arena_over_floor": over,
        "steep_over_floor": t["steep"] / floor,
        "missed": missed,
    }


def line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--seconds", type=float, default=6.0, help="per network; 5 runs at least")
    parser.add_argument("--nets", nargs="+", choices=[*NETS, TRANSFORMER], default=[*NETS, TRANSFORMER])
    parser.add_argument("--json", type=Path, help="such as benchmarks/results/projection.json")
    args = parser.parse_args()
    runs = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        load = os.getloadavg()[0]
        clock = "processor time of the thread" if threads == 1 else "wall clock"
        print(f"\n{threads} threads, {clock}; load at the start {load:.1f} on {os.cpu_count()} processors\n")
        forms = [f"{k} (GB/s)" for k in BYTES]
        heads = [
            "network",
            "parameters",
            "tensors",
            *forms,
            "papers'/arena",
            "in place/arena",
            "arena/floor",
            "steep/floor",
        ]
        print(f"{line(heads)}\n|{'---|' * len(heads)}")
        rows = []
        for name in args.nets:
            row = judged(name, shapes(name), args.seconds)
            rows.append(row)
            t, rate = row["seconds"], row["gigabytes_per_second"]
            assert isinstance(t, dict)
            assert isinstance(rate, dict)
            cells = [f"{1e3 * t[k]:.3f} ms ({rate[k]:.1f})" for k in BYTES]
            ratios = [
                f"{row[k]:.2f}" for k in ("ratio_papers", "ratio_in_place", "arena_over_floor", "steep_over_floor")
            ]
            print(line([name, f"{row['parameters']:,}", row["tensors"], *cells, *ratios]), flush=True)
        print()
        for row in rows:
            print(f"{row['network']}: {'missed: ' + '; '.join(row['missed']) if row['missed'] else 'bars met'}")
        runs.append({"threads": threads, "clock": clock, "load": load, "rows": rows})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    gpu = projection_gpu.report(args.json and args.json.with_suffix(".gpu.csv"))
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        facts = {"machine": machine, "torch": torch.__version__, "numpy": np.__version__}
        bars = {"ratio_papers": RATIO, "floors": FLOORS, "large": LARGE}
        out = {**facts, "bars": bars, "bytes_per_float": BYTES, "runs": runs, "gpu": gpu}
        args.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
