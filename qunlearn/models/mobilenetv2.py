"""MobileNetV2 (Sandler et al. 2018) with strides for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from qunlearn.models.blocks import conv_bn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first block; the early strides are 1 for small images."""


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection, with a shortcut where the shape is kept."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        layers = [] if expansion == 1 else [conv_bn(c_in, hidden, 1, act=nn.ReLU6)]
        layers += [
            conv_bn(hidden, hidden, 3, stride=stride, groups=hidden, act=nn.ReLU6),
            conv_bn(hidden, c_out, 1, act=None),
        ]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Stem, seven stages, 1x1 head convolution, global average pool, linear head; ``width`` scales all channels.

    ``stages`` are the last blocks of each map size. Channels are rounded to multiples of 8. Input [N, C, H, W] float32,
    output logits [N, K].
    """

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        c_in = scaled(32, width)
        self.stem = conv_bn(in_shape[0], c_in, 3, act=nn.ReLU6)
        blocks, stages = [], []
        for expansion, channels, count, stride in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(c_in, scaled(channels, width), stride if i == 0 else 1, expansion))
                c_in = scaled(channels, width)
            stages.append(f"blocks.{len(blocks) - 1}")
        self.stages = (stages[1], stages[2], stages[4], stages[6])
        self.blocks = nn.Sequential(*blocks)
        last = max(1280, scaled(1280, width)) if width >= 1 else scaled(1280, width)
        self.last = conv_bn(c_in, last, 1, act=nn.ReLU6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(self.last(self.blocks(self.stem(x)))).flatten(1))
        return out


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, to the nearest multiple of 8, at least 8, never below 90 % of the exact value."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded
