"""Ed25519 keys: make, read, sign, verify. Keys never enter bundles, logs or error text.

RFC 8032, with the rule that host and device share: S below the group order, canonical encodings, keys of small order
refused, and a signature holds exactly when the encoding of [S]B - [k]A equals R byte for byte (the RFC's cofactorless
equation). Signing is the ``cryptography`` package's, or an external command's for hardware modules.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qunlearn_export.errors import ConfigError, VerificationError
from qunlearn_export.files import write_atomic

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
_EIGHT = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL_ORDER = frozenset({0, 1, P - 1, _EIGHT, P - _EIGHT})
"""y of the points whose order divides 8."""
MAX_FILE = 16384
TEST_SEED = hashlib.sha256(b"qunlearn TEST key: published, never for a real device").digest()
"""Secret half of the example key. Everybody has it, so it is refused unless it is asked for by name."""


class Signer(Protocol):
    """Holder of a private key: raw public key (32 bytes) and signatures (64 bytes)."""

    @property
    def public(self) -> bytes: ...
    def sign(self, message: bytes) -> bytes: ...


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Does ``signature`` (64 bytes) of ``message`` hold under the raw key ``public`` (32 bytes)?"""
    if len(public) != 32 or len(signature) != 64 or not sound(public):
        return False
    if int.from_bytes(signature[32:], "little") >= L or _y(signature[:32]) >= P:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def sound(public: bytes) -> bool:
    """Is it a canonical encoding and not of small order?"""
    y = _y(public)
    return y < P and y not in SMALL_ORDER


def key_digest(public: bytes) -> bytes:
    """SHA-256 of the raw public key; its first 8 bytes are the key id."""
    return hashlib.sha256(public).digest()


def test_signer() -> LocalSigner:
    """The published example key."""
    return LocalSigner(Ed25519PrivateKey.from_private_bytes(TEST_SEED))


def is_test_key(public: bytes) -> bool:
    """Is it the published example key?"""
    return public == test_signer().public


def refuse_test_key(public: bytes, *, allowed: bool) -> None:
    """ConfigError for the published example key unless it was allowed by name."""
    if is_test_key(public) and not allowed:
        raise ConfigError(
            "this is the published TEST key: everybody can sign with it.",
            remedy="Make a key with `qunlearn bundle keygen`; for a trial, give --allow-test-key.",
        )


@dataclass(frozen=True)
class LocalSigner:
    """A private key in memory; its ``repr`` shows nothing of it."""

    key: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self.key.sign(message)


@dataclass(frozen=True, kw_only=True)
class CommandSigner:
    """A command that reads the message on stdin and writes the signature, 64 bytes, on stdout (a hardware module).

    ``public`` must be given, since the command says nothing of it; every signature is checked against it.
    """

    command: str
    public: bytes
    seconds: float = 60.0

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes; ConfigError or VerificationError when the command does not give one that holds."""
        try:
            done = subprocess.run(
                shlex.split(self.command), input=message, capture_output=True, timeout=self.seconds, check=False
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as err:
            raise ConfigError(
                f"the signer command did not run ({type(err).__name__}).", remedy="Check --signer by hand."
            ) from err
        if done.returncode != 0 or len(done.stdout) != 64:
            raise ConfigError(
                f"the signer command ended with {done.returncode} and {len(done.stdout)} bytes in place of 64.",
                remedy="It must read the message on stdin and write the raw signature on stdout.",
            )
        if not verify(self.public, done.stdout, message):
            raise VerificationError(
                "the signer command's signature does not fit the public key.", remedy="Give its own public key."
            )
        return done.stdout


def generate(folder: Path, name: str, passphrase: bytes | None) -> tuple[Path, Path, Path]:
    """Write ``name.pem`` (PKCS#8, mode 0600, encrypted unless ``passphrase`` is None), ``name.pub.pem`` and ``name.h``.

    An existing file is a ConfigError: a lost key cannot be had back.
    """
    private, public, header = (folder / f"{name}{end}" for end in (".pem", ".pub.pem", ".h"))
    for path in (private, public, header):
        if path.exists():
            raise ConfigError(f"{path} exists.", remedy="Choose another name; keys are never written over.")
    if passphrase is not None and len(passphrase) < 8:
        raise ConfigError("the passphrase has fewer than 8 characters.", remedy="Choose a longer one.")
    key = Ed25519PrivateKey.generate()
    hide: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        hide = serialization.BestAvailableEncryption(passphrase)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hide)
    raw = LocalSigner(key).public
    write_atomic(private, pem, mode=0o600)
    write_atomic(public, public_pem(raw))
    write_atomic(header, c_header(raw, name).encode())
    return private, public, header


def public_pem(public: bytes) -> bytes:
    """A raw public key as PEM."""
    return Ed25519PublicKey.from_public_bytes(public).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def c_header(public: bytes, name: str) -> str:
    """A raw public key as a C array, for the firmware's list of keys."""
    symbol = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
    rows = "\n".join("  " + " ".join(f"0x{b:02x}," for b in public[i : i + 8]) for i in range(0, 32, 8))
    return (
        f"/* Ed25519 public key, key id {key_digest(public)[:8].hex()} */\n"
        f"static const unsigned char qul_key_{symbol}[32] = {{\n{rows}\n}};\n"
    )


def load_private(path: str | os.PathLike[str], passphrase: bytes | None) -> LocalSigner:
    """A PKCS#8 PEM file. ConfigError when others may read it, the passphrase is wrong, or it is not Ed25519."""
    refuse_shared(path)
    pem = _small(path)
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError as err:
        told = "is encrypted and no passphrase was given" if passphrase is None else "is not encrypted"
        raise ConfigError(
            f"the key file {path} {told}.", remedy="Give --passphrase-file, or leave it out for a key without one."
        ) from err
    except (ValueError, UnsupportedAlgorithm) as err:
        raise ConfigError(
            f"the key file {path} cannot be opened: wrong passphrase, or not a PKCS#8 PEM key.",
            remedy="Check the passphrase; make keys with `qunlearn bundle keygen`.",
        ) from err
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key.", remedy="Make one with `qunlearn bundle keygen`.")
    return LocalSigner(key)


def refuse_shared(path: str | os.PathLike[str]) -> None:
    """ConfigError for a private key file that others may read, or that is not there."""
    try:
        mode = os.stat(path).st_mode
    except OSError as err:
        raise ConfigError(f"cannot read the key file {path}: {err.strerror}.", remedy="Check the path.") from err
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"others may read the key file {path}.", remedy=f"Make it yours alone: chmod 600 {path}; better, a new key."
        )


def is_encrypted(path: str | os.PathLike[str]) -> bool:
    """Does the private key file ask for a passphrase?"""
    return b"ENCRYPTED PRIVATE KEY" in _small(path)


def load_public(path: str | os.PathLike[str]) -> bytes:
    """Raw key (32 bytes) of a public PEM file; ConfigError when it is none, not canonical or of small order."""
    try:
        key = serialization.load_pem_public_key(_small(path))
    except (ValueError, UnsupportedAlgorithm) as err:
        raise ConfigError(f"{path} is not a public key in PEM form.", remedy="Give the .pub.pem of keygen.") from err
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 public key.", remedy="Give the .pub.pem of keygen.")
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    if not sound(raw):
        raise ConfigError(f"the key in {path} is not canonical or of small order.", remedy="Make a new key.")
    return raw


def trusted(paths: Iterable[str | os.PathLike[str]], *, allow_test_key: bool = False) -> dict[bytes, bytes]:
    """Public keys by key id (8 bytes); ``TEST`` is the published one. At least one: bundles bring no trust."""
    out = {}
    for path in paths:
        raw = test_signer().public if path == "TEST" else load_public(path)
        refuse_test_key(raw, allowed=allow_test_key)
        out[key_digest(raw)[:8]] = raw
    if not out:
        raise ConfigError("no key is trusted.", remedy="Give the signer's public key by --trust.")
    return out


def _y(encoded: bytes) -> int:
    return int.from_bytes(encoded, "little") & (2**255 - 1)


def _small(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_FILE + 1)
    except OSError as err:
        raise ConfigError(f"cannot read the key file {path}: {err.strerror}.", remedy="Check the path.") from err
    if len(data) > MAX_FILE:
        raise ConfigError(f"the key file {path} is too large.", remedy="Give a PEM key.")
    return data
