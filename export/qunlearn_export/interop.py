"""Other people's envelopes for what a bundle ships, where their tools are installed: MCUboot images, model-signing.

Both are additions for receivers that ask for them. Neither replaces the bundle's signatures, devices of this project
read neither, and neither tool comes with the package.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from qunlearn_export.errors import ConfigError, MissingDependencyError, VerificationError
from qunlearn_export.keys import refuse_shared

HEADER = 0x200
"""Bytes of the image header: the blob keeps its alignment behind it."""

TRAILER = 32 * 1024
PAGE = 4096
ALIGN = "8"
MANIFEST_TLV = "0x00A0"
"""The first of MCUboot's vendor-reserved tags; the protected field holds the SHA-256 of manifest.json."""

SECONDS = 120.0


def imgtool() -> str:
    """Path of MCUboot's imgtool; MissingDependencyError without it."""
    found = shutil.which("imgtool")
    if found is None:
        raise MissingDependencyError("--imgtool needs MCUboot's imgtool.", remedy="Install it: pip install imgtool.")
    return found


def mcuboot_image(blob: bytes, *, sequence: int, manifest: bytes, key: str | None) -> bytes:
    """``blob`` as an MCUboot image: version 0.0.0+sequence, security counter ``sequence``, the digest ``manifest``
    (32 bytes) as a protected field, signed with MCUboot's private ``key`` (PEM) or, without one, hashed only.

    ConfigError where the tool refuses, VerificationError where the image lacks the blob or the digest.
    """
    slot = -(-(HEADER + len(blob) + TRAILER) // PAGE) * PAGE
    if key is not None:
        refuse_shared(key)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "weights.bin", Path(folder) / "weights.img"
        source.write_bytes(blob)
        command = [imgtool(), "sign", "--align", ALIGN, "--header-size", hex(HEADER), "--pad-header"]
        command += ["--slot-size", hex(slot), "--version", f"0.0.0+{sequence}", "--security-counter", str(sequence)]
        command += ["--custom-tlv", MANIFEST_TLV, f"0x{manifest.hex()}", *([] if key is None else ["--key", key])]
        try:
            # without a terminal of its own the tool cannot wait for a passphrase
            done = subprocess.run(
                [*command, str(source), str(target)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                start_new_session=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise ConfigError(f"imgtool did not run ({type(err).__name__}).", remedy="Try `imgtool version`.") from err
        if done.returncode != 0 or not target.is_file():
            raise ConfigError(
                f"imgtool ended with {done.returncode} and no image.",
                remedy="Its key must be a PEM file without a passphrase, of a kind that this imgtool signs with.",
            )
        image = target.read_bytes()
    if image[HEADER : HEADER + len(blob)] != blob or manifest not in image[HEADER + len(blob) :]:
        raise VerificationError(
            "imgtool's image does not hold the weights and the manifest's digest.", remedy="Use imgtool 2.x."
        )
    return image


def model_signing() -> Any:
    """The signing module of sigstore's model-signing; MissingDependencyError where it cannot be imported."""
    try:
        return importlib.import_module("model_signing.signing")
    except ImportError as err:
        raise MissingDependencyError(
            f"--model-signing needs the package model-signing ({err}).",
            remedy="Install it: pip install model-signing pyOpenSSL.",
        ) from err


def model_signature(model: bytes, *, key: str, name: str = "model.onnx") -> bytes:
    """A sigstore bundle over the file ``model`` under ``name``, signed with an elliptic-curve private ``key`` (PEM).

    ConfigError where the package refuses; it takes no Ed25519 keys, so a bundle's own key does not serve.
    """
    refuse_shared(key)
    signing = model_signing()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / name, Path(folder) / "model.sig"
        source.write_bytes(model)
        try:
            signing.Config().use_elliptic_key_signer(private_key=Path(key)).sign(source, target)
            return target.read_bytes()
        except Exception as err:  # the package raises what its own dependencies raise
            raise ConfigError(
                f"model-signing did not sign ({type(err).__name__}).",
                remedy="Give a P-256, P-384 or P-521 private key as PEM without a passphrase.",
            ) from err
