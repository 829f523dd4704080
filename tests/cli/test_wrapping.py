"""`bundle build --imgtool` and `--model-signing` with stand-ins for both tools; imgtool itself where it is there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qunlearn.cli.wrapping import Wraps
from qunlearn_export import interop
from qunlearn_export.errors import ConfigError, MissingDependencyError, VerificationError

BLOB, MANIFEST = bytes(range(256)) * 40, hashlib.sha256(b"manifest").digest()
STUB = """\
import json, os, sys
argv = sys.argv[1:]
json.dump(argv, open(os.environ["STUB_LOG"], "w"))
mode = os.environ.get("STUB_MODE", "")
if mode == "fail":
    sys.exit(2)
value = bytes.fromhex(argv[argv.index("--custom-tlv") + 2][2:])
header = int(argv[argv.index("--header-size") + 1], 0)
blob = open(argv[-2], "rb").read()
if mode == "corrupt":
    blob = blob[:-1] + bytes([blob[-1] ^ 1])
open(argv[-1], "wb").write(bytes(header) + blob + (b"" if mode == "bare" else value))
"""


@pytest.fixture
def imgtool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in on PATH that records how it was called; the folder it is in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "stub.py").write_text(STUB)
    tool = folder / "imgtool"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "stub.py"} "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STUB_LOG", str(folder / "log.json"))
    return folder


@pytest.fixture
def ec_key(tmp_path: Path) -> Path:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "ec.pem"
    path.write_bytes(pem)
    path.chmod(0o600)
    return path


class Config:
    """Stand-in for the package's signing configuration."""

    def use_elliptic_key_signer(self, *, private_key: Path) -> Config:
        self.key = serialization.load_pem_private_key(private_key.read_bytes(), None)
        assert isinstance(self.key, ec.EllipticCurvePrivateKey)
        return self

    def sign(self, model: Path, signature: Path) -> None:
        signature.write_text(f"{model.name} {hashlib.sha256(model.read_bytes()).hexdigest()}")


@pytest.fixture
def signing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("model_signing.signing")
    module.Config = Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model_signing", types.ModuleType("model_signing"))
    monkeypatch.setitem(sys.modules, "model_signing.signing", module)


def image(**change: Any) -> bytes:
    return interop.mcuboot_image(BLOB, **{"sequence": 7, "manifest": MANIFEST, "key": None, **change})


def test_how_the_tool_is_called(imgtool: Path, ec_key: Path) -> None:
    import json

    assert BLOB in image()
    argv = json.loads((imgtool / "log.json").read_text())
    options = dict(zip(argv[1:-2:2], argv[2:-2:2], strict=False))
    assert argv[0] == "sign"
    assert "--key" not in argv
    assert argv[argv.index("--security-counter") :][:2] == ["--security-counter", "7"]
    assert ["--custom-tlv", "0x00A0", f"0x{MANIFEST.hex()}"] == argv[argv.index("--custom-tlv") :][:3]
    assert argv[argv.index("--version") :][:2] == ["--version", "0.0.0+7"]
    slot = int(argv[argv.index("--slot-size") + 1], 0)
    assert slot % 4096 == 0
    assert len(BLOB) + 512 < slot < len(BLOB) + 64 * 1024
    assert options["--align"] == "8"
    image(key=str(ec_key))
    argv = json.loads((imgtool / "log.json").read_text())
    assert argv[argv.index("--key") + 1] == str(ec_key)


@pytest.mark.parametrize(
    ("mode", "error"), [("fail", ConfigError), ("corrupt", VerificationError), ("bare", VerificationError)]
)
def test_images_that_are_refused(
    imgtool: Path, monkeypatch: pytest.MonkeyPatch, mode: str, error: type[Exception]
) -> None:
    monkeypatch.setenv("STUB_MODE", mode)
    with pytest.raises(error, match="imgtool"):
        image()


@pytest.mark.skipif(shutil.which("imgtool") is None, reason="imgtool is not installed (pip install imgtool)")
def test_the_real_tool(ec_key: Path, tmp_path: Path) -> None:
    made = image(key=str(ec_key))
    assert len(made) <= len(BLOB) + 1024
    (tmp_path / "w.img").write_bytes(made)
    done = subprocess.run(["imgtool", "verify", "-k", str(ec_key), str(tmp_path / "w.img")], check=False)
    assert done.returncode == 0


def test_tools_that_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ec_key: Path) -> None:
    """Asked for by name: before any work, with the install line."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "model_signing", None)
    asked = {"image": None, "image_key": None, "signature": None, "signature_key": None}
    Wraps(**asked).check()
    with pytest.raises(MissingDependencyError, match="pip install imgtool"):
        Wraps(**{**asked, "image": "w.img"}).check()
    with pytest.raises(MissingDependencyError, match="pip install model-signing pyOpenSSL"):
        Wraps(**{**asked, "signature": "m.sig", "signature_key": str(ec_key)}).check()
    for wrong, text in (
        ({"image_key": "k.pem"}, "--imgtool-key without --imgtool"),
        ({"signature": "m.sig"}, "go together"),
        ({"signature_key": "k.pem"}, "go together"),
        ({"image": str(tmp_path)}, "is a folder"),
    ):
        with pytest.raises(ConfigError, match=text):
            Wraps(**{**asked, **wrong}).check()


def test_keys_of_others_are_refused(imgtool: Path, signing: None, ec_key: Path) -> None:
    """Readable by others, absent, or (model-signing) of another kind: nothing of the key in the text."""
    ec_key.chmod(0o644)
    for work in (lambda: image(key=str(ec_key)), lambda: interop.model_signature(b"m", key=str(ec_key))):
        with pytest.raises(ConfigError, match="others may read"):
            work()
    ec_key.chmod(0o600)
    ec_key.write_text(textwrap.dedent("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"))
    with pytest.raises(ConfigError, match=r"did not sign \(ValueError\)") as caught:
        interop.model_signature(b"m", key=str(ec_key))
    assert "c2VjcmV0" not in str(caught.value)


def test_model_signature(signing: None, ec_key: Path) -> None:
    found = interop.model_signature(b"a file", key=str(ec_key)).decode()
    assert found == f"model.onnx {hashlib.sha256(b'a file').hexdigest()}"
