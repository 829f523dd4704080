"""Fix grids from data: weight scales from the latent weights, activation ranges from batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qunlearn.errors import DivergedError
from qunlearn.quant.exact import CLIP, affine_grid, power_of_two
from qunlearn.quant.layers import act_quantizer
from qunlearn.quant.model import WEIGHTED, QuantModel

LOW_BITS = 4
"""At or below this width the step size starts from the mean magnitude (Esser et al. 2020, LSQ, section 2.1)."""


class _Range:
    def __init__(self) -> None:
        self.lo: list[Tensor] = []
        self.hi: list[Tensor] = []
        self.mean: list[Tensor] = []

    def see(self, x: Tensor) -> None:
        self.lo.append(x.amin())
        self.hi.append(x.amax())
        self.mean.append(x.abs().mean())


@torch.no_grad()
def calibrate(model: QuantModel, batches: Iterable[Tensor]) -> None:
    """Set every scale and zero point; activations are seen in float, evaluation mode, over all ``batches``.

    A range is the mean over batches of the batch minimum and maximum. Latent weights do not change.
    """
    for step in model.steps:
        if step.kind in WEIGHTED:
            q = model.weight_quantizer_of(step)
            weight = model.get_submodule(str(step.module)).weight
            assert isinstance(weight, Tensor)
            q.set_grid(weight_scale(weight.flatten(1), q.hi, int(q.bits)))
    ranges: dict[str, _Range] = {}
    was_training = model.training
    model.eval()
    model.set_enabled(False)
    hooks = []
    try:
        for name, layer in _act_layers(model):
            ranges[name] = _Range()
            hooks.append(layer.register_forward_hook(lambda _m, _i, out, r=ranges[name]: r.see(out)))
        for x in batches:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        model.set_enabled(True)
        model.train(was_training)
    for name, layer in _act_layers(model):
        r = ranges[name]
        if not all(bool(torch.stack(v).isfinite().all()) for v in (r.lo, r.hi)):
            raise DivergedError(
                f"the network diverged: values before {name} are not finite.",
                remedy="Check its initial weights and the data, or use a smaller lr.",
            )
        _set_activation(layer, torch.stack(r.lo).mean(), torch.stack(r.hi).mean(), torch.stack(r.mean).mean())


def weight_scale(rows: Tensor, qmax: int, bits: int) -> Tensor:
    """Step size per row of [K, D]: largest magnitude on the last code, or 2 mean|w| / sqrt(qmax) at few bits.

    A row of zeros gets the median of the others, so that its codes are zero on a usable grid.
    """
    scale = rows.abs().amax(1) / qmax if bits > LOW_BITS else 2 * rows.abs().mean(1) / qmax**0.5
    live = scale > 0
    fallback = scale[live].median() if bool(live.any()) else torch.tensor(1.0 / qmax)
    return torch.where(live, scale, fallback)


def _act_layers(model: QuantModel) -> list[tuple[str, torch.nn.Module]]:
    names = ["input_quant", *(s.act for s in model.steps if s.act is not None)]
    return [(n, model.get_submodule(n)) for n in names]


def _set_activation(layer: torch.nn.Module, lo: Tensor, hi: Tensor, mean: Tensor) -> None:
    q = act_quantizer(layer)
    bits = int(q.bits)
    if int(q.zero_point) == -128 and hasattr(layer, "ceiling"):
        top = hi if bits > LOW_BITS else 2 * mean * (2**bits - 1) ** 0.5
        scale = torch.clamp(top, min=1e-3) / (2**bits - 1)
        q.set_grid(power_of_two(scale, clip=CLIP if bits > LOW_BITS else 0.5) if q.power_of_two else scale)
        return
    lo, hi = lo.clamp(max=0.0), hi.clamp(min=0.0)
    if q.power_of_two:
        hi = torch.maximum(hi, lo + 1e-3)
        q.set_grid(*affine_grid(lo, hi))
        return
    span = torch.clamp(hi - lo, min=1e-3)
    scale = span / 255
    zero = int(torch.clamp((-128 - lo / scale).round(), -128, 127))
    q.set_grid(scale, zero)
