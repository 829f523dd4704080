"""Updates on a Linux device: the order of a board's verification (bundle.md 2.7) on a store folder.

V1 sizes, V2 keys, V3 class, layout and sequence, V4 payload, V5 base; then the delta, V6 the new blob's digest, V7 the
self-test, here by the ONNX Runtime session that will serve the model. The commit point is one rename. Needs the base
install only.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import archive, bundle, container, keys, selftest, verify
from qunlearn_export.bundle import Model
from qunlearn_export.container import RefusedUpdateError
from qunlearn_export.errors import ArtefactError, ConfigError, QunlearnError, UnsupportedError, VerificationError
from qunlearn_export.layout import Layout
from qunlearn_export.oracle import dequantize, quantize
from qunlearn_export.receipt import Receipt
from qunlearn_export.runtime import make_session, read_bytes, run
from qunlearn_export.store import Active, Disk, Identity, Store

NOTHING = Active(sequence=0, files={})


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An update that passed every step in memory: what would be installed."""

    opened: verify.Opened
    target: Model
    passed: int
    active: Active | None

    @property
    def sequence(self) -> int:
        return self.opened.update.header.sequence


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A completed update: the receipt, and how many files of old models went."""

    receipt: Receipt
    sequence: int
    removed: int


def init(
    folder: str | Path,
    model: str | Path | bytes,
    *,
    device_class: UUID,
    trust: Mapping[bytes, bytes],
    sequence: int = 1,
    disk: Disk | None = None,
) -> Active:
    """The factory's step: a new store with its first model. ConfigError when the folder has files."""
    path = Path(folder)
    if not 1 <= sequence < 2**32:
        raise ConfigError(f"sequence {sequence} is not possible.", remedy="Start with 1.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder.", remedy="Choose another one.")
    first = Model.read(model)
    test = selftest.generate(first.graph)
    passed = self_test(first, test)
    if passed != len(test.seeds):
        raise VerificationError(
            f"{passed} of {len(test.seeds)} self-test vectors pass on this machine.",
            remedy="This processor or runtime does not give the audited answers; see `qunlearn inspect`.",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"cannot make the store {path}: {err.strerror}.", remedy="Choose another.") from err
    store = Store(path, disk or Disk())
    identity: dict[str, Any] = {
        "blob_bytes": len(first.blob),
        "class": str(device_class),
        "format": 1,
        "keys": sorted(k.hex() for k in trust.values()),
        "layout": first.layout.digest(),
    }
    with _storage(store):
        store.replace("device.json", identity)
        files = {"weights.bin": first.blob, "model.onnx": first.file, "selftest.bin": test.to_bytes()}
        active = store.write_slot(sequence, files)
        store.commit(active)
        store.raise_counter(sequence)
    return active


def check(store: Store, file: str | Path | bytes) -> Checked:
    """V1 to V7 in memory; nothing is written.

    RefusedUpdateError and MalformedUpdateError carry the return code; ArtefactError for a bundle that cannot be read,
    UnsupportedError for one without model.onnx.
    """
    identity, active, counter = store.identity(), store.active(), store.counter()
    data = read_bytes(file, max_bytes=bundle.MAX_BYTES)
    entries = archive.read(data, bundle.NAMES)
    if "update.bin" not in entries:
        raise ArtefactError("the bundle carries no update.bin.", remedy="Fetch the bundle again from its maker.")
    trust = {keys.key_digest(k)[:8]: k for k in identity.keys}
    update = container.read(entries["update.bin"])
    container.authenticate(update, trust)
    container.admit(
        update.header,
        device_class=identity.device_class.bytes,
        layout=cast(Layout, _Expected(identity)),
        counter=counter,
        active_sequence=(active or NOTHING).sequence,
    )
    container.check_payload(update)
    opened = verify.open_bundle(data, trust)
    if "model.onnx" not in entries:
        raise UnsupportedError(
            "the bundle carries no model.onnx, and a device does not make one.",
            remedy="Build it without --no-with-onnx.",
        )
    old = None if active is None else store.read(active, "weights.bin")
    target = _target(update, old, opened)
    test = selftest.SelfTest.from_bytes(update.selftest)
    passed = self_test(target, test)
    if passed != len(test.seeds):
        raise RefusedUpdateError(17, f"{passed} of {len(test.seeds)} vectors pass")
    return Checked(opened=opened, target=target, passed=passed, active=active)


def apply(store: Store, file: str | Path | bytes, *, mac_key: bytes | None = None) -> Applied:
    """Install a bundle: settle earlier cuts, check, write the new slot, commit, raise the counter, erase the old one.

    Errors as in :func:`check`; after each the old model runs on. The receipt is also left in ``receipt.bin``.
    """
    with _storage(store):
        store.identity()
        store.boot()
        checked = check(store, file)
        entries, update = checked.opened.entries, checked.opened.update
        files = {
            "weights.bin": checked.target.blob,
            "model.onnx": checked.target.file,
            "selftest.bin": update.selftest,
            "manifest.json": entries["manifest.json"],
            "manifest.sig": entries["manifest.sig"],
        }
        new = store.write_slot(checked.sequence, files)
        store.commit(new)
        store.raise_counter(checked.sequence)
        removed = store.clear(keep=new)
        left = store.old_slots()
        receipt = Receipt(
            code=0,
            passed=checked.passed,
            read_back=1 if left else 0,
            sequence=checked.sequence,
            counter=store.counter(),
            erased=removed,
            device=store.identity().device_class.bytes,
            old=bytes.fromhex((checked.active or NOTHING).files.get("weights.bin", "00" * 32))[:16],
            new=update.header.target[:16],
        )
        if mac_key is not None:
            mac = hmac.new(mac_key, receipt.signed(), hashlib.sha256).digest()
            receipt = Receipt.from_bytes(receipt.signed() + mac)
        store.replace_bytes("receipt.bin", receipt.to_bytes())
    return Applied(receipt=receipt, sequence=checked.sequence, removed=removed)


def start(store: Store) -> tuple[Active, Model]:
    """What a start does before the first inference: settle, then read the model. VerificationError in recovery."""
    with _storage(store):
        store.identity()
        active = store.boot()
    if active is None:
        raise VerificationError(
            "the store holds no model that may run.", remedy="Install a full update: `qunlearn device apply`."
        )
    data = store.read(active, "model.onnx")
    assert data is not None  # active() has read it
    return active, Model.read(data)


def predict(store: Store, x: NDArray[np.float32]) -> tuple[Active, NDArray[np.float32]]:
    """Logits float32 [N, K] of the running model for inputs [N, ...]; its self-test runs first (17)."""
    active, model = start(store)
    test = selftest.SelfTest.from_bytes(store.read(active, "selftest.bin") or b"")
    passed = self_test(model, test)
    if passed != len(test.seeds):
        raise RefusedUpdateError(17, f"{passed} of {len(test.seeds)} vectors pass")
    session = make_session(model.file)
    given = x if session.get_inputs()[0].type == "tensor(float)" else quantize(x, _input(model))
    out = next(iter(run(session, given).values()))
    if out.dtype == np.int8:
        out = dequantize(out, model.graph.activations[model.graph.output])
    return active, np.asarray(out, dtype=np.float32).reshape(len(x), -1)


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Answers of :func:`rollback_check`: sentences on what is wrong, and the code that each old bundle gets."""

    problems: tuple[str, ...]
    codes: Mapping[str, int]
    sequence: int
    counter: int


def rollback_check(store: Store, files: Sequence[str | Path]) -> Rollback:
    """Can an older model come back? Looks at the store as it lies, and offers it the given bundles (never installs)."""
    bad = []
    with store.locked():
        store.identity()
        active, counter = store.active(), store.counter()
        if active is None:
            bad.append("no model may run")
        elif counter < active.sequence:
            bad.append(f"the counter is {counter}, model {active.sequence} runs: start the device once")
        if store.old_slots():
            bad.append(f"old slots are left: {', '.join(store.old_slots())}: start the device once")
        codes = {}
        for file in files:
            try:
                check(store, file)
                codes[str(file)] = 0
            except (container.MalformedUpdateError, RefusedUpdateError) as err:
                codes[str(file)] = err.code
            if codes[str(file)] != 16:
                bad.append(f"{file} is not refused for its sequence (code {codes[str(file)]})")
    return Rollback(problems=tuple(bad), codes=codes, sequence=(active or NOTHING).sequence, counter=counter)


def self_test(model: Model, test: selftest.SelfTest) -> int:
    """How many vectors ONNX Runtime answers exactly on this machine; 0 when the shapes do not fit."""
    graph = model.graph
    if test.inputs != int(np.prod(graph.activations[graph.input].shape)):
        return 0
    codes = selftest.vectors(graph, test.seeds)
    session = make_session(model.file)
    given = dequantize(codes, _input(model)) if session.get_inputs()[0].type == "tensor(float)" else codes
    out = next(iter(run(session, given).values())).reshape(len(test.seeds), -1)
    if out.dtype != np.int8:
        out = quantize(out, graph.activations[graph.output])
    if out.shape != test.expected.shape:
        return 0
    return int((out == test.expected).all(axis=1).sum())


def code_of(err: QunlearnError) -> int | None:
    """The device's return code behind an error, where there is one."""
    code = getattr(err, "code", None)
    return code if isinstance(code, int) else None


@contextmanager
def _storage(store: Store) -> Iterator[None]:
    """The store locked; a failing disk is return code 20."""
    with store.locked():
        try:
            yield
        except OSError as err:
            raise RefusedUpdateError(20, f"{err.strerror or err}") from err


def _target(update: container.Update, old: bytes | None, opened: verify.Opened) -> Model:
    """V5, the delta, V6; and model.onnx must hold just that blob."""
    layout = None
    if update.header.kind == container.DELTA and (old is None or hashlib.sha256(old).digest() != update.header.base):
        raise RefusedUpdateError(13)
    target = opened.model()
    assert target is not None  # the caller has looked
    layout = target.layout
    if layout.digest() != update.header.layout.hex():
        raise RefusedUpdateError(19, "model.onnx has another layout")
    if container.apply(update, old, layout) != target.blob:
        raise RefusedUpdateError(15, "model.onnx holds another model than update.bin")
    return target


def _input(model: Model) -> Any:
    return model.graph.activations[model.graph.input]


@dataclass(frozen=True)
class _Expected:
    """The part of a layout that the admission looks at, as the store remembers it."""

    identity: Identity

    def digest(self) -> str:
        return self.identity.layout

    @property
    def blob_bytes(self) -> int:
        return self.identity.blob_bytes
