"""The one ZIP that a set of entries has: stored, sorted, dated 1980-01-01, no extras, no comments.

Written and read by hand, since a reader must be able to say that not one byte is free: it parses the entries, writes
them again, and compares.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping

from qunlearn_export.errors import ArtefactError

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_DATE = 0x21  # 1980-01-01
_VERSION = 10


def write(entries: Mapping[str, bytes]) -> bytes:
    """The archive's bytes; names are ASCII."""
    out, central = bytearray(), bytearray()
    for name in sorted(entries):
        data, label = entries[name], name.encode("ascii")
        common = (_VERSION, 0, 0, 0, _DATE, zlib.crc32(data), len(data), len(data), len(label), 0)
        central += _CENTRAL.pack(b"PK\1\2", _VERSION, *common, 0, 0, 0, 0, len(out)) + label
        out += _LOCAL.pack(b"PK\3\4", *common) + label + data
    end = _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(central), len(out), 0)
    return bytes(out + central + end)


def read(data: bytes, allowed: Collection[str]) -> dict[str, bytes]:
    """Entries by name; ArtefactError unless ``data`` is exactly what :func:`write` makes of them."""
    entries: dict[str, bytes] = {}
    at = 0
    while data[at : at + 4] == b"PK\3\4":
        if at + _LOCAL.size > len(data):
            raise _bad("it is cut off")
        *_, stored, size, label, extra = _LOCAL.unpack_from(data, at)
        start = at + _LOCAL.size + label
        name = data[at + _LOCAL.size : start].decode("ascii", errors="replace")
        if name not in allowed or name in entries or extra or stored != size:
            raise _bad("it has entries that a bundle does not have")
        if start + size > len(data):
            raise _bad("it is cut off")
        entries[name] = data[start : start + size]
        at = start + size
    if not entries or write(entries) != data:
        raise _bad("it is not the canonical archive of its entries")
    return entries


def _bad(text: str) -> ArtefactError:
    return ArtefactError(f"this is not a bundle: {text}.", remedy="Fetch the bundle again from its maker.")
