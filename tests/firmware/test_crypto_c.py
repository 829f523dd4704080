"""SHA-256, SHA-512 and Ed25519 in C against hashlib, RFC 8032 and the package ``cryptography``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from rfc8032 import RFC8032

from qunlearn_export import keys

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


class State512(ctypes.Structure):
    """qul_sha512_t."""

    _fields_ = (("h", ctypes.c_uint64 * 8), ("total", ctypes.c_uint32), ("buf", ctypes.c_uint8 * 128))


class State256(ctypes.Structure):
    """qul_sha256_t."""

    _fields_ = (("h", ctypes.c_uint32 * 8), ("total", ctypes.c_uint32), ("buf", ctypes.c_uint8 * 64))


def sha(lib: ctypes.CDLL, bits: int, parts: list[bytes]) -> bytes:
    state = State256() if bits == 256 else State512()
    getattr(lib, f"qul_sha{bits}_start")(ctypes.byref(state))
    for part in parts:
        getattr(lib, f"qul_sha{bits}_add")(ctypes.byref(state), part, len(part))
    out = ctypes.create_string_buffer(bits // 8)
    getattr(lib, f"qul_sha{bits}_end")(ctypes.byref(state), out)
    return out.raw


def verify(lib: ctypes.CDLL, key: bytes, message: bytes, signature: bytes, cut: int = 0) -> bool:
    """The C side's verdict; the Python side must give the same, whatever the case."""
    head, tail = message[:cut], message[cut:]
    found = bool(lib.qul_ed25519_verify(signature, key, head, len(head), tail, len(tail)))
    assert keys.verify(key, signature, message) is found
    return found


def by_library(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@pytest.mark.parametrize("bits", [256, 512])
def test_sha_lengths_and_pieces(c_crypto, bits):
    reference = getattr(hashlib, f"sha{bits}")
    rng = random.Random(bits)
    for n in range(258):
        data = rng.randbytes(n)
        assert sha(c_crypto, bits, [data]) == reference(data).digest(), n
        cut = rng.randrange(n + 1)
        assert sha(c_crypto, bits, [data[:cut], data[cut:]]) == reference(data).digest(), n
    million = b"a" * 1_000_000
    assert sha(c_crypto, bits, [million]) == reference(million).digest()


def test_sha_standard_vectors(c_crypto):
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha(c_crypto, 256, [b"abc"]).hex() == abc
    out = ctypes.create_string_buffer(32)
    c_crypto.qul_sha256(b"abc", 3, out)
    assert out.raw.hex() == abc
    two = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
    assert sha(c_crypto, 256, [two]).hex() == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    assert sha(c_crypto, 512, [b"abc"]).hex() == (
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
    )


@pytest.mark.parametrize("case", RFC8032, ids=["1", "2", "3", "sha(abc)"])
def test_rfc_8032(c_crypto, case):
    secret, key, message, signature = (bytes.fromhex(v) for v in case)
    assert Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == key
    assert verify(c_crypto, key, message, signature)
    assert not verify(c_crypto, key, message + b"x", signature)
    assert not verify(c_crypto, key, message, signature[:63] + bytes([signature[63] ^ 1]))


def test_a_thousand_random_signatures(c_crypto):
    rng = random.Random(1)
    for i in range(1000):
        private = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        key, message = private.public_key().public_bytes_raw(), rng.randbytes(i % 300)
        signature = private.sign(message)
        assert verify(c_crypto, key, message, signature, cut=i % 19)
        bad = bytearray(signature)
        bad[rng.randrange(64)] ^= 1 << rng.randrange(8)
        assert not verify(c_crypto, key, message, bytes(bad))
        assert not by_library(key, message, bytes(bad))
        other = bytearray(key)
        other[rng.randrange(32)] ^= 1 << rng.randrange(8)
        assert verify(c_crypto, bytes(other), message, signature) == by_library(bytes(other), message, signature)


def test_every_bit_of_one_signature_and_key(c_crypto):
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    key, message = private.public_key().public_bytes_raw(), b"update"
    signature = private.sign(message)
    for bit in range(512):
        bad = bytearray(signature)
        bad[bit // 8] ^= 1 << bit % 8
        assert not verify(c_crypto, key, message, bytes(bad)), bit
    for bit in range(256):
        bad = bytearray(key)
        bad[bit // 8] ^= 1 << bit % 8
        assert not verify(c_crypto, bytes(bad), message, signature), bit


def test_s_plus_group_order(c_crypto):
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key, message = private.public_key().public_bytes_raw(), b"update"
    signature = private.sign(message)
    s = int.from_bytes(signature[32:], "little")
    for k in range(1, 16):
        if s + k * L < 2**256:
            bad = signature[:32] + (s + k * L).to_bytes(32, "little")
            assert not verify(c_crypto, key, message, bad)
            assert not by_library(key, message, bad)
    assert not verify(c_crypto, key, message, signature[:32] + L.to_bytes(32, "little"))


def root(v: int) -> int | None:
    """A square root modulo p, or None."""
    r = pow(v, (P + 3) // 8, P)
    for c in (r, r * pow(2, (P - 1) // 4, P) % P):
        if c * c % P == v % P:
            return c
    return None


def points_of_small_order() -> list[bytes]:
    """Encodings of the eight points whose order divides 8, non-canonical spellings included.

    Orders 1, 2, 4: y = 1, -1, 0. Order 8: the double has y = 0, so x^2 = -y^2, hence d y^4 + 2 y^2 - 1 = 0.
    """
    ys = {0, 1, P - 1}
    half = root(1 + D)
    assert half is not None
    for square in ((half - 1) * pow(D, -1, P), (-half - 1) * pow(D, -1, P)):
        y = root(square)
        ys |= set() if y is None else {y, P - y}
    assert len(ys) == 5
    out = [y | sign << 255 for y in ys for sign in (0, 1)]
    out += [(y + P) | sign << 255 for y in ys if y + P < 2**255 for sign in (0, 1)]
    return [v.to_bytes(32, "little") for v in out]


def test_keys_of_small_order_are_refused(c_crypto):
    """With such a key, R = [S]B can be made to verify for some messages: try many, none may pass."""
    small = points_of_small_order()
    assert len(small) >= 14
    scalar = 12345
    r_points = [encoded_multiple(scalar), *small]
    accepted_elsewhere = 0
    for key in small:
        for r in r_points:
            for n in range(8):
                for s in (scalar, 0):
                    signature = r + s.to_bytes(32, "little")
                    message = bytes([n])
                    assert not verify(c_crypto, key, message, signature)
                    accepted_elsewhere += by_library(key, message, signature)
    assert accepted_elsewhere > 0  # the control: without the rule some of these do pass


def encoded_multiple(scalar: int) -> bytes:
    """[scalar]B by plain affine addition."""
    by = 4 * pow(5, -1, P) % P
    bx = root((by * by - 1) * pow(D * by * by + 1, -1, P))
    assert bx is not None
    bx = bx if bx % 2 == 0 else P - bx

    def plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        t = D * a[0] * b[0] * a[1] * b[1] % P
        return (
            (a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, P) % P,
            (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P) % P,
        )

    total, step = (0, 1), (bx, by)
    while scalar:
        if scalar & 1:
            total = plus(total, step)
        step, scalar = plus(step, step), scalar >> 1
    return (total[1] | (total[0] & 1) << 255).to_bytes(32, "little")


def test_non_canonical_r_and_key(c_crypto):
    """R = 1 spelt as p + 1 (and as 1 with the sign bit): [S]B - [k]A equals 1 for S = k a, but the bytes differ."""
    seed = bytes(32)
    a = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little") & ((1 << 254) - 8) | (1 << 254)
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert encoded_multiple(a % L) == key
    for spelling, right in ((1, True), (P + 1, False), (1 | 1 << 255, False), ((P + 1) | 1 << 255, False)):
        r = spelling.to_bytes(32, "little")
        k = int.from_bytes(hashlib.sha512(r + key + b"m").digest(), "little") % L
        signature = r + (k * a % L).to_bytes(32, "little")
        assert verify(c_crypto, key, b"m", signature) is right
        assert by_library(key, b"m", signature) is right
    for y in range(19):  # y and p + y name one point; only y is taken, and most are no points at all
        bad = (P + y).to_bytes(32, "little")
        assert not verify(c_crypto, bad, b"m", os.urandom(32) + bytes(32))
