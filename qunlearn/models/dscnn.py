"""DS-CNN, the keyword spotter of MLPerf Tiny (Zhang et al. 2017, "Hello Edge"): depthwise-separable convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from qunlearn.models.blocks import conv_bn


class DSCNN(nn.Module):
    """A 10x4 convolution with stride 2, four depthwise-separable blocks, global average pool, linear head.

    ``width`` is the number of channels (64 in MLPerf Tiny). Input [N, C, T, F] float32, output logits [N, K].
    """

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int, *, width: int = 64, dropout: float = 0.0):
        super().__init__()
        self.stem = conv_bn(in_shape[0], width, (10, 4), stride=2)
        self.blocks = nn.Sequential(*(_separable(width) for _ in range(4)))
        self.stages = tuple(f"blocks.{i}" for i in range(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.dropout(self.pool(self.blocks(self.stem(x))).flatten(1)))
        return out


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(width, width, 3, groups=width), conv_bn(width, width, 1))
