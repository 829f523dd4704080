"""The GPU part of bench_projection.py: Triton and CUDA C++ against torch, torch.compile of the plain form, and a copy.

Two sizes: 100 million floats in one tensor, where the bar is 85 % of the bandwidth of a copy (20 bytes a float in the
projection, 8 in the copy), and 0.1 million in 180 tensors, where it is 15 microseconds. Every run is timed by two CUDA
events around the call, forms interleaved, medians. A call of ``project`` ends with the sums on the host, so its time
has the wait for them in it; ``launches`` are the two kernels alone.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qunlearn_export.errors import MissingDependencyError
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.backends import BACKENDS, choose_backend, launcher
from qunlearn_kernels.projection import project
from qunlearn_kernels.tiles import plan

NONE = "GPU: none here, not measured"
LARGE, SMALL = [100_000_000], [560] * 179 + [100_000 - 179 * 560]
SHARE_OF_COPY, MICROSECONDS = 0.85, 15.0
MOVED = {"copy": 8}
"""Bytes a float; every projection is counted with the 20 that it cannot do without."""

Timer = Callable[[Callable[[], object]], float]


def by_events(run: Callable[[], object]) -> float:
    """Seconds of one call on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * float(start.elapsed_time(end))


def plain(f: Tensor, r: Tensor) -> None:
    """The projection of two flat vectors as one would write it."""
    f.copy_(f - torch.dot(f, r) / (torch.dot(r, r) + 1e-12) * r)


def available(device: torch.device) -> tuple[list[str], dict[str, str]]:
    """Backends that can run there, and what the others lack."""
    lacks = {}
    for name in BACKENDS:
        try:
            choose_backend(name, device)
        except MissingDependencyError as err:
            lacks[name] = err.message
    return [name for name in BACKENDS if name not in lacks], lacks


def forms(arena: GradientArena, backends: Sequence[str], *, compiled: bool) -> dict[str, Callable[[], object]]:
    """What is timed on one arena, by name."""
    f, r = arena.row("forget"), arena.row("retain")
    target = torch.empty_like(r)
    out: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(r), "plain": lambda: plain(f, r)}
    if compiled:
        fast = torch.compile(plain)
        out["torch.compile"] = lambda: fast(f, r)
    for name in backends:
        out[name] = lambda name=name: project(arena, backend=name)  # type: ignore[misc]
        if name != "torch":
            out[f"{name} launches"] = _launches(arena, name)
    return out


def _launches(arena: GradientArena, name: str) -> Callable[[], object]:
    run, tiles, f, r = launcher(name, arena.device), plan(arena, "global"), arena.row("forget"), arena.row("retain")
    before, after = (torch.empty(3, tiles.tiles, dtype=torch.float64, device=arena.device) for _ in range(2))

    def both() -> None:
        run.dots(tiles, f, r, None, before)
        run.update(tiles, f, r, None, before, after, eps=1e-12, conflict=False, given=None, step=None)

    return both


def measure(
    sizes: Sequence[int], device: torch.device, backends: Sequence[str], timer: Timer, rounds: int, *, compiled: bool
) -> dict[str, Any]:
    """One size: median seconds and rates of every form, and the bars that are missed."""
    arena = GradientArena([nn.Parameter(torch.empty(n, device=device), requires_grad=False) for n in sizes])
    generator = torch.Generator(device=device).manual_seed(0)
    for role in arena.roles:
        for view in arena.views(role):
            view.copy_(torch.randn(view.shape, generator=generator, device=device))
    runs = forms(arena, backends, compiled=compiled)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 3):  # the first three compile and warm up
        for name, run in runs.items():
            times[name].append(timer(run))
    seconds = {name: statistics.median(t[3:]) for name, t in times.items()}
    count = sum(sizes)
    rates = {name: 1e-9 * MOVED.get(name, 20) * count / s for name, s in seconds.items()}
    return {
        "parameters": count,
        "tensors": len(sizes),
        "runs": rounds,
        "seconds": seconds,
        "gigabytes_per_second": rates,
    }


def missed(large: Mapping[str, Any], small: Mapping[str, Any], backends: Sequence[str]) -> list[str]:
    """The bars that a device backend misses, with its figure."""
    out = []
    for name in backends:
        if name == "torch":
            continue
        share = large["gigabytes_per_second"][name] / large["gigabytes_per_second"]["copy"]
        if share < SHARE_OF_COPY:
            out.append(f"{name}: {share:.2f} < {SHARE_OF_COPY:g} of the copy's bandwidth")
        late = 1e6 * small["seconds"][name]
        if late > MICROSECONDS:
            out.append(f"{name}: {late:.1f} > {MICROSECONDS:g} us on the small row")
    return out


def versions(device: torch.device) -> dict[str, Any]:
    """Device and software."""
    try:
        import triton

        triton_version = str(triton.__version__)
    except ImportError:
        triton_version = "none"
    p = torch.cuda.get_device_properties(device)
    return {
        "device": p.name,
        "capability": f"{p.major}.{p.minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton_version,
    }


def write_csv(path: Path, facts: Mapping[str, Any], sizes: Sequence[Mapping[str, Any]]) -> None:
    """One line per size and form, with device and versions on every line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*facts, "parameters", "tensors", "form", "microseconds", "gigabytes_per_second"])
        for size in sizes:
            for name, seconds in size["seconds"].items():
                rate = size["gigabytes_per_second"][name]
                cells = [size["parameters"], size["tensors"], name, f"{1e6 * seconds:.3f}", f"{rate:.2f}"]
                out.writerow([*facts.values(), *cells])


def report(csv_file: Path | None, rounds: int = 30) -> dict[str, Any] | None:
    """Measure, print and write; None, said in a line, where there is no CUDA device."""
    if not torch.cuda.is_available():
        print(f"\n{NONE}")
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    backends, lacks = available(device)
    facts = versions(device)
    large, small = (measure(n, device, backends, by_events, rounds, compiled=True) for n in (LARGE, SMALL))
    print(f"\nGPU: {', '.join(f'{k} {v}' for k, v in facts.items())}")
    for size in (large, small):
        print(f"{size['parameters']:,} floats in {size['tensors']} tensors")
        for name, seconds in size["seconds"].items():
            print(f"  {name:16s}{1e6 * seconds:10.1f} us  {size['gigabytes_per_second'][name]:8.1f} GB/s")
    bars = missed(large, small, backends)
    for line in [*(f"{k} cannot run: {v}" for k, v in lacks.items()), *(f"missed: {b}" for b in bars)]:
        print(line)
    if csv_file is not None:
        write_csv(csv_file, facts, (large, small))
    return {**facts, "lacking": lacks, "sizes": [large, small], "missed": bars}
