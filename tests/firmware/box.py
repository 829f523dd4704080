"""A device in memory, driven from Python: ``harness_device.c`` by ctypes, and updates made for it."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from clib import build
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qunlearn_export import container, delta, keys, selftest

SOURCES = (
    "qul_sha.c",
    "qul_ed25519.c",
    "qul_delta.c",
    "qul_slots.c",
    "qul_inplace.c",
    "qul_update.c",
    "qul_flash_sim.c",
    "harness_device.c",
)
NEVER = 0xFFFFFFFF
INPUTS, OUTPUTS = 12, 5
CLASS = bytes(range(16))
SIGNER = keys.LocalSigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = keys.LocalSigner(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A layout with a digest, as devices and containers need it."""

    sizes: tuple[int, int, int, int]
    folds: tuple[Any, ...] = ()
    entries: tuple[Any, ...] = ()

    def digest(self) -> str:
        """Hex SHA-256 of the repr: any function of the layout serves here."""
        return hashlib.sha256(repr((self.sizes, self.folds)).encode()).hexdigest()

    @property
    def blob_bytes(self) -> int:
        return delta.blob_bytes(self.sizes)


@dataclass(frozen=True)
class State:
    """What ``box_state`` says."""

    ready: int
    slot: int
    sequence: int
    counter: int
    erased: int
    blank: int
    ops: int
    breaches: int
    dead: int
    bound: int
    size: int


def library(folder: Path) -> ctypes.CDLL:
    """Compile the harness with all of the update side."""
    lib = ctypes.CDLL(str(build(folder / "device.so", SOURCES)))
    for name in ("box_new", "box_memory", "box_used"):
        getattr(lib, name).restype = ctypes.c_void_p
    return lib


@dataclass
class Box:
    """One device; ``in_place`` chooses the scheme."""

    lib: ctypes.CDLL
    shape: Shape
    in_place: bool = False
    page: int = 256
    unit: int = 16
    careful: bool = False
    trusted: tuple[bytes, ...] = (SIGNER.public,)
    device_class: bytes = CLASS
    log_pages: int = 0
    handle: ctypes.c_void_p = field(init=False)

    def __post_init__(self) -> None:
        pages = -(-self.shape.blob_bytes // self.page)
        cell = max(16, self.unit)
        log = self.log_pages or -(-(3 + 2 * pages + 8) * cell // self.page)
        rows = [v for f in self.shape.folds for v in (f.weight, f.count, f.channels, f.inner, f.bias, f.zero)]
        numbers = (self.in_place, self.page, self.unit, pages, log, *self.shape.sizes, len(self.shape.folds))
        numbers += (len(self.trusted), self.careful)
        self.handle = ctypes.c_void_p(
            self.lib.box_new(
                (ctypes.c_uint32 * len(numbers))(*numbers),
                (ctypes.c_uint32 * max(len(rows), 1))(*rows),
                bytes.fromhex(self.shape.digest()),
                self.device_class,
                b"".join(self.trusted),
            )
        )

    def __del__(self) -> None:
        self.lib.box_free(self.handle)

    def power(self, cut: int = NEVER, torn: int = 0, seed: int = 1) -> None:
        """Power comes on; it will go at operation ``cut``."""
        self.lib.box_power(self.handle, ctypes.c_uint32(cut), torn, ctypes.c_uint32(seed))

    def boot(self) -> int:
        return int(self.lib.box_boot(self.handle))

    def update(self, data: bytes) -> tuple[int, bytes]:
        """Return code and receipt."""
        receipt = ctypes.create_string_buffer(100)
        rc = self.lib.box_update(self.handle, data, len(data), receipt)
        return int(rc), receipt.raw

    def provision(self, blob: bytes, sequence: int) -> int:
        return int(self.lib.box_provision(self.handle, blob, sequence))

    @property
    def state(self) -> State:
        out = (ctypes.c_uint32 * 11)()
        self.lib.box_state(self.handle, out)
        return State(*out)

    def flash(self) -> bytes:
        """The whole image."""
        return ctypes.string_at(self.lib.box_memory(self.handle), self.state.size)

    def snapshot(self) -> tuple[bytes, bytes]:
        """Flash content and which units are used."""
        used = ctypes.string_at(self.lib.box_used(self.handle), self.state.size // self.unit)
        return self.flash(), used

    def restore(self, snapshot: tuple[bytes, bytes]) -> None:
        """Put a snapshot back; memory of the device is lost."""
        for name, data in zip(("box_memory", "box_used"), snapshot, strict=True):
            ctypes.memmove(getattr(self.lib, name)(self.handle), data, len(data))

    @property
    def slot_bytes(self) -> int:
        return -(-self.shape.blob_bytes // self.page) * self.page

    @property
    def meta_start(self) -> int:
        return self.slot_bytes * (1 if self.in_place else 2)

    def stored_counter(self) -> int:
        """The highest right counter cell in the flash, read by this file's own code."""
        start, cell = self.meta_start + 2 * self.page, max(16, self.unit)
        image, best = self.flash()[start : start + 2 * self.page], 0
        for i in range(0, len(image) - cell + 1, cell):
            value, inverse, crc, magic = struct.unpack_from("<III4s", image, i)
            if magic == b"QUC1" and inverse == value ^ 0xFFFFFFFF and crc == zlib.crc32(image[i : i + 8]):
                best = max(best, value)
        return best

    def journal(self) -> bytes:
        """Log and data page."""
        return self.flash()[self.meta_start + 4 * self.page :]

    def running(self) -> bytes:
        """The blob of the running slot."""
        start = self.state.slot * self.slot_bytes
        return self.flash()[start : start + self.shape.blob_bytes]


def outputs(lib: ctypes.CDLL, blob: bytes, x: np.ndarray[Any, Any]) -> bytes:
    """The toy model's answer."""
    y = ctypes.create_string_buffer(OUTPUTS)
    lib.box_outputs(blob, len(blob), x.astype(np.int8).tobytes(), y)
    return y.raw


def block(lib: ctypes.CDLL, shape: Shape, blob: bytes, seeds: tuple[int, ...] = (0, 1, 2, 3, 16, 0xFFFFFFFF)) -> bytes:
    """The self-test block of the toy model for ``blob``."""
    zero = struct.unpack_from("b", blob, shape.blob_bytes - shape.sizes[3])[0]
    rows = [(s, outputs(lib, blob, selftest.codes(s, INPUTS, zero))) for s in seeds]
    return struct.pack("<HHI", len(rows), OUTPUTS, INPUTS) + b"".join(struct.pack("<I", s) + y for s, y in rows)


def make(
    lib: ctypes.CDLL,
    shape: Shape,
    base: bytes,
    target: bytes,
    /,
    *,
    sequence: int,
    base_sequence: int,
    full: bool = False,
    signer: keys.LocalSigner = SIGNER,
    body: bytes | None = None,
    test: bytes | None = None,
    **changes: Any,
) -> bytes:
    """A signed update; ``changes`` overwrite header fields before signing."""
    body = body if body is not None else target if full else delta.encode(base, target, shape)  # type: ignore[arg-type]
    test = test if test is not None else block(lib, shape, target)
    header = container.Header(
        kind=container.FULL if full else container.DELTA,
        in_place=True,
        sequence=sequence,
        base_sequence=0 if full else base_sequence,
        device_class=CLASS,
        blob_bytes=shape.blob_bytes,
        body_bytes=len(body),
        selftest_bytes=len(test),
        scratch_bytes=0 if full else 4 * sum(f.channels for f in shape.folds),
        layout=bytes.fromhex(shape.digest()),
        base=container.NONE if full else hashlib.sha256(base).digest(),
        target=hashlib.sha256(target).digest(),
        payload=hashlib.sha256(body + test).digest(),
        manifest=hashlib.sha256(b"manifest").digest(),
        key_id=keys.key_digest(signer.public)[:8],
    )
    return container.build(replace(header, **changes), body, test, signer)
