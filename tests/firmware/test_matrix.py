"""Every emulated core, network, optimisation level and set of kernels: the oracle's codes; and the budgets."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from images import EMULATED, SHARED, Bench, flags, kernel_bytes
from networks import NETWORKS

from qunlearn_export import boards, codegen, qemu
from qunlearn_export.fwsize import image_size
from qunlearn_export.macs import macs
from qunlearn_export.qemu import Run

pytestmark = pytest.mark.cross
OWN = ("model.c", "selftest.c", "main.c")
SECONDS = 90.0
"""Bound of the whole matrix, in processor seconds of compiler, emulator and this process."""


@pytest.fixture(scope="module")
def sites() -> dict[str, codegen.Site]:
    return {name: codegen.site(make()) for name, make in NETWORKS.items()}


class Shop:
    """The networks' folders for one board; what they share is compiled once."""

    def __init__(self, folder: Path, sites: dict[str, codegen.Site], name: str) -> None:
        self.board = boards.BOARDS[name]
        self.kits = {net: bench(folder / net, site, name) for net, site in sites.items()}
        weights = flags(self.board, "-O0")
        self.weights = {net: kit.objects(["weights.c"], "weights", weights)[0] for net, kit in self.kits.items()}
        self.shared: dict[tuple[str, str], list[str]] = {}

    def image(self, net: str, opt: str, kernels: str, hooks: bool = False) -> Path:
        """The image of one network."""
        options, key = flags(self.board, opt, kernels), (opt, kernels)
        if key not in self.shared:
            self.shared[key] = self.kits["tiny_cnn"].objects(SHARED, f"shared{opt}{kernels}", options)
        out = f"{opt}{kernels}{'hooks' if hooks else ''}"
        own = [*OWN, f"board/{self.board.name}/startup.c"]
        objects = self.kits[net].objects(own, out, [*options, *(["-DQUL_HOOKS"] if hooks else [])])
        return self.kits[net].link([*objects, *self.shared[key], self.weights[net]], out)


@pytest.fixture(scope="module")
def shops(sites: dict[str, codegen.Site], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shop]:
    return {name: Shop(tmp_path_factory.mktemp(name), sites, name) for name in EMULATED}


def bench(folder: Path, site: codegen.Site, board: str, vectors: int = 4) -> Bench:
    files = codegen.generate(site, codegen.Options(boards=(board,), vectors=vectors))
    return Bench(folder, files, boards.BOARDS[board])


@pytest.fixture(scope="module")
def spent() -> dict[str, float]:
    """Processor seconds by board."""
    return {}


@pytest.mark.parametrize("name", EMULATED)
def test_matrix(name: str, shops: dict[str, Shop], spent: dict[str, float]) -> None:
    """The self-test compares with codes that the oracle computed; its own failing is tested elsewhere."""
    start = sum(os.times()[:4])
    for opt in ("-O2", "-Os"):
        for kernels in ("auto", "ref"):
            for net in NETWORKS:
                done = qemu.run(shops[name].image(net, opt, kernels), shops[name].board)
                assert (done.code, done.stdout) == (0, "selftest: 4 vectors equal"), (net, opt, kernels, done)
    spent[name] = sum(os.times()[:4]) - start


def test_the_matrix_takes_little_time(spent: dict[str, float]) -> None:
    """Processor time, since what else runs beside the tests is not theirs."""
    if set(spent) != set(EMULATED):
        pytest.skip("the matrix did not run in this session")
    assert 1 < sum(spent.values()) <= SECONDS


@pytest.fixture(scope="module")
def counted(sites: dict[str, codegen.Site], shops: dict[str, Shop]) -> dict[tuple[str, str], Run]:
    """Instructions a layer and stack of all networks, automatic kernels, -O2."""
    out = {}
    for name, shop in shops.items():
        for net, site in sites.items():
            done = qemu.run(shop.image(net, "-O2", "auto", hooks=True), shop.board)
            assert done.code == 0, (name, net, done)
            assert len(done.insn) == len(site.program.nodes)
            out[name, net] = done
    return out


def work(site: codegen.Site) -> int:
    return sum(macs(site.program, node) for node in site.program.nodes)


def test_instructions_a_multiply_accumulate(
    sites: dict[str, codegen.Site], counted: dict[tuple[str, str], Run]
) -> None:
    """Emulated instructions, not cycles; M7 and the other networks are held to the goals of M4 and M55."""
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


def test_a_self_test_that_fails_says_how(sites: dict[str, codegen.Site], tmp_path: Path) -> None:
    """Another network's weights: 3; with their digest recomputed: 1; code of another layout: 2."""
    board = boards.BOARDS["mps2-an386"]
    kit = bench(tmp_path, sites["tiny_cnn"], board.name)
    other = codegen.generate(codegen.site(NETWORKS["tiny_cnn"](1)), codegen.Options(boards=(board.name,), vectors=4))
    mine = {name: (kit.folder / name).read_text() for name in ("weights.c", "selftest.c")}

    def go(label: str, **texts: str) -> Run:
        for name, text in {**mine, **texts}.items():
            (kit.folder / name.replace("_c", ".c")).write_text(text)
        return qemu.run(kit.build(label), board)

    theirs = other["weights.c"].decode()
    assert theirs != mine["weights.c"]
    found = go("digest", weights_c=theirs)
    assert (found.code, found.stdout) == (3, "selftest: code 3")
    digests = [
        re.search(r"blob_digest\[32\] = \{[^}]*\}", t) for t in (mine["selftest.c"], other["selftest.c"].decode())
    ]
    assert digests[0]
    assert digests[1]
    found = go("output", weights_c=theirs, selftest_c=mine["selftest.c"].replace(digests[0][0], digests[1][0]))
    assert found.code == 1
    assert re.fullmatch(r"selftest: code 1, vector \d+, output \d+, first node that differs -1", found.stdout)
    layout = re.sub(
        r"(static_layout\[32\] = \{\s*)0x(..)", lambda m: f"{m[1]}0x{int(m[2], 16) ^ 1:02x}", mine["weights.c"]
    )
    assert layout != mine["weights.c"]
    assert go("layout", weights_c=layout).code == 2


def test_two_runs_count_the_same(shops: dict[str, Shop]) -> None:
    shop = shops["mps2-an386"]
    elf = shop.image("tiny_cnn", "-O2", "auto", hooks=True)
    assert qemu.run(elf, shop.board) == qemu.run(elf, shop.board)


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


def test_arenas(sites: dict[str, codegen.Site]) -> None:
    assert sites["tiny_cnn"].arena.size <= 12_288
    for net, site in sites.items():
        assert site.arena.bound <= site.arena.size <= 1.1 * site.arena.bound, net


def test_code_sizes(sites: dict[str, codegen.Site], shops: dict[str, Shop]) -> None:
    """Kernels of the tiny network at -O2; all code but weights and self-test of DS-CNN at -Os."""
    for name, shop in shops.items():
        elf = shop.image("tiny_cnn", "-O2", "auto")
        assert 1000 < kernel_bytes(elf) <= 3000, name
        small = shop.image("dscnn", "-Os", "auto")
        size = image_size(small.with_suffix(".map").read_text(), ota=False)
        assert 3000 < size.code <= 12_000, (name, size)
