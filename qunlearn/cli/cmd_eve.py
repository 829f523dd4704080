"""``qunlearn eve``: check by a crafted request that an update was driven by one owner's samples."""

from __future__ import annotations

from pathlib import Path

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, parse_assignments, require_workstation

SEED = click.IntRange(0, 2**31 - 1)


@click.group("eve", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Was an update driven by one owner's samples? `craft` a request, `calibrate`, `verify`."""


@common.command(
    "craft",
    data=True,
    example="qunlearn eve craft runs/base --forget ids=@mine.txt --method graddiff --set lr=0.01 -o runs/request",
)
@click.argument("run", type=click.Path())
@click.option("--forget", required=True, help="The deletion request whose samples are altered.")
@click.option("--method", required=True, help="The operator's method, from `qunlearn methods`.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Its hyper-parameter; repeatable.")
@click.option("--with", "eve", multiple=True, metavar="KEY=VALUE", help="A setting of EVE (docs/eve.md); repeatable.")
@click.option("--on", "kind", default="onnx", show_default=True, help="Artefact that the verdict will be read from.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder for the request.")
def craft(
    settings: Settings,
    run: str,
    forget: str,
    method: str,
    assignments: tuple[str, ...],
    eve: tuple[str, ...],
    kind: str,
    seed: int,
    output: str,
) -> int:
    """Alter the samples of a deletion request within a small radius, so that unlearning them flips a private target.

    Writes `submission.npz` (for the operator), `request.npz` and `probe.npz` (private; the latter is what a board must
    be fed for `verify --logits`).
    """
    require_workstation()
    from qunlearn.cli import eve_steps

    value, text = eve_steps.craft(
        settings, Path(run), forget, method, parse_assignments(assignments), parse_assignments(eve), kind, seed, output
    )
    settings.result(value, text)
    return 0


@common.command(
    "calibrate",
    data=True,
    example="qunlearn eve calibrate runs/base --erase 30 --method graddiff --set lr=0.01 -o runs/calibration.json",
)
@click.argument("run", type=click.Path())
@click.option("--erase", required=True, type=click.IntRange(1), help="Samples of a request.")
@click.option("--method", required=True, help="The operator's method, from `qunlearn methods`.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Its hyper-parameter; repeatable.")
@click.option("--with", "eve", multiple=True, metavar="KEY=VALUE", help="A setting of EVE (docs/eve.md); repeatable.")
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Step budget of every arm.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Steps between looks at utility.")
@click.option("--on", "kind", default="onnx", show_default=True, help="Artefact that answers are read from.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(), help="JSON file to write.")
def calibrate(
    settings: Settings,
    run: str,
    erase: int,
    method: str,
    assignments: tuple[str, ...],
    eve: tuple[str, ...],
    steps: int,
    every: int,
    kind: str,
    seed: int,
    output: str,
) -> int:
    """Measure on one's own copy of network and method what a flip is worth: the request beside six controls."""
    require_workstation()
    from qunlearn.cli import eve_steps

    value, text = eve_steps.calibrate(
        settings, Path(run), erase, method, parse_assignments(assignments), parse_assignments(eve), steps, every, kind,
        seed, Path(output),
    )  # fmt: skip
    settings.result(value, text)
    return 0


@common.command(
    "verify",
    example="""
qunlearn eve verify --request runs/request --calibration runs/calibration.json --before base.onnx --after new.onnx
qunlearn eve verify --request runs/request --calibration runs/calibration.json --on c-target \\
    --before base.onnx --after new.onnx --logits before.csv after.csv
""",
)
@click.option("--request", required=True, type=click.Path(), help="Folder or file that `eve craft` wrote (private).")
@click.option("--calibration", type=click.Path(), help="What `eve calibrate` wrote; without it nothing passes.")
@click.option("--before", type=click.Path(), help="int8 ONNX file before unlearning (a run with --on torch).")
@click.option("--after", type=click.Path(), help="The same after unlearning.")
@click.option("--logits", nargs=2, type=click.Path(), help="Integer logits of probe.npz dumped before and after, CSV.")
@click.option("--on", "kind", default="onnx", show_default=True, help="torch, onnx, c, or an artefact kind.")
@click.option("-o", "--output", type=click.Path(), help="Folder for eve.json and eve.txt.")
def verify(
    settings: Settings,
    request: str,
    calibration: str | None,
    before: str | None,
    after: str | None,
    logits: tuple[str, str] | None,
    kind: str,
    output: str | None,
) -> int:
    """Did the update change the private target's answer? Exit 0: pass, 3: fail, 4: inconclusive. Needs no torch."""
    from qunlearn.cli import eve_verify

    value, text, code = eve_verify.verify(
        Path(request), calibration, before=before, after=after, logits=logits, kind=kind, output=output
    )
    settings.result(value, text)
    return code


for _one in (craft, calibrate, verify):
    command.add_command(_one)
