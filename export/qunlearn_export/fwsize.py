"""Sizes of a linked image: flash by purpose from the linker's map, the deepest stack from the compiler's call graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from qunlearn_export.errors import VerificationError

_LINE = re.compile(r"^ (\.[\w.$-]+|COMMON)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+(\S.*?)\s*$", re.M)
_NODE = re.compile(r'node: \{ title: "([^"]+)" label: "([^"]*)"')
_EDGE = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')
_BYTES = re.compile(r"\\n(\d+) bytes")
NOT_LOADED = (".comment", ".debug", ".ARM.attributes", ".note", ".stab", ".symtab", ".strtab", ".shstrtab")
RAM = (".bss", "COMMON")
UPDATE = ("ota", "qul_update", "qul_delta", "qul_ed25519", "qul_slots", "qul_inplace")
SELFTEST = ("selftest",)


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Bytes: ``code`` of model, kernels, runtime and startup; ``blob``; ``selftest``; ``update``; ``data`` (in flash
    and in RAM) and ``bss``."""

    code: int
    blob: int
    selftest: int
    update: int
    data: int
    bss: int


def image_size(map_text: str, *, ota: bool) -> ImageSize:
    """Read from a GNU ld map; the digest code counts as self-test unless there is update code to use it."""
    _, found, body = map_text.partition("Linker script and memory map")
    if not found:
        raise VerificationError("the linker's map has another form.", remedy="Build with GNU ld.")
    total = dict.fromkeys(("code", "blob", "selftest", "update", "data", "bss"), 0)
    for section, _, size, source in _LINE.findall(body):
        n = int(size, 16)
        if not n or section.startswith(NOT_LOADED):
            continue
        stem = PurePath(source).name.partition(".o")[0]
        if section.startswith(RAM):
            total["bss"] += n
        elif section == ".rodata.qul_blob":
            total["blob"] += n
        else:
            if section.startswith(".data"):
                total["data"] += n
            total[_purpose(stem, ota)] += n
    return ImageSize(**total)


def _purpose(stem: str, ota: bool) -> str:
    if stem in UPDATE or (stem == "qul_sha" and ota):
        return "update"
    return "selftest" if stem in SELFTEST or stem == "qul_sha" else "code"


def stack_depth(graphs: Iterable[str], root: str) -> int:
    """Bytes of the deepest call chain from ``root``, from the texts that ``-fcallgraph-info=su`` writes.

    Functions without a size (of the compiler's library) count as 0. A cycle is a VerificationError: nothing recurses.
    """
    sizes: dict[str, int] = {}
    calls: dict[str, list[str]] = {}
    for text in graphs:
        for title, label in _NODE.findall(text):
            size = _BYTES.search(label)
            if size is not None:
                sizes[title] = max(int(size[1]), sizes.get(title, 0))
        for source, target in _EDGE.findall(text):
            calls.setdefault(source, []).append(target)
    return _deepest(root, sizes, calls, (), {})


def _deepest(
    name: str, sizes: Mapping[str, int], calls: Mapping[str, list[str]], above: tuple[str, ...], known: dict[str, int]
) -> int:
    if name in above:
        raise VerificationError(f"{name} calls itself.", remedy="Report this with the generated folder.")
    if name not in known:
        below = [_deepest(t, sizes, calls, (*above, name), known) for t in calls.get(name, [])]
        known[name] = sizes.get(name, 0) + max(below, default=0)
    return known[name]
