"""update.bin: the header byte by byte, every bit of it, and the order of verification with its return codes."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import bundle_cases as cases
import numpy as np
import pytest

from qunlearn_export import archive, bundle, container, delta, keys
from qunlearn_export.container import MalformedUpdateError, RefusedUpdateError
from qunlearn_export.errors import QunlearnError


@pytest.fixture(scope="module")
def data(world):
    return archive.read(world.build().data, bundle.NAMES)["update.bin"]


@pytest.fixture(scope="module")
def full(world):
    return archive.read(world.build(mode="full").data, bundle.NAMES)["update.bin"]


def install(world, data, *, counter=6, active=6, device=cases.DEVICE.bytes, layout=None, blob=None, arena=None):
    """What a device does, V1 to V6."""
    layout = layout or world.base.layout
    update = container.read(data)
    container.authenticate(update, cases.TRUST)
    container.admit(
        update.header, device_class=device, layout=layout, counter=counter, active_sequence=active, arena=arena
    )
    container.check_payload(update)
    return container.apply(update, world.base.blob if blob is None else blob, layout)


def code(world, data, **state) -> int:
    with pytest.raises((MalformedUpdateError, RefusedUpdateError)) as caught:
        install(world, data, **state)
    assert caught.value.remedy
    return caught.value.code


def signed(data, body=None, selftest=None, signer=cases.SIGNER, **fields):
    """The update with header fields changed, lengths and payload digest made right, signed anew."""
    old = container.read(data)
    body = old.body if body is None else body
    selftest = old.selftest if selftest is None else selftest
    right = {
        "body_bytes": len(body),
        "selftest_bytes": len(selftest),
        "payload": hashlib.sha256(body + selftest).digest(),
        "key_id": keys.key_digest(signer.public)[:8],
    }
    return container.build(replace(old.header, **{**right, **fields}), body, selftest, signer)


def test_layout_of_the_header(world, data):
    body = delta.encode(world.base.blob, world.target.blob, world.target.layout)
    assert data[64:72] == b"QUP1" + bytes([1, 0, 0, 2])
    assert struct.unpack_from("<II", data, 72) == (7, 6)
    assert data[80:96] == cases.DEVICE.bytes
    sizes = struct.unpack_from("<IIII", data, 96)
    scratch = 4 * sum(f.channels for f in world.base.layout.folds)
    assert sizes == (len(world.base.blob), len(body), len(data) - 288 - len(body), scratch)
    assert data[112:144].hex() == world.base.layout.digest()
    assert data[144:176] == hashlib.sha256(world.base.blob).digest()
    assert data[176:208] == hashlib.sha256(world.target.blob).digest()
    assert data[208:240] == hashlib.sha256(data[288:]).digest()
    assert data[272:280] == hashlib.sha256(cases.SIGNER.public).digest()[:8]
    assert data[280:288] == bytes(8)
    assert data[288 : 288 + len(body)] == body
    assert keys.verify(cases.SIGNER.public, data[:64], b"QUNLEARN-UPDATE-1\0" + data[64:288])


def test_it_installs(world, data, full):
    assert install(world, data) == world.target.blob
    assert install(world, full, active=0, counter=0) == world.target.blob
    assert install(world, full, blob=b"not needed") == world.target.blob


def test_every_bit_of_header_and_signature(world, data):
    for i in range(8 * 288):
        changed = bytearray(data)
        changed[i // 8] ^= 1 << i % 8
        found = code(world, bytes(changed))
        byte = i // 8
        if byte < 64 or 72 <= byte < 96 or 112 <= byte < 280:
            assert found == 10, byte  # nothing but sizes is looked at before the signature
        elif 68 <= byte < 70:
            assert found == 21, byte
        else:
            assert found in (10, 11), byte


def test_payload_bits(world, data):
    rng = np.random.default_rng(0)
    for i in rng.choice(8 * (len(data) - 288), min(2000, 8 * (len(data) - 288)), replace=False):
        changed = bytearray(data)
        changed[288 + i // 8] ^= 1 << int(i) % 8
        assert code(world, bytes(changed)) == 12


@pytest.mark.parametrize("n", [0, 1, 63, 64, 287, 288])
def test_cut_off(world, data, n):
    assert code(world, data[:n]) == 11
    assert code(world, data[:-1]) == 11
    assert code(world, data + b"\0") == 11


def test_the_right_code_for_each_fault(world, data, full, nets):
    other = keys.LocalSigner(keys.Ed25519PrivateKey.generate())
    assert code(world, signed(data, signer=other)) == 10
    assert code(world, signed(data, key_id=bytes(8))) == 10
    assert code(world, data, device=bytes(16)) == 18
    small = cases.make(nets.random("gemm", np.random.default_rng(0)).graph, world.base.graph).base.layout
    assert code(world, data, layout=small) == 19
    assert code(world, signed(data, blob_bytes=len(world.base.blob) + 16)) == 19
    assert code(world, data, arena=container.read(data).header.scratch_bytes - 4) == 19
    assert install(world, data, arena=container.read(data).header.scratch_bytes) == world.target.blob
    assert code(world, data, blob=world.target.blob) == 13
    assert code(world, signed(data, body=container.read(data).body[:-1])) == 14
    wrong = delta.encode(world.base.blob, world.base.blob, world.base.layout)
    assert code(world, signed(data, body=wrong)) == 15
    assert code(world, signed(full, target=bytes(32))) == 15


@pytest.mark.parametrize(
    ("kind", "counter", "active", "refused"),
    [
        ("delta", 6, 6, False),
        ("delta", 7, 6, True),
        ("delta", 8, 6, True),
        ("delta", 6, 5, True),
        ("delta", 0, 7, True),
        ("full", 6, 6, False),
        ("full", 0, 0, False),
        ("full", 7, 7, True),
        ("full", 7, 0, True),
        ("full", 0, 7, True),
        ("full", 9, 8, True),
    ],
)
def test_rollback(world, data, full, kind, counter, active, refused):
    """Equal and lower sequences are refused also when correctly signed; a full image may leave gaps."""
    update = data if kind == "delta" else full
    if refused:
        assert code(world, update, counter=counter, active=active) == 16
    else:
        assert install(world, update, counter=counter, active=active) == world.target.blob


def raw(data, at, values, *, signer=cases.SIGNER):
    """Header bytes changed, signed anew."""
    fields = bytearray(data[64:288])
    fields[at - 64 : at - 64 + len(values)] = values
    return signer.sign(container.DOMAIN + bytes(fields)) + bytes(fields) + data[288:]


def test_signed_headers_of_other_versions_and_kinds(world, data, full):
    assert code(world, raw(data, 68, b"\2\0")) == 21
    assert code(world, raw(data, 68, b"\0\1")) == 21
    assert code(world, raw(data, 70, b"\2")) == 11
    for flags in (0, 1, 4 | 2, 128 | 2):
        assert code(world, raw(data, 71, bytes([flags]))) == 11
    assert code(world, raw(data, 280, b"\1")) == 11
    assert code(world, raw(full, 76, b"\1")) == 11
    assert code(world, raw(full, 144, b"\1")) == 11
    for at in (96, 100, 104, 108):
        assert code(world, raw(data, at, b"\xff\xff\xff\xff")) == 11


def test_a_manifest_signature_does_not_serve_for_a_container(world, data):
    text = b"QUNLEARN-UPDATE-1\0" + data[64:288]
    assert not cases.m.signed_bytes(text).startswith(container.DOMAIN)
    assert code(world, cases.SIGNER.sign(cases.m.signed_bytes(data[64:288])) + data[64:]) == 10


def test_every_code_has_a_meaning_and_an_error_of_the_family():
    assert set(container.MEANING) == {0, *range(10, 22)}
    for number in range(10, 21):
        error = RefusedUpdateError(number)
        assert isinstance(error, QunlearnError)
        assert error.exit_code == 3
        assert error.remedy
    assert MalformedUpdateError(11, "x").exit_code == 2
