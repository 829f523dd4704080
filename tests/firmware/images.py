"""Board images for the tests: generated folders or small programs of their own, compiled without make."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from qunlearn_export import boards
from qunlearn_export.boards import Board
from qunlearn_export.package import fill

EMULATED = tuple(name for name, b in boards.BOARDS.items() if b.machine)
ELF = "fw.elf"
GCC = ("arm-none-eabi-gcc",)
_KERNEL = re.compile(r"^ \.(?:text|rodata)[\w.$-]*\s+0x[0-9a-f]+\s+(0x[0-9a-f]+)\s+\S*qul_kernels_\w+\.o$", re.M)
SHARED = ("qul_rt.c", "qul_kernels_ref.c", "qul_kernels_dsp.c", "qul_kernels_mve.c", "qul_sha.c")


def flags(board: Board, opt: str = "-O2", kernels: str = "auto") -> list[str]:
    """Compiler flags of a board build."""
    ref = ["-DQUL_KERNELS_REF"] if kernels == "ref" else []
    return [*board.cpu, *boards.COMMON, *boards.BARE, opt, *ref]


def run(command: Sequence[str], folder: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


class Bench:
    """One folder with generated files; objects are compiled once for the same flags."""

    def __init__(self, folder: Path, files: Mapping[str, bytes], board: Board) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fill(folder, files)
        self.folder, self.board = folder, board

    def objects(self, names: Sequence[str], out: str, options: Sequence[str], cc: Sequence[str] = GCC) -> list[str]:
        """Compile ``names`` into folder ``out`` and return the objects' paths."""
        (self.folder / out).mkdir(exist_ok=True)
        up = [f"../{n}" for n in names]
        run([*cc, *options, "-I..", "-c", *up], self.folder / out)
        return [str(self.folder / out / Path(n).with_suffix(".o").name) for n in names]

    def link(self, objects: Sequence[str], out: str) -> Path:
        """The image of ``objects``, with its map beside it."""
        elf = self.folder / out / ELF
        script = f"board/{self.board.name}/link.ld"
        tail = [*boards.LINK, f"-Wl,-Map={elf.with_suffix('.map')}", "-o", str(elf)]
        run([*GCC, *self.board.cpu, "-T", script, *objects, *tail], self.folder)
        return elf

    def build(
        self,
        out: str = "build",
        *,
        opt: str = "-O2",
        kernels: str = "auto",
        extra: Sequence[str] = (),
        drop: str | None = None,
        cc: Sequence[str] = GCC,
    ) -> Path:
        """Everything of the folder in one image; ``drop`` is a flag to leave out."""
        names = sorted(p.name for p in self.folder.glob("*.c"))
        options = [f for f in flags(self.board, opt, kernels) if f != drop]
        return self.link(self.objects([*names, f"board/{self.board.name}/startup.c"], out, [*options, *extra], cc), out)


def program(folder: Path, board: Board, main: str, runtime: Sequence[str] = ("qul_rt.c",)) -> Bench:
    """A program of our own on a board: ``main`` is C text."""
    files = {**boards.board_files(board), "main.c": main.encode()}
    for name in ("qul_rt.h", "qul_kernels.h", "qul_tile.h", *runtime):
        files[name] = (boards.FIRMWARE / name).read_bytes()
    shutil.rmtree(folder, ignore_errors=True)
    return Bench(folder, files, board)


def symbols(elf: Path) -> dict[str, int]:
    """Size in bytes of every function of an image by name."""
    rows = [line.split() for line in run(["arm-none-eabi-nm", "-S", str(elf)], elf.parent).splitlines()]
    return {r[3]: int(r[1], 16) for r in rows if len(r) == 4 and r[2] in "TtWw"}


def kernel_bytes(elf: Path) -> int:
    """Bytes that the kernel files have in an image, by the linker's map."""
    _, _, body = elf.with_suffix(".map").read_text().partition("Linker script and memory map")
    return sum(int(size, 16) for size in _KERNEL.findall(body))
