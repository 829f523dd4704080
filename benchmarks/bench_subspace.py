"""Cost of one projection against the span of k retain gradients: the arena's, and two plain forms.

    python benchmarks/bench_subspace.py [--k 8] [--seconds 6] [--nets NAME ...] [--json FILE]

`arena` is project_k with its Basis, which is orthonormalised anew at every call, as OEU does at every step; `basis` is
that part alone. `Gram-Schmidt` (row by row, twice) and `QR` are what one would write on flat vectors: orthonormal rows
Q, then f - Q'(Q f). Interleaved in one process, processor time of one thread, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench_projection import NETS, shapes
from torch import Tensor, nn

from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import Basis, project_k


def by_gram_schmidt(f: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Row by row, every row against the earlier ones twice."""
    kept: list[Tensor] = []
    for row in rows:
        q = row
        for _ in range(2):
            for other in kept:
                q = q - torch.dot(other, q) * other
        kept.append(q / q.norm())
    basis = torch.stack(kept)
    return f - basis.T @ (basis @ f)


def by_qr(f: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """With LAPACK's orthonormal columns."""
    basis = torch.linalg.qr(torch.stack(list(rows)).T).Q
    return f - basis @ (basis.T @ f)


def measure(name: str, k: int, seconds: float) -> dict[str, object]:
    """Median seconds of every form for one network."""
    sizes = shapes(name)
    arena = GradientArena([nn.Parameter(torch.empty(s), requires_grad=False) for s in sizes])
    generator = torch.Generator().manual_seed(0)
    basis = Basis(arena, k)
    for _ in range(k):
        for view in arena.views("retain"):
            view.copy_(torch.randn(view.shape, generator=generator))
        basis.push(arena.row("retain"))
    start = arena.flatten([torch.randn(s, generator=generator) for s in sizes])
    row = arena.row("forget")
    forms: dict[str, Callable[[], object]] = {
        "arena": lambda: project_k(arena, basis),
        "basis": basis.rows,
        "Gram-Schmidt": lambda: by_gram_schmidt(start, basis.raw),
        "QR": lambda: by_qr(start, basis.raw),
    }
    times: dict[str, list[float]] = {form: [] for form in forms}
    end = time.perf_counter() + seconds
    while len(times["QR"]) < 5 or time.perf_counter() < end:
        for form, run in forms.items():
            row.copy_(start)
            begin = time.thread_time()
            run()
            times[form].append(time.thread_time() - begin)
    count = sum(torch.Size(s).numel() for s in sizes)
    medians = {form: statistics.median(t[1:]) for form, t in times.items()}
    return {"network": name, "parameters": count, "runs": len(times["QR"]) - 1, "seconds": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0, help="per network; 5 runs at least")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--json", type=Path, help="such as benchmarks/results/subspace.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.nets:
        rows.append(measure(name, args.k, args.seconds))
        print(name, ", ".join(f"{form} {1e3 * s:.2f} ms" for form, s in rows[-1]["seconds"].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"k": args.k, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
