"""``firmware()``: from an int8 ONNX file to a checked folder of C99 with its report (firmware.md 3)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qunlearn_export import boards, codegen, emit_update, fwreport, qemu
from qunlearn_export.cnames import identifier
from qunlearn_export.crossbuild import Image, Workshop, missing_tools, require_tools
from qunlearn_export.emit_calls import Site
from qunlearn_export.errors import ConfigError, VerificationError
from qunlearn_export.hostcheck import HostCheck, check_host, check_inputs
from qunlearn_export.hostlib import HostLibrary, find_compiler
from qunlearn_export.macs import macs
from qunlearn_export.package import check_target, write_folder
from qunlearn_export.reader import read
from qunlearn_export.runtime import read_bytes
from qunlearn_export.target import Target

CHECKS = ("none", "host", "qemu")
TARGET_INPUTS = 16


@dataclass(frozen=True, kw_only=True)
class Made:
    """The folder and its report (plain data)."""

    folder: Path
    report: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``check`` (none, host, qemu), ``time_limit`` of an emulator run (s), bytes that the application takes, a file of
    own board profiles; ``named`` says that the boards were asked for, so that a missing tool is an error."""

    check: str = "host"
    time_limit: float = qemu.TIME_LIMIT
    reserve_flash: int = 0
    reserve_ram: int = 0
    profiles: Path | None = None
    named: bool = True


def firmware(
    file: str | os.PathLike[str] | bytes,
    folder: str | os.PathLike[str],
    options: codegen.Options,
    settings: Settings | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Made:
    """Read, generate, check, report, write; nothing is written before all checks have passed.

    VerificationError where the C differs from the oracle in one code; MissingDependencyError for what was asked for by
    name and is absent; the errors of the reader and of :func:`codegen.generate`.
    """
    settings = settings or Settings()
    if settings.check not in CHECKS:
        raise ConfigError(f"--check {settings.check!r}.", remedy=f"Use one of {', '.join(CHECKS)}.")
    check_target(Path(folder))
    profiles = boards.profiles(*([] if settings.profiles is None else [settings.profiles]))
    _tools(options, settings)
    data = read_bytes(file)
    found = codegen.site(read(data))
    files = codegen.generate(found, options)
    work = sum(macs(found.program, node) for node in found.program.nodes)
    host: HostCheck | None = None
    if settings.check != "none":
        say("compiling for this computer and comparing with the integer rule")
        host = check_host(found.graph, check_inputs(found.graph, work, options.samples))
    measured = [
        _board(found, options, settings, boards.BOARDS[name], files, profiles, say)
        for name in options.boards
        if name != "host" and _builds(settings)
    ]
    if not measured and settings.check != "none" and set(options.boards) != {"host"}:
        say(f"not built for a board: {', '.join(missing_tools())} absent; sizes and fits are not in the report")
    value = fwreport.report(
        found,
        onnx_digest=hashlib.sha256(data).hexdigest(),
        host=host,
        measured=measured,
        ota=options.ota,
    )
    files = {**files, "report.json": fwreport.to_bytes(value), "report.md": fwreport.render(value).encode()}
    return Made(folder=write_folder(folder, files), report=value)


def _tools(options: codegen.Options, settings: Settings) -> None:
    """What was asked for by name must be there, before any work."""
    if settings.check != "none":
        find_compiler()
    emulated = [n for n in options.boards if n in boards.BOARDS and boards.BOARDS[n].machine]
    if settings.check == "qemu":
        if not emulated:
            raise ConfigError("--check qemu needs an emulated board.", remedy="Add --board mps2-an386.")
        require_tools()
        qemu.find(qemu.EMULATOR)
    elif settings.check == "host" and settings.named and set(options.boards) != {"host"}:
        require_tools()


def _builds(settings: Settings) -> bool:
    return settings.check != "none" and not missing_tools()


def _board(
    site: Site,
    options: codegen.Options,
    settings: Settings,
    board: boards.Board,
    files: Mapping[str, bytes],
    profiles: Sequence[boards.Profile],
    say: Callable[[str], None],
) -> fwreport.BoardReport:
    say(f"building for {board.name}")
    update = options.ota != "none"
    shop = Workshop(files, board, ota=update)
    image = shop.build(selftest=update)
    if update:
        image = _product(options, shop, image)
    flags = " ".join([*board.cpu, *boards.COMMON, *boards.BARE, options.opt])
    out = fwreport.BoardReport(
        board=board.name,
        compiler=image.compiler,
        flags=flags,
        code=image.size.code,
        selftest=image.size.selftest,
        update=image.size.update,
        data_bss=image.size.data + image.size.bss - site.arena.size,
        stack_static=image.stack,
    )
    if settings.check == "qemu" and board.machine:
        say(f"running on emulated {board.name}")
        out = _emulated(site, options, settings, shop, out)
    known = [p for p in profiles if p.core == board.core]
    return replace(out, fits=_fits(site, options, settings, out, known))


def _product(options: codegen.Options, shop: Workshop, test: Image) -> Image:
    """Sizes of what a product with updates links (it has no self-test of its own); its stack is a bound: the signature
    check, which is called through a pointer, is added to the deepest chain of calls."""
    (shop.folder / "probe.c").write_text(emit_update.probe(identifier(options.name), options.ota))
    image = shop.build(settings=["MAIN=probe.c"])
    if image.stack is None or test.stack is None:
        return replace(image, stack=None)
    return replace(image, stack=max(image.stack, test.stack) + shop.depth(emit_update.SIGNATURE))


def _emulated(
    site: Site,
    options: codegen.Options,
    settings: Settings,
    shop: Workshop,
    out: fwreport.BoardReport,
) -> fwreport.BoardReport:
    update = options.ota != "none"
    plain = qemu.run(shop.build(selftest=update).elf, shop.board, settings.time_limit)
    if plain.code != 0:
        raise VerificationError(
            f"the self-test on {shop.board.name} ended with {plain.code}: {plain.meaning}.",
            remedy="Raise --time-limit if it ran out; else do not ship it, and report this.",
        )
    counted = qemu.run(
        shop.build(defines=["-DQUL_HOOKS"], clean=True, selftest=update).elf, shop.board, settings.time_limit
    )
    if counted.code != 0 or len(counted.insn) != len(site.program.nodes):
        raise VerificationError(
            f"the counting build on {shop.board.name} ended with {counted.code}: {counted.meaning}.",
            remedy="Raise --time-limit if it ran out; else report this.",
        )
    inputs = check_inputs(site.graph, 10**12)[:TARGET_INPUTS]
    target = Target(
        site.graph,
        board=shop.board.name,
        opt=options.opt,
        kernels=options.kernels,
        time_limit=settings.time_limit,
        site=site,
    )
    mismatches = int((target.run(inputs) != HostLibrary(site.graph).run(inputs)).sum())
    if mismatches:
        raise VerificationError(
            f"{shop.board.name} differs from the host in {mismatches} output codes.",
            remedy="Do not ship it; report this.",
        )
    return replace(
        out,
        stack_measured=plain.stack,
        insn=counted.insn,
        insn_total=int(np.sum(counted.insn)),
        inputs=len(inputs),
        mismatches=mismatches,
    )


def _fits(
    site: Site,
    options: codegen.Options,
    settings: Settings,
    out: fwreport.BoardReport,
    profiles: Sequence[boards.Profile],
) -> list[dict[str, Any]]:
    """Verdicts of the profiles, the application's reserves included."""
    sizes = fwreport.totals(site, out)
    blob = site.layout.blob_bytes
    flash = boards.flash_need(
        options.ota,
        code=sizes.flash - blob,
        blob=blob,
        slot=blob,
        staging=blob + fwreport.STAGING,
        journal=fwreport.JOURNAL,
    )
    return [
        vars(
            boards.fits(
                p, flash=flash, ram=sizes.ram, reserve_flash=settings.reserve_flash, reserve_ram=settings.reserve_ram
            )
        )
        for p in profiles
    ]
