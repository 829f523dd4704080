"""Which backend projects: torch everywhere, triton or CUDA C++ on NVIDIA GPUs. Imports neither before it is used."""

from __future__ import annotations

import logging

import torch

from qunlearn_export.errors import ConfigError, MissingDependencyError
from qunlearn_kernels import cuda_backend, triton_backend
from qunlearn_kernels.two_launch import Launcher

BACKENDS = ("torch", "triton", "cuda")
_log = logging.getLogger("qunlearn_kernels")
_announced: set[str] = set()


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that runs for ``name`` on ``device``: ``torch``, ``triton`` or ``cuda``.

    ``auto`` takes, on a CUDA device, triton where it can run, else the CUDA extension where it can be built, else
    torch; elsewhere torch. Its choice is logged once per device. A backend asked for by name that cannot run is a
    MissingDependencyError with the missing piece and how to get it; another name is a ConfigError.
    """
    if name not in ("auto", *BACKENDS):
        raise ConfigError(
            f"projection backend {name!r} is unknown.", remedy=f"Use auto or one of {', '.join(BACKENDS)}."
        )
    if name == "auto":
        chosen = _automatic(device)
        if str(device) not in _announced:
            _announced.add(str(device))
            _log.info("projection backend: %s on %s", chosen, device)
        return chosen
    if name != "torch":
        lacks = (triton_backend if name == "triton" else cuda_backend).missing(device)
        if lacks is not None:
            raise MissingDependencyError(f"projection backend {name!r} cannot run: {lacks[0]}", remedy=lacks[1])
    return name


def _automatic(device: torch.device) -> str:
    if device.type != "cuda":
        return "torch"
    if not triton_backend.interpreted() and triton_backend.missing(device) is None:
        return "triton"
    return "cuda" if cuda_backend.missing(device) is None else "torch"


def launcher(name: str, device: torch.device) -> Launcher:
    """The launches of ``triton`` or ``cuda``; the CUDA extension is built at its first use (some seconds)."""
    if name == "triton":
        return triton_backend.TritonLauncher(device)
    return cuda_backend.CudaLauncher(device)
