"""The one building block that all reference networks share."""

from __future__ import annotations

from torch import nn


def conv_bn(
    c_in: int,
    c_out: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, unless ``act`` is None, an activation; half padding, [N, C, H, W]."""
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = ((kh - 1) // 2, (kw - 1) // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, (kh, kw), stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    if act is not None:
        layers.append(act())
    return nn.Sequential(*layers)
