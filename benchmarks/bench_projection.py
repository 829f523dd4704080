"""Cost of one global projection: concatenate-project-copy, tensor by tensor, the arena, and a plain copy of a row.

    python benchmarks/bench_projection.py [--repeats 15] [--json FILE]

All four run interleaved in one process; medians are printed as milliseconds and as ratios to the arena. The floor is
the time in which the measured copy (8 bytes a float) would move the 20 bytes a float that sums and update must move.
CPU only; the number of threads is torch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from qunlearn import models
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import project

NETS = (("dscnn", (1, 49, 32)), ("resnet8", (3, 32, 32)), ("mobilenetv2", (3, 32, 32)), ("resnet18", (3, 32, 32)))


def by_concatenation(f: list[Tensor], r: list[Tensor]) -> None:
    """As papers write it."""
    flat_f, flat_r = torch.cat([t.flatten() for t in f]), torch.cat([t.flatten() for t in r])
    flat_f -= torch.dot(flat_f, flat_r) / (torch.dot(flat_r, flat_r) + 1e-12) * flat_r
    offset = 0
    for t in f:
        t.copy_(flat_f[offset : offset + t.numel()].view_as(t))
        offset += t.numel()


def by_tensor(f: list[Tensor], r: list[Tensor]) -> None:
    """Sums over tensors, then one update a tensor."""
    dot = sum(torch.dot(a.flatten(), b.flatten()) for a, b in zip(f, r, strict=True))
    norm = sum(torch.dot(b.flatten(), b.flatten()) for b in r)
    factor = float(dot / (norm + 1e-12))
    for a, b in zip(f, r, strict=True):
        a.sub_(b, alpha=factor)


def measure(model: nn.Module, repeats: int) -> dict[str, float]:
    """Median seconds per variant."""
    arena = GradientArena(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for role in ("forget", "retain"):
        for view in arena.views(role):
            view.copy_(torch.randn(view.shape, generator=generator))
    f = [v.clone() for v in arena.views("forget")]
    r = [v.clone() for v in arena.views("retain")]
    target = torch.empty_like(arena.row("forget"))
    variants: dict[str, Callable[[], object]] = {
        "concatenate": lambda: by_concatenation(f, r),
        "per tensor": lambda: by_tensor(f, r),
        "arena": lambda: project(arena),
        "copy of one row": lambda: target.copy_(arena.row("retain")),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats + 2):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t[2:]) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{torch.get_num_threads()} threads")
    heads = [
        "network",
        "parameters",
        "tensors",
        "concatenate",
        "per tensor",
        "arena",
        "copy",
        "naive/arena",
        "arena/floor",
        "GB/s",
    ]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, shape in NETS:
        model = models.build(name, in_shape=shape, num_classes=10, seed=0)
        t = measure(model, args.repeats)
        count, tensors = sum(p.numel() for p in model.parameters()), len(list(model.parameters()))
        ratio = min(t["concatenate"], t["per tensor"]) / t["arena"]
        over, rate = t["arena"] / (2.5 * t["copy of one row"]), 20e-9 * count / t["arena"]
        cells = " | ".join(f"{1e3 * v:.2f} ms" for v in t.values())
        print(f"| {name} | {count:,} | {tensors} | {cells} | {ratio:.2f} | {over:.1f} | {rate:.1f} |", flush=True)
        facts = {"ratio": ratio, "arena_over_floor": over, "gigabytes_per_second": rate}
        rows.append({"network": name, "parameters": count, "tensors": tensors, "seconds": t, **facts})
    if args.json:
        args.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
