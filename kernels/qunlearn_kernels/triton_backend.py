"""The triton backend: launches :mod:`qunlearn_kernels.triton_kernels` on a CUDA device, or under its interpreter.

The interpreter runs the kernels on the CPU, slowly, for tests: set TRITON_INTERPRET=1 before the process starts.
Nothing here imports triton before the backend is used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from qunlearn_kernels.arena import ALIGN
from qunlearn_kernels.tiles import CHUNK, TilePlan
from qunlearn_kernels.two_launch import Step, default_programs

BASIS_CHUNK = 512
WIDTH = 512
BASIS_WIDTH = 64
WARPS = 4


def interpreted() -> bool:
    """Whether TRITON_INTERPRET asks for the interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing(device: torch.device) -> tuple[str, str] | None:
    """What is missing to run on ``device`` and how to get it; None when the backend can run."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed.", "Install it with: pip install 'qunlearn[gpu]' (Linux)."
    if interpreted():
        return None
    if device.type != "cuda":
        return (
            f"the triton backend needs tensors on an NVIDIA GPU; these are on {device}.",
            "Move the model to a CUDA device, use torch, or set TRITON_INTERPRET=1 before the process starts.",
        )
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than sm_80.", "Use torch."
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler for its launchers.", "Install gcc, or set CC."
    return None


class TritonLauncher:
    """The four launches. ``programs`` fixes the grid (default: by the device); results do not depend on it."""

    def __init__(self, device: torch.device, *, programs: int | None = None) -> None:
        from qunlearn_kernels import triton_kernels

        self.kernels: ModuleType = triton_kernels
        self.device = device
        self.programs = default_programs(device) if programs is None else programs

    def _launch(self, name: str, tiles: TilePlan, *arguments: object, **constants: object) -> None:
        """One launch; the interpreter's numpy is not to warn of sums that overflow, which the caller reports."""
        grid = (min(self.programs, tiles.tiles),)
        kernel = getattr(self.kernels, name)
        device = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        with np.errstate(all="ignore"), device:
            kernel[grid](*arguments, **constants, ALIGN=ALIGN, num_warps=WARPS, enable_fp_fusion=True)

    def dots(self, tiles: TilePlan, f: Tensor, r: Tensor, metric: Tensor | None, sums: Tensor) -> None:
        """See :class:`qunlearn_kernels.two_launch.Launcher`."""
        self._launch(
            "dot_partials",
            tiles,
            f,
            r,
            f if metric is None else metric,
            tiles.table,
            sums,
            tiles.tiles,
            METRIC=metric is not None,
            CHUNK=CHUNK,
        )

    def update(
        self,
        tiles: TilePlan,
        f: Tensor,
        r: Tensor,
        metric: Tensor | None,
        sums: Tensor,
        after: Tensor,
        *,
        eps: float,
        conflict: bool,
        given: Tensor | None,
        step: Step | None,
    ) -> None:
        """See :class:`qunlearn_kernels.two_launch.Launcher`."""
        self._launch(
            "project_update",
            tiles,
            f,
            r,
            f if metric is None else metric,
            tiles.table,
            tiles.first,
            sums,
            after,
            sums if given is None else given,
            tiles.table if step is None else step.where,
            tiles.tiles,
            tiles.units,
            eps,
            0.0 if step is None else step.lr,
            0.0 if step is None else step.lam,
            0.0 if step is None else step.share_r,
            0.0 if step is None else step.share_old,
            METRIC=metric is not None,
            CONFLICT=conflict,
            GIVEN=given is not None,
            STEP=step is not None,
            ALIGNED=step is not None and step.aligned,
            CHUNK=CHUNK,
            WIDTH=WIDTH,
        )

    def basis_dots(self, tiles: TilePlan, f: Tensor, q: Tensor, sums: Tensor) -> None:
        """See :class:`qunlearn_kernels.two_launch.Launcher`."""
        self._launch(
            "basis_partials",
            tiles,
            f,
            q,
            q.stride(0),
            tiles.table,
            sums,
            tiles.tiles,
            len(q),
            ROWS=sums.shape[1],
            CHUNK=BASIS_CHUNK,
        )

    def basis_update(self, tiles: TilePlan, f: Tensor, q: Tensor, sums: Tensor, after: Tensor) -> None:
        """See :class:`qunlearn_kernels.two_launch.Launcher`."""
        self._launch(
            "basis_update",
            tiles,
            f,
            q,
            q.stride(0),
            tiles.table,
            tiles.first,
            sums,
            after,
            tiles.tiles,
            len(q),
            ROWS=sums.shape[1],
            CHUNK=BASIS_CHUNK,
            WIDTH=BASIS_WIDTH,
        )
