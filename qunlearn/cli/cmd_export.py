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
    labels: bool,
    no_parity: bool,
    parity_n: int,
    keep_failed: bool,
) -> int:
    """Write a run as an int8 ONNX file, byte-stable, with a parity check against its network."""
    require_workstation()
    from qunlearn.cli import artefact
    from qunlearn.cli import workspace as ws
    from qunlearn.errors import ConfigError, NotYetError

    if form == "qop":
        raise NotYetError("the QOperator form is not offered.", remedy="Use --form qdq.")
    if io == "int8" and not no_parity:
        raise ConfigError("parity reads float input and output.", remedy="Add --no-parity, or use --io float.")
    model, config = artefact.open_run(Path(run))
    inputs = None
    names: tuple[str, ...] = ()
    if not no_parity or labels:
        dataset = ws.data_of_run(settings, config)
        names = dataset.class_names if labels else ()
        inputs = None if no_parity else artefact.parity_inputs(dataset, parity_n)
    done = artefact.export_model(
        model, config, Path(output), inputs=inputs, io=io, labels=names, keep_failed=keep_failed
    )
    report = done.report
    value = {
        "file": str(report.path),
        "bytes": report.n_bytes,
        "file_digest": report.file_digest,
        "codes_digest": report.codes_digest,
        "warnings": list(report.warnings),
        "findings": [f.__dict__ for f in report.findings],
        "parity": done.parity.to_json() if done.parity else None,
    }
    lines = [f"{report.path}: {report.n_bytes:,} B, codes {report.codes_digest[:16]}, file {report.file_digest[:16]}"]
    lines += [f"warning: {w}" for w in report.warnings]
    lines.append(done.parity.render() if done.parity else "parity: not checked (--no-parity)")
    settings.result(value, "\n".join(lines))
    return 0
