"""From the integer graph to the files of a firmware folder: deterministic C99 text (firmware.md 2.1, 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import boards, emit_build, emit_ota, emit_update
from qunlearn_export import graph as g
from qunlearn_export.arena import plan_arena
from qunlearn_export.cnames import identifier
from qunlearn_export.emit_blob import weights_c
from qunlearn_export.emit_calls import Site
from qunlearn_export.emit_model import model_c, model_h
from qunlearn_export.emit_selftest import choose, selftest_c, selftest_h
from qunlearn_export.errors import ConfigError, UnsupportedError, VerificationError
from qunlearn_export.layout import check_sums, pack, plan
from qunlearn_export.nodes import program
from qunlearn_export.shapes import problems

BOARD_LIMIT = 8 * 2**20
HOST_LIMIT = 64 * 2**20
RUNTIME_HEADERS = ("qul_rt.h", "qul_kernels.h", "qul_tile.h")
RUNTIME = (*RUNTIME_HEADERS, "qul_crypto.h", "qul_rt.c", "qul_sha.c")
"""Runtime files of every folder, beside the kernels."""
OTA, OPTS, KERNELS = ("none", "ab", "inplace"), ("-O2", "-Os"), ("auto", "ref")


def runtime() -> Path:
    """The folder of the C runtime, inside the package."""
    return Path(__file__).resolve().parent / "firmware"


def site(graph: g.Graph) -> Site:
    """Program, layout and arena of ``graph``, checked (F1, F3, shapes) before anything is written."""
    bad = problems(graph)
    if bad:
        raise VerificationError(
            f"the network does not hang together: {bad[0][0]}: {bad[0][1]}.", remedy="Export it anew from its run."
        )
    prog = program(graph)
    check_sums(graph)
    return Site(graph=graph, program=prog, layout=plan(graph), arena=plan_arena(prog))


def check_limit(found: Site, limit: int) -> None:
    """UnsupportedError for a blob of more than ``limit`` bytes."""
    size = found.layout.blob_bytes
    if size > limit:
        raise UnsupportedError(
            f"the network's blob has {size:,} bytes, more than {limit:,}.",
            remedy="Use --board host alone, or a smaller network.",
        )


def model_sources(found: Site, prefix: str) -> dict[str, str]:
    """``model.h`` and ``model.c`` with every name prefixed by ``prefix`` (an identifier)."""
    return {"model.h": model_h(found, prefix), "model.c": model_c(found, prefix)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a folder is generated (firmware.md 3): ``name`` of the model, becoming an identifier; ``boards``; ``ota``
    (none, ab, inplace); ``opt`` (-O2, -Os); ``kernels`` (auto, ref); ``vectors`` of the self-test (4 to 64);
    ``samples``, up to 8 inputs of retain or test data as codes [m, ...] in the graph's order, never of the forget set.
    The update program trusts ``public`` (a raw Ed25519 key; zeros trust nobody) and is of ``device_class``.
    """

    name: str = "model"
    boards: tuple[str, ...] = ("mps2-an386",)
    ota: str = "none"
    opt: str = "-O2"
    kernels: str = "auto"
    vectors: int = 8
    samples: NDArray[np.int8] | None = None
    public: bytes = bytes(32)
    device_class: UUID = emit_update.NOBODY


def generate(found: Site, options: Options) -> dict[str, bytes]:
    """Every file of the folder but the report and the sums, by path. The same network and options give the same bytes.

    ConfigError for an option, UnsupportedError for a blob over the limit of the boards asked for.
    """
    _check(options)
    only_host = set(options.boards) <= {"host"} and options.ota == "none"
    check_limit(found, HOST_LIMIT if only_host else BOARD_LIMIT)
    prefix = identifier(options.name)
    blob = pack(found.graph, found.layout)
    vectors = choose(found.graph, options.vectors, options.samples)
    kernels = sorted(p.name for p in runtime().glob("qul_kernels_*.c"))
    update = options.ota != "none"
    names = [*RUNTIME, *kernels, *(emit_ota.FILES if update else ())]
    files = {name: (runtime() / name).read_bytes() for name in names}
    texts = {
        **model_sources(found, prefix),
        "weights.c": weights_c(blob, found.layout, prefix),
        "selftest.h": selftest_h(vectors),
        "selftest.c": selftest_c(found, prefix, blob, vectors),
        "main.c": emit_build.MAIN,
        **(emit_ota.ota_files(found, prefix) if update else {}),
    }
    sources = sorted(name for name in {**files, **texts} if name.endswith(".c"))
    library = [name for name in sources if name not in emit_update.LEFT_OUT]
    product, cmake = "", emit_build.cmake(prefix=prefix, sources=sources, common=boards.COMMON)
    if update:
        files |= {name: (runtime() / name).read_bytes() for name in emit_update.RUNTIME}
        texts |= emit_update.update_main(
            prefix, ota=options.ota, public=options.public, device_class=options.device_class
        )
        defines = emit_update.DEFINES
        product = emit_build.product(main=emit_update.MAIN, library=library, defines=defines)
        cmake = emit_build.cmake_ota(
            prefix=prefix, sources=sources, library=library, common=boards.COMMON, defines=defines
        )
    targets = [boards.BOARDS[name] for name in options.boards if name != "host"]
    for board in targets:
        files |= boards.board_files(board)
    texts["Makefile"] = emit_build.makefile(
        sources=sources,
        targets=[emit_build.Target(name=b.name, cpu=b.cpu, machine=b.machine) for b in targets],
        common=boards.COMMON,
        bare=boards.BARE,
        link=boards.LINK,
        qemu=boards.QEMU,
        opt=options.opt,
        kernels=options.kernels,
        product=product,
    )
    texts["CMakeLists.txt"] = cmake
    files |= {name: text.encode() for name, text in texts.items()}
    return {**files, "weights.bin": blob}


def _check(options: Options) -> None:
    known = ("host", *boards.BOARDS)
    bad = [f"board {b!r} is none of {', '.join(known)}" for b in options.boards if b not in known]
    for name, value, allowed in (
        ("--ota", options.ota, OTA),
        ("--opt", options.opt, OPTS),
        ("--kernels", options.kernels, KERNELS),
    ):
        if value not in allowed:
            bad.append(f"{name} {value!r} is none of {', '.join(allowed)}")
    if not options.boards:
        bad.append("no board was named")
    if len(set(options.boards)) != len(options.boards):
        bad.append("a board was named twice")
    if bad:
        raise ConfigError(f"firmware: {'; '.join(bad)}.", remedy="See qunlearn firmware --help.")
