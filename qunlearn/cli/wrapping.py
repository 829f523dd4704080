"""`bundle build --imgtool` and `--model-signing`: what ships, also in other people's envelopes (`interop`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qunlearn.errors import ConfigError
from qunlearn_export import archive, bundle, interop
from qunlearn_export.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Wraps:
    """Paths of the MCUboot image and of the model signature (None: not asked for), and the private keys for them."""

    image: str | None
    image_key: str | None
    signature: str | None
    signature_key: str | None

    def check(self) -> None:
        """Everything that was asked for by name is there, before any work: tools, keys, names of files."""
        if self.image is None and self.image_key is not None:
            raise ConfigError("--imgtool-key without --imgtool.", remedy="Say by --imgtool where the image goes.")
        if (self.signature is None) != (self.signature_key is None):
            raise ConfigError(
                "--model-signing and --model-signing-key go together.", remedy="Give both: a file and an EC key."
            )
        for path in self.image, self.signature:
            if path is not None and Path(path).is_dir():
                raise ConfigError(f"{path} is a folder.", remedy="Give a file name.")
        if self.image is not None:
            interop.imgtool()
        if self.signature is not None:
            interop.model_signing()

    def make(self, target: bundle.Model, made: bundle.Built, sequence: int) -> dict[str, bytes]:
        """The files' bytes by path; nothing is written."""
        out = {}
        if self.image is not None:
            manifest = hashlib.sha256(archive.read(made.data, bundle.NAMES)["manifest.json"]).digest()
            out[self.image] = interop.mcuboot_image(
                target.blob, sequence=sequence, manifest=manifest, key=self.image_key
            )
        if self.signature is not None and self.signature_key is not None:
            out[self.signature] = interop.model_signature(target.file, key=self.signature_key)
        return out


def write(files: Mapping[str, bytes]) -> dict[str, int]:
    """Write them; sizes in bytes by path."""
    return {str(write_atomic(path, data)): len(data) for path, data in files.items()}
