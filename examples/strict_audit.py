"""Judge an int8 file with the strict suite, SMI among its audits, on the network and the data of the package.

    python examples/strict_audit.py [--speaker theo] [--quick] [-o runs/strict]

The keyword spotter that travels with the package forgets one speaker by OEU, with the settings of ``qunlearn demo``, is
exported, and its int8 ONNX file is judged against the network that was trained without that speaker. The run is given
beside its file: the audits that train copies need a network with the file's codes. What every audit found is printed
with its reasons. On this data SMI says nothing, and says why: members and held-out samples of the speakers that stay
cannot be told apart. A minute or two on one core; ``--quick`` forgets for six steps and leaves out the audits that
train, which shows that the steps run. The program exits with 0 whatever the verdict is.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from qunlearn.cli import run
from qunlearn.cli.journey import ASSETS, METHOD


def step(text: str, *, ends: tuple[int, ...] = (0,)) -> int:
    """Run one command as the shell would; stop with its exit code unless it is one of ``ends``."""
    print(f"$ qunlearn {text}", flush=True)
    code = run(shlex.split(text))
    if code not in ends:
        sys.exit(code)
    return code


def main() -> None:
    """All steps; files go into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speaker", default="theo", help="who is forgotten")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/strict"))
    args = parser.parse_args()
    base, without = (shlex.quote(str(ASSETS / name)) for name in ("base", f"without_{args.speaker}"))
    out, forget = shlex.quote(str(args.output)), f"--forget {shlex.quote(f'group={args.speaker}')}"
    settings = {**METHOD, "max_steps": "6"} if args.quick else METHOD
    chosen = " ".join(f"--set {name}={value}" for name, value in settings.items())
    suite = "--audit accuracy,mia,smi,cka" if args.quick else "--suite strict"

    step(f"unlearn {base} {forget} --method oeu {chosen} -o {out}/oeu")
    step(
        f"audit {out}/oeu --before {base} --reference {without} {forget} {suite} --on onnx -o {out}/audit",
        ends=(0, 3, 4),
    )
    found = json.loads((args.output / "audit" / "audit.json").read_text())
    print(f"\non the int8 file {out}/audit/after.onnx:")
    for result in found["results"]["onnx-all"]:
        print(f"  {result['audit']}: {result['verdict']} {', '.join(result['reasons'])}".rstrip())


if __name__ == "__main__":
    main()
