"""What attacks on the gradient need: a network whose grids stand still, and a probe for second derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qunlearn.errors import ConfigError, UnsupportedError

USE_INSTEAD = (
    "Use the straight-through quantizer of qunlearn.quant.prepare, a stock brevitas quantizer, or torch's plain "
    "per-tensor and per-channel fake-quant operators: the fused one that learns its scale has no second derivative."
)
_LATENT = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


def latent_parameters(model: nn.Module, *, part: str = "all") -> dict[str, nn.Parameter]:
    """Latent weights and biases by name, in the network's own order: those of convolutions, linear layers, BatchNorm.

    Scales, zero points and statistics are never among them. ``part="classifier"``: the last linear layer alone.
    ConfigError for another ``part`` or a network without such layers.
    """
    if part not in ("all", "classifier"):
        raise ConfigError(f"part {part!r} is unknown.", remedy="Use all or classifier.")
    layers: list[tuple[str, nn.Module]] = [(name, m) for name, m in model.named_modules() if isinstance(m, _LATENT)]
    if part == "classifier":
        layers = [row for row in layers if isinstance(row[1], nn.Linear)][-1:]
    found = {
        f"{name}.{key}" if name else key: p
        for name, m in layers
        for key in ("weight", "bias")
        if isinstance(p := getattr(m, key), nn.Parameter)
    }
    if not found:
        raise ConfigError("the network has no layer with weights.", remedy="Give a convolutional or linear network.")
    return found


@contextmanager
def freeze_quant(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode; scales, observers and BatchNorm statistics frozen, latent parameters trainable.

    Everything is put back as it was afterwards: modes, ``requires_grad`` and the observers' switches. The tensors of
    the network themselves are not touched.
    """
    modes = [(m, m.training) for m in model.modules()]
    needs = [(p, p.requires_grad) for p in model.parameters()]
    switches: list[tuple[Tensor, Tensor]] = []
    latent = {id(p) for p in latent_parameters(model).values()}
    model.eval()
    try:
        for p, _ in needs:
            p.requires_grad_(id(p) in latent)
        for m in model.modules():
            switch = getattr(m, "observer_enabled", None)
            if isinstance(switch, Tensor):
                switches.append((switch, switch.clone()))
                switch.zero_()
        yield model
    finally:
        for switch, was in switches:
            switch.copy_(was)
        for p, required in needs:
            p.requires_grad_(required)
        for m, training in modes:
            m.training = training


@dataclass(frozen=True, kw_only=True)
class DoubleBackward:
    """``ok``: gradients of gradients exist, are finite and not all zero. Else ``module`` names the innermost module
    that stands in the way (empty: none alone does) and ``reason`` says why."""

    ok: bool
    module: str = ""
    reason: str = ""

    def require(self) -> None:
        """UnsupportedError that names the module and the quantizer to use in its place, unless ``ok``."""
        if not self.ok:
            where = f"module {self.module!r}" if self.module else "the network"
            raise UnsupportedError(f"{where} cannot be differentiated twice: {self.reason}.", remedy=USE_INSTEAD)


def supports_double_backward(model: nn.Module, example: Tensor | None = None) -> DoubleBackward:
    """Whether a loss on the gradient of the parameters can be differentiated by the input.

    ``example`` [n, ...] float32; without it, seeded noise of the shape that a prepared network declares.
    """
    if example is None:
        shape = getattr(model, "in_shape", None)
        if shape is None:
            raise ConfigError("the shape of the input is unknown.", remedy="Give an example batch.")
        example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with freeze_quant(model):
        reason = _twice_through(model, example)
        if not reason:
            return DoubleBackward(ok=True)
        for name, module, inputs in _calls(model, example):
            if why := _alone(module, inputs):
                return DoubleBackward(ok=False, module=name, reason=why)
    return DoubleBackward(ok=False, reason=reason)


def _twice_through(model: nn.Module, example: Tensor) -> str:
    """Why the network as a whole fails; empty where it does not."""
    x = example.detach().clone().requires_grad_()
    parameters = list(latent_parameters(model).values())
    try:
        out = model(x)
        loss = torch.nn.functional.cross_entropy(out, torch.zeros(len(out), dtype=torch.long, device=out.device))
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        total = torch.stack([g.square().sum() for g in first if g is not None]).sum()
        (second,) = torch.autograd.grad(total, [x], allow_unused=True)
    except RuntimeError as err:
        return _line(err)
    if second is None or not bool(second.any()):
        return "the gradient of the parameters does not depend on the input"
    return "" if bool(second.isfinite().all()) else "its second derivative is not finite"


def _calls(model: nn.Module, example: Tensor) -> list[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Every module that ran on tensors, innermost first."""
    seen: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = []
    names = {m: n for n, m in model.named_modules() if n}

    def note(module: nn.Module, args: tuple[Any, ...], _out: Any) -> None:
        if args and all(isinstance(a, Tensor) for a in args):
            seen.append((names[module], module, tuple(a.detach() for a in args)))

    hooks = [m.register_forward_hook(note) for m in names]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(seen, key=lambda call: -call[0].count("."))


def _alone(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Why one module fails on its own inputs; empty where it does not."""
    leaves = [a.clone().requires_grad_() for a in inputs if a.is_floating_point()]
    if len(leaves) != len(inputs):
        return ""
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        out = module(*leaves)
        while isinstance(out, tuple | list):
            out = out[0]
        if not isinstance(out, Tensor) or not out.requires_grad:
            return ""
        wanted = [*leaves, *parameters]
        first = torch.autograd.grad(out.square().sum(), wanted, create_graph=True, allow_unused=True)
        parts = [g.square().sum() for g in first if g is not None and g.requires_grad]
        if parts:
            torch.autograd.grad(torch.stack(parts).sum(), wanted, allow_unused=True)
    except RuntimeError as err:
        return _line(err)
    return ""


def _line(err: RuntimeError) -> str:
    return str(err).strip().splitlines()[0].rstrip(".")
