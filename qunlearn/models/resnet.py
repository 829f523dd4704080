"""Residual networks for small images: ResNet-8 of MLPerf Tiny and ResNet-18 with the CIFAR stem (He et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from qunlearn.models.blocks import conv_bn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 convolution with BatchNorm where the shape changes)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(c_in, c_out, 3, stride=stride)
        self.conv2 = conv_bn(c_out, c_out, 3, act=None)
        same = stride == 1 and c_in == c_out
        self.shortcut: nn.Module = nn.Identity() if same else conv_bn(c_in, c_out, 1, stride=stride, act=None)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Stem 3x3, stages of basic blocks (the first of each later stage with stride 2), global average pool, linear head.

    Input [N, C, H, W] float32, output logits [N, K].
    """

    def __init__(
        self, in_shape: tuple[int, int, int], num_classes: int, *, widths: tuple[int, ...], depth: int
    ) -> None:
        super().__init__()
        self.stem = conv_bn(in_shape[0], widths[0], 3)
        blocks, c_in = [], widths[0]
        for stage, width in enumerate(widths):
            for i in range(depth):
                blocks.append(BasicBlock(c_in, width, 2 if stage > 0 and i == 0 else 1))
                c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.stages = tuple(f"blocks.{(i + 1) * depth - 1}" for i in range(len(widths)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(self.blocks(self.stem(x))).flatten(1))
        return out


def resnet8(in_shape: tuple[int, int, int], num_classes: int, *, width: int = 16) -> ResNet:
    """Three stages of one block, ``width``, 2 and 4 times ``width`` channels (16, 32, 64 in MLPerf Tiny)."""
    return ResNet(in_shape, num_classes, widths=(width, 2 * width, 4 * width), depth=1)


def resnet18(in_shape: tuple[int, int, int], num_classes: int, *, width: int = 64) -> ResNet:
    """Four stages of two blocks, ``width`` to 8 times ``width`` channels; 3x3 stem without pooling (CIFAR)."""
    return ResNet(in_shape, num_classes, widths=(width, 2 * width, 4 * width, 8 * width), depth=2)
