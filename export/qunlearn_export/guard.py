"""The confidentiality guard: looks for forget samples in everything that a bundle holds, and refuses on a hit.

A hit is a window of 32 bytes with at least 8 distinct values that occurs in a forget sample, in one of its forms (as
stored, as float32 input, as int8 codes in both axis orders, as uint8), or in a plain digest of it or of the request;
or one of the samples' ids. Entries are searched as they are and after decoding what looks like hexadecimal or base64
in them. A window at any offset of either side is found: windows are compared by a rolling hash, then byte for byte.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export.check import load_model
from qunlearn_export.errors import VerificationError
from qunlearn_export.graph import Activation
from qunlearn_export.oracle import quantize

WINDOW = 32
DISTINCT = 8
MIN_ID = 4
MIN_ID_BINARY = 8
"""In binary entries short ids occur by chance; there, only longer ones count."""
CHUNK = 2**20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_HEX = re.compile(rb"[0-9A-Fa-f]{%d,}" % (2 * WINDOW))
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-](?:[A-Za-z0-9+/_\-]|\\n|[\r\n]){%d,}" % (WINDOW * 4 // 3))
_WORD = re.compile(r"[\w.\-]+")
_MACHINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+Z|(urn:uuid:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Where something was found; never what."""

    entry: str
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.what} in {self.entry} at byte {self.offset}"


@dataclass(frozen=True)
class Forms:
    """Byte strings whose windows must not occur, by what they are."""

    parts: Mapping[str, tuple[bytes, ...]]

    def windows(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """(what, bytes) in pieces of bounded size that overlap by a window."""
        for what, strings in self.parts.items():
            for one in strings:
                data = np.frombuffer(one, dtype=np.uint8)
                for i in range(0, max(1, len(data) - WINDOW + 1), CHUNK):
                    yield what, data[i : i + CHUNK + WINDOW - 1]


def sample_forms(
    stored: NDArray[Any], inputs: NDArray[np.float32], activations: Iterable[Activation]
) -> dict[str, tuple[bytes, ...]]:
    """All forms of forget samples: ``stored`` [N, C, H, W] as the data set holds them, ``inputs`` the network's.

    ``activations`` are the networks' inputs, whose scales make the int8 codes (base and target may differ).
    """
    little = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    parts = {
        "a forget sample as stored": little.tobytes,
        "a forget sample as float32": np.ascontiguousarray(inputs, dtype="<f4").tobytes,
    }
    out = {what: [make()] for what, make in parts.items()}
    if stored.dtype != np.uint8:
        low, high = float(stored.min()), float(stored.max())
        scaled = np.rint((stored.astype(np.float64) - low) * (255 / (high - low or 1.0))).astype(np.uint8)
        out["a forget sample as uint8"] = [scaled.tobytes(), _last(scaled).tobytes()]
    else:
        out["a forget sample as uint8"] = [_last(stored).tobytes()]
    for a in activations:
        codes = quantize(np.asarray(inputs, dtype=np.float32), a)
        out.setdefault("a forget sample as int8 codes", []).extend((codes.tobytes(), _last(codes).tobytes()))
    return {what: tuple(dict.fromkeys(strings)) for what, strings in out.items()}


def digest_forms(digests: Iterable[str]) -> dict[str, tuple[bytes, ...]]:
    """Plain digests (64 hexadecimal digits) of samples, of the request and of the split."""
    return {"a plain digest of the request or of a sample": tuple(bytes.fromhex(d) for d in digests)}


class Guard:
    """What must not be found: ``forms`` of the samples and digests, ``ids`` of the forget samples."""

    def __init__(self, forms: Mapping[str, tuple[bytes, ...]], ids: Iterable[str]) -> None:
        self.forms = Forms(forms)
        self.ids = tuple(sorted({i for i in ids if len(i) >= MIN_ID}))

    def scan(self, entries: Mapping[str, bytes]) -> list[Hit]:
        """Every kind of hit per entry, first offset each; ``entries`` hold what a bundle carries, expanded."""
        texts = [(n, o, d) for name, data in entries.items() for n, o, d in _readings(name, data)]
        first: dict[tuple[str, str], Hit] = {}
        for hit in (*self._bytes(texts), *self._names(entries, texts)):
            known = first.get((hit.entry, hit.what))
            if known is None or hit.offset < known.offset:
                first[hit.entry, hit.what] = hit
        return list(first.values())

    def refuse(self, entries: Mapping[str, bytes]) -> None:
        """VerificationError that names entries and offsets, not contents."""
        hits = self.scan(entries)
        if hits:
            more = f" and {len(hits) - 5} more" if len(hits) > 5 else ""
            raise VerificationError(
                f"the bundle would carry {'; '.join(map(str, hits[:5]))}{more}.",
                remedy="Take it out of the file that the entry is made from; nothing was written.",
            )

    def _bytes(self, texts: list[tuple[str, int, bytes]]) -> Iterator[Hit]:
        joined = np.frombuffer(b"".join(d for _, _, d in texts), dtype=np.uint8)
        starts = np.cumsum([0, *(len(d) for _, _, d in texts)])
        found = _hashes(joined)
        order = np.argsort(found, kind="stable")
        ranked = found[order]
        filter_bits = np.zeros(2**24, dtype=bool)
        filter_bits[(ranked >> np.uint64(40)).astype(np.int64)] = True
        for what, piece in self.forms.windows():
            hashes = _hashes(piece)
            maybe = np.flatnonzero(filter_bits[(hashes >> np.uint64(40)).astype(np.int64)])
            values, first = np.unique(hashes[maybe], return_index=True)
            left = np.searchsorted(ranked, values, side="left")
            right = np.searchsorted(ranked, values, side="right")
            for i in np.flatnonzero(right > left):
                window = piece[maybe[first[i]] :][:WINDOW]
                if len(set(window.tolist())) < DISTINCT:
                    continue
                for at in order[left[i] : right[i]]:
                    which = int(np.searchsorted(starts, at, side="right")) - 1
                    name, offset, _ = texts[which]
                    inside = at + WINDOW <= starts[which + 1]
                    if inside and np.array_equal(joined[at : at + WINDOW], window):
                        yield Hit(entry=name, offset=offset or int(at - starts[which]), what=what)

    def _names(self, entries: Mapping[str, bytes], texts: list[tuple[str, int, bytes]]) -> Iterator[Hit]:
        wanted = set(self.ids)
        odd = [i for i in self.ids if _WORD.fullmatch(i) is None]
        longer = [i.encode() for i in self.ids if len(i) >= MIN_ID_BINARY and not i.isdigit()]
        what = "the id of a forget sample"
        for name, data in entries.items():
            for where in _strings(name, data):
                if where in wanted or not wanted.isdisjoint(_tokens(where)) or any(i in where for i in odd):
                    yield Hit(entry=name, offset=max(data.find(where.encode()), 0), what=what)
                    break
        for name, offset, data in texts:
            found = [at for at in (data.find(i) for i in longer) if at >= 0]
            if found:
                yield Hit(entry=name, offset=offset or min(found), what=what)


def _hashes(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash of every window; windows of windows, doubling from 1 byte to 32."""
    h = data.astype(np.uint64) + np.uint64(1)
    factor, size = int(_FACTOR), 1
    while size < WINDOW:
        if len(h) <= size:
            return np.zeros(0, dtype=np.uint64)
        h = h[:-size] * np.uint64(factor) + h[size:]
        factor, size = factor * factor % 2**64, 2 * size
    h = (h ^ (h >> np.uint64(29))) * _FACTOR
    return np.asarray(h ^ (h >> np.uint64(32)))


def _readings(name: str, data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """(entry, offset, bytes): the entry itself, and what its runs of hexadecimal and base64 decode to."""
    yield name, 0, data
    for m in _HEX.finditer(data):
        run = m.group()
        for skip in (0, 1):
            part = run[skip : skip + (len(run) - skip) // 2 * 2]
            yield name, m.start() or 1, binascii.unhexlify(part)
    for m in _BASE64.finditer(data):
        run = re.sub(rb"\\n|[\r\n]", b"", m.group()).replace(b"-", b"+").replace(b"_", b"/")
        for skip in range(4):
            part = run[skip:] if len(run[skip:]) % 4 != 1 else run[skip:-1]
            yield name, m.start() or 1, base64.b64decode(part + b"=" * (-len(part) % 4))


def _strings(name: str, data: bytes) -> list[str]:
    """All strings of a JSON entry, all text of an ONNX file but its numbers; nothing of other bytes."""
    if name.endswith(".onnx"):
        model = load_model(data)
        for t in model.graph.initializer:
            t.ClearField("raw_data")
        return [m.decode("ascii") for m in re.findall(rb"[\x20-\x7e]{%d,}" % MIN_ID, model.SerializeToString())]
    out: list[str] = []
    stack = [json.loads(data)] if name.endswith(".json") else []
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            stack += [*one, *one.values()]
        elif isinstance(one, list):
            stack += one
        elif isinstance(one, str) and _MACHINE.fullmatch(one) is None:
            out.append(one)
    return out


def _tokens(text: str) -> Iterator[str]:
    """Runs of letters, digits and underscores, and those joined by dots or dashes; numbers say nothing."""
    for word in (*re.findall(r"\w+", text), *re.findall(r"[\w.\-]+", text)):
        if not word.isdigit():
            yield word


def _last(x: NDArray[Any]) -> NDArray[Any]:
    """[N, C, ...] with the channel last, contiguous."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))
