"""A data owner checks that an operator's update was driven by their own samples: craft, calibrate, unlearn, verify.

    python examples/erasure_check.py [--quick] [-o runs/erasure]

The toy network of the documentation (five Gaussian classes). The owner alters 30 samples within half a standard
deviation; the operator unlearns what was submitted; the owner reads one private sample's answer from the int8 file.
``--quick`` makes eight short trials: it shows that the steps run, and its calibration is not valid. The whole run makes
60 trials, some minutes on one core; the verdict is whatever they prove. The operator's 60 steps were chosen so that
usefulness is kept: at 72 steps the check fails as `over`.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from qunlearn.bench import gaussians
from qunlearn.cli import run

TOY = "--data qunlearn.bench.gaussians:data --model qunlearn.bench.gaussians:network --epochs 20"
METHOD = "--method graddiff --set lr=0.01 --set momentum=0 --set weight_decay=0 --set schedule=constant"
METHOD += " --set epochs=15"


def step(text: str, *, ends: tuple[int, ...] = (0,)) -> int:
    """Run one command as the shell would; stop with its exit code unless it is one of ``ends``."""
    print(f"$ qunlearn {text}", flush=True)
    code = run(shlex.split(text))
    if code not in ends:
        raise SystemExit(code)
    return code


def main() -> None:
    """All steps; files go into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/erasure"))
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    out = shlex.quote(str(args.output))
    data = gaussians.data()
    mine = data.ids[data.where("train")][::33][:30]
    (args.output / "mine.txt").write_text("\n".join(mine) + "\n")
    trials = "--with trials=8 --steps 4" if args.quick else "--with trials=60 --steps 60"

    step(f"train {TOY} -o {out}/base")
    step(f"eve craft {out}/base --forget ids=@{out}/mine.txt {METHOD} --with steps=120 -o {out}/request")
    step(f"eve calibrate {out}/base --erase 30 {METHOD} --with steps=120 {trials} -o {out}/calibration.json")
    step(f"unlearn {out}/base --forget ids=@{out}/mine.txt {METHOD} --submitted {out}/request -o {out}/new")
    for name in ("base", "new"):
        step(f"export {out}/{name} -o {out}/{name}.onnx")
    step(
        f"eve verify --request {out}/request --calibration {out}/calibration.json "
        f"--before {out}/base.onnx --after {out}/new.onnx -o {out}/verdict",
        ends=(0, 3, 4),
    )


if __name__ == "__main__":
    main()
