"""Train a small keyword spotter, make it forget one speaker, export it as int8 ONNX and audit that file.

    python examples/keyword_spotter.py [--speaker theo] [--quick] [-o runs/spotter]

Every step is a command of ``qunlearn``, called through :func:`qunlearn.cli.run` and printed before it runs. Without
``--quick`` a reference card (one network per speaker left out) tells the stop rule where to stop; with it, one epoch of
training and no card only show that the steps run. The program exits with 0 whatever the audit's verdict is.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from qunlearn.cli import run


def step(*words: object) -> int:
    """Print a command line and run it; the exit code is returned."""
    line = [str(w) for w in words]
    print(f"\n$ qunlearn {shlex.join(line)}", flush=True)
    return run(line)


def must(*words: object) -> None:
    """:func:`step`, but end the program when the command fails."""
    if code := step(*words):
        sys.exit(code)


def main() -> None:
    """The whole journey, in one new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speaker", default="theo", help="who is forgotten")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/spotter"))
    args = parser.parse_args()
    folder, request = args.output, f"group={args.speaker}"
    model, epochs = ("dscnn@8", 1) if args.quick else ("dscnn@32", 10)
    recipe = ["--data", "kws", "--model", model, "--epochs", epochs]
    card = [] if args.quick else ["--reference-card"]
    settings = ["--set", "lr=0.0005", "--set", "lam=2", "--set", "loss=e1", "--set", "eval_every=3"]
    steps = ["--set", f"max_steps={6 if args.quick else 90}"]

    must("train", *recipe, *card, "-o", folder / "base")
    must("train", *recipe, "--exclude", request, "--seed", 1, "-o", folder / "without")
    must("unlearn", folder / "base", "--forget", request, "--method", "oeu", *settings, *steps, "-o", folder / "oeu")
    must("export", folder / "oeu", "-o", folder / "model.onnx", "--labels", "--parity-n", 64)
    must("inspect", folder / "model.onnx", "--require", "int8")
    audits = ["--audit", "accuracy"] if args.quick else []
    code = step(
        *("audit", folder / "oeu", "--before", folder / "base", "--reference", folder / "without"),
        *("--forget", request, *audits, "-o", folder / "audit"),
    )
    verdicts = {0: "pass", 3: "fail", 4: "inconclusive"}
    if code not in verdicts:
        sys.exit(code)
    print(f"\nverdict: {verdicts[code]}; report: {folder / 'audit' / 'report.html'}")


if __name__ == "__main__":
    main()
