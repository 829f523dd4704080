"""How small updates are: the delta body against general tools, on made-up weights and on a real unlearning step.

    python benchmarks/bench_delta.py [--groups lucas] [--tools FOLDER] [--install] [--out FOLDER]

Part 1: 300,000 random int8 weights (normal, deviation 30) in 20 tensors, some of them moved by one step, anywhere or in
one block. Part 2: the blob of the shipped keyword spotter and of the same network after the demo's unlearning step (one
speaker with OEU). Body bytes; every tool gives back the target, byte for byte, before its size counts.

Other tools: ``bsdiff``, ``zstd`` (1.4.5 or newer) and ``xdelta3`` from the system (`apt-get install bsdiff zstd
xdelta3`), ``detools`` from the package index; ``--install`` puts it into ``--tools`` by pip. What is absent is named,
and its rows are missing from the table. Results: ``results/delta.json`` and ``results/delta.md``.
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import math
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qunlearn_export import delta
from qunlearn_export.layout import Entry, Layout

HERE = Path(__file__).parent
N, TENSORS = 300_000, 20
CASES = {
    "0.1 %": (0.001, 1.0),
    "1 %": (0.01, 1.0),
    "10 %": (0.1, 1.0),
    "1 % in one 2 % block": (0.01, 0.02),
    "10 % in one 20 % block": (0.1, 0.2),
}
LIMITS = {"0.1 %": 1.10, "1 %": 1.05, "10 %": 1.05}
DETOOLS = (
    ("hdiffpatch", "lzma"),
    ("bsdiff", "lzma"),
    ("bsdiff", "bz2"),
    ("bsdiff", "crle"),
    ("bsdiff", "heatshrink"),
    ("match-blocks", "lzma"),
)
OURS, ENTROPY = "this format", "entropy, uniform positions"
APT = "apt-get install bsdiff zstd xdelta3"


@dataclass(frozen=True)
class Pair:
    """Two blobs of one layout."""

    old: bytes
    new: bytes
    layout: Layout


Tool = Callable[[bytes, bytes], int]


def made_up(share: float, block: float, seed: int = 0) -> Pair:
    """Part 1: ``share`` of all weights changed by one step inside a block of that part of them."""
    rng = np.random.default_rng(seed)
    old = np.clip(np.rint(rng.normal(0, 30, N)), -127, 127).astype(np.int8)
    length = round(N * block)
    where = (N - length) // 2 + rng.choice(length, round(N * share), replace=False)
    new = old.copy()
    new[where] += rng.choice(np.array([-1, 1], dtype=np.int8), where.size)
    size = N // TENSORS
    entries = tuple(Entry(section="W", offset=i * size, count=size, node=str(i), role="weight") for i in range(TENSORS))
    layout = Layout(sizes=(N, 0, 0, 0), entries=entries, folds=(), structure="")
    return Pair(old.tobytes(), new.tobytes(), layout)


def entropy(share: float) -> int:
    """Bytes that name the changed positions and signs of a uniform choice."""
    changed = round(N * share)
    positions = math.lgamma(N + 1) - math.lgamma(changed + 1) - math.lgamma(N - changed + 1)
    return math.ceil((positions / math.log(2) + changed) / 8)


def real(group: str) -> tuple[Pair, dict[str, Any]]:
    """Part 2: the shipped network before and after the demo's unlearning step, as firmware blobs."""
    from qunlearn import quant, tasks
    from qunlearn.cli import journey
    from qunlearn.data.request import Request
    from qunlearn.data.sources import load
    from qunlearn.data.splits import make_splits
    from qunlearn.unlearn import METHODS
    from qunlearn_export.layout import pack, plan

    dataset = load(journey.SOURCE)
    networks = journey.shipped(dataset)
    splits = make_splits(dataset, Request("group", (group,)), seed=journey.SEED)
    method = METHODS["oeu"].from_settings(journey.METHOD)
    result = method(
        networks.base, splits, tasks.get("classification"), request_kind="group", card=networks.card, seed=journey.SEED
    )
    graphs = [quant.lower(m, meta={"task": "classification"}) for m in (networks.base, result.model)]
    layout = plan(graphs[0])
    table = result.changes
    facts = {
        "codes": table.codes,
        "codes_changed": table.codes_changed,
        "bias_changed": table.bias_changed,
        "scales_changed": sum(r.scales_changed for r in table.rows),
        "largest_step": max(r.max_step for r in table.rows),
    }
    return Pair(pack(graphs[0], layout), pack(graphs[1], layout), layout), facts


def ours(pair: Pair) -> int:
    """The body; decoded back."""
    body = delta.encode(pair.old, pair.new, pair.layout)
    if delta.decode(pair.old, body, pair.layout) != pair.new:
        raise SystemExit("the delta does not give the target")
    return len(body)


def gaps(old: bytes, new: bytes) -> int:
    """Gaps as varints, then the differences, both through zlib: what a simple format comes to."""
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    where = np.flatnonzero(a != b)
    out = bytearray()
    for gap in np.diff(where, prepend=-1) - 1:
        left = int(gap)
        while left > 127:
            out.append(left & 127 | 128)
            left >>= 7
        out.append(left)
    return len(zlib.compress(bytes(out), 9)) + len(zlib.compress((b[where] - a[where]).tobytes(), 9))


def full(compress: Callable[[bytes], bytes]) -> Tool:
    """The whole new blob, compressed."""
    return lambda old, new: len(compress(new))


def program(make: list[str], apply: list[str]) -> Tool:
    """A program; words OLD, NEW, PATCH, OUT stand for files."""

    def run(old: bytes, new: bytes) -> int:
        with tempfile.TemporaryDirectory() as scratch:
            files = {w: Path(scratch) / w for w in ("OLD", "NEW", "PATCH", "OUT")}
            files["OLD"].write_bytes(old)
            files["NEW"].write_bytes(new)
            for words in (make, apply):
                filled = [_fill(w, files) for w in words]
                subprocess.run(filled, check=True, capture_output=True)
            if files["OUT"].read_bytes() != new:
                raise SystemExit(f"{make[0]} does not give the target")
            return files["PATCH"].stat().st_size

    return run


def _fill(word: str, files: Mapping[str, Path]) -> str:
    for name, file in files.items():
        word = word.replace(name, str(file))
    return word


def by_detools(algorithm: str, compression: str) -> Tool:
    """detools' sequential patches."""
    import detools

    kind = "sequential" if algorithm != "hdiffpatch" else "hdiffpatch"

    def run(old: bytes, new: bytes) -> int:
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch) / name for name in ("old", "new", "patch", "out")]
            files[0].write_bytes(old)
            files[1].write_bytes(new)
            with files[0].open("rb") as a, files[1].open("rb") as b, files[2].open("wb") as c:
                detools.create_patch(a, b, c, compression=compression, algorithm=algorithm, patch_type=kind)
            with files[0].open("rb") as a, files[2].open("rb") as c, files[3].open("wb") as d:
                detools.apply_patch(a, c, d)
            if files[3].read_bytes() != new:
                raise SystemExit("detools does not give the target")
            return files[2].stat().st_size

    return run


def tools() -> tuple[dict[str, Tool], dict[str, str]]:
    """Rows of the table by name; what is absent, with how to get it."""
    rows: dict[str, Tool] = {"gaps as varint, zlib": gaps}
    absent = {}
    programs = {
        "bsdiff": ("bsdiff (bz2)", ["bsdiff", "OLD", "NEW", "PATCH"], ["bspatch", "OLD", "OUT", "PATCH"]),
        "zstd": (
            "zstd -19 --patch-from",
            ["zstd", "-q", "-19", "--ultra", "--patch-from=OLD", "NEW", "-o", "PATCH"],
            ["zstd", "-q", "-d", "--patch-from=OLD", "PATCH", "-o", "OUT"],
        ),
        "xdelta3": (
            "xdelta3 -9 lzma",
            ["xdelta3", "-e", "-9", "-S", "lzma", "-s", "OLD", "NEW", "PATCH"],
            ["xdelta3", "-d", "-s", "OLD", "PATCH", "OUT"],
        ),
    }
    for name, (label, make, apply) in programs.items():
        if shutil.which(name):
            rows[label] = program(make, apply)
        else:
            absent[label] = APT
    try:
        for algorithm, compression in DETOOLS:
            rows[f"detools {algorithm} + {compression}"] = by_detools(algorithm, compression)
    except ImportError:
        absent["detools"] = "pip install detools, or --install"
    rows["full blob, lzma"] = full(lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    rows["full blob, bz2"] = full(bz2.compress)
    return rows, absent


def measure(groups: list[str]) -> dict[str, Any]:
    """Every row on every pair."""
    rows, absent = tools()
    out: dict[str, Any] = {"absent": absent, "made_up": {}, "real": {}, "bytes": N}
    for name, (share, block) in CASES.items():
        pair = made_up(share, block)
        found = {OURS: ours(pair), **{r: tool(pair.old, pair.new) for r, tool in rows.items()}}
        out["made_up"][name] = ({ENTROPY: entropy(share)} if block == 1.0 else {}) | found
        print(name, out["made_up"][name], flush=True)
    for group in groups:
        pair, facts = real(group)
        found = {OURS: ours(pair), **{r: tool(pair.old, pair.new) for r, tool in rows.items()}}
        out["real"][group] = {"blob": len(pair.old), **facts, "sizes": found}
        print(group, out["real"][group], flush=True)
    return out


def verdict(found: Mapping[str, Any]) -> list[str]:
    """Bars that are missed."""
    bad = []
    for name, sizes in found["made_up"].items():
        if name in LIMITS and sizes[OURS] > LIMITS[name] * sizes[ENTROPY]:
            bad.append(f"{name}: {sizes[OURS]} bytes over {LIMITS[name]} x entropy")
        bad += [f"{name}: {r} is smaller" for r, n in sizes.items() if r not in (OURS, ENTROPY) and n <= sizes[OURS]]
    for group, row in found["real"].items():
        bad += [f"{group}: {r} is smaller" for r, n in row["sizes"].items() if r != OURS and n <= row["sizes"][OURS]]
    return bad


def markdown(found: Mapping[str, Any]) -> str:
    """The table of the documentation."""
    columns = [*found["made_up"].values(), *(r["sizes"] for r in found["real"].values())]
    heads = [*found["made_up"], *(f"spotter without `{g}`" for g in found["real"])]
    names = list(dict.fromkeys(n for c in columns for n in c))
    lines = ["| method | " + " | ".join(heads) + " |", "|" + "---|" * (1 + len(heads))]
    for name in names:
        cells = [f"{c[name]:,}" if name in c else "-" for c in columns]
        label = f"**{name}**" if name == OURS else name
        lines.append(f"| {label} | " + " | ".join(f"**{c}**" if name == OURS else c for c in cells) + " |")
    lines.append("")
    for group, row in found["real"].items():
        lines.append(
            f"Spotter without `{group}`: blob of {row['blob']:,} bytes; {row['codes_changed']:,} of {row['codes']:,} "
            f"codes changed by at most {row['largest_step']}, {row['bias_changed']} bias codes, "
            f"{row['scales_changed']} scales."
        )
    for name, how in found["absent"].items():
        lines.append(f"Not measured: {name} (absent; {how}).")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", default="lucas", help="comma-separated speakers of the real pairs; empty for none")
    parser.add_argument("--tools", type=Path, help="folder with detools")
    parser.add_argument("--install", action="store_true", help="install detools into --tools by pip")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.install and args.tools is None:
        parser.error("--install needs --tools FOLDER")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.install:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", args.tools, "detools"], check=True)
    if args.tools is not None:
        sys.path.append(str(args.tools))
    found = measure([g for g in args.groups.split(",") if g])
    (args.out / "delta.json").write_text(json.dumps(found, indent=2) + "\n")
    (args.out / "delta.md").write_text(markdown(found))
    print(markdown(found))
    for line in [f"not measured: {n} ({how})" for n, how in found["absent"].items()]:
        print(line, file=sys.stderr)
    bad = verdict(found)
    print("\n".join(f"missed: {b}" for b in bad) if bad else "every bar is reached")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
