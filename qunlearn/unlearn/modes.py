"""Which modules are in training mode in which pass: BatchNorm by choice, everything else (dropout) never."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BN_MODES = ("frozen", "retain_only", "train")


def set_mode(model: nn.Module, bn: str, role: str) -> None:
    """Evaluation mode; BatchNorm in training mode if ``bn`` says so for a pass of ``role`` (``forget``, ``retain``)."""
    model.eval()
    if bn == "train" or (bn == "retain_only" and role == "retain"):
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.train()


def statistics_names(model: nn.Module) -> frozenset[str]:
    """State-dict names of the BatchNorm running statistics."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_buffers(recurse=False)
    )
