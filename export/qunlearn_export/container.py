"""``update.bin``: what a device gets. A signed header of fixed size, the body (delta or whole blob), the self-test.

The steps V1 to V6 of a device's verification stand here as functions in their order; nothing is parsed deeper before
the step ahead of it has passed. Return codes are those of the C side: 10 signature, 11 malformed, 12 payload, 13 base,
14 delta, 15 target, 16 sequence, 17 self-test, 18 class, 19 layout, 20 flash, 21 version.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qunlearn_export import delta, keys
from qunlearn_export.errors import ArtefactError, VerificationError
from qunlearn_export.layout import Layout

DOMAIN = b"QUNLEARN-UPDATE-1\0"
MAGIC = b"QUP1"
VERSION = 1
DELTA, FULL = 0, 1
IN_PLACE, ERASE_OLD = 1, 2
HEADER = 288
MAX_BLOB = 256 * 2**20
MAX_SELFTEST = 2**20
_FIELDS = struct.Struct("<4sHBBII16sIIII32s32s32s32s32s8s8s")
NONE = bytes(32)

MEANING: Mapping[int, str] = {
    0: "done",
    10: "the signature does not hold, or its key is not known",
    11: "the update is malformed",
    12: "the payload was changed",
    13: "the running model is not the one that this delta is for",
    14: "the delta cannot be applied",
    15: "the new model is not the one announced",
    16: "the sequence number is not newer, or the delta starts from another one",
    17: "the self-test failed",
    18: "it is for another device class",
    19: "it is for another layout or needs more memory",
    20: "the storage failed",
    21: "the update is of another version",
}


class MalformedUpdateError(ArtefactError):
    """The container cannot be read; ``code`` is the device's return code (11 or 21)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message, remedy="Fetch the update again from its maker.")
        self.code = code


class RefusedUpdateError(VerificationError):
    """The container fails a step of the verification; ``code`` is the device's return code (10, 12 to 20)."""

    remedies: ClassVar[Mapping[int, str]] = {
        10: "Trust the maker's key, or ask for an update signed with a trusted one.",
        13: "Ask for a full update.",
        16: "Ask for a newer update.",
        18: "Ask for the update of this device class.",
        19: "Ask for the update of this firmware.",
    }

    def __init__(self, code: int, message: str = "") -> None:
        text = f"{MEANING[code]}{': ' if message else ''}{message}."
        super().__init__(text, remedy=self.remedies.get(code, "Fetch the update again from its maker."))
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Header:
    """The signed fields. Digests are SHA-256 of layout text, base blob, target blob, body and self-test, manifest."""

    kind: int
    in_place: bool
    sequence: int
    base_sequence: int
    device_class: bytes
    blob_bytes: int
    body_bytes: int
    selftest_bytes: int
    scratch_bytes: int
    layout: bytes
    base: bytes
    target: bytes
    payload: bytes
    manifest: bytes
    key_id: bytes

    def to_bytes(self) -> bytes:
        """Bytes 64 to 287 of the container."""
        return _FIELDS.pack(
            MAGIC,
            VERSION,
            self.kind,
            ERASE_OLD | (IN_PLACE if self.in_place else 0),
            self.sequence,
            self.base_sequence,
            self.device_class,
            self.blob_bytes,
            self.body_bytes,
            self.selftest_bytes,
            self.scratch_bytes,
            self.layout,
            self.base,
            self.target,
            self.payload,
            self.manifest,
            self.key_id,
            bytes(8),
        )


@dataclass(frozen=True, kw_only=True)
class Update:
    """A container whose sizes are right (V1); nothing else is known of it yet."""

    header: Header
    signature: bytes
    signed: bytes
    body: bytes
    selftest: bytes


def build(header: Header, body: bytes, selftest: bytes, signer: keys.Signer) -> bytes:
    """The container's bytes, signed; ``header`` has been filled by the caller."""
    fields = header.to_bytes()
    return signer.sign(DOMAIN + fields) + fields + body + selftest


def read(data: bytes, *, max_blob: int = MAX_BLOB) -> Update:
    """V1: sizes, magic, version, kind, flags, reserved bytes, and lengths that add up. MalformedUpdateError else."""
    if len(data) < HEADER:
        raise MalformedUpdateError(11, f"the update has {len(data)} bytes, its header {HEADER}.")
    magic, version, kind, flags, sequence, base_sequence, device, blob, body, test, scratch, *rest = _FIELDS.unpack(
        data[64:HEADER]
    )
    layout, base, target, payload, manifest, key_id, zeros = rest
    if magic != MAGIC:
        raise MalformedUpdateError(11, "this is not an update of this project.")
    if version != VERSION:
        raise MalformedUpdateError(21, f"the update is of version {version}, this program reads {VERSION}.")
    if kind not in (DELTA, FULL) or flags & ~IN_PLACE != ERASE_OLD or zeros != bytes(8):
        raise MalformedUpdateError(11, "the update has unknown kinds or flags.")
    if blob > max_blob or test > MAX_SELFTEST or body > max_blob + 2**20 or scratch > max_blob:
        raise MalformedUpdateError(11, "a length in the update is beyond its limit.")
    if HEADER + body + test != len(data):
        raise MalformedUpdateError(11, "the lengths in the update do not add up.")
    if kind == FULL and (body != blob or base_sequence or base != NONE):
        raise MalformedUpdateError(11, "a full update must hold the whole model and name no base.")
    header = Header(
        kind=kind,
        in_place=bool(flags & IN_PLACE),
        sequence=sequence,
        base_sequence=base_sequence,
        device_class=device,
        blob_bytes=blob,
        body_bytes=body,
        selftest_bytes=test,
        scratch_bytes=scratch,
        layout=layout,
        base=base,
        target=target,
        payload=payload,
        manifest=manifest,
        key_id=key_id,
    )
    return Update(
        header=header,
        signature=data[:64],
        signed=data[64:HEADER],
        body=data[HEADER : HEADER + body],
        selftest=data[HEADER + body :],
    )


def authenticate(update: Update, trust: Mapping[bytes, bytes]) -> None:
    """V2: ``trust`` maps key ids to raw public keys; the signature over the header must hold (10)."""
    public = trust.get(update.header.key_id)
    if public is None:
        raise RefusedUpdateError(10, f"key id {update.header.key_id.hex()} is not trusted")
    if not keys.verify(public, update.signature, DOMAIN + update.signed):
        raise RefusedUpdateError(10)


def admit(
    header: Header,
    *,
    device_class: bytes,
    layout: Layout,
    counter: int,
    active_sequence: int,
    arena: int | None = None,
) -> None:
    """V3: device class (18); layout, blob length, scratch (19); newer sequence, and the delta's base (16)."""
    if header.device_class != device_class:
        raise RefusedUpdateError(18)
    if header.layout.hex() != layout.digest() or header.blob_bytes != layout.blob_bytes:
        raise RefusedUpdateError(19)
    if arena is not None and header.scratch_bytes > arena:
        raise RefusedUpdateError(19, f"it needs {header.scratch_bytes} bytes of scratch memory")
    newest = max(counter, active_sequence)
    if header.sequence <= newest:
        raise RefusedUpdateError(16, f"it is number {header.sequence}, the device has seen {newest}")
    if header.kind == DELTA and header.base_sequence != active_sequence:
        raise RefusedUpdateError(16, f"it starts from number {header.base_sequence}, number {active_sequence} runs")


def check_payload(update: Update) -> None:
    """V4: body and self-test are those that were signed (12)."""
    if hashlib.sha256(update.body + update.selftest).digest() != update.header.payload:
        raise RefusedUpdateError(12)


def apply(update: Update, active: bytes | None, layout: Layout) -> bytes:
    """V5, the change itself, V6: the new blob. ``active`` is the running blob, needed for a delta only (13, 14, 15)."""
    header = update.header
    new = update.body
    if header.kind == DELTA:
        if active is None or hashlib.sha256(active).digest() != header.base:
            raise RefusedUpdateError(13)
        try:
            new = delta.decode(active, update.body, layout)
        except ArtefactError as err:
            raise RefusedUpdateError(14, err.message.rstrip(".")) from err
    if hashlib.sha256(new).digest() != header.target:
        raise RefusedUpdateError(15)
    return new
