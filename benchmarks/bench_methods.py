"""The committed grids of ``benchmarks/grids``: every method, equal tuning budgets, figures of the int8 files.

    python benchmarks/bench_methods.py [GRID ...] [--processes 2] [--work runs/bench] [--out benchmarks/results]

Each grid goes into its own folder of ``--out`` and goes on where it stopped: finished cells, tuning included, are lines
of ``cells.jsonl``. Networks are trained into ``--work``. ``smoke`` takes minutes, so does each of the three ``digits``,
``kws`` an hour or two of two cores, ``cifar10`` many more. The tables in README and docs come from these folders
(``python docs/generate.py``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
GRIDS = HERE / "grids"
DEFAULT = ("digits", "digits_stop", "digits_frozen", "kws", "ablation_oeu", "ablation_ec", "fashion_mnist", "cifar10")
DEFAULT += ("cifar10_w4a4",)


def run(name: str, *, processes: int, work: Path, out: Path) -> Path:
    """What is missing of one grid; its results folder. A failure of the command ends this program with its code."""
    folder = out / name
    command = [sys.executable, "-m", "qunlearn", "bench", "run", str(GRIDS / f"{name}.toml")]
    command += ["--processes", str(processes), "--work", str(work / name), "-o", str(folder)]
    code = subprocess.run(command).returncode
    if code:
        raise SystemExit(code)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(p.stem for p in GRIDS.glob("*.toml"))
    parser.add_argument("grids", nargs="*", default=list(DEFAULT), help=f"of {', '.join(known)}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    wrong = sorted(set(args.grids) - set(known))
    if wrong:
        parser.error(f"no grid {', '.join(wrong)}; there are {', '.join(known)}")
    for name in args.grids:
        run(name, processes=args.processes, work=args.work, out=args.out)


if __name__ == "__main__":
    main()
