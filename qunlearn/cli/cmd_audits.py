"""``qunlearn audits``: the registry of verifiers."""

from __future__ import annotations

import inspect

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, require_workstation


@common.command("audits", example="qunlearn audits mia")
@click.argument("name", required=False)
def command(settings: Settings, name: str | None) -> int:
    """List the audits, or one with its settings."""
    require_workstation()
    from qunlearn.audit import AUDITS

    if name is None:
        rows = {n: {"about": common.first_line(cls), "metric": cls.metric} for n, cls in AUDITS.items()}
        settings.result(rows, common.columns([(n, row["about"]) for n, row in rows.items()]))
        return 0
    cls = AUDITS[name]
    params = {row["name"]: row for row in cls.describe()}
    value = {
        "name": name,
        "about": inspect.cleandoc(cls.__doc__ or ""),
        "metric": cls.metric,
        "direction": cls.direction,
        "tasks": list(cls.tasks),
        "parameters": params,
    }
    text = [f"{name}: {value['about']}", f"metric: {cls.metric}", f"reading: {cls.direction}", ""]
    rows_text = [(n, common.parameter_text(p)) for n, p in params.items()]
    settings.result(value, "\n".join([*text, common.columns(rows_text)]))
    return 0
