"""Power cuts on the Linux store: at every operation, with what was not flushed lost, and a process that really dies."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import bundle_cases as cases
import pytest
from test_device import TRUST, runs, tree

from qunlearn_export import device
from qunlearn_export.store import Disk, Store


@pytest.fixture(scope="module")
def built(world):
    return {"delta": world.build(mode="delta").data, "full": world.build(mode="full").data}


class PowerCut(BaseException):
    """The power is gone."""


class Quick(Disk):
    """Does not wait for the medium: these tests say themselves what has reached it."""

    def flush(self, path: Path) -> None:
        pass


class Failing(Quick):
    """Loses power at operation ``cut``: before it, or half way through a write.

    What was not flushed is uncertain afterwards, as on a real disk: such files may be short or empty, and renames,
    new names and removals whose folder was not flushed may be undone, the latest first.
    """

    def __init__(self, cut: int, seed: int) -> None:
        self.cut, self.rng = cut, random.Random(seed)
        self.n = 0
        self.unflushed: dict[Path, bytes] = {}
        self.undo: list[tuple[Path, Path, bytes | None]] = []

    def _step(self) -> None:
        self.n += 1
        if self.n > self.cut:
            raise PowerCut

    def lose(self) -> None:
        """What the medium looks like after the cut."""
        for path, before in self.unflushed.items():
            if path.exists():
                data = path.read_bytes()
                path.write_bytes(self.rng.choice([data, data[: len(data) // 2], b"", before]))
        keep = self.rng.randint(0, len(self.undo))
        for _, path, content in reversed(self.undo[keep:]):
            if content is None:
                if path.is_dir():
                    path.rmdir() if not any(path.iterdir()) else None
                elif path.exists():
                    path.unlink()
            elif path.parent.exists():
                path.write_bytes(content)

    def make_folder(self, path: Path) -> None:
        self._step()
        super().make_folder(path)
        self.undo.append((path.parent, path, None))

    def write(self, path: Path, data: bytes) -> None:
        torn = self.n + 1 > self.cut
        if torn:
            super().write(path, data[: self.rng.randint(0, len(data))])
            self.unflushed[path] = b""
            self.undo.append((path.parent, path, None))
            raise PowerCut
        self.n += 1
        super().write(path, data)
        self.unflushed[path] = b""
        self.undo.append((path.parent, path, None))

    def flush(self, path: Path) -> None:
        self._step()
        super().flush(path)
        self.unflushed.pop(path, None)
        self.undo = [u for u in self.undo if u[0] != path]

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        before = target.read_bytes() if target.exists() else None
        moved = source.read_bytes()
        super().rename(source, target)
        if source in self.unflushed:  # a name may reach the medium before the content does
            self.unflushed[target] = self.unflushed.pop(source)
        self.undo.append((target.parent, source, moved))
        self.undo.append((target.parent, target, before))

    def overwrite(self, path: Path) -> None:
        self._step()
        self.unflushed[path] = path.read_bytes()
        super().overwrite(path)

    def remove(self, path: Path) -> None:
        self._step()
        self.undo.append((path.parent, path, path.read_bytes()))
        super().remove(path)
        self.unflushed.pop(path, None)

    def remove_folder(self, path: Path) -> None:
        self._step()
        super().remove_folder(path)


def operations(world, built, tmp_path, kind) -> int:
    device.init(tmp_path / "count", world.base.file, device_class=cases.DEVICE, trust=TRUST, sequence=6, disk=Quick())
    counting = Failing(10**9, 0)
    device.apply(Store(tmp_path / "count", counting), built[kind])
    return counting.n


@pytest.mark.parametrize("kind", ["delta", "full"])
def test_power_cut_at_every_operation(world, built, tmp_path, kind):
    """Whatever the disk did, the next start runs the old or the new model, whole; the update then goes through."""
    total = operations(world, built, tmp_path, kind)
    assert total > 25
    device.init(tmp_path / "first", world.base.file, device_class=cases.DEVICE, trust=TRUST, sequence=6, disk=Quick())
    fresh = tree(Store(tmp_path / "first"))
    came = []
    for cut in range(total):
        for seed in range(2 if kind == "delta" else 1):
            folder = tmp_path / f"{cut}-{seed}"
            for name, data in fresh.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            failing = Failing(cut, 100 * cut + seed)
            with pytest.raises(PowerCut):
                device.apply(Store(folder, failing), built[kind])
            failing.lose()
            store = Store(folder, Quick())
            active = store.boot()
            assert active is not None
            came.append((cut, active.sequence))
            runs(store, world.base if active.sequence == 6 else world.target, active.sequence)
            if active.sequence == 7:
                assert world.base.blob[:64] not in b"".join(tree(store).values())
                assert device.rollback_check(store, []).problems == ()
            elif seed == 0:
                device.apply(store, built[kind])
                runs(store, world.target, 7)
    assert {s for _, s in came} == {6, 7}
    first_new = min(c for c, s in came if s == 7)
    last_old = max(c for c, s in came if s == 6)
    assert last_old - first_new <= 2  # between rename and flush of the folder either may come back, nowhere else


def test_power_cut_while_a_cut_is_settled(world, built, tmp_path):
    total = operations(world, built, tmp_path, "delta")
    device.init(tmp_path / "first", world.base.file, device_class=cases.DEVICE, trust=TRUST, sequence=6, disk=Quick())
    fresh = tree(Store(tmp_path / "first"))
    for cut in range(3, total, 3):
        for again in (0, 1, 2, 4, 7):
            folder = tmp_path / f"{cut}-{again}"
            for name, data in fresh.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            for at in (cut, again):
                failing = Failing(at, 7 * cut + again + at)
                try:
                    if at == cut:
                        device.apply(Store(folder, failing), built["delta"])
                    else:
                        Store(folder, failing).boot()
                except PowerCut:
                    failing.lose()
            store = Store(folder, Quick())
            active = store.boot()
            assert active is not None
            runs(store, world.base if active.sequence == 6 else world.target, active.sequence)


def test_killed_process(world, built, tmp_path):
    """The same with a process that really dies, at some operations."""
    bundle_file = tmp_path / "u.qulb"
    bundle_file.write_bytes(built["delta"])
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from qunlearn_export import device\n"
        "from qunlearn_export.store import Disk, Store\n"
        "left = [int(sys.argv[3])]\n"
        "class Dying(Disk):\n"
        "    def __getattribute__(self, name):\n"
        "        if name in vars(Disk) and not name.startswith('_'):\n"
        "            left[0] -= 1\n"
        "            if left[0] < 0:\n"
        "                os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().__getattribute__(name)\n"
        "device.apply(Store(Path(sys.argv[1]), Dying()), sys.argv[2])\n"
    )
    came = set()
    for cut in (0, 9, 18, 60):
        folder = tmp_path / str(cut)
        device.init(folder, world.base.file, device_class=cases.DEVICE, trust=TRUST, sequence=6)
        done = subprocess.run([sys.executable, "-c", program, str(folder), str(bundle_file), str(cut)], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        active, _ = device.start(Store(folder))
        runs(Store(folder), world.base if active.sequence == 6 else world.target, active.sequence)
        came.add(active.sequence)
    assert came == {6, 7}
