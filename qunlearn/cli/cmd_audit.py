"""``qunlearn audit``: judge a run or an int8 ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, new_folder, require_workstation


@common.command(
    "audit",
    data=True,
    example="""
qunlearn audit runs/oeu --before runs/base --reference runs/without --forget group=theo -o runs/audit
""",
)
@click.argument("subject", metavar="RUN|FILE", type=click.Path())
@click.option("--before", required=True, type=click.Path(), help="Run before unlearning.")
@click.option("--reference", type=click.Path(), help="Run trained without the data; without it, none is declared.")
@click.option("--forget", required=True, help="The deletion request.")
@click.option("--audit", "audits", help="Comma-separated names from `qunlearn audits`.")
@click.option(
    "--suite",
    type=click.Choice(["standard", "strict"]),
    help="standard (default): accuracy, mia, smi; strict adds cka, recovery, relearn, quant_recovery, and eve (--eve).",
)
@click.option("--eve", "crafted", type=click.Path(), help="Crafted request (`qunlearn eve craft`) that eve verifies.")
@click.option("--calibration", type=click.Path(), help="Its calibration (`qunlearn eve calibrate`).")
@click.option(
    "--shadows", type=click.IntRange(2, 256), default=4, show_default=True, help="Models that lira, rmia, u_lira train."
)
@click.option("--shadow-cache", type=click.Path(), help="Folder that keeps them; by default the output folder.")
@click.option(
    "--on",
    "kinds",
    help="torch, onnx, c, or kinds, comma-separated; default onnx, and c where a compiler and the network allow.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder for files, results and report.")
def command(
    settings: Settings,
    subject: str,
    before: str,
    reference: str | None,
    forget: str,
    audits: str | None,
    suite: str | None,
    crafted: str | None,
    calibration: str | None,
    shadows: int,
    shadow_cache: str | None,
    kinds: str | None,
    seed: int,
    output: str,
) -> int:
    """Judge a run or an int8 ONNX file, two-sidedly. Exit 0: pass, 3: fail, 4: inconclusive."""
    require_workstation()
    from qunlearn.audit import side_by_side
    from qunlearn.audit.attacks import ShadowAudit
    from qunlearn.audit.run import kinds_of
    from qunlearn.cli import artefact, assess, eve_files, page
    from qunlearn.cli import workspace as ws
    from qunlearn.data.request import Request
    from qunlearn.data.splits import make_splits
    from qunlearn_export.check import form_of, load_model

    chosen = None if kinds is None else kinds_of([k.strip() for k in kinds.split(",")])
    named = assess.parse_audits(audits, suite, request=crafted is not None)
    checked = eve_files.inputs(crafted, calibration)
    request = Request.parse(forget)
    base, config = artefact.open_run(Path(before))
    dataset = ws.data_of_run(settings, config)
    splits = make_splits(dataset, request, seed=seed)
    target = Path(subject)
    opened = None if target.is_file() else artefact.open_run(target)
    ready = assess.from_file(target) if opened is None else None
    retrained = artefact.open_run(Path(reference)) if reference is not None else None
    folder = new_folder(output)
    if suite == "strict" and crafted is None:
        settings.say(assess.NO_REQUEST)
    settings.say("exporting and comparing")
    if opened is not None:
        ready = assess.from_run(*opened, folder / "after.onnx")
    assert ready is not None
    if chosen is None:
        chosen = assess.automatic(ready, settings.say)
    form = form_of(load_model(ready.file))  # all in one form: files of different forms run under different settings
    pools: dict[str, Any] = {}
    if any(isinstance(a, ShadowAudit) for a in named):
        from qunlearn.cli.shadows import pools as shadow_pools

        pools = shadow_pools(
            named, config, splits, run=target if opened is not None else None,
            kinds=tuple(dict.fromkeys((*chosen, "torch-fq"))), models=shadows, seed=seed,
            cache=Path(shadow_cache) if shadow_cache is not None else folder, say=settings.say,
        )  # fmt: skip
    found = assess.assess(
        assess.from_run(base, config, folder / "before.onnx", form=form),
        ready,
        assess.from_run(*retrained, folder / "reference.onnx", form=form) if retrained is not None else None,
        splits=splits,
        task_name=config.task,
        seed=seed,
        kinds=chosen,
        audits=named,
        inputs=artefact.parity_inputs(dataset, 256),
        audit_inputs={**pools, **checked},
    )
    found.audits.write(folder)
    page.write(folder, found, splits, request=request.describe(), run=target if opened is not None else None)
    names = {"before": "before", "after": "after", "reference": "reference"}
    text = [found.audits.table().rstrip(), "", assess.table(found, names), ""]
    text += [assess.changes_text(found.changes), "", found.parity.render()]
    if beside := side_by_side.text(found.audits.results[chosen[0]]):
        text += ["", beside, ""]
    value = {**found.audits.to_json(), **{n: found.plain(n) for n in found.summaries}, "folder": str(folder)}
    settings.result(value, "\n".join([*text, f"report {folder / 'report.html'}"]))
    return found.audits.exit_code
