"""From the integer graph to the files of a firmware folder: deterministic C99 text (firmware.md 2.1, 3)."""

from __future__ import annotations

from pathlib import Path

from qunlearn_export import graph as g
from qunlearn_export.arena import plan_arena
from qunlearn_export.cnames import identifier
from qunlearn_export.emit_calls import Site
from qunlearn_export.emit_model import model_c, model_h
from qunlearn_export.errors import UnsupportedError, VerificationError
from qunlearn_export.layout import check_sums, plan
from qunlearn_export.nodes import program
from qunlearn_export.shapes import problems


BOARD_LIMIT = 8 * 2**20
HOST_LIMIT = 64 * 2**20
RUNTIME_HEADERS = ("qul_rt.h", "qul_kernels.h")


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
