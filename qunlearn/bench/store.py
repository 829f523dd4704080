"""Results on disk: one JSON line a cell, appended and never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qunlearn.errors import ArtefactError
from qunlearn.fingerprint import digest_bytes
from qunlearn_export.files import canonical_json

NAME = "cells.jsonl"
MAX_BYTES = 256 << 20


class Store:
    """The cells of a results folder by identity. A line cut off by a kill is dropped, a changed one is refused."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.cells: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return
        if self.path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{self.path} is larger than {MAX_BYTES} bytes.", remedy="Use another folder.")
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for i, line in enumerate(whole.splitlines(), 1):
            try:
                cell = json.loads(line)
                digest = cell.pop("digest")
            except (ValueError, KeyError, AttributeError) as err:
                raise ArtefactError(f"{self.path}, line {i}: {err}.", remedy="Restore the file.") from err
            if digest != _digest(cell):
                raise ArtefactError(
                    f"{self.path}, line {i} was changed after it was written.", remedy="Restore the file."
                )
            self.cells[cell["id"]] = cell
        if len(whole) < len(raw):
            with self.path.open("r+b") as f:
                f.truncate(len(whole))

    def add(self, cell: Mapping[str, Any]) -> None:
        """Append one cell, with the digest of its content, and flush it to the disk."""
        kept = json.loads(canonical_json(dict(cell)))
        line = canonical_json({**kept, "digest": _digest(kept)}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as f:
            f.write(line.encode())
            f.flush()
            os.fsync(f.fileno())
        self.cells[kept["id"]] = kept

    def __contains__(self, cell_id: str) -> bool:
        return cell_id in self.cells

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.cells.values())


def _digest(cell: Mapping[str, Any]) -> str:
    return digest_bytes(canonical_json(dict(cell)).encode())[:16]
