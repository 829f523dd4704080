"""What every command shares: options, output, extras, output folders."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from qunlearn.errors import ConfigError, MissingDependencyError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """Per-invocation settings that the shared options fill."""

    debug: bool = False
    json: bool = False
    data_dir: Path | None = None
    started: float = field(default_factory=time.perf_counter)

    def say(self, text: str) -> None:
        """A line of progress or advice, on stderr."""
        click.echo(text, err=True)

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """The command's result on stdout: one JSON object with ``--json``, else ``text``."""
        click.echo(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) if self.json else text)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        """A progress display on stderr; call ``update(done, total, note)``. A bar on a terminal, else plain lines."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(label, total=None, note="")
                yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
        else:
            state = {"next": 0.0}

            def update(done: int, total: int, note: str) -> None:
                now = time.perf_counter()
                if now >= state["next"] or done >= total:
                    state["next"] = now + 5.0
                    self.say(f"{label}: {done}/{total} {note}".rstrip())

            yield update


pass_settings = click.make_pass_decorator(Settings)


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        settings = ctx.ensure_object(Settings)
        if value is not None and value is not False:
            setattr(settings, name, Path(value) if name == "data_dir" else value)

    return callback


def command(name: str, *, example: str, data: bool = False) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command with ``--json``, ``--debug``, ``-h``, an example in its help, and (``data``) ``--data-dir``."""

    def wrap(f: Callable[..., Any]) -> click.Command:
        f = pass_settings(f)
        f = click.option(
            "--debug", is_flag=True, expose_value=False, callback=_set("debug"), help="Show a traceback on errors."
        )(f)
        f = click.option(
            "--json", is_flag=True, expose_value=False, callback=_set("json"), help="Print one JSON object on stdout."
        )(f)
        if data:
            f = click.option(
                "--data-dir",
                type=click.Path(file_okay=False),
                envvar="QUNLEARN_DATA",
                expose_value=False,
                callback=_set("data_dir"),
                help="Folder with data files [env: QUNLEARN_DATA].",
            )(f)
        text = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines())
        return click.command(name, epilog=text, context_settings={"help_option_names": ["-h", "--help"]})(f)

    return wrap


def require_workstation() -> None:
    """MissingDependencyError unless the packages for training and unlearning are installed."""
    missing = [m for m in ("torch", "brevitas", "safetensors", "sklearn") if importlib.util.find_spec(m) is None]
    if missing:
        raise MissingDependencyError(
            f"this command needs {', '.join(missing)}.", remedy='Install them: pip install "qunlearn[workstation]".'
        )


def new_folder(path: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """An output folder that is empty, made if need be; with ``resume`` an existing one may hold files."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} exists and is not a folder.", remedy="Choose another output path.")
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        raise ConfigError(
            f"the folder {folder} is not empty.", remedy="Choose another one, or go on with --resume where offered."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"cannot make the folder {folder}: {err.strerror}.", remedy="Choose another path.") from err
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"the folder {folder} is not writable.", remedy="Choose another path.")
    return folder


def parse_assignments(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("lr=0.1", "epochs=3")`` to a mapping; malformed or repeated keys are a ConfigError."""
    out: dict[str, str] = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key.isidentifier() or not value:
            raise ConfigError(f"--set {pair!r} is malformed.", remedy="Write --set name=value.")
        if key in out:
            raise ConfigError(f"--set {key} is given twice.", remedy="Give it once.")
        out[key] = value
    return out


def first_line(item: object) -> str:
    """The first sentence of a docstring."""
    return (item.__doc__ or "").strip().splitlines()[0]


def columns(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def parameter_text(p: Mapping[str, Any]) -> str:
    """One hyper-parameter: default, unit, range, what it is."""
    unit = f" {p['unit']}" if p.get("unit") else ""
    span = f" ({p['range']})" if p.get("range") else ""
    return f"{p['default']}{unit}{span}  {p['doc']}"
