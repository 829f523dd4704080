"""Your own network and your own data, by entry points: ``--data own_data:dataset --model own_data:network``.

    python examples/own_data.py [--quick] [-o runs/own]

:func:`dataset` returns plain arrays, :func:`network` a torch module of the offered operators; nothing is registered.
The commands import ``own_data`` from the folder of this file (in your project: from the working directory). A run keeps
the two names, so the functions must stay importable for as long as the run is used.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from torch import nn

from qunlearn.cli import run

SIZE, PER_USER = 12, 120
DIRECTIONS = (0, 60, 120)
TILT = (-4, 2, 27, 0, -2, 5)
"""Degrees by which each of the six users holds the device: ``user2`` in a way of their own."""


def dataset() -> dict[str, np.ndarray]:
    """Striped images of six users: ``x`` uint8 [N, 1, 12, 12], ``y`` the direction, ``group`` the user.

    Every user has a stripe width and a tilt of their own, which a network that saw the user knows.
    """
    rng = np.random.default_rng(0)
    i, j = np.indices((SIZE, SIZE))
    images, labels, groups = [], [], []
    for user, tilt in enumerate(TILT):
        for n in range(PER_USER):
            label = n % len(DIRECTIONS)
            angle = np.deg2rad(DIRECTIONS[label] + tilt + rng.normal(0, 4))
            position = i * np.cos(angle) + j * np.sin(angle) + rng.uniform(0, SIZE)
            stripes = np.sin(2 * np.pi * position / (3 + 0.5 * user))
            image = 128 + 70 * stripes + rng.normal(0, 30, (SIZE, SIZE))
            images.append(np.clip(image, 0, 255).astype(np.uint8)[None])
            labels.append(label)
            groups.append(f"user{user}")
    return {"x": np.stack(images), "y": np.array(labels), "group": np.array(groups)}


def network(in_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Two convolutions with BatchNorm, a pool and a linear layer: [N, C, H, W] to logits [N, K]."""
    return nn.Sequential(
        nn.Conv2d(in_shape[0], 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def must(*words: object) -> None:
    """Print a command line, run it, and end the program when it fails."""
    line = [str(w) for w in words]
    print(f"\n$ qunlearn {shlex.join(line)}", flush=True)
    if code := run(line):
        sys.exit(code)


def main() -> None:
    """Train with a reference card (one more network per user), forget one user, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two epochs, few steps")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/own"))
    args = parser.parse_args()
    epochs, steps = (2, 10) if args.quick else (15, 100)
    names = ["--data", "own_data:dataset", "--model", "own_data:network"]
    settings = ["--set", "lr=0.002", "--set", "eval_every=2", "--set", f"max_steps={steps}"]
    base, oeu = args.output / "base", args.output / "oeu"
    must("train", *names, "--epochs", epochs, "--reference-card", "-o", base)
    must("unlearn", base, "--forget", "group=user2", "--method", "oeu", *settings, "-o", oeu)
    must("export", oeu, "-o", args.output / "model.onnx", "--parity-n", 64)


if __name__ == "__main__":
    main()
