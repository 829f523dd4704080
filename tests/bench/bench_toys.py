"""A grid of seconds, and report cells by hand."""

from __future__ import annotations

from typing import Any

from qunlearn.bench.grid import Grid, grid_from

TINY: dict[str, Any] = {
    "data": "digits", "models": ["resnet8@4"], "requests": ["class=3"], "methods": ["rl", "ga"], "seeds": [0],
    "tune_seeds": [100], "budget": 2, "cost": 5.0, "subset": 300, "train": {"epochs": 2},
    "shared": {"batch_size": 64},
}  # fmt: skip


def tiny(**more: Any) -> Grid:
    return grid_from({**TINY, **more}, where="test")


def made(method: str, gap: float, seed: int, **more: Any) -> dict[str, Any]:
    forget = 1.0 if method == "original" else 0.5
    onnx = {
        "forget_accuracy": forget,
        "retain_accuracy": 0.9,
        "test_accuracy": 0.9,
        "mia": 0.5,
        "mia_degenerate": False,
    }
    return {
        "model": "m", "bits": "w8a8", "request": "class=3", "seed": seed, "method": method, "config": {}, "gap": gap,
        "onnx": onnx, "torch": onnx, "utility": [], "seconds": 1.0, "processor": 1.0, "passes": 1.0, **more,
    }  # fmt: skip
