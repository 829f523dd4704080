"""Keys: RFC 8032, what must be refused, files and their modes, and that no key material is ever printed."""

from __future__ import annotations

import base64
import os
import stat
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from rfc8032 import RFC8032

from qunlearn_export import keys
from qunlearn_export.errors import ConfigError, VerificationError


@pytest.mark.parametrize("vector", RFC8032, ids=["empty", "one byte", "two bytes", "64 bytes"])
def test_rfc_8032(vector):
    secret, public, message, signature = map(bytes.fromhex, vector)
    signer = keys.LocalSigner(Ed25519PrivateKey.from_private_bytes(secret))
    assert signer.public == public
    assert signer.sign(message) == signature
    assert keys.verify(public, signature, message)
    assert not keys.verify(public, signature, message + b"x")


def test_every_flipped_bit_is_refused():
    public, message, signature = (bytes.fromhex(x) for x in RFC8032[2][1:])
    for i in range(512):
        flipped = bytearray(signature)
        flipped[i // 8] ^= 1 << i % 8
        assert not keys.verify(public, bytes(flipped), message)
    for i in range(256):
        flipped = bytearray(public)
        flipped[i // 8] ^= 1 << i % 8
        assert not keys.verify(bytes(flipped), signature, message)


def test_the_same_signature_with_s_plus_the_group_order_is_refused():
    public, message, signature = (bytes.fromhex(x) for x in RFC8032[1][1:])
    s = int.from_bytes(signature[32:], "little") + keys.L
    assert not keys.verify(public, signature[:32] + s.to_bytes(32, "little"), message)


def edwards(y: int, sign: int) -> tuple[int, int] | None:
    """The point of that y, or None: RFC 8032, 5.1.3, in plain integers."""
    p, d = keys.P, -121665 * pow(121666, -1, keys.P) % keys.P
    u, v = (y * y - 1) % p, (d * y * y + 1) % p
    x = pow(u * pow(v, -1, p), (p + 3) // 8, p)
    if (v * x * x - u) % p:
        x = x * pow(2, (p - 1) // 4, p) % p
    if (v * x * x - u) % p:
        return None
    return (p - x if x % 2 != sign else x), y


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    p, d = keys.P, -121665 * pow(121666, -1, keys.P) % keys.P
    t = d * a[0] * b[0] * a[1] * b[1] % p
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + t, -1, p) % p
    return x, (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, p) % p


def test_the_list_of_small_orders_is_right_and_complete():
    """Every listed y has order 1, 2, 4 or 8; with both signs that makes the eight points there are."""
    points = set()
    for y in keys.SMALL_ORDER:
        for sign in (0, 1):
            point = edwards(y, sign)
            assert point is not None
            eight = point
            for _ in range(3):
                eight = add(eight, eight)
            assert eight == (0, 1)
            points.add((point[0] % keys.P, y))
    assert len(points) == 8


@pytest.mark.parametrize("y", sorted(keys.SMALL_ORDER))
def test_keys_of_small_order_and_other_spellings_are_refused(y, tmp_path):
    for value in (y, y + keys.P if y + keys.P < 2**255 else y):
        for sign in (0, 1):
            public = (value | sign << 255).to_bytes(32, "little")
            # with such a key, R = the neutral point and S = 0 would satisfy the equation for many messages
            forged = (1).to_bytes(32, "little") + bytes(32)
            assert not any(keys.verify(public, forged, bytes([i])) for i in range(16))
            assert not keys.sound(public)


def test_non_canonical_keys_are_refused():
    for y in range(keys.P, 2**255):
        assert not keys.sound(y.to_bytes(32, "little"))
    assert keys.sound(bytes.fromhex(RFC8032[0][1]))


def test_random_signatures_hold():
    rng = np.random.default_rng(0)
    for _ in range(200):
        signer = keys.LocalSigner(Ed25519PrivateKey.from_private_bytes(rng.bytes(32)))
        message = rng.bytes(int(rng.integers(0, 300)))
        assert keys.verify(signer.public, signer.sign(message), message)


def test_wrong_sizes_are_refused():
    public, message, signature = (bytes.fromhex(x) for x in RFC8032[1][1:])
    assert not keys.verify(public[:-1], signature, message)
    assert not keys.verify(public, signature[:-1], message)
    assert not keys.verify(public, signature + b"\0", message)


def test_key_files(tmp_path):
    private, public, header = keys.generate(tmp_path, "release", b"long enough")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    assert keys.is_encrypted(private)
    signer = keys.load_private(private, b"long enough")
    assert keys.load_public(public) == signer.public
    values = [int(x, 16) for x in header.read_text().replace(",", " ").split() if x.startswith("0x")]
    assert bytes(values) == signer.public
    assert "unsigned char qul_key_release[32]" in header.read_text()
    with pytest.raises(ConfigError, match="exists"):
        keys.generate(tmp_path, "release", b"long enough")
    plain, _, _ = keys.generate(tmp_path, "plain", None)
    assert not keys.is_encrypted(plain)
    assert keys.load_private(plain, None).public != signer.public


def test_refused_key_files(tmp_path):
    private, _, _ = keys.generate(tmp_path, "a", b"long enough")
    plain, _, _ = keys.generate(tmp_path, "b", None)
    secrets = {p: p.read_bytes() for p in (private, plain)}
    elliptic = tmp_path / "ec.pem"
    key = generate_private_key(SECP256R1())
    elliptic.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    elliptic.chmod(0o600)
    (tmp_path / "ec.pub.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    noise = tmp_path / "noise.pem"
    noise.write_bytes(b"x" * 100)
    noise.chmod(0o600)
    large = tmp_path / "large.pem"
    large.write_bytes(b"x" * 100_000)
    large.chmod(0o600)
    texts = []
    for path, phrase, match in (
        (private, b"wrong wrong", "wrong passphrase"),
        (private, None, "no passphrase was given"),
        (plain, b"needless one", "is not encrypted"),
        (elliptic, None, "not an Ed25519 key"),
        (noise, None, "cannot be opened"),
        (large, None, "too large"),
        (tmp_path / "absent.pem", None, "cannot read"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            keys.load_private(path, phrase)
        texts.append(str(caught.value))
    for path, match in ((noise, "not a public key"), (tmp_path / "ec.pub.pem", "not an Ed25519"), (private, "not a")):
        with pytest.raises(ConfigError, match=match) as caught:
            keys.load_public(path)
        texts.append(str(caught.value))
    for content in secrets.values():
        for line in content.decode().splitlines()[1:-1]:
            assert all(line not in text for text in texts)
    assert all("wrong wrong" not in text for text in texts)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    private, _, _ = keys.generate(tmp_path, "a", None)
    private.chmod(mode)
    with pytest.raises(ConfigError, match="others may read"):
        keys.load_private(private, None)


def test_short_passphrases_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="fewer than 8"):
        keys.generate(tmp_path, "a", b"short")
    assert not list(tmp_path.iterdir())


def test_the_published_key_needs_leave(tmp_path):
    signer = keys.test_signer()
    with pytest.raises(ConfigError, match="published TEST key"):
        keys.refuse_test_key(signer.public, allowed=False)
    keys.refuse_test_key(signer.public, allowed=True)
    file = tmp_path / "t.pem"
    file.write_bytes(keys.public_pem(signer.public))
    for name in ("TEST", file):
        with pytest.raises(ConfigError, match="published TEST key"):
            keys.trusted([name])
        assert list(keys.trusted([name], allow_test_key=True).values()) == [signer.public]
    with pytest.raises(ConfigError, match="no key is trusted"):
        keys.trusted([])


def test_nothing_of_a_key_is_in_its_repr():
    seed = keys.TEST_SEED
    text = repr(keys.test_signer())
    assert seed.hex() not in text
    assert base64.b64encode(seed).decode() not in text


def command(tmp_path, body: str) -> str:
    script = tmp_path / "signer.py"
    script.write_text(body)
    return f"{sys.executable} {script}"


def test_a_command_signs(tmp_path):
    seed = os.urandom(32)
    (tmp_path / "seed").write_bytes(seed)
    body = (
        "import sys\nfrom cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey as K\n"
        f"k = K.from_private_bytes(open({str(tmp_path / 'seed')!r}, 'rb').read())\n"
        "sys.stdout.buffer.write(k.sign(sys.stdin.buffer.read()))"
    )
    public = keys.LocalSigner(Ed25519PrivateKey.from_private_bytes(seed)).public
    signer = keys.CommandSigner(command=command(tmp_path, body), public=public)
    assert keys.verify(public, signer.sign(b"message"), b"message")
    other = keys.CommandSigner(command=signer.command, public=keys.test_signer().public)
    with pytest.raises(VerificationError, match="does not fit the public key"):
        other.sign(b"message")


@pytest.mark.parametrize(
    "body", ["import sys; sys.exit(3)", "print('no')", "import sys; sys.stdout.buffer.write(bytes(65))"]
)
def test_commands_that_do_not_sign(tmp_path, body):
    signer = keys.CommandSigner(command=command(tmp_path, body), public=keys.test_signer().public)
    with pytest.raises(ConfigError, match="in place of 64"):
        signer.sign(b"message")


def test_commands_that_do_not_run(tmp_path):
    for text in ("/nonexistent/signer", "'unbalanced"):
        with pytest.raises(ConfigError, match="did not run"):
            keys.CommandSigner(command=text, public=bytes(32)).sign(b"x")
    slow = command(tmp_path, "import time; time.sleep(30)")
    with pytest.raises(ConfigError, match="did not run"):
        keys.CommandSigner(command=slow, public=bytes(32), seconds=0.5).sign(b"x")
