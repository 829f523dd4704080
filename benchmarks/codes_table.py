"""What rounding did to every method's update, from the results folders of grids.

    python benchmarks/codes_table.py runs/kws runs/cifar10 [--out benchmarks/results]

Per network, bit width, kind of request and method, over the report cells: weight codes that changed; latent weights
that moved; those of them whose code stayed (lost to rounding, as a share of all and of those that moved); findings of
dead channels (D4, and D8 for channels that died in the run); cells that were warned of lost updates. Cells from before
these figures were recorded show a dash. Writes ``codes.json`` and ``codes.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qunlearn.bench import table
from qunlearn.bench.scene import ROWS

HEADS = ("method", "codes changed", "latents moved", "lost to rounding", "of those moved", "dead-channel findings",
         "cells with any", "warned: update lost", "cells")  # fmt: skip


def mean(cells: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean over the cells that have the figure."""
    values = [c[key] for c in cells if c.get(key) is not None]
    return statistics.fmean(values) if values else None


def rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a method, by the share of codes that it changed; cells that failed count, and show nothing."""
    out = []
    for method in dict.fromkeys(str(c["method"]) for c in cells if c["method"] not in ROWS):
        own = [c for c in cells if c["method"] == method]
        good = [c for c in own if "error" not in c]
        moved, lost = mean(good, "latents_moved"), mean(good, "lost_to_rounding")
        out.append({
            "method": method, "cells": len(own), "failed": len(own) - len(good),
            "codes_changed": mean(good, "codes_changed"), "latents_moved": moved, "lost_to_rounding": lost,
            "lost_of_moved": lost / moved if lost is not None and moved else None,
            "dead": mean(good, "dead"), "cells_with_dead": sum(bool(c.get("dead")) for c in good),
            "warned": sum(any("W-LOST-TO-ROUNDING" in w for w in c.get("warnings", ())) for c in good),
        })  # fmt: skip
    return sorted(out, key=lambda r: -(r["codes_changed"] or 0.0))


def sections(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """All grids' cells by data set, network, bit width and kind of request."""
    out = []
    for folder in folders:
        found = table.load(folder)
        for (model, bits, kind), own in table.sections(found["cells"]).items():
            out.append({"data": found["grid"]["data"], "model": model, "bits": bits, "kind": kind, "rows": rows(own)})
    return out


def text(parts: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown table a section, per cent."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    lines: list[str] = []
    for part in parts:
        lines += [f"### {part['data']}, {part['model']}, {part['bits']}, {part['kind']}", ""]
        lines += [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
        for r in part["rows"]:
            cells = [r["method"]]
            cells += [share(r[k]) for k in ("codes_changed", "latents_moved", "lost_to_rounding", "lost_of_moved")]
            cells += ["-" if r["dead"] is None else f"{r['dead']:.1f}", str(r["cells_with_dead"]), str(r["warned"])]
            cells.append(f"{r['cells']}" + (f" ({r['failed']} failed)" if r["failed"] else ""))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="results folders of `qunlearn bench run`")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    parts = sections(args.folders)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "codes.json").write_text(json.dumps(parts, indent=2) + "\n")
    (args.out / "codes.md").write_text(text(parts))
    print(text(parts))


if __name__ == "__main__":
    main()
