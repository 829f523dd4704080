"""``report.json`` and ``report.md`` of a firmware folder: sizes, layers, parity, fits (firmware.md 2.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qunlearn_export.emit_calls import Site
from qunlearn_export.emit_model import layer_names
from qunlearn_export.files import canonical_json
from qunlearn_export.hostcheck import HostCheck
from qunlearn_export.macs import macs, weights

INSN_NOTE = "QEMU instructions, not cycles, not time"
NOT_RUN = "not run"
STACK_MARGIN = 1.25


@dataclass(frozen=True, kw_only=True)
class BoardReport:
    """What was measured on one board; ``insn`` per node and ``stack_measured`` are None where no emulator ran.

    Bytes: ``code`` without weights, self-test and update code; ``data_bss`` without the arena.
    """

    board: str
    compiler: str
    flags: str
    code: int
    selftest: int
    update: int
    data_bss: int
    stack_static: int | None
    stack_measured: int | None = None
    insn: Sequence[int] | None = None
    insn_total: int | None = None
    inputs: int = 0
    mismatches: int | None = None
    fits: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def report(
    site: Site, *, onnx_digest: str, host: HostCheck | None, measured: Sequence[BoardReport], ota: str
) -> dict[str, Any]:
    """Plain data. The first board fills the top level; all are under ``boards``."""
    prog, layout = site.program, site.layout
    boards = {b.board: _board(site, b) for b in measured}
    first = next(iter(boards.values()), None)
    layers = []
    for i, (node, name) in enumerate(zip(prog.nodes, layer_names(prog), strict=True)):
        insn = None if first is None or measured[0].insn is None else measured[0].insn[i]
        layers.append(
            {
                "name": name,
                "op": node.op,
                "shape": list(prog.shapes[node.output]),
                "macs": macs(prog, node),
                "weights": weights(node),
                "insn": insn,
            }
        )
    parity: Any = NOT_RUN
    if host is not None:
        parity = {"inputs": host.inputs, "mismatches": host.mismatches, "compiler": host.compiler}
    blank = {"flash": {"blob": layout.blob_bytes}, "ram": {"arena": site.arena.size, "arena_bound": site.arena.bound}}
    return {
        "format": "qunlearn-firmware/1",
        "model": {
            "codes_digest": site.graph.codes_digest(),
            "layout_digest": layout.digest(),
            "onnx_digest": onnx_digest,
        },
        "flash": (first or blank)["flash"],
        "ram": (first or blank)["ram"],
        "macs": sum(one["macs"] for one in layers),
        "layers": layers,
        "build": None if first is None else first["build"],
        "parity": parity,
        "fits": [] if first is None else first["fits"],
        "insn_note": INSN_NOTE,
        "bit_exact": True,
        "update": ota,
        "boards": boards,
    }


def _board(site: Site, b: BoardReport) -> dict[str, Any]:
    need = max(b.stack_static or 0, b.stack_measured or 0)
    stack = int(-(-need * STACK_MARGIN // 1))
    flash = {"blob": site.layout.blob_bytes, "code": b.code, "selftest": b.selftest, "update": b.update}
    ram = {"arena": site.arena.size, "arena_bound": site.arena.bound, "data_bss": b.data_bss}
    return {
        "flash": {**flash, "total": sum(flash.values())},
        "ram": {
            **ram,
            "stack": {"static": b.stack_static, "measured": b.stack_measured, "counted": stack},
            "total": site.arena.size + b.data_bss + stack,
        },
        "build": {"compiler": b.compiler, "flags": b.flags, "board": b.board},
        "insn": {"layers": None if b.insn is None else list(b.insn), "total": b.insn_total},
        "parity": NOT_RUN if b.mismatches is None else {"inputs": b.inputs, "mismatches": b.mismatches},
        "fits": list(b.fits),
    }


def to_bytes(value: Mapping[str, Any]) -> bytes:
    """Canonical JSON with a final newline."""
    return (canonical_json(value) + "\n").encode()


def render(value: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    flash, ram, parity = value["flash"], value["ram"], value["parity"]
    lines = ["# Firmware report", ""]
    lines += [
        f"- codes digest `{value['model']['codes_digest']}`",
        f"- layout digest `{value['model']['layout_digest']}`",
    ]
    lines += [f"- blob {flash['blob']:,} B, arena {ram['arena']:,} B (no plan below {ram['arena_bound']:,} B)"]
    lines += [f"- {value['macs']:,} multiply-accumulates an inference"]
    if parity == NOT_RUN:
        lines.append("- parity: not run")
    else:
        lines.append(
            f"- parity with the integer rule on this host: {parity['mismatches']} mismatches, {parity['inputs']} inputs"
        )
    for name, b in value["boards"].items():
        lines += ["", f"## {name}", "", f"`{b['build']['compiler']}` `{b['build']['flags']}`", ""]
        parts = ", ".join(f"{k} {v:,} B" for k, v in b["flash"].items())
        stack = b["ram"]["stack"]
        lines.append(f"- flash: {parts}")
        lines.append(
            f"- RAM: arena {b['ram']['arena']:,} B, data {b['ram']['data_bss']:,} B, stack {_or(stack['static'])} B static, "
            f"{_or(stack['measured'])} B measured, total {b['ram']['total']:,} B"
        )
        if b["parity"] != NOT_RUN:
            lines.append(
                f"- outputs against the host: {b['parity']['mismatches']} mismatches, {b['parity']['inputs']} inputs"
            )
        if b["insn"]["total"] is not None:
            lines.append(f"- {b['insn']['total']:,} instructions an inference ({value['insn_note']})")
        if b["fits"]:
            lines += ["", "| profile | verdict | flash need | RAM need | missing |", "|---|---|---|---|---|"]
            for f in b["fits"]:
                lines.append(
                    f"| {f['name']} | {f['verdict']} | {f['need_flash']:,} | {f['need_ram']:,} | {f['missing']} |"
                )
    lines += ["", "## Layers", "", f"insn: {value['insn_note']}", "", "| layer | op | output | MAC | weights | insn |"]
    lines.append("|---|---|---|---|---|---|")
    for one in value["layers"]:
        shape = "x".join(map(str, one["shape"]))
        lines.append(
            f"| {one['name']} | {one['op']} | {shape} | {one['macs']:,} | {one['weights']:,} | {_or(one['insn'])} |"
        )
    return "\n".join(lines) + "\n"


def _or(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
