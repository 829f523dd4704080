"""The networks that firmware is measured on, as integer graphs with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from qunlearn_export import graph as g
from qunlearn_export.oracle import run_layer
from qunlearn_export.shapes import output_shape

F32 = np.float32
ONE = (1, 1, 1, 1)


class Builder:
    """Adds layers one after another; scales are set so that random inputs fill the range of codes."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        start = g.Activation(name="input", shape=shape, scale=F32(0.02), zero_point=3)
        self.acts = {"input": start}
        self.layers: list[g.AnyLayer] = []
        self.values = {"input": self.rng.integers(-128, 128, (4, *shape)).astype(np.int8)}

    def add(self, layer: g.AnyLayer, *, keep: bool = False) -> str:
        """Append ``layer`` and choose its output's grid (``keep``: that of its input); the output's name."""
        shape = output_shape(layer, [self.acts[n].shape for n in layer.inputs])
        source = self.acts[layer.inputs[0]]
        relu = layer.relu
        scale, zero = (source.scale, source.zero_point) if keep else (F32(1), 0)
        act = g.Activation(name=layer.output, shape=shape, scale=scale, zero_point=zero)
        if not keep:
            act = self._fitted(layer, act, relu)
        self.acts[layer.output] = act
        self.layers.append(layer)
        self.values[layer.output] = self._run(layer, act)
        return layer.output

    def _run(self, layer: g.AnyLayer, act: g.Activation) -> np.ndarray:
        graph = g.Graph(activations={**self.acts, act.name: act}, layers=(layer,), input="input", output=act.name)
        return run_layer(graph, layer, *(self.values[n] for n in layer.inputs))

    def _fitted(self, layer: g.AnyLayer, act: g.Activation, relu: bool) -> g.Activation:
        """Doubles a scale until few codes saturate."""
        zero, scale = (-128 if relu else 4), 1e-3
        while True:
            trial = g.Activation(name=act.name, shape=act.shape, scale=F32(scale), zero_point=zero)
            if (self._run(layer, trial) == 127).mean() < 0.02:
                return trial
            scale *= 1.37

    def conv(
        self, name: str, source: str, k: int, kernel: tuple[int, int], *, group: int = 1, relu: bool = True, **kw: Any
    ) -> str:
        """A convolution with random codes."""
        c = self.acts[source].shape[0]
        kw = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)} | kw
        weight = self.rng.integers(-127, 128, (k, c // group, *kernel)).astype(np.int8)
        return self.add(
            g.Conv(
                name=name,
                inputs=(source,),
                output=f"{name}.out",
                relu=relu,
                weight=weight,
                weight_scale=self.rng.uniform(0.002, 0.01, k).astype(F32),
                bias=self.rng.integers(-3000, 3000, k).astype(np.int32),
                group=group,
                **kw,
            )
        )

    def head(self, source: str, k: int) -> g.Graph:
        """Global average, linear layer, and the whole graph."""
        mean = self.add(g.GlobalAveragePool(name="mean", inputs=(source,), output="mean.out"))
        flat = self.add(g.Flatten(name="flat", inputs=(mean,), output="flat.out"), keep=True)
        n = self.acts[flat].shape[0]
        last = self.add(
            g.Gemm(
                name="fc",
                inputs=(flat,),
                output="fc.out",
                weight=self.rng.integers(-127, 128, (k, n)).astype(np.int8),
                weight_scale=self.rng.uniform(0.002, 0.01, k).astype(F32),
                bias=self.rng.integers(-3000, 3000, k).astype(np.int32),
            )
        )
        meta = {"task": "classification", "preprocess": {}, "weight_bits": 8, "weight_range": "8bit"}
        return g.Graph(activations=self.acts, layers=tuple(self.layers), input="input", output=last, meta=meta)


def tiny_cnn(seed: int = 0) -> g.Graph:
    """Five convolutions (one depthwise, one 1x1), MaxPool, residual Add, mean, linear: 1.46 MMAC, 19,840 weights."""
    b = Builder((3, 16, 16), seed)
    x = b.conv("c1", "input", 16, (3, 3), pads=ONE)
    x = b.conv("dw", x, 16, (3, 3), pads=ONE, group=16)
    x = b.conv("pw", x, 32, (1, 1))
    window = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}
    x = skip = b.add(g.MaxPool(name="pool", inputs=(x,), output="pool.out", **window), keep=True)
    x = b.conv("c2", x, 32, (3, 3), pads=ONE)
    x = b.conv("c3", x, 32, (3, 3), pads=ONE, relu=False)
    x = b.add(g.Add(name="add", inputs=(skip, x), output="add.out", relu=True))
    return b.head(x, 10)


def dscnn(seed: int = 0) -> g.Graph:
    """Keyword spotter: 10x4 convolution with stride 2 on 49 x 10 features, four depthwise-separable blocks of 64."""
    b = Builder((1, 49, 10), seed)
    x = b.conv("c0", "input", 64, (10, 4), strides=(2, 2), pads=(4, 1, 5, 1))
    for i in range(4):
        x = b.conv(f"dw{i}", x, 64, (3, 3), pads=ONE, group=64)
        x = b.conv(f"pw{i}", x, 64, (1, 1))
    return b.head(x, 12)


def resnet8(seed: int = 0) -> g.Graph:
    """Image classifier on 3 x 32 x 32: three residual stages of 16, 32, 64 channels; 12.5 MMAC."""
    b = Builder((3, 32, 32), seed)
    x = b.conv("c0", "input", 16, (3, 3), pads=ONE)
    for i, (k, stride) in enumerate(((16, 1), (32, 2), (64, 2))):
        y = b.conv(f"a{i}", x, k, (3, 3), pads=ONE, strides=(stride, stride))
        y = b.conv(f"b{i}", y, k, (3, 3), pads=ONE, relu=False)
        skip = x if stride == 1 else b.conv(f"s{i}", x, k, (1, 1), strides=(2, 2), relu=False)
        x = b.add(g.Add(name=f"add{i}", inputs=(y, skip), output=f"add{i}.out", relu=True))
    return b.head(x, 10)


NETWORKS = {"tiny_cnn": tiny_cnn, "dscnn": dscnn, "resnet8": resnet8}
