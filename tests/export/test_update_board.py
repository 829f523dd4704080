"""End to end on an emulated Cortex-M4: a new device, an update from a file, a start after it, an old update refused."""

from __future__ import annotations

import shutil
import subprocess

import bundle_cases as cases
import numpy as np
import pytest

from qunlearn_export import boards, codegen, container, emit_update, qemu
from qunlearn_export.archive import read as entries_of
from qunlearn_export.bundle import NAMES
from qunlearn_export.crossbuild import Workshop
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.order import to_stored
from qunlearn_export.package import write_folder
from qunlearn_export.receipt import Receipt
from qunlearn_export.verify import open_bundle

BOARD = "mps2-an386"
needs_tools = pytest.mark.skipif(
    bool(qemu.missing()), reason=f"no {', '.join(qemu.missing())}: apt-get install gcc-arm-none-eabi qemu-system-arm"
)


def build(world, ota: str, opt: str = "-Os"):
    """The device's program."""
    site = codegen.site(world.base.graph)
    files = codegen.generate(site, codegen.Options(name="net", boards=(BOARD,), ota=ota, opt=opt))
    main = emit_update.update_main("net", ota=ota, public=cases.SIGNER.public, device_class=cases.DEVICE, sequence=6)
    files, settings = emit_update.program(files, main, boards.BOARDS[BOARD], codegen.runtime())
    shop = Workshop(files, boards.BOARDS[BOARD], ota=True)
    image = shop.build(defines=emit_update.DEFINES, settings=settings)
    return shop, image


def numbers(text: str) -> dict[str, int]:
    return {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in text.splitlines()}


@needs_tools
@pytest.mark.parametrize("ota", ["ab", "inplace"])
@pytest.mark.parametrize("mode", ["delta", "full"])
def test_update_from_a_file(world, tmp_path, ota, mode):
    _, image = build(world, ota)
    board = boards.BOARDS[BOARD]
    codes = (
        np.random.default_rng(3)
        .integers(-128, 128, (6, *world.base.graph.activations[world.base.graph.input].shape))
        .astype(np.int8)
    )
    (tmp_path / "inputs.bin").write_bytes(to_stored(codes).tobytes())
    (tmp_path / "base.bin").write_bytes(world.base.blob)

    def device(code: int, sequence: int, model) -> dict[str, int]:
        """Switch on, look at what came of it, switch off."""
        done = qemu.run(image.elf, board, folder=tmp_path)
        assert done.code == code, done.stdout
        told = numbers(done.stdout)
        assert told["sequence"] == sequence
        assert told["breaches"] == 0
        graph = model.graph
        expected = Oracle(graph).run(dequantize(codes, graph.activations[graph.input])).reshape(len(codes), -1)
        assert (tmp_path / "outputs.bin").read_bytes() == expected.tobytes()
        return told

    device(0, 6, world.base)
    bundle = world.build(mode=mode, in_place=True).data
    opened = open_bundle(bundle, cases.TRUST)
    (tmp_path / "update.bin").write_bytes(entries_of(bundle, NAMES)["update.bin"])
    device(0, 7, world.target)
    receipt = Receipt.from_bytes((tmp_path / "receipt.bin").read_bytes())
    assert receipt.problems(opened) == []
    flash = (tmp_path / "flash.bin").read_bytes()
    parts = [world.base.blob[i : i + 64] for i in range(0, len(world.base.blob), 64)]
    gone = [p for p in parts if p not in world.target.blob]
    assert gone
    assert not [p for p in gone if p in flash]
    device(16, 7, world.target)  # the same file again
    assert Receipt.from_bytes((tmp_path / "receipt.bin").read_bytes()).code == 16
    (tmp_path / "update.bin").unlink()
    device(0, 7, world.target)
    bad = bytearray(entries_of(world.build(mode=mode, sequence=8, base_sequence=7).data, NAMES)["update.bin"])
    bad[300] ^= 1
    (tmp_path / "update.bin").write_bytes(bad)
    device(12, 7, world.target)
    shutil.rmtree(tmp_path)


@needs_tools
def test_program_carries_no_model(world):
    """The image of a device with updates holds no copy of any weights, which nothing could erase."""
    _, image = build(world, "ab")
    data = image.elf.read_bytes()
    parts = [world.base.blob[i : i + 32] for i in range(0, len(world.base.blob) - 32, 32)]
    assert not [p for p in parts if len(set(p)) > 4 and p in data]
    assert container.DOMAIN[:-1] in data  # the control: text of the image is found


@needs_tools
def test_symbols(world):
    """No heap, no C library, no double, no 64-bit division in the update code."""
    for ota in ("ab", "inplace"):
        shop, image = build(world, ota)
        done = subprocess.run(["arm-none-eabi-nm", str(image.elf)], capture_output=True, text=True, check=True)
        names = {line.split()[-1] for line in done.stdout.splitlines()}
        assert not {n for n in names if n.startswith(("__aeabi_d", "__aeabi_ul", "__aeabi_l", "malloc", "printf"))}
        assert ("qul_in_place" in names) == (ota == "inplace")
        assert ("qul_two_slots" in names) == (ota == "ab")
        assert shop.folder.exists()
        assert 8_000 < image.size.update < 16_000  # of a linked program at -Os
        assert image.stack is not None
        assert image.stack < 4096


def pieces(blob: bytes) -> list[bytes]:
    """Parts of a blob that occur in no other file by chance."""
    return [p for p in (blob[i : i + 32] for i in range(0, len(blob) - 32, 32)) if len(set(p)) > 4]


@needs_tools
@pytest.mark.parametrize("ota", ["none", "ab", "inplace"])
def test_the_folder_builds_a_product_without_the_base(world, tmp_path, ota):
    """The folder's own Makefile: a product with updates holds no copy of the base, in no file that is flashed."""
    site = codegen.site(world.base.graph)
    options = codegen.Options(
        name="net", boards=(BOARD, "generic-m4"), ota=ota, public=cases.SIGNER.public, device_class=cases.DEVICE
    )
    folder = write_folder(tmp_path / "fw", codegen.generate(site, options))

    def make(*args: str):
        return subprocess.run(["make", "-s", *args], cwd=folder, capture_output=True, text=True, check=False)

    def base_in(*names: str) -> bool:
        data = [(folder / "build" / name).read_bytes() for name in names]
        found = {any(p in d for p in pieces(world.base.blob)) for d in data}
        assert len(found) == 1
        return found.pop()

    assert make(f"BOARD={BOARD}").returncode == 0
    done = make(f"BOARD={BOARD}", "qemu")
    assert done.returncode == 0, done.stderr
    assert base_in(f"{BOARD}/fw.elf", f"{BOARD}/fw.bin") == (ota == "none")
    if ota == "none":
        assert "vectors equal" in done.stdout
        return
    assert "sequence 1\n" in done.stdout
    flash, update = folder / "build" / BOARD / "flash.bin", folder / "build" / BOARD / "update.bin"
    assert any(p in flash.read_bytes() for p in pieces(world.base.blob))
    bundle = world.build(in_place=True, sequence=2, base_sequence=1).data
    update.write_bytes(entries_of(bundle, NAMES)["update.bin"])
    done = make(f"BOARD={BOARD}", "qemu")
    assert done.returncode == 0, done.stdout
    assert "sequence 2\n" in done.stdout
    gone = [p for p in pieces(world.base.blob) if p not in world.target.blob]
    assert gone
    assert not any(p in flash.read_bytes() for p in gone)
    done = make(f"BOARD={BOARD}", "PROGRAM=selftest", "qemu")
    assert (done.returncode, "vectors equal" in done.stdout) == (0, True), done.stderr
    assert base_in(f"{BOARD}-selftest/fw.elf")
    done = make("selftest")
    assert "vectors equal" in done.stdout
    done = make("BOARD=generic-m4")
    assert done.returncode != 0
    assert "name your program, MAIN=app.c" in done.stderr
    (folder / "app.c").write_text(emit_update.probe("net", ota))
    done = make("BOARD=generic-m4", "MAIN=app.c")
    assert done.returncode == 0, done.stderr
    assert not base_in("generic-m4/fw.elf", "generic-m4/fw.bin")


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("cc") is None, reason="no cmake or no C compiler")
def test_the_library_of_cmake_holds_no_base(world, tmp_path):
    site = codegen.site(world.base.graph)
    folder = write_folder(tmp_path / "fw", codegen.generate(site, codegen.Options(name="net", ota="ab")))
    for args in (["-S", ".", "-B", "out"], ["--build", "out"]):
        subprocess.run(["cmake", *args], cwd=folder, check=True, capture_output=True)
    library = (folder / "out" / "libnet.a").read_bytes()
    assert not any(p in library for p in pieces(world.base.blob))
    assert b"qul_update" in library
    done = subprocess.run([folder / "out" / "selftest"], capture_output=True, text=True, check=False)
    assert (done.returncode, "vectors equal" in done.stdout) == (0, True)
