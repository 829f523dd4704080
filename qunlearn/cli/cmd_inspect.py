"""``qunlearn inspect``: what an ONNX file is."""

from __future__ import annotations

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings


@common.command("inspect", example="qunlearn inspect model.onnx --require int8")
@click.argument("file", type=click.Path())
@click.option("--require", type=click.Choice(["int8"]), help="Exit with 3 unless the file is what is required.")
def command(settings: Settings, file: str, require: str | None) -> int:
    """Say what an ONNX file is: label, dtypes, integer coverage, static checks. Needs the base install only."""
    from qunlearn_export.inspect import inspect
    from qunlearn_export.memory import return_large_blocks

    return_large_blocks()
    found = inspect(file)
    settings.result(found.to_json(), found.render())
    sound = found.is_int8 and found.loads and not any(f.level == "error" for f in found.findings)
    if require is not None and not sound:
        settings.say(f"not met: --require {require} (label {found.label})")
        return 3
    return 0
