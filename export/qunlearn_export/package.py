"""The files of a firmware folder, as texts and bytes by path: what :func:`qunlearn_export.codegen.generate` writes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qunlearn_export.errors import ConfigError
from qunlearn_export.files import write_atomic

SUMS = "SHA256SUMS"


def sums(files: Mapping[str, bytes]) -> bytes:
    """``SHA256SUMS``: one line a file, sorted by path, as ``sha256sum -c`` reads it."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return "".join(lines).encode()


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> Path:
    """Write all ``files`` and their sums into a new or empty ``folder``: whole or not at all (a temporary folder beside
    it, then a rename). ConfigError where that cannot be."""
    target = Path(folder)
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as err:
        raise ConfigError(f"cannot write {target}: {err.strerror}.", remedy="Choose another folder.") from err
    try:
        fill(made, {**files, SUMS: sums(files)})
        made.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        made.rename(target)
    except OSError as err:
        raise ConfigError(f"cannot write {target}: {err.strerror}.", remedy="Choose another folder.") from err
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def check_target(target: Path) -> None:
    """ConfigError unless ``target`` is free: absent, or an empty folder."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"{target} exists and is not a folder.", remedy="Choose another output path.")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"the folder {target} is not empty.", remedy="Choose another one, or empty it.")


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` below an existing folder."""
    for name in sorted(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, files[name])
