"""``qunlearn bench``: grids of networks, requests, methods and seeds, and the tables made from them."""

from __future__ import annotations

from pathlib import Path

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, require_workstation


@click.group("bench", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Compare methods over networks, requests and seeds, with equal tuning budgets, on the int8 file."""


@common.command(
    "run",
    data=True,
    example="""
qunlearn bench run benchmarks/grids/smoke.toml -o runs/smoke
qunlearn bench run benchmarks/grids/kws.toml --processes 2 -o runs/kws
""",
)
@click.argument("grid", type=click.Path())
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="One thread each.")
@click.option("--work", type=click.Path(), help="Folder for trained networks [default: OUTPUT/work].")
@click.option("-o", "--output", required=True, type=click.Path(), help="Results folder; an interrupted grid goes on.")
def run(settings: Settings, grid: str, processes: int, work: str | None, output: str) -> int:
    """Train, tune and measure what a grid file asks for; cells that are there already are not computed again."""
    require_workstation()
    from qunlearn import bench
    from qunlearn.cli.common import new_folder

    asked = bench.read_grid(grid)
    out = new_folder(output, resume=True)
    bench.run(
        asked,
        work=Path(work) if work else out / "work",
        out=out,
        processes=processes,
        data_dir=settings.data_dir,
        say=settings.say,
    )
    return _report(settings, out)


@common.command("report", example="qunlearn bench report runs/kws")
@click.argument("folder", type=click.Path())
def report(settings: Settings, folder: str) -> int:
    """Write table.md, table.json and report.html from the cells of a results folder."""
    require_workstation()
    return _report(settings, Path(folder))


def _report(settings: Settings, folder: Path) -> int:
    from qunlearn.bench import table
    from qunlearn.cli.workspace import write_json
    from qunlearn.report import grid
    from qunlearn_export.files import write_atomic

    value = table.tables(folder)
    text = table.text(value, whole=True)
    write_atomic(folder / "table.md", text.encode())
    write_json(folder / "table.json", value)
    write_atomic(folder / "report.html", grid.build(value).encode())
    settings.result({**value, "report": str(folder / "report.html")}, f"{text}\nreport {folder / 'report.html'}")
    return 0


command.add_command(run)
command.add_command(report)
