"""Where a Linux device keeps its model: a folder in which a power cut at any moment leaves one whole model.

``device.json`` (class, layout, trusted keys) is written once. A model lives in ``slot-<sequence>/``; ``active.json``
names the one that runs and its digests, and replacing it is the commit point; ``counter.json`` holds the highest
sequence ever confirmed. Files are written, flushed, renamed, and their folder is flushed (bundle.md 2.7, where a board
programs pages).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from qunlearn_export.errors import ArtefactError, ConfigError, VerificationError
from qunlearn_export.files import canonical_json

FILES = ("weights.bin", "model.onnx", "selftest.bin", "manifest.json", "manifest.sig")
MAX_FILE = 512 * 2**20
MAX_STATE = 65536
CHUNK = 65536


class Disk:
    """The operations that a power cut can fall between; a test's disk loses power at a chosen one."""

    def make_folder(self, path: Path) -> None:
        """A new folder."""
        path.mkdir()

    def write(self, path: Path, data: bytes) -> None:
        """A new file, not yet flushed."""
        with open(path, "xb") as f:
            f.write(data)

    def flush(self, path: Path) -> None:
        """The file's content, or the folder's entries, are on the medium afterwards."""
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """``target`` is the old file or the new one, at any moment."""
        os.replace(source, target)

    def overwrite(self, path: Path) -> None:
        """Zeros over the file's content (on flash file systems the old blocks may live on)."""
        with open(path, "r+b") as f:
            left = os.fstat(f.fileno()).st_size
            while left > 0:
                f.write(bytes(min(left, CHUNK)))
                left -= CHUNK

    def remove(self, path: Path) -> None:
        """A file goes."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """An empty folder goes."""
        path.rmdir()


@dataclass(frozen=True, kw_only=True)
class Active:
    """The running model: its sequence and the SHA-256 of each of its files, in hex."""

    sequence: int
    files: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Content of ``active.json``."""
        return {"files": dict(self.files), "format": 1, "sequence": self.sequence}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What is fixed at the factory: device class, layout digest (hex), bytes of a blob, raw public keys."""

    device_class: UUID
    layout: str
    blob_bytes: int
    keys: tuple[bytes, ...]


@dataclass
class Store:
    """The folder; ``disk`` does the writing."""

    folder: Path
    disk: Disk = field(default_factory=Disk)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; ConfigError when another one works in the folder or it is none."""
        try:
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as err:
            raise ConfigError(
                f"cannot open the store {self.folder}: {err.strerror}.", remedy="Make one with `qunlearn device init`."
            ) from err
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                raise ConfigError(
                    f"another process works in the store {self.folder}.", remedy="Wait for it to end."
                ) from err
            yield
        finally:
            os.close(fd)

    def identity(self) -> Identity:
        """``device.json``; ConfigError when the folder is no store."""
        value = self._state(
            "device.json", {"blob_bytes": int, "class": str, "format": int, "keys": list, "layout": str}
        )
        if value is None:
            raise ConfigError(f"{self.folder} is no store.", remedy="Make one with `qunlearn device init`.")
        try:
            keys = tuple(bytes.fromhex(k) for k in value["keys"])
            return Identity(
                device_class=UUID(value["class"]), layout=value["layout"], blob_bytes=value["blob_bytes"], keys=keys
            )
        except (ValueError, TypeError) as err:
            raise ArtefactError("device.json is malformed.", remedy="Make the store anew.") from err

    def counter(self) -> int:
        """The highest sequence ever confirmed; 0 in a new store."""
        value = self._state("counter.json", {"format": int, "sequence": int})
        return 0 if value is None else int(value["sequence"])

    def active(self) -> Active | None:
        """The model that runs, every digest recomputed; None when there is none that may run."""
        counter = self.counter()
        try:
            value = self._state("active.json", {"files": dict, "format": int, "sequence": int})
        except ArtefactError:
            return None
        if value is None or set(value["files"]) - set(FILES) or value["sequence"] < counter:
            return None
        active = Active(sequence=value["sequence"], files=value["files"])
        if not {"weights.bin", "model.onnx", "selftest.bin"} <= set(active.files):
            return None
        for name, digest in active.files.items():
            data = self.read(active, name)
            if data is None or hashlib.sha256(data).hexdigest() != digest:
                return None
        return active

    def read(self, active: Active, name: str) -> bytes | None:
        """A file of the running model; None when it is not there."""
        return self._read(self.slot(active.sequence) / name, MAX_FILE)

    def slot(self, sequence: int) -> Path:
        """The folder of one model."""
        return self.folder / f"slot-{sequence:010d}"

    def boot(self) -> Active | None:
        """Settle what a power cut left: counter up to the running model, every other slot and temporary file gone."""
        active = self.active()
        if active is not None:
            self.raise_counter(active.sequence)
        self.clear(keep=active)
        return active

    def clear(self, *, keep: Active | None) -> int:
        """Remove all but the model to keep; the number of files removed. Without one nothing confirmed is touched."""
        gone = 0
        kept = None if keep is None else self.slot(keep.sequence).name
        named = self._named()
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(".new-"):
                self.disk.remove(path)
                gone += 1
            elif path.name.startswith("slot-") and path.name != kept and (keep is not None or path.name != named):
                gone += self._remove_slot(path)
        if gone:
            self.disk.flush(self.folder)
        return gone

    def write_slot(self, sequence: int, files: Mapping[str, bytes]) -> Active:
        """All files of a model, flushed and read back; nothing points to it yet. VerificationError if they differ."""
        folder = self.slot(sequence)
        if folder.exists():
            self._remove_slot(folder)
        self.disk.make_folder(folder)
        for name, data in files.items():
            self.disk.write(folder / name, data)
            self.disk.flush(folder / name)
        self.disk.flush(folder)
        self.disk.flush(self.folder)
        for name, data in files.items():
            if self._read(folder / name, MAX_FILE) != data:
                raise VerificationError(f"{name} reads back differently.", remedy="The storage fails; replace it.")
        return Active(sequence=sequence, files={n: hashlib.sha256(d).hexdigest() for n, d in files.items()})

    def commit(self, active: Active) -> None:
        """The commit point: ``active.json`` names the new model."""
        self.replace("active.json", active.to_json())

    def raise_counter(self, sequence: int) -> None:
        """``counter.json`` never falls."""
        if self.counter() < sequence:
            self.replace("counter.json", {"format": 1, "sequence": sequence})

    def replace(self, name: str, value: Mapping[str, Any]) -> None:
        """Write beside, flush, rename, flush the folder."""
        self.replace_bytes(name, (canonical_json(value) + "\n").encode())

    def replace_bytes(self, name: str, data: bytes) -> None:
        """:meth:`replace` for any content."""
        beside = self.folder / f".new-{name}"
        if beside.exists():
            self.disk.remove(beside)
        self.disk.write(beside, data)
        self.disk.flush(beside)
        self.disk.rename(beside, self.folder / name)
        self.disk.flush(self.folder)

    def old_slots(self) -> list[str]:
        """Slots that are not the running one's."""
        named = self._named()
        return sorted(p.name for p in self.folder.iterdir() if p.name.startswith("slot-") and p.name != named)

    def _named(self) -> str | None:
        """The slot that ``active.json`` names, whether or not it is whole."""
        try:
            value = self._state("active.json", {"files": dict, "format": int, "sequence": int})
        except ArtefactError:
            return None
        return None if value is None else self.slot(value["sequence"]).name

    def _remove_slot(self, folder: Path) -> int:
        paths = sorted(folder.iterdir())
        for path in paths:
            self.disk.overwrite(path)
            self.disk.flush(path)
            self.disk.remove(path)
        self.disk.remove_folder(folder)
        return len(paths)

    def _state(self, name: str, fields: Mapping[str, type]) -> dict[str, Any] | None:
        data = self._read(self.folder / name, MAX_STATE)
        if data is None:
            return None
        try:
            value = json.loads(data)
            right = isinstance(value, dict) and set(value) == set(fields) and value.get("format") == 1
            right = right and all(type(value[k]) is t for k, t in fields.items())
            right = right and (canonical_json(value) + "\n").encode() == data
            right = right and 0 <= value.get("sequence", 0) < 2**32
        except (ValueError, RecursionError):
            right = False
        if not right:
            raise ArtefactError(f"{name} of the store is malformed.", remedy="Install a full update, or make it anew.")
        return dict(value)

    def _read(self, path: Path, most: int) -> bytes | None:
        try:
            with open(path, "rb") as f:
                data = f.read(most + 1)
        except OSError:
            return None
        return data if len(data) <= most else None
