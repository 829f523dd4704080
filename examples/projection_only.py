"""The kernel package alone, in somebody else's training loop: forget one class, move orthogonally to the rest.

    python examples/projection_only.py [--steps 60]

Needs torch only. The ten lines that matter are in :func:`unlearn`; the network, the data and the optimizer are yours.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import project, step


def blobs(classes: int = 4, each: int = 150) -> tuple[Tensor, Tensor]:
    """``x`` float32 [N, 8] around one centre per class, ``y`` int64 [N]."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 8, generator=generator)
    y = torch.arange(classes).repeat_interleave(each)
    return centres[y] + 0.5 * torch.randn(len(y), 8, generator=generator), y


def unlearn(model: nn.Module, forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor], steps: int) -> None:
    """Descend on ``retain``, and on ``forget`` towards uniform answers, orthogonally to the retain gradient."""
    uniform = torch.full((len(forget[1]), 4), 0.25)
    arena = GradientArena(model.named_parameters())
    for i in range(steps):
        arena.bind("retain")
        F.cross_entropy(model(retain[0]), retain[1]).backward()
        arena.bind("forget")
        F.cross_entropy(model(forget[0]), uniform).backward()
        stats = project(arena, scope="global")
        step(arena, lr=0.1, lam=1.0)
        if i % 20 == 0:
            print(f"step {i}: cosine {stats.cos_before:+.2f} -> {stats.cos_after:+.0e}, removed {stats.removed:.0%}")
    arena.release()


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of right answers."""
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def main() -> None:
    """Train, unlearn class 0, print both accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    x, y = blobs()
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    forget, retain = (x[y == 0], y[y == 0]), (x[y != 0], y[y != 0])
    print(f"trained: forget {accuracy(model, forget):.0%}, retain {accuracy(model, retain):.0%}")
    unlearn(model, forget, retain, args.steps)
    print(f"unlearned: forget {accuracy(model, forget):.0%}, retain {accuracy(model, retain):.0%}")


if __name__ == "__main__":
    main()
