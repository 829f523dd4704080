"""``qunlearn methods``: the registry of unlearning methods."""

from __future__ import annotations

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, require_workstation


@common.command("methods", example="qunlearn methods oeu")
@click.argument("name", required=False)
def command(settings: Settings, name: str | None) -> int:
    """List the unlearning methods, or one with its hyper-parameters."""
    require_workstation()
    import inspect

    from qunlearn.unlearn import METHODS, hypers

    if name is None:
        rows = {n: {"about": common.first_line(cls), "tasks": list(cls.tasks)} for n, cls in METHODS.items()}
        settings.result(rows, common.columns([(n, str(row["about"])) for n, row in rows.items()]))
        return 0
    cls = METHODS[name]
    params = {
        h.name: {"default": h.default, "range": h.range, "unit": h.unit, "doc": h.doc} for h in hypers(cls).values()
    }
    value = {
        "name": name,
        "about": inspect.cleandoc(cls.__doc__ or ""),
        "source": cls.source,
        "tasks": list(cls.tasks),
        "ships": cls.ships,
        "presets": {k: dict(v) for k, v in cls.presets.items()},
        "parameters": params,
    }
    text = [f"{name}: {value['about']}", f"source: {cls.source}", f"tasks: {', '.join(cls.tasks)}"]
    if cls.presets:
        text.append(f"presets: {', '.join(cls.presets)} (--set preset=NAME)")
    rows_text = [(n, common.parameter_text(p)) for n, p in params.items()]
    settings.result(value, "\n".join([*text, "", common.columns(rows_text)]))
    return 0
