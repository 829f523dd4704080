"""From the fake-quantized network to the integer graph: fold BatchNorm, take codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.errors import UnsupportedError, VerificationError
from qunlearn.quant.exact import bn_affine, weight_grid
from qunlearn.quant.model import INPUT, WEIGHTED, QuantModel, Step
from qunlearn_export import graph as g
from qunlearn_export.graph import codes_digest as digest_of

INT32_MAX = 2**31 - 1


def activation_name(step_name: str) -> str:
    """The graph's name for the result of a step."""
    return INPUT if step_name == INPUT else f"{step_name}.out"


@torch.no_grad()
def lower(model: QuantModel, *, meta: Mapping[str, Any] | None = None, repair_dead: bool = False) -> g.Graph:
    """The integer graph that ships. BatchNorm is folded: scale s_w |gamma| / sigma, sign into the codes.

    Bias codes that leave int32 (check D1: a scale close to zero) raise VerificationError naming the channels;
    ``repair_dead=True`` gives such channels zero codes and the median live scale instead (check D4).
    """
    was_training = model.training
    model.eval()
    try:
        shapes = {n: tuple(v.shape[1:]) for n, v in model.activations(torch.zeros(1, *model.in_shape)).items()}
    finally:
        model.train(was_training)
    activations = {INPUT: _activation(model, INPUT, shapes[INPUT])}
    alias: dict[str, str] = {INPUT: INPUT}
    layers: list[g.AnyLayer] = []
    overflow: list[str] = []
    for step in model.steps:
        if step.kind == "dropout":
            alias[step.name] = alias[step.inputs[0]]
            continue
        alias[step.name] = step.name
        activations[activation_name(step.name)] = _activation(model, step.name, shapes[step.name])
        sources = tuple(activation_name(alias[n]) for n in step.inputs)
        common: dict[str, Any] = {
            "name": step.name,
            "inputs": sources,
            "output": activation_name(step.name),
            **_clamp(model, step),
        }
        if step.kind in WEIGHTED:
            if step.kind == "linear" and len(shapes[step.inputs[0]]) != 1:
                raise UnsupportedError(
                    f"linear layer {step.name} reads a tensor of shape {shapes[step.inputs[0]]}.",
                    remedy="Flatten before it, so that it reads [N, D].",
                )
            common |= _weights(model, step, activations[sources[0]].scale, repair_dead, overflow)
        layers.append(_layer(model, step, common))
    if overflow:
        raise VerificationError(
            f"D1: bias codes leave int32 (dead channels), or scales leave float32: {', '.join(overflow[:8])}"
            f"{f' and {len(overflow) - 8} more' if len(overflow) > 8 else ''}.",
            remedy="Train longer, use a gentler method, or repair dead channels (`export --repair-dead`).",
        )
    weighted = [s for s in model.steps if s.kind in WEIGHTED]
    facts = {
        "weight_bits": model.spec.weight_bits if len(weighted) > 2 else 8,
        "weight_range": model.spec.weight_range,
        "task": "classification",
        **(meta or {}),
    }
    output = activation_name(alias[model.steps[-1].name])
    return g.Graph(activations=activations, layers=tuple(layers), input=INPUT, output=output, meta=facts)


def codes(model: QuantModel) -> dict[str, NDArray[Any]]:
    """The integer tensors that would ship, with scales and zero points, by their name in the file."""
    return lower(model).quantized_tensors()


def codes_digest(model: QuantModel) -> str:
    """SHA-256 of :func:`codes` (artefact_onnx 2.1); equal to the digest of the exported file."""
    return digest_of(codes(model))


def latent_scale(model: QuantModel, step: Step) -> Tensor:
    """Scale [K, 1, ...] on which the latent weights of a layer are rounded, on either grid."""
    q = model.weight_quantizer_of(step)
    if model.spec.grid == "free":
        return q.scale.detach()
    factor = None if step.bn is None else bn_affine(model.get_submodule(step.bn))[0]
    return weight_grid(q, factor)[0].detach()


def _activation(model: QuantModel, name: str, shape: tuple[int, ...]) -> g.Activation:
    q = model.quantizer_of(name)
    return g.Activation(
        name=activation_name(name),
        shape=shape,
        scale=np.float32(q.scale.item()),
        zero_point=int(q.zero_point),
        bits=int(q.bits),
    )


def _clamp(model: QuantModel, step: Step) -> dict[str, Any]:
    layer = model.get_submodule(step.act) if step.act is not None else None
    if layer is None or not hasattr(layer, "ceiling"):
        return {}
    q = model.quantizer_of(step.name)
    scale, top = np.float32(q.scale.item()), q.hi - q.lo
    limits = []
    if top < 255:
        limits.append(np.multiply(np.float32(top), scale, dtype=np.float32))
    ceiling = layer.ceiling
    if isinstance(ceiling, float) and np.rint(np.float32(ceiling) / scale) < top:
        limits.append(np.float32(ceiling))
    return {"relu": True, "clip": min(limits) if limits else None}


def _weights(
    model: QuantModel, step: Step, input_scale: np.float32, repair_dead: bool, overflow: list[str]
) -> dict[str, Any]:
    module = model.get_submodule(str(step.module))
    q = model.weight_quantizer_of(step)
    weight = module.weight
    assert isinstance(weight, Tensor)
    factor, offset = (None, None) if step.bn is None else bn_affine(model.get_submodule(step.bn))
    grid, folded = weight_grid(q, factor) if model.spec.grid == "exact" else (None, None)
    w_codes = q.codes(weight, scale=grid).cpu().numpy()
    scale = q.scale.detach().double().flatten().cpu().numpy()
    raw_bias = module.bias
    bias = raw_bias.detach().double().cpu().numpy() if isinstance(raw_bias, Tensor) else None
    if factor is not None and offset is not None:
        bias = offset + (0.0 if bias is None else bias) * factor
        w_codes = np.where((factor < 0)[:, None, None, None], -w_codes, w_codes).astype(np.int8)
        scale = scale * np.abs(factor)
    with np.errstate(over="ignore"):
        weight_scale = (scale if folded is None else folded).astype(np.float32)
    huge = ~np.isfinite(weight_scale)
    if bias is None:
        overflow.extend(f"{step.name}[{k}]" for k in np.flatnonzero(huge))
        return {"weight": w_codes, "weight_scale": weight_scale, "bias": None}
    ratio = _ratio(bias, input_scale, weight_scale)
    bad = huge | ~(np.abs(ratio) <= INT32_MAX)
    if bad.any() and repair_dead and not bad.all():
        dead = bad & ~huge
        weight_scale = np.where(dead, np.median(weight_scale[~bad]), weight_scale).astype(np.float32)
        w_codes[dead] = 0
        ratio = _ratio(bias, input_scale, weight_scale)
        bad = huge | ~(np.abs(ratio) <= INT32_MAX)
    overflow.extend(f"{step.name}[{k}]" for k in np.flatnonzero(bad))
    rounded = np.where(bad, 0, np.rint(ratio))
    return {"weight": w_codes, "weight_scale": weight_scale, "bias": rounded.astype(np.int32)}


def _ratio(bias: NDArray[np.float64], input_scale: np.float32, weight_scale: NDArray[np.float32]) -> NDArray[Any]:
    grid = g.bias_scale(input_scale, weight_scale).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(bias / grid)


def _layer(model: QuantModel, step: Step, common: dict[str, Any]) -> g.AnyLayer:
    a = step.attrs
    match step.kind:
        case "conv":
            m = model.get_submodule(str(step.module))
            assert isinstance(m, nn.Conv2d)
            ph, pw = (int(p) for p in m.padding)
            return g.Conv(
                strides=tuple(m.stride), pads=(ph, pw, ph, pw), dilations=tuple(m.dilation), group=m.groups, **common
            )
        case "linear":
            return g.Gemm(**common)
        case "add":
            return g.Add(**common)
        case "concat":
            return g.Concat(**common)
        case "gap":
            return g.GlobalAveragePool(**common)
        case "flatten":
            return g.Flatten(**common)
        case "requant":
            return g.Requant(**common)
        case "maxpool":
            return g.MaxPool(kernel=a["kernel"], strides=a["strides"], pads=(*a["padding"], *a["padding"]), **common)
        case "avgpool":
            return g.AveragePool(
                kernel=a["kernel"],
                strides=a["strides"],
                pads=(*a["padding"], *a["padding"]),
                count_include_pad=a["count_include_pad"],
                **common,
            )
        case kind:
            raise AssertionError(kind)
