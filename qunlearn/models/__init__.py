"""Reference networks by name, and a user's own by ``package.module:function``. Float torch modules, fx-traceable."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qunlearn.errors import ConfigError
from qunlearn.models.dscnn import DSCNN
from qunlearn.models.mobilenetv2 import MobileNetV2
from qunlearn.models.resnet import resnet8, resnet18
from qunlearn.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
MODELS.register("dscnn", DSCNN)
MODELS.register("resnet8", resnet8)
MODELS.register("resnet18", resnet18)
MODELS.register("mobilenetv2", MobileNetV2)

EXACT = ("mobilenetv2",)
"""Networks so deep that runtimes drift apart on a free grid, beyond what ``export`` allows (docs/quant.md)."""


def build(name: str, *, in_shape: tuple[int, ...], num_classes: int, seed: int, **settings: Any) -> nn.Module:
    """A float network for inputs [N, *in_shape] and ``num_classes`` classes, initialised from ``seed``.

    ``name`` is a registered name, optionally with a width (``mobilenetv2@0.35``, ``dscnn@32``), or
    ``package.module:function``, called with ``in_shape`` and ``num_classes``. The global random state is untouched.
    """
    if len(in_shape) != 3:
        raise ConfigError(f"input shape {in_shape} is not (C, H, W).", remedy="Give image-like data.")
    if ":" in name:
        make = _entry_point(name)
    else:
        base, _, width = name.partition("@")
        make = MODELS[base]
        if width:
            settings = {"width": _width(base, width), **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = make(in_shape=in_shape, num_classes=num_classes, **settings)
        except TypeError as err:
            raise ConfigError(
                f"network {name!r} cannot be built: {err}.",
                remedy="A network's function takes in_shape and num_classes, and the settings it declares.",
            ) from err
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name!r} returned {type(model).__name__}, not a torch module.", remedy="Return nn.Module.")
    return model


def grid_for(name: str) -> str:
    """The grid of activation and weight scales that suits a network: ``exact`` where ``free`` would not ship."""
    return "exact" if name.partition("@")[0] in EXACT else "free"


def _width(base: str, text: str) -> float | int:
    try:
        value = float(text) if base == "mobilenetv2" else int(text)
    except ValueError:
        value = 0
    if not 0 < value <= 4096:
        raise ConfigError(f"width {text!r} of {base} is malformed.", remedy=f"Write {base}@32 or mobilenetv2@0.35.")
    return value


def _entry_point(name: str) -> Callable[..., nn.Module]:
    module_name, _, function = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        target = getattr(importlib.import_module(module_name), function)
    except (ImportError, ValueError, AttributeError) as err:
        raise ConfigError(
            f"network {name!r} cannot be imported: {err}.", remedy="Write package.module:function."
        ) from err
    finally:
        sys.path.remove(here)
    if not callable(target):
        raise ConfigError(f"network {name!r} is not callable.", remedy="Name a function or class.")
    made: Callable[..., nn.Module] = target
    return made


__all__ = ["MODELS", "build"]
