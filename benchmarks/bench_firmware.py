"""What the generated C costs on four emulated cores: instructions a multiply-accumulate, bytes of code, stack, RAM.

    python benchmarks/bench_firmware.py

The DS-CNN that travels with the package, ResNet-8 and a small network with every kind of layer, both prepared and
untrained: the counts do not depend on the numbers. Instructions are those that QEMU executed; they are not cycles and
not time. Needs arm-none-eabi-gcc, make and qemu-system-arm. Writes benchmarks/results/firmware.md.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch
from torch import nn

from qunlearn import models, quant
from qunlearn.cli import journey
from qunlearn_export import boards, codegen, graph, qemu
from qunlearn_export.crossbuild import Workshop
from qunlearn_export.emit_model import layer_names
from qunlearn_export.macs import macs

HERE = Path(__file__).parent
COLUMNS = (
    "network",
    "core",
    "MMAC",
    "insn",
    "insn a MAC",
    "kernels, B",
    "code, B",
    "code at -Os, B",
    "stack, B",
    "arena, B",
)
KERNEL = re.compile(r"^ \.(?:text|rodata)[\w.$-]*\s+0x[0-9a-f]+\s+(0x[0-9a-f]+)\s+\S*qul_kernels_\w+\.o$", re.M)


class TinyCNN(nn.Module):
    """Five convolutions (one depthwise, one 1x1), max pooling, residual sum, mean, linear: 1.46 MMAC on 3 x 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()
        self.dw, self.n2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()
        self.pw, self.n3 = nn.Conv2d(16, 32, 1), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.c2, self.n4 = nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        self.c3, self.n5 = nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, 16, 16] to [N, 10]."""
        x = self.pool(self.n3(self.pw(self.n2(self.dw(self.n1(self.c1(x)))))))
        x = self.n5(x + self.c3(self.n4(self.c2(x))))
        return self.fc(torch.flatten(self.mean(x), 1))


def prepared(net: nn.Module, shape: tuple[int, ...]) -> graph.Graph:
    """The integer network of an untrained module."""
    example = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    return quant.lower(quant.prepare(net, quant.QuantSpec.parse("w8a8"), example).eval())


def networks() -> dict[str, graph.Graph]:
    """The networks by name."""
    torch.manual_seed(0)
    resnet = models.build("resnet8", in_shape=(3, 32, 32), num_classes=10, seed=0)
    return {
        "small": prepared(TinyCNN(), (3, 16, 16)),
        "dscnn": quant.lower(quant.load_run(journey.ASSETS / "base")[0].eval()),
        "resnet8": prepared(resnet, (3, 32, 32)),
    }


def measure(name: str, site: codegen.Site, board: boards.Board) -> tuple[str, tuple[int, ...]]:
    """One line of the table, and instructions a node."""
    shop = Workshop(codegen.generate(site, codegen.Options(boards=(board.name,))), board)
    image = shop.build()
    _, _, body = image.elf.with_suffix(".map").read_text().partition("Linker script and memory map")
    kernels = sum(int(size, 16) for size in KERNEL.findall(body))
    plain = qemu.run(image.elf, board)
    counted = qemu.run(shop.build(defines=["-DQUL_HOOKS"], clean=True).elf, board)
    small = shop.build(settings=["OPT=-Os"], clean=True)
    if (plain.code, counted.code, qemu.run(small.elf, board).code) != (0, 0, 0):
        raise SystemExit(f"{name} on {board.name}: the self-test failed")
    work, insn = sum(macs(site.program, node) for node in site.program.nodes), sum(counted.insn)
    cells = (
        f"{work / 1e6:.2f} | {insn:,} | {insn / work:.2f} | {kernels:,} | {image.size.code:,} | {small.size.code:,} | "
        f"{plain.stack:,} | {site.arena.size:,}"
    )
    return f"| {name} | {board.core} | {cells} |", counted.insn


def main() -> None:
    """Measure, print, write."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    layers: list[str] = []
    emulated = [b for b in boards.BOARDS.values() if b.machine]
    for name, net in networks().items():
        site = codegen.site(net)
        by_core = {}
        for board in emulated:
            line, by_core[board.core] = measure(name, site, board)
            lines.append(line)
        names = layer_names(site.program)
        for i, (label, node) in enumerate(zip(names, site.program.nodes, strict=True)):
            counts = " | ".join(f"{by_core[b.core][i]:,}" for b in emulated)
            layers.append(f"| {name} | {label} | {node.op} | {macs(site.program, node):,} | {counts} |")
    head = ("network", "layer", "operator", "MAC", *(b.core for b in emulated))
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *layers]
    version = subprocess.run([qemu.find(qemu.COMPILER), "-dumpfullversion"], capture_output=True, text=True, check=True)
    lines += ["", f"insn: instructions executed by QEMU, not cycles, not time. GCC {version.stdout.strip()}, -O2.", ""]
    text = "\n".join(lines)
    print(text)
    (HERE / "results" / "firmware.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
