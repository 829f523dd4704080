"""The cuda backend: ``csrc/projection.cu``, built on demand by nvcc through ``torch.utils.cpp_extension``.

For boards where triton has no wheel. The library knows nothing of torch: it takes addresses and a stream, so one build
takes seconds and does not depend on torch's binary interface. Nothing is built before the backend is used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from qunlearn_export.errors import InvariantError, MissingDependencyError
from qunlearn_kernels.tiles import TilePlan
from qunlearn_kernels.two_launch import Step, default_programs

SOURCE = Path(__file__).resolve().parent / "csrc" / "projection.cu"
FLAGS = ("-std=c++17", "-O3")
ARCHITECTURES = (80, 87, 90, 100)
"""Compute capabilities that the compile tests cover; a build is for the device at hand, sm_80 or later."""

_P, _I, _L, _F, _D = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_double
_SIGNATURES = {
    "qunlearn_dots": [_P, _P, _P, _P, _P, _I, _I, _P],
    "qunlearn_update": [*[_P] * 9, _I, _I, _D, _I, _F, _F, _F, _F, _I, _I, _P],
    "qunlearn_basis_dots": [_P, _P, _L, _P, _P, _I, _I, _I, _I, _P],
    "qunlearn_basis_update": [_P, _P, _L, _P, _P, _P, _P, _I, _I, _I, _I, _P],
}


def nvcc() -> str | None:
    """Path of the CUDA compiler: under CUDA_HOME or CUDA_PATH, on PATH, or in /usr/local/cuda."""
    homes = [os.environ[v] for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    for home in homes:
        if (found := shutil.which("nvcc", path=str(Path(home) / "bin"))) is not None:
            return found
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def missing(device: torch.device) -> tuple[str, str] | None:
    """What is missing to run on ``device`` and how to get it; None when the extension can be built."""
    if device.type != "cuda":
        return (
            f"the CUDA kernels need tensors on an NVIDIA GPU; these are on {device}.",
            "Move the model to a CUDA device, or use torch.",
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than sm_80.", "Use torch."
    if nvcc() is None:
        return "nvcc is not found.", "Install the CUDA toolkit of torch's CUDA version, or set CUDA_HOME."
    if shutil.which("ninja") is None:
        return "ninja is not found.", "Install it with: pip install ninja."
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler is found.", "Install g++, or set CXX."
    return None


def load_library(path: Path) -> ctypes.CDLL:
    """The built library with its functions declared."""
    library = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library


@functools.cache
def build(capability: tuple[int, int]) -> ctypes.CDLL:
    """Compile for one compute capability and load. MissingDependencyError with the compiler's words when it fails.

    The build folder is ``TORCH_EXTENSIONS_DIR`` or torch's own, and is used again while the source is the same.
    """
    from torch.utils import cpp_extension

    number = f"{capability[0]}{capability[1]}"
    name = f"qunlearn_projection_sm{number}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    folder = Path(root) / f"{name}_cuda{torch.version.cuda}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        cpp_extension.load(
            name=name,
            sources=[str(SOURCE)],
            extra_cuda_cflags=[*FLAGS, f"-gencode=arch=compute_{number},code=sm_{number}"],
            build_directory=str(folder),
            is_python_module=False,
        )
        return load_library(folder / f"{name}.so")
    except (RuntimeError, OSError) as error:
        raise MissingDependencyError(
            f"the CUDA extension could not be built: {error}",
            remedy="Install a CUDA toolkit that fits torch and the compiler, or use triton or torch.",
        ) from error


class CudaLauncher:
    """The four launches. ``library`` and ``programs`` (the grid) are for tests; results do not depend on the grid."""

    def __init__(
        self, device: torch.device, *, library: ctypes.CDLL | None = None, programs: int | None = None
    ) -> None:
        self.device = device
        self.compiled = build(torch.cuda.get_device_capability(device)) if library is None else library
        self.programs = default_programs(device) if programs is None else programs

    def _call(self, name: str, tiles: TilePlan, *arguments: object) -> None:
        grid = min(self.programs, tiles.tiles)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                stream = torch.cuda.current_stream(self.device).cuda_stream
                code = getattr(self.compiled, name)(*arguments, grid, stream)
        else:
            code = getattr(self.compiled, name)(*arguments, grid, None)
        if code:
            raise InvariantError(f"{name} could not be launched: CUDA error {code}.", remedy="Report it; use torch.")

    def dots(self, tiles: TilePlan, f: Tensor, r: Tensor, metric: Tensor | None, sums: Tensor) -> None:
        """See :class:`qunlearn_kernels.two_launch.Launcher`."""
        self._call("qunlearn_dots", tiles, _at(f), _at(r), _at(metric), _at(tiles.table), _at(sums), tiles.tiles)

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
        tables = (_at(tiles.table), _at(tiles.first), _at(sums), _at(after), _at(given))
        shares = (0.0, 0.0, 0.0, 0.0, 0) if step is None else (step.lr, step.lam, step.share_r, step.share_old)
        self._call(
            "qunlearn_update",
            tiles,
            *(_at(f), _at(r), _at(metric), *tables, _at(None if step is None else step.where)),
            *(tiles.tiles, tiles.units, eps, int(conflict)),
            *(shares if step is None else (*shares, int(step.aligned))),
        )

    def basis_dots(self, tiles: TilePlan, f: Tensor, q: Tensor, sums: Tensor) -> None:
        """See :class:`qunlearn_kernels.two_launch.Launcher`."""
        shape = (tiles.tiles, len(q), sums.shape[1])
        self._call("qunlearn_basis_dots", tiles, _at(f), _at(q), q.stride(0), _at(tiles.table), _at(sums), *shape)

    def basis_update(self, tiles: TilePlan, f: Tensor, q: Tensor, sums: Tensor, after: Tensor) -> None:
        """See :class:`qunlearn_kernels.two_launch.Launcher`."""
        tables = (_at(tiles.table), _at(tiles.first), _at(sums), _at(after))
        shape = (tiles.tiles, len(q), sums.shape[1])
        self._call("qunlearn_basis_update", tiles, _at(f), _at(q), q.stride(0), *tables, *shape)


def _at(tensor: Tensor | None) -> int | None:
    """Address of the first entry; rows must start at a multiple of 16 bytes for the kernels' wide loads."""
    return None if tensor is None else tensor.data_ptr()
