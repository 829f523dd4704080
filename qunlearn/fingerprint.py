"""Digests of configuration and code, and the record of the machine: what makes two runs comparable.

Standard library only; versions of other packages are read from their metadata, so nothing heavy is imported.
Digests are SHA-256 in hexadecimal. What is hashed: artefact audit specification, digests.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qunlearn_export.errors import ArtefactError, ConfigError
from qunlearn_export.files import canonical_json

PACKAGES = ("qunlearn", "qunlearn_export", "qunlearn_kernels")
"""The import packages whose source files make up the code digest."""

_SUFFIXES = frozenset({".py", ".c", ".h", ".cu", ".cuh"})
_RECORDED = ("numpy", "torch", "onnx", "onnxruntime", "brevitas", "scikit-learn")
_VECTOR_FLAGS = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni",
    "avx_vnni_int8", "amx_int8", "asimd", "asimddp", "i8mm", "neon", "sve", "sve2",
)  # fmt: skip


def digest_bytes(data: bytes) -> str:
    """SHA-256 of ``data``, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes; a file that cannot be read is an ArtefactError."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as err:
        raise ArtefactError(f"cannot read {path}: {err.strerror}.", remedy="Check the path.") from err


def plain(value: Any) -> Any:
    """``value`` as JSON's own types: data classes become mappings with every field (defaults written out), paths and
    NumPy scalars their plain form. Anything else that JSON lacks is a ConfigError."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return plain(item())
    raise ConfigError(
        f"a {type(value).__name__} cannot stand in a configuration.",
        remedy="Use numbers, strings, lists and mappings only.",
    )


def config_digest(config: Any) -> str:
    """SHA-256 of a configuration (mapping or data class) as canonical JSON: keys sorted, no spaces, shortest floats.

    NaN, infinities and objects that JSON lacks are a ConfigError.
    """
    try:
        text = canonical_json(plain(config))
    except ValueError as err:
        raise ConfigError("a configuration value is not finite.", remedy="Use finite numbers only.") from err
    return digest_bytes(text.encode())


@dataclass(frozen=True, kw_only=True)
class CodeVersion:
    """``version`` of the package, ``sources`` SHA-256 over its source files, ``commit`` of a clean tree.

    ``commit`` is the hash of a clean working tree, ``dirty`` of a changed one, ``no-tree`` of an installed package.
    """

    version: str
    sources: str
    commit: str

    def __str__(self) -> str:
        return f"{self.version}+{self.sources}+{self.commit}"


def source_digest(roots: Mapping[str, Path]) -> str:
    """SHA-256 over the sorted (package/relative path, SHA-256) pairs of the source files under ``roots``."""
    lines = [
        f"{name}/{path.relative_to(root).as_posix()} {digest_file(path)}"
        for name, root in roots.items()
        for path in root.rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
    ]
    return digest_bytes("\n".join(sorted(lines)).encode())


def _git(folder: Path, *args: str) -> str | None:
    try:
        out = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20, check=False, shell=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() if out.returncode == 0 else None


def commit_of(folder: Path) -> str:
    """Commit of the clean tree that tracks ``folder``; ``dirty`` where it is changed, ``no-tree`` where there is none.

    A package that lies inside someone else's repository without being tracked by it counts as ``no-tree``.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return "no-tree"
    head, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return head if head and status == "" else "dirty"


@functools.cache
def code_version() -> CodeVersion:
    """Version, source digest and commit of the running code; computed once a process."""
    roots: dict[str, Path] = {}
    for name in PACKAGES:
        spec = find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            roots.setdefault(name, Path(place))
    from qunlearn import __version__

    return CodeVersion(version=__version__, sources=source_digest(roots), commit=commit_of(roots["qunlearn"]))


def code_digest() -> str:
    """The code version as one line: package version, digest of the source files, commit (or ``dirty``)."""
    return str(code_version())


@functools.cache
def _cpuinfo() -> Mapping[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    out: dict[str, str] = {}
    for key, _, value in pairs:
        out.setdefault(key.strip().lower(), value.strip())
    return out


def cpu_flags() -> tuple[str, ...]:
    """Vector instruction sets that the processor reports, sorted; ``("unknown",)`` where the system does not say."""
    info = _cpuinfo()
    found = set((info.get("flags") or info.get("features") or "").split())
    return tuple(sorted(found & set(_VECTOR_FLAGS))) or ("unknown",)


def cpu_model() -> str:
    """The processor's own name, or its architecture where the system does not say."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine() or "unknown"


def package_version(name: str) -> str:
    """Installed version of a distribution, or ``absent``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def environment() -> dict[str, Any]:
    """What is recorded beside a result and never hashed: versions, processor, flags, threads, operating system."""
    return {
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in _RECORDED},
        "compiler": "none",
        "cpu_model": cpu_model(),
        "cpu_flags": list(cpu_flags()),
        "threads": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "byte_order": sys.byteorder,
    }
