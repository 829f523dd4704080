"""A generated folder, built for a board by its own Makefile in a private copy: image, sizes, stack."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qunlearn_export.boards import Board
from qunlearn_export.errors import MissingDependencyError, UnsupportedError, VerificationError
from qunlearn_export.fwsize import ImageSize, image_size, stack_depth
from qunlearn_export.package import fill

CROSS = "arm-none-eabi-"
APT = "apt-get install --no-install-recommends gcc-arm-none-eabi make"
TIME_LIMIT = 600.0
ROOT = "qul_reset"


@dataclass(frozen=True, kw_only=True)
class Image:
    """A built board image: the ELF file, its sizes in bytes, the deepest stack from reset (None without call graphs),
    the compiler's name and version."""

    elf: Path
    size: ImageSize
    stack: int | None
    compiler: str


def missing_tools() -> list[str]:
    """Programs of a cross build that are not installed."""
    return [name for name in (f"{CROSS}gcc", f"{CROSS}objcopy", "make") if shutil.which(name) is None]


def require_tools() -> None:
    """MissingDependencyError with the install line unless a board can be built."""
    missing = missing_tools()
    if missing:
        raise MissingDependencyError(
            f"building for a board needs {', '.join(missing)}.", remedy=f"Install them: {APT}."
        )


class Workshop:
    """A private copy of generated files; :meth:`build` makes an image, again and again with changed files."""

    def __init__(self, files: Mapping[str, bytes], board: Board, *, ota: bool = False) -> None:
        require_tools()
        self.board = board
        self.ota = ota
        self.folder = Path(tempfile.mkdtemp(prefix="qunlearn-"))
        weakref.finalize(self, shutil.rmtree, str(self.folder), True)
        fill(self.folder, files)
        version = subprocess.run([f"{CROSS}gcc", "-dumpfullversion"], capture_output=True, text=True, check=False)
        self.compiler = f"{CROSS}gcc {version.stdout.strip()}"

    def build(
        self, *, defines: Sequence[str] = (), settings: Sequence[str] = (), clean: bool = False, selftest: bool = False
    ) -> Image:
        """Run ``make BOARD=...``; ``settings`` are make variables such as ``OPT=-Os``, ``defines`` go to the compiler.

        A folder with update code has two programs; ``selftest`` chooses the self-test instead of the product.

        UnsupportedError where the image does not fit the board's memory, VerificationError for any other failure.
        """
        if clean:
            shutil.rmtree(self.folder / "build", ignore_errors=True)
        extra = " ".join(["-fcallgraph-info=su", *defines])
        command = ["make", "-s", f"BOARD={self.board.name}", f"EXTRA={extra}", *settings]
        command += ["PROGRAM=selftest"] if selftest else []
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=TIME_LIMIT)
        if done.returncode != 0:
            raise self._failure(f"{done.stderr}\n{done.stdout}")
        out = self.folder / "build" / f"{self.board.name}{'-selftest' if selftest else ''}"
        size = image_size((out / "fw.map").read_text(), ota=self.ota)
        graphs = [p.read_text() for p in sorted(out.glob("*.ci"))]
        stack = stack_depth(graphs, ROOT) if graphs else None
        return Image(elf=out / "fw.elf", size=size, stack=stack, compiler=self.compiler)

    def depth(self, root: str) -> int:
        """Bytes of the deepest call chain from ``root`` in the last product; 0 without call graphs."""
        graphs = [p.read_text() for p in sorted((self.folder / "build" / self.board.name).glob("*.ci"))]
        return stack_depth(graphs, root)

    def _failure(self, text: str) -> UnsupportedError | VerificationError:
        if "will not fit in region" in text or "overflowed by" in text or "remain for the stack" in text:
            return UnsupportedError(
                f"the network does not fit {self.board.name} ({self.board.flash // 1024} KiB flash, "
                f"{self.board.ram // 1024} KiB RAM).",
                remedy="Choose a larger board or a smaller network.",
            )
        telling = ("error:", "multiple definition", "undefined reference", "rror")
        lines = text.splitlines()
        line = next((one for mark in telling for one in lines if mark in one), "no message")
        return VerificationError(f"the build for {self.board.name} failed: {line.strip()}", remedy="Report this.")
