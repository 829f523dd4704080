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
STAGING, JOURNAL = 4 * 1024, 8 * 1024
"""Bytes beyond the blob where an update is received, and of the journal of an update in place: pages of 4 KiB."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Bytes of one image: ``stack`` is the larger of static and measured, times 1.25."""

    flash: int
    ram: int
    stack: int


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


def totals(site: Site, b: BoardReport) -> Totals:
    """What the static build needs."""
    stack = -(-max(b.stack_static or 0, b.stack_measured or 0) * 5 // 4)
    return Totals(
        flash=site.layout.blob_bytes + b.code + b.selftest + b.update,
        ram=site.arena.size + b.data_bss + stack,
        stack=stack,
    )


def _board(site: Site, b: BoardReport) -> dict[str, Any]:
    total = totals(site, b)
    flash = {"blob": site.layout.blob_bytes, "code": b.code, "selftest": b.selftest, "update": b.update}
    stack = {"static": b.stack_static, "measured": b.stack_measured, "counted": total.stack}
    ram = {"arena": site.arena.size, "arena_bound": site.arena.bound, "data_bss": b.data_bss, "stack": stack}
    return {
        "flash": {**flash, "total": total.flash},
        "ram": {**ram, "total": total.ram},
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
    lines += [f"- {name.replace('_', ' ')} `{digest}`" for name, digest in value["model"].items()]
    lines += [f"- blob {flash['blob']:,} B, arena {ram['arena']:,} B (no plan below {ram['arena_bound']:,} B)"]
    lines += [f"- {value['macs']:,} multiply-accumulates an inference"]
    lines += [f"- parity with the integer rule on this host: {_parity(parity)}"]
    for name, b in value["boards"].items():
        lines += ["", f"## {name}", "", f"`{b['build']['compiler']}` `{b['build']['flags']}`", "", *_sizes(b)]
        if b["parity"] != NOT_RUN:
            lines.append(f"- outputs against the host: {_parity(b['parity'])}")
        if b["insn"]["total"] is not None:
            lines.append(f"- {b['insn']['total']:,} insn an inference ({value['insn_note']})")
        lines += ["", *_fit_rows(b["fits"])]
    lines += ["", "## Layers", "", f"insn: {value['insn_note']}", ""]
    lines += ["| layer | op | output | MAC | weights | insn |", "|---|---|---|---|---|---|"]
    for one in value["layers"]:
        shape, insn = "x".join(map(str, one["shape"])), _or(one["insn"])
        lines.append(f"| {one['name']} | {one['op']} | {shape} | {one['macs']:,} | {one['weights']:,} | {insn} |")
    return "\n".join(lines) + "\n"


def _parity(value: Any) -> str:
    return NOT_RUN if value == NOT_RUN else f"{value['mismatches']} mismatches on {value['inputs']} inputs"


def _sizes(b: Mapping[str, Any]) -> list[str]:
    ram, stack = b["ram"], b["ram"]["stack"]
    parts = ", ".join(f"{k} {v:,} B" for k, v in b["flash"].items())
    return [
        f"- flash: {parts}",
        f"- RAM: arena {ram['arena']:,} B, data {ram['data_bss']:,} B, stack {_or(stack['static'])} B static and "
        f"{_or(stack['measured'])} B measured, {stack['counted']:,} B counted, total {ram['total']:,} B",
    ]


def _fit_rows(fits: Sequence[Mapping[str, Any]]) -> list[str]:
    if not fits:
        return []
    rows = ["| profile | verdict | flash: need of | RAM: need of | missing |", "|---|---|---|---|---|"]
    for f in fits:
        flash, ram = f"{f['need_flash']:,} of {f['have_flash']:,}", f"{f['need_ram']:,} of {f['have_ram']:,}"
        missing = f"{f['missing_flash']:,} flash, {f['missing_ram']:,} RAM" if f["verdict"] == "TOO BIG" else "-"
        rows.append(f"| {f['profile']} | {f['verdict']} | {flash} | {ram} | {missing} |")
    return rows


def _or(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
