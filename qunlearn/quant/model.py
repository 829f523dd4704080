"""The fake-quantized network: a list of steps, each an operator of the artefact with its quantizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qunlearn.errors import ConfigError
from qunlearn.quant.exact import power_of_two, run_weighted
from qunlearn.quant.fake import MIN_SCALE, FakeQuantize
from qunlearn.quant.layers import act_quantizer, quant_identity, weight_quantizer
from qunlearn.quant.spec import QuantSpec

INPUT = "input"
WEIGHTED = ("conv", "linear")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator: ``name`` (module path), ``kind``, names of the steps it reads, modules that it runs.

    ``module`` holds the operator's own module where it has one, ``bn`` the BatchNorm folded into it at lowering,
    ``act`` the module that quantizes its result (None where the grid of the input is kept).
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    module: str | None = None
    bn: str | None = None
    act: str | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


class QuantModel(nn.Module):
    """A fake-quantized network made by :func:`qunlearn.quant.prepare`.

    ``forward`` takes float32 [N, C, H, W] and returns float32 logits [N, K] that lie on the int8 grid of the logits.
    Parameters: latent weights, biases, BatchNorm affine, and scales (names ending in ``.scale``). ``stages`` names the
    steps whose outputs are the network's feature points, from input to output.
    """

    def __init__(self, spec: QuantSpec, in_shape: tuple[int, ...], steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.spec = spec
        self.in_shape = in_shape
        self.steps = steps
        self.stages: tuple[str, ...] = ()
        self.input_quant = quant_identity(power_of_two=spec.grid == "exact")
        last_use: dict[str, int] = {}
        for i, step in enumerate(steps):
            for name in step.inputs:
                last_use[name] = i
        self._free_after = [tuple(n for n, j in last_use.items() if j == i) for i in range(len(steps))]

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {INPUT: self.input_quant(self._laid_out(x))}
        for step, done in zip(self.steps, self._free_after, strict=True):
            values[step.name] = self.run_step(step, *(values[n] for n in step.inputs))
            for name in done:
                del values[name]
        return values[self.steps[-1].name]

    def _laid_out(self, x: Tensor) -> Tensor:
        """The same input with channels last in memory, where convolutions are faster; all that follows keeps it."""
        if x.ndim != 4 or all(step.kind != "conv" for step in self.steps):
            return x
        if x.shape[1] == 1:  # every layout counts as channels last here, but torch looks at the strides
            n, c, h, w = x.shape
            return x.reshape(n, h, w, c).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last)

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Every step's dequantized output by step name, ``input`` included."""
        values: dict[str, Tensor] = {INPUT: self.input_quant(self._laid_out(x))}
        for step in self.steps:
            values[step.name] = self.run_step(step, *(values[n] for n in step.inputs))
        return values

    def run_step(self, step: Step, *inputs: Tensor) -> Tensor:
        """One operator on dequantized inputs, its own quantizer included."""
        if self._folds(step):
            out = self._run_folded(step, inputs[0])
            return out if step.act is None else self._activate(step, out)
        out = self._operate(step, inputs)
        if step.bn is not None:
            out = self._normalize(step, out)
        elif step.kind == "linear" or step.kind == "conv":
            shift = self._bias_rounding(step, None)
            if shift is not None:
                out = out + shift.reshape(-1, *([1] * (out.ndim - 2)))
        return out if step.act is None else self._activate(step, out)

    def _activate(self, step: Step, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule(str(step.act))(x)
        return out

    def _folds(self, step: Step) -> bool:
        """Whether a layer runs as it ships: on an exact grid, where no batch statistics are taken."""
        if self.spec.grid != "exact" or step.kind not in WEIGHTED or not self.weight_quantizer_of(step).enabled:
            return False
        return not (self.training if step.bn is None else self.get_submodule(step.bn).training)

    def _run_folded(self, step: Step, x: Tensor) -> Tensor:
        bn = None if step.bn is None else self.get_submodule(step.bn)
        assert bn is None or isinstance(bn, nn.BatchNorm2d)
        scale = self.quantizer_of(step.inputs[0]).scale.detach()
        return run_weighted(self.get_submodule(str(step.module)), bn, self.weight_quantizer_of(step), scale, x)

    def _normalize(self, step: Step, x: Tensor) -> Tensor:
        """BatchNorm; in evaluation mode with the folded bias on its int32 grid, as it ships."""
        bn = self.get_submodule(str(step.bn))
        assert isinstance(bn, nn.BatchNorm2d)
        if bn.training or bn.running_mean is None or bn.running_var is None:
            out: Tensor = bn(x)
            return out
        shift = self._bias_rounding(step, bn)
        offset = bn.bias if shift is None else shift if bn.bias is None else bn.bias + shift
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, offset, False, 0.0, bn.eps)

    @torch.no_grad()
    def _bias_rounding(self, step: Step, bn: nn.BatchNorm2d | None) -> Tensor | None:
        """Rounded minus exact bias per output channel [K]; None where there is no bias or no quantization."""
        q, x = self.weight_quantizer_of(step), self.quantizer_of(step.inputs[0])
        if not q.enabled:
            return None
        bias = self.get_submodule(str(step.module)).bias
        scale = q.scale.flatten() * x.scale
        if bn is not None:
            assert bn.running_mean is not None
            assert bn.running_var is not None
            factor = torch.rsqrt(bn.running_var + bn.eps)
            if bn.weight is not None:
                factor = factor * bn.weight
            exact = -bn.running_mean * factor
            if bn.bias is not None:
                exact = exact + bn.bias
            if isinstance(bias, Tensor):
                exact = exact + bias * factor
            scale = scale * factor.abs()
        elif isinstance(bias, Tensor) and not self.training:
            exact = bias
        else:
            return None
        rounded = (exact / scale).round() * scale
        return torch.where(rounded.isfinite(), rounded - exact, torch.zeros_like(exact))

    def _operate(self, step: Step, inputs: tuple[Tensor, ...]) -> Tensor:
        x, a = inputs[0], step.attrs
        match step.kind:
            case "conv" | "linear" | "dropout":
                assert step.module is not None
                out: Tensor = self.get_submodule(step.module)(x)
                return out
            case "add":
                return inputs[0] + inputs[1]
            case "concat":
                return torch.cat(inputs, dim=1)
            case "maxpool":
                return F.max_pool2d(x, a["kernel"], a["strides"], a["padding"])
            case "avgpool":
                return F.avg_pool2d(x, a["kernel"], a["strides"], a["padding"], False, a["count_include_pad"])
            case "gap":
                return x.mean(dim=(2, 3), keepdim=True)
            case "flatten":
                return x.flatten(1)
            case "requant":
                return x
            case kind:
                raise AssertionError(kind)

    def quantizer_of(self, name: str) -> FakeQuantize:
        """The activation quantizer that gives the grid of step ``name`` (or of ``input``)."""
        while name != INPUT:
            step = self.step(name)
            if step.act is not None:
                return act_quantizer(self.get_submodule(step.act))
            name = step.inputs[0]
        return act_quantizer(self.input_quant)

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(s for s in self.steps if s.name == name)

    def weight_quantizer_of(self, step: Step) -> FakeQuantize:
        """The weight quantizer of a weighted step."""
        assert step.module is not None
        return weight_quantizer(self.get_submodule(step.module))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copy tensors in place. ``strict`` must stay True and ``assign`` False (ConfigError).

        The inherited version lets brevitas rebuild quantizers from its injectors, which a deep copy shares with its
        original: two networks would then share scales.
        """
        own = self.state_dict()
        if not strict or assign or set(own) != set(state_dict):
            raise ConfigError(
                "the tensors do not have the names of this network.", remedy="Load a complete state, strictly."
            )
        with torch.no_grad():
            for name, value in state_dict.items():
                own[name].copy_(value)
        return None

    def quantizers(self) -> Iterator[tuple[str, FakeQuantize]]:
        """All quantizers by module path."""
        for name, module in self.named_modules():
            if isinstance(module, FakeQuantize):
                yield name, module

    def set_enabled(self, enabled: bool) -> None:
        """Switch fake quantization of all tensors on or off (off = the float phase of training)."""
        for _, q in self.quantizers():
            q.enabled = enabled


def scale_parameter_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are quantization scales."""
    return frozenset(f"{name}.scale" for name, module in model.named_modules() if isinstance(module, FakeQuantize))


@torch.no_grad()
def clamp_scales(model: nn.Module) -> None:
    """Keep learned scales positive and normal, and powers of two where they must be.

    Called after every optimizer step that may move them.
    """
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            if module.power_of_two and module.scale.requires_grad:
                module.scale.copy_(power_of_two(module.scale, clip=0.5))
            module.scale.clamp_(min=MIN_SCALE)


def layer_of(model: QuantModel) -> dict[str, str]:
    """Parameter name to layer name: weight, bias, BatchNorm and scales of one step belong together.

    What has no weights (pooling, an addition) belongs to the layer before it and the input to the first one, so that
    no layer consists of one activation scale alone.
    """
    layer = next((step.name for step in model.steps if step.kind in WEIGHTED), INPUT)
    owner: dict[str, str] = {"input_quant": layer}
    for step in model.steps:
        layer = step.name if step.kind in WEIGHTED else layer
        for module in (step.module, step.bn, step.act):
            if module is not None:
                owner[module] = layer
    prefixes = sorted(owner, key=len, reverse=True)
    out: dict[str, str] = {}
    for name, _ in model.named_parameters():
        prefix = next(p for p in prefixes if name == p or name.startswith(p + "."))
        out[name] = owner[prefix]
    return out
