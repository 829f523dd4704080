"""Tensors and small facts in one safetensors file, written whole; the form of checkpoints and resumable state."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qunlearn.errors import ArtefactError
from qunlearn_export.files import canonical_json, write_atomic

MAX_BYTES = 4 * 2**30


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write ``tensors`` and JSON-able ``facts`` to ``path`` atomically."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return write_atomic(path, safetensors.torch.save(plain, metadata={"facts": canonical_json(dict(facts))}))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`save_tensors`; ArtefactError for anything that is not such a file."""
    target = Path(path)
    remedy = "Restore the file from a copy, or make it anew."
    try:
        size = target.stat().st_size
        if size > MAX_BYTES:
            raise ArtefactError(f"{target} has {size} bytes, more than {MAX_BYTES}.", remedy=remedy)
        data = target.read_bytes()
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header.get("__metadata__", {}).get("facts", "{}"))
    except OSError as err:
        raise ArtefactError(f"cannot read {target}: {err.strerror}.", remedy="Check the path.") from err
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise ArtefactError(f"{target} is not a readable safetensors file: {err}.", remedy=remedy) from err
    if not isinstance(facts, dict):
        raise ArtefactError(f"{target} carries malformed metadata.", remedy=remedy)
    return tensors, facts


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer") -> dict[str, Tensor]:
    """Optimizer state as named tensors ``<prefix>.<parameter index>.<key>``; numbers become float64 scalars."""
    out = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if value is not None:
                out[f"{prefix}.{index}.{key}"] = (
                    value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                )
    return out


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str = "optimizer"
) -> None:
    """Put tensors made by :func:`optimizer_tensors` back; hyper-parameters stay those of ``optimizer``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            _, index, key = name.rsplit(".", 2)
            state.setdefault(int(index), {})[key] = value
    full = optimizer.state_dict()
    full["state"] = state
    optimizer.load_state_dict(full)


def state_digest(model: nn.Module) -> str:
    """SHA-256 over (name, dtype, shape, little-endian bytes) sorted by name (artefact_audit 2.3)."""
    h = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        h.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        h.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
