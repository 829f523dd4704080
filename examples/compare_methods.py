"""Compare methods on your own terms: run a small grid, then read its tables and cells from Python.

    python examples/compare_methods.py [--quick] [--processes 2] [-o runs/compare]

The grid is ``compare_methods.toml`` beside this file: scikit-learn's digits, a small ResNet-8, one class forgotten,
four methods and a variant, three seeds. ``qunlearn bench run`` trains the networks, tunes every row with the same
budget on a seed of its own, and measures the int8 files. It goes on where it was stopped: this program may be started
again.
``--quick`` takes two methods, one seed and no tuning: it shows that the steps run, and says nothing about methods.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from qunlearn import bench
from qunlearn.bench import compare
from qunlearn.bench.scene import ROWS, SECOND_RETRAINED
from qunlearn.bench.table import load
from qunlearn.cli import run

GRID = Path(__file__).with_suffix(".toml")
QUICK = """\
data = "digits"
models = ["resnet8@4"]
requests = ["class=3"]
methods = ["oeu", "ft"]
seeds = [0]
budget = 1
subset = 300
[train]
epochs = 2
[shared]
batch_size = 64
[settings.oeu]
lr = 0.01
max_steps = 10
[settings.ft]
lr = 0.01
epochs = 1
"""


def main() -> None:
    """Run the grid, then print what the cells say of OEU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--processes", type=int, default=1, help="one thread each")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()
    grid, results = GRID, args.output / "results"
    if args.quick:
        args.output.mkdir(parents=True, exist_ok=True)
        grid = args.output / "quick.toml"
        grid.write_text(QUICK)
    line = ["bench", "run", str(grid), "--processes", str(args.processes), "-o", str(results)]
    print(f"$ qunlearn {shlex.join(line)}", flush=True)
    if code := run(line):
        sys.exit(code)

    (section,) = bench.tables(results)["sections"]
    best = next(r for r in section["rows"] if r["method"] not in ROWS)
    floor = next(r["gap"][0] for r in section["rows"] if r["method"] == SECOND_RETRAINED)
    print(f"\nnearest to retraining: {best['method']}, {100 * best['gap'][0]:.1f} points")
    print(f"two retrained networks differ by {100 * floor:.1f}")
    earned = "yes" if best["bold"] else "no: its lead is within that noise, or there are fewer than three seeds"
    print(f"a difference that means something: {earned}")
    for r in compare.standing(load(results)["cells"], "oeu"):
        print(f"oeu, {r['measure']}: place {r['place']} of {r['of']}")


if __name__ == "__main__":
    main()
