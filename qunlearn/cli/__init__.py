"""The command line. Commands load on use, so that ``qunlearn --help`` stays light (no torch, no onnxruntime)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from qunlearn import __version__
from qunlearn.cli.common import Settings
from qunlearn.errors import QunlearnError

COMMANDS = {
    "demo": "Erase one speaker from a shipped int8 keyword spotter, audit the file, write a report.",
    "train": "Train a quantized network (or a reference that never saw some data).",
    "unlearn": "Make a trained run forget the samples of a deletion request.",
    "export": "Write a run as an int8 ONNX file, with a parity check.",
    "inspect": "Say what an ONNX file is: dtypes, integer coverage, static checks.",
    "firmware": "Write an int8 ONNX file as C99 for a microcontroller, with self-test and report.",
    "audit": "Judge a run or an int8 ONNX file: forgotten, useful, and really changed?",
    "eve": "Was an update driven by one owner's samples? Craft a request, calibrate, verify.",
    "bench": "Compare methods over networks, requests and seeds, with equal tuning budgets.",
    "bundle": "Make signed updates for devices; make keys; check a device's receipt.",
    "verify": "Check a signed update: signatures, digests, recomputation, audits.",
    "device": "On a Linux device: install signed updates, run the model, check that no old one can come back.",
    "methods": "List the unlearning methods, or one with its hyper-parameters.",
    "audits": "List the audits, or one with its settings.",
}
"""Command name to its line in ``qunlearn --help``; each lives in ``cmd_<name>.py``."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports a command only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"qunlearn.cli.cmd_{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qunlearn")
def cli() -> None:
    """Make quantized networks forget data, and prove it on the int8 file that ships.

    Start with: qunlearn demo
    """


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line on stderr (unless ``--debug``)."""
    settings = Settings()
    try:
        code = cli.main(args=list(argv) if argv is not None else None, standalone_mode=False, obj=settings)
        return int(code) if isinstance(code, int) else 0
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:
        err.show()
        return err.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except QunlearnError as err:
        if settings.debug:
            raise
        click.echo(f"error: {' '.join(str(err).split())}", err=True)
        return err.exit_code
    except Exception as err:
        if settings.debug:
            raise
        click.echo(
            f"error: internal error ({type(err).__name__}: {' '.join(str(err).split())[:300]}). "
            "Run again with --debug and report the traceback.",
            err=True,
        )
        return 1


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())
