"""``qunlearn firmware``: an int8 ONNX file as C99 for a microcontroller."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings
from qunlearn.errors import ConfigError


@common.command(
    "firmware",
    example="""
qunlearn firmware model.onnx -o fw
qunlearn firmware model.onnx -o fw --board mps2-an386 --board mps3-an547 --check qemu --ota ab
""",
)
@click.argument("file", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="New folder for the C sources and the report.")
@click.option("--board", "boards", multiple=True, help="Board or host; repeatable. Default mps2-an386.")
@click.option(
    "--ota", type=click.Choice(["none", "ab", "inplace"]), default="none", show_default=True, help="Update code."
)
@click.option("--trust", help="Public key that the update program trusts; with --ota.")
@click.option("--allow-test-key", is_flag=True, help="Accept the published TEST key.")
@click.option("--device-class", type=click.UUID, help="Class (UUID) that updates must name; with --ota.")
@click.option(
    "--check",
    type=click.Choice(["none", "host", "qemu"]),
    default="host",
    show_default=True,
    help="What is compiled and compared with the integer rule.",
)
@click.option("--opt", type=click.Choice(["-O2", "-Os"]), default="-O2", show_default=True, help="Optimise for.")
@click.option(
    "--kernels", type=click.Choice(["auto", "ref"]), default="auto", show_default=True, help="ref: portable ones only."
)
@click.option(
    "--vectors", type=click.IntRange(4, 64), default=8, show_default=True, help="Generated self-test vectors."
)
@click.option(
    "--time-limit", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds an emulator run may take."
)
@click.option(
    "--reserve-flash", type=click.IntRange(0), default=0, show_default=True, help="Bytes your application takes."
)
@click.option(
    "--reserve-ram", type=click.IntRange(0), default=0, show_default=True, help="Bytes your application takes."
)
@click.option("--profiles", type=click.Path(), help="TOML file with [profile.NAME] tables of your own boards.")
def command(
    settings: Settings,
    file: str,
    output: str,
    boards: tuple[str, ...],
    ota: str,
    trust: str | None,
    allow_test_key: bool,
    device_class: UUID | None,
    check: str,
    opt: str,
    kernels: str,
    vectors: int,
    time_limit: float,
    reserve_flash: int,
    reserve_ram: int,
    profiles: str | None,
) -> int:
    """Write an int8 ONNX file as C99 with self-test and report; the answers are the file's, bit for bit.

    Needs the base install, and a C compiler unless --check none.
    """
    from qunlearn_export import codegen, fwbuild, fwreport

    if ota == "none" and (trust is not None or device_class is not None):
        raise ConfigError("--trust and --device-class are of updates.", remedy="Add --ota ab or --ota inplace.")
    if ota != "none" and (trust is None or device_class is None):
        absent = " and ".join(n for n, v in (("--trust", trust), ("--device-class", device_class)) if v is None)
        settings.say(f"without {absent} the generated update program accepts no update; fill in update_main.c")
    options = codegen.Options(
        name=Path(file).stem,
        boards=boards or ("mps2-an386",),
        ota=ota,
        opt=opt,
        kernels=kernels,
        vectors=vectors,
        public=bytes(32) if trust is None else _public(trust, allow_test_key),
        device_class=device_class or UUID(int=0),
    )
    made = fwbuild.firmware(
        file,
        output,
        options,
        fwbuild.Settings(
            check=check,
            time_limit=time_limit,
            reserve_flash=reserve_flash,
            reserve_ram=reserve_ram,
            profiles=None if profiles is None else Path(profiles),
            named=bool(boards),
        ),
        say=settings.say,
    )
    text = f"{fwreport.render(made.report)}\nfolder {made.folder}"
    settings.result({"folder": str(made.folder), **made.report}, text)
    return 0


def _public(trust: str, allow_test_key: bool) -> bytes:
    """The raw key that ``--trust`` names."""
    from qunlearn_export import keys

    return next(iter(keys.trusted([trust], allow_test_key=allow_test_key).values()))
