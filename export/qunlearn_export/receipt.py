"""The receipt that a device gives after an update: 100 bytes, compared with the bundle that it answers."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from qunlearn_export.container import DELTA, MEANING
from qunlearn_export.errors import ArtefactError
from qunlearn_export.selftest import SelfTest
from qunlearn_export.verify import Opened

SIZE = 100
SIGNED = 68
VERSION = 1
READ_BACK = ("blank", "not blank", "not done")
_FIELDS = struct.Struct("<4sBBBBIII16s16s16s")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Fields as on the device; ``mac`` is zeros where the device has no key."""

    code: int
    passed: int
    read_back: int
    sequence: int
    counter: int
    erased: int
    device: bytes
    old: bytes
    new: bytes
    mac: bytes = bytes(32)

    def signed(self) -> bytes:
        """The 68 bytes that the authentication code is over."""
        counts = (self.code, self.passed, self.read_back, self.sequence, self.counter, self.erased)
        return _FIELDS.pack(b"QUR1", VERSION, *counts, self.device, self.old, self.new)

    def to_bytes(self) -> bytes:
        """All 100 bytes."""
        return self.signed() + self.mac

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """The inverse; ArtefactError when it is not a receipt of this version."""
        remedy = "Read it from the device again."
        if len(data) != SIZE or data[:4] != b"QUR1":
            raise ArtefactError(f"this is not a receipt: it has {len(data)} bytes.", remedy=remedy)
        _, version, code, passed, read_back, sequence, counter, erased, device, old, new = _FIELDS.unpack(data[:SIGNED])
        if version != VERSION or code not in MEANING or read_back >= len(READ_BACK):
            raise ArtefactError(f"the receipt is of version {version} or has unknown codes.", remedy=remedy)
        return cls(
            code=code,
            passed=passed,
            read_back=read_back,
            sequence=sequence,
            counter=counter,
            erased=erased,
            device=device,
            old=old,
            new=new,
            mac=data[SIGNED:],
        )

    def authenticity(self, key: bytes | None) -> str:
        """``unauthenticated`` (no code), ``not checked`` (no key given), ``authentic`` or ``forged``.

        The device's callback decides how codes are made; with ``key`` it is taken to be HMAC-SHA-256.
        """
        if self.mac == bytes(32):
            return "unauthenticated" if key is None else "forged"
        if key is None:
            return "not checked"
        good = hmac.compare_digest(hmac.new(key, self.signed(), hashlib.sha256).digest(), self.mac)
        return "authentic" if good else "forged"

    def problems(self, opened: Opened) -> list[str]:
        """What does not fit a completed installation of the bundle; empty when all does."""
        p: Mapping[str, Any] = opened.predicate
        n = len(SelfTest.from_bytes(opened.update.selftest).seeds)
        bad = []
        if self.code:
            bad.append(f"return code {self.code}: {MEANING[self.code]}")
        if self.device != UUID(p["device"]["class"]).bytes:
            bad.append("another device class")
        if self.sequence != p["sequence"]:
            bad.append(f"sequence {self.sequence}, the bundle has {p['sequence']}")
        if self.counter < p["sequence"]:
            bad.append(f"counter {self.counter} is behind")
        if self.new.hex() != p["target"]["blob"][:32]:
            bad.append("the new model is not the bundle's target")
        if opened.update.header.kind == DELTA and self.old.hex() != p["base"]["blob"][:32]:
            bad.append("the old model was not the bundle's base")
        if self.passed != n:
            bad.append(f"{self.passed} of {n} self-test vectors passed")
        if self.read_back:
            bad.append(f"the old slot is {READ_BACK[self.read_back]}")
        return bad
