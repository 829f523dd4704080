"""Single kernels against the oracle: on the host, under sanitizers, and on the emulated cores."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clib import HERE, SANITIZE, build
from images import EMULATED, GCC, SHARED, flags, program, run
from kernel_cases import OPS, KernelCase, differences, random_case, write

from qunlearn_export import boards, qemu

RUNNER = (HERE / "kernel_runner.c").read_text()
KERNELS = tuple(name for name in SHARED if name != "qul_sha.c")
EACH = 200


@pytest.fixture(scope="module")
def cases() -> list[KernelCase]:
    """200 of every kernel: shapes 1..17 and more channels, strides, pads, dilations, groups, zero points -128..127."""
    out = [random_case(op, np.random.default_rng([11, i, j])) for j, op in enumerate(OPS) for i in range(EACH)]
    return [*out, *extremes()]


def extremes() -> list[KernelCase]:
    """Every operand -128: products of 16384, two of which leave int16."""
    out = []
    for i, op in enumerate(("conv2d", "conv2d_grouped", "depthwise", "linear")):
        found = 0
        for seed in range(4000):
            case = random_case(op, np.random.default_rng([13, i, seed]))
            if set(case.parts[0]) == {0x80} and set(case.parts[2]) == {0x80}:
                out.append(case)
                found += 1
                if found == 3:
                    break
        assert found == 3
    return out


def on_host(folder: Path, cases: Sequence[KernelCase], *extra: str, tool: tuple[str, ...] = SANITIZE) -> list[str]:
    elf = build(folder / "runner", (*KERNELS, "kernel_runner.c"), "-DQUL_BOARD_HOST", *extra, flags=tool)
    write(folder / "cases.bin", cases)
    done = subprocess.run([str(elf)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return differences((folder / "out.bin").read_bytes(), cases)


def test_portable_kernels_under_sanitizers(cases: list[KernelCase], tmp_path: Path) -> None:
    """Every operand has a block of memory of its own, so that one byte outside is seen."""
    assert on_host(tmp_path, cases) == []


def test_dual_multiply_accumulate_under_sanitizers(cases: list[KernelCase], tmp_path: Path) -> None:
    stub = ("-D__ARM_FEATURE_DSP=1", f"-I{HERE / 'stubs'}")
    assert on_host(tmp_path, cases, *stub) == []


def test_the_comparison_sees_one_code_and_one_lsb(cases: list[KernelCase], tmp_path: Path) -> None:
    first = cases[0]
    other = bytes([first.expected[0] ^ 1]) + first.expected[1:]
    found = on_host(tmp_path, [replace(first, expected=other), cases[1]], tool=("-O1",))
    assert len(found) == 1
    assert "1 of" in found[0]


def on_board(
    folder: Path, name: str, cases: Sequence[KernelCase], extra: Sequence[str], cc: Sequence[str] = GCC
) -> list[str]:
    board = boards.BOARDS[name]
    bench = program(folder / "src", board, RUNNER, KERNELS)
    elf = bench.build(extra=extra, cc=cc)
    write(folder / "cases.bin", cases)
    done = qemu.run(elf, board, folder=folder)
    assert done.code == 0, done
    return differences((folder / "out.bin").read_bytes(), cases)


@pytest.mark.cross
@pytest.mark.parametrize("name", EMULATED)
@pytest.mark.parametrize("kernels", ["auto", "ref"])
def test_emulated_cores(name: str, kernels: str, cases: list[KernelCase], tmp_path: Path) -> None:
    extra = ["-DQUL_KERNELS_REF"] if kernels == "ref" else []
    assert on_board(tmp_path, name, cases, extra) == []


def near_ties() -> KernelCase:
    """An addition whose sums of two rounded products are ties, or just beside one, that a fused product misses."""
    rng = np.random.default_rng(19)
    grid = np.arange(-128, 128)
    a, b = (v.ravel() for v in np.meshgrid(grid, grid))
    for _ in range(400):
        ma, mb = rng.uniform(0.1, 0.9, 2).astype(np.float32)
        left, right = (v.astype(np.float32) * m for v, m in ((a, ma), (b, mb)))
        plain = np.rint(left + right)
        exact = [a * np.float64(ma) + right, left + b * np.float64(mb)]
        missed = np.all([np.rint(v.astype(np.float32)) != plain for v in exact], axis=0) & (np.abs(plain) < 127)
        if missed.any():
            x, y = (v[missed].astype(np.int8) for v in (a, b))
            row = np.array([0, 0, 0, -128, 127], dtype=np.int8)
            params = tuple({2: len(x)}.get(i, 0) for i in range(17))
            m = np.array([ma, mb], dtype=np.float32)
            parts = (x.tobytes(), y.tobytes(), b"", b"", m.tobytes(), row.tobytes(), b"", b"\0" * len(x))
            return KernelCase("add", params, parts, plain[missed].astype(np.int8).tobytes(), "near ties")
    raise AssertionError("no scales were found")


@pytest.mark.cross
def test_fused_multiply_add_is_seen(tmp_path: Path) -> None:
    """The control of the flag that forbids it: with it, sums next to a tie round the other way."""
    case = near_ties()
    assert on_board(tmp_path / "off", "mps2-an386", [case], []) == []
    assert on_board(tmp_path / "on", "mps2-an386", [case], ["-ffp-contract=fast"])


@pytest.mark.cross
@pytest.mark.parametrize("kernels", ["auto", "ref"])
def test_clang_for_m4(kernels: str, cases: list[KernelCase], tmp_path: Path, clang: str) -> None:
    extra = ["-DQUL_KERNELS_REF"] if kernels == "ref" else []
    cc = [clang, "--target=arm-none-eabi"]
    assert on_board(tmp_path, "mps2-an386", cases, extra, cc) == []


@pytest.mark.cross
def test_each_core_uses_its_own_instructions(tmp_path: Path) -> None:
    """``auto`` is what it says: the instruction is there where the core has it, and nowhere else."""
    wanted = {"mps2-an386": "smlad", "mps2-an500": "smlad", "mps3-an547": "vmladava"}
    for name in EMULATED:
        bench = program(tmp_path / name, boards.BOARDS[name], RUNNER, KERNELS)
        for kernels in ("auto", "ref"):
            options = [f for f in flags(bench.board, "-O2", kernels) if f != "-fstack-usage"]
            text = "".join(run([*GCC, *options, "-S", "-o", "-", file], bench.folder) for file in KERNELS)
            found = {word for word in ("smlad", "vmladava") if word in text}
            assert found == ({wanted[name]} if kernels == "auto" and name in wanted else set()), (name, kernels)
