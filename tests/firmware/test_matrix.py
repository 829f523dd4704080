"""Every emulated core, every network, both optimisation levels, both sets of kernels: the oracle's codes; and budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from images import EMULATED, SHARED, Bench, flags, kernel_bytes
from networks import NETWORKS

from qunlearn_export import boards, codegen, qemu
from qunlearn_export.macs import macs
from qunlearn_export.qemu import Run

pytestmark = pytest.mark.cross
OWN = ("model.c", "selftest.c", "main.c")


@pytest.fixture(scope="module")
def sites() -> dict[str, codegen.Site]:
    return {name: codegen.site(make()) for name, make in NETWORKS.items()}


def bench(folder: Path, site: codegen.Site, board: str, vectors: int = 4) -> Bench:
    files = codegen.generate(site, codegen.Options(boards=(board,), vectors=vectors))
    return Bench(folder, files, boards.BOARDS[board])


@pytest.mark.parametrize("name", EMULATED)
def test_matrix(name: str, sites: dict[str, codegen.Site], tmp_path: Path) -> None:
    """The self-test compares with codes that the oracle computed; its own failing is tested elsewhere."""
    board = boards.BOARDS[name]
    kits = {net: bench(tmp_path / net, site, name) for net, site in sites.items()}
    first = kits["tiny_cnn"]
    weights = {net: kit.objects(["weights.c"], "weights", flags(board, "-O0"))[0] for net, kit in kits.items()}
    for opt in ("-O2", "-Os"):
        for kernels in ("auto", "ref"):
            out, options = f"{opt}{kernels}", flags(board, opt, kernels)
            shared = first.objects([*SHARED, f"board/{name}/startup.c"], out, options)
            for net, kit in kits.items():
                elf = kit.link([*shared, *kit.objects(OWN, out, options), weights[net]], out)
                done = qemu.run(elf, board)
                assert (done.code, done.stdout) == (0, "selftest: 4 vectors equal"), (net, opt, kernels, done)


@pytest.fixture(scope="module")
def counted(sites: dict[str, codegen.Site], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Run]:
    """Instructions a layer and stack of all networks, automatic kernels, -O2."""
    out = {}
    for name in EMULATED:
        for net, site in sites.items():
            kit = bench(tmp_path_factory.mktemp("count") / net, site, name)
            done = qemu.run(kit.build(extra=["-DQUL_HOOKS"]), boards.BOARDS[name])
            assert done.code == 0, (name, net, done)
            assert len(done.insn) == len(site.program.nodes)
            out[name, net] = done
    return out


def work(site: codegen.Site) -> int:
    return sum(macs(site.program, node) for node in site.program.nodes)


def test_instructions_a_multiply_accumulate(
    sites: dict[str, codegen.Site], counted: dict[tuple[str, str], Run]
) -> None:
    """Emulated instructions, not cycles: 6 on M4, 4.1 on M55, 10.5 on M3 for the tiny network; 6 and 4 for the others."""
    assert work(sites["tiny_cnn"]) == 1_458_496
    limits = {"mps2-an385": {"tiny_cnn": 10.5}, "mps2-an386": dict.fromkeys(NETWORKS, 6.0)}
    limits |= {
        "mps2-an500": dict.fromkeys(NETWORKS, 6.0),
        "mps3-an547": {"tiny_cnn": 4.1, "dscnn": 4.0, "resnet8": 4.0},
    }
    for name, nets in limits.items():
        for net, limit in nets.items():
            assert sum(counted[name, net].insn) <= limit * work(sites[net]), (name, net)


def test_stack(counted: dict[tuple[str, str], Run]) -> None:
    """Painted and measured from reset through the self-test."""
    for key, done in counted.items():
        assert done.stack is not None
        assert 100 < done.stack <= 512, key


def test_two_runs_count_the_same(sites: dict[str, codegen.Site], tmp_path: Path) -> None:
    board = boards.BOARDS["mps2-an386"]
    elf = bench(tmp_path, sites["tiny_cnn"], board.name).build(extra=["-DQUL_HOOKS"])
    assert qemu.run(elf, board) == qemu.run(elf, board)


@pytest.mark.parametrize("name", ["mps2-an386", "mps3-an547"])
def test_layers_add_up_to_the_whole(
    name: str, sites: dict[str, codegen.Site], counted: dict[tuple[str, str], Run], tmp_path: Path
) -> None:
    """Against a build with a hook before the first and after the last node only."""
    last, board = len(sites["tiny_cnn"].program.nodes), boards.BOARDS[name]
    kit = bench(tmp_path, sites["tiny_cnn"], name)
    model = (kit.folder / "model.c").read_text()
    inner = [f"    QUL_HOOK({i}); /*" for i in range(1, last)]
    assert all(model.count(line) == 1 for line in inner)
    for line in inner:
        model = model.replace(line, "    /*")
    (kit.folder / "model.c").write_text(model.replace(f"QUL_HOOK({last})", "QUL_HOOK(1)"))
    whole = qemu.run(kit.build(extra=["-DQUL_HOOKS"]), board)
    assert len(whole.insn) == 1
    assert sum(counted[name, "tiny_cnn"].insn) == pytest.approx(whole.insn[0], rel=0.02)


def test_code_sizes(sites: dict[str, codegen.Site], tmp_path: Path) -> None:
    """Kernels of the tiny network at -O2, and all code but weights of DS-CNN at -Os with its self-test."""
    for name in EMULATED:
        elf = bench(tmp_path / name, sites["tiny_cnn"], name).build()
        assert 1000 < kernel_bytes(elf) <= 3000 + 72 * (name == "mps2-an500"), name
