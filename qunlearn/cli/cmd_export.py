"""``qunlearn export``: a run as an int8 ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, require_workstation


@common.command("export", data=True, example="qunlearn export runs/base -o model.onnx")
@click.argument("run", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="File to write.")
@click.option("--form", type=click.Choice(["qdq", "qop"]), default="qdq", show_default=True, help="Operator form.")
@click.option("--io", type=click.Choice(["float", "int8"]), default="float", show_default=True, help="Graph ends.")
@click.option("--repair-dead", is_flag=True, help="Give dead channels (check D4) zero codes and a live scale.")
@click.option("--labels", is_flag=True, help="Write the class names into the file.")
@click.option("--no-parity", is_flag=True, help="Do not compare the file with its network.")
@click.option("--parity-n", type=click.IntRange(64, 100_000), default=256, show_default=True, help="Samples compared.")
@click.option("--keep-failed", is_flag=True, help="Keep a refused file as *.rejected.onnx.")
def command(
    settings: Settings,
    run: str,
    output: str,
    form: str,
    io: str,
    repair_dead: bool,
    labels: bool,
    no_parity: bool,
    parity_n: int,
    keep_failed: bool,
) -> int:
    """Write a run as an int8 ONNX file, byte-stable, with a parity check against its network."""
    require_workstation()
    from qunlearn.cli import artefact
    from qunlearn.cli import workspace as ws
    from qunlearn_export.coverage import coverage

    model, config = artefact.open_run(Path(run))
    inputs = None
    names: tuple[str, ...] = ()
    if not no_parity or labels:
        dataset = ws.data_of_run(settings, config)
        names = dataset.class_names if labels else ()
        inputs = None if no_parity else artefact.parity_inputs(dataset, parity_n)
    done = artefact.export_model(
        model,
        config,
        Path(output),
        inputs=inputs,
        form=form,
        io=io,
        repair_dead=repair_dead,
        labels=names,
        keep_failed=keep_failed,
    )
    report = done.report
    repaired = [f"{f.where}: {f.message}" for f in report.findings if repair_dead and f.code == "D4"]
    covered = done.parity.coverage if done.parity else coverage(report.path, done.graph)
    value = {
        "file": str(report.path),
        "bytes": report.n_bytes,
        "file_digest": report.file_digest,
        "codes_digest": report.codes_digest,
        "form": form,
        "io": io,
        "warnings": list(report.warnings),
        "findings": [f.__dict__ for f in report.findings],
        "ties": [t.__dict__ for t in report.ties],
        "repaired": repaired,
        "coverage": covered.to_json(),
        "parity": done.parity.to_json() if done.parity else None,
    }
    lines = [f"{report.path}: {report.n_bytes:,} B, codes {report.codes_digest[:16]}, file {report.file_digest[:16]}"]
    lines += [f"warning: {w}" for w in report.warnings]
    lines += [f"repaired: {r}" for r in repaired]
    lines += [f"warning: {f.code} {f.where}: {f.message}" for f in report.findings]
    lines += [f"tie: {t.layer} ({t.op}), {t.share:.2g} of all code combinations" for t in report.ties]
    if done.parity:
        lines.append(done.parity.render())
    else:
        lines += ["parity: not checked (--no-parity)", f"  integer kernels: {covered.render()}"]
    settings.result(value, "\n".join(lines))
    return 0
