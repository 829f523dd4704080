"""Digests of what went into a run: configuration, data, and the code itself."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import qunlearn
from qunlearn.data.dataset import Samples, digest_lines
from qunlearn_export.files import canonical_json

PACKAGES = ("qunlearn", "qunlearn_export", "qunlearn_kernels")


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration as canonical JSON, defaults written out."""
    return hashlib.sha256(canonical_json(dict(config)).encode()).hexdigest()


def data_digest(forget: Samples, retain: Samples, stop: Samples) -> str:
    """SHA-256 over the sorted (content hash, role) pairs of the three sets that a method may read."""
    roles = (("forget", forget), ("retain", retain), ("heldout.stop", stop))
    return digest_lines(f"{h} {role}" for role, samples in roles for h in samples.content_hashes())


@functools.cache
def code_digest() -> str:
    """Version of the package, and SHA-256 over the sorted (path, bytes) of its Python sources."""
    h = hashlib.sha256()
    for package in PACKAGES:
        for path, data in sorted(_sources(resources.files(package), package)):
            h.update(path.encode() + b"\0" + len(data).to_bytes(8, "little") + data)
    return f"{qunlearn.__version__}+{h.hexdigest()}"


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    out = []
    for entry in folder.iterdir():
        path = f"{prefix}/{entry.name}"
        if entry.is_dir():
            out += _sources(entry, path)
        elif entry.name.endswith(".py"):
            out.append((path, entry.read_bytes()))
    return out
