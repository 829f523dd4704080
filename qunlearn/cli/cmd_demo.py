"""``qunlearn demo``: the whole journey on the built-in data, in one command."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, new_folder, require_workstation


@common.command("demo", example="qunlearn demo\nqunlearn demo --group theo -o runs/theo")
@click.option("--from-scratch", is_flag=True, help="Train the base network and all references first (minutes).")
@click.option("--group", default="lucas", show_default=True, metavar="NAME", help="Speaker to forget.")
@click.option("-o", "--output", default="runs/demo", show_default=True, type=click.Path(), help="Folder to write.")
def command(settings: Settings, from_scratch: bool, group: str, output: str) -> int:
    """Erase one speaker from an int8 keyword spotter by OEU, audit the ONNX file, write a report."""
    require_workstation()
    start = time.perf_counter()
    from qunlearn.cli import assess, journey, page
    from qunlearn.cli import workspace as ws
    from qunlearn.data.request import Request

    dataset = ws.load_data(settings, journey.SOURCE)
    Request("group", (group,)).groups(dataset)
    folder = new_folder(output, resume=True)
    with contextlib.ExitStack() as stack:
        if from_scratch:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="training.")))
            networks = journey.from_scratch(settings, dataset, work)
            journey.move_runs(work, folder)
            networks = journey.shipped(dataset, folder)
        else:
            networks = journey.shipped(dataset)
        done = journey.erase(settings, networks, dataset, group, folder)
    found = done.assessment
    found.audits.write(folder)
    spent = {"unlearning": done.result.seconds, "retraining": done.retrain_seconds}
    report = page.write(
        folder,
        found,
        done.splits,
        request=done.request.describe(),
        facts=done.result.to_json(),
        trace=done.result.trace,
        seconds=spent,
    )
    seconds = time.perf_counter() - start
    value = {**done.to_json(), "seconds": seconds, "timings": spent, "folder": str(folder)}
    ws.write_json(folder / ws.RESULT, value)
    changes = done.result.changes
    names = {"before": "base", "after": "unlearned", "reference": "retrained"}
    text = [
        f"Forgot speaker {group}, read from the int8 ONNX files:",
        assess.table(found, names),
        f"  codes changed: {changes.codes_changed:,} of {changes.codes:,} ({100 * changes.share:.1f} %)",
        f"  unlearning {spent['unlearning']:.1f} s, retraining {spent['retraining']:.1f} s",
        found.parity.render(),
        f"verdict: {found.audits.verdict.upper()}",
        *(f"  reason: {r}" for r in found.audits.reasons),
        f"files: {folder / 'model.onnx'}, report {report}   ({seconds:.0f} s)",
    ]
    settings.result(value, "\n".join(text))
    return 0
