"""The integer network as plain data: what ``quant.lower`` makes and what writer, oracle, checks and C generation read.

A :class:`Graph` holds activations by name (:class:`Activation`) and layers in execution order. One class per operator
of the artefact's subset. No torch, no ONNX objects: numpy arrays only. Arithmetic is that of the written rounding rule
(``oracle.py``).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Int8: TypeAlias = NDArray[np.int8]
Int32: TypeAlias = NDArray[np.int32]
Float32: TypeAlias = NDArray[np.float32]

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One quantized tensor: ``shape`` without the batch dimension, real value = (code - zero_point) * scale."""

    name: str
    shape: tuple[int, ...]
    scale: np.float32
    zero_point: int
    bits: int = 8


@dataclass(frozen=True, kw_only=True)
class Layer:
    """``name`` is the module path; ``inputs`` and ``output`` name activations.

    ``relu`` clamps at code ``zero_point`` of the output (-128); ``clip`` is the ``c`` of Clip(0, c) or None
    (``clip`` implies the lower clamp of ``relu``).
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    relu: bool = False
    clip: np.float32 | None = None


@dataclass(frozen=True, kw_only=True)
class Weighted(Layer):
    """A layer with int8 weight codes (zero point 0), one scale per output channel, optional int32 bias codes.

    The bias scale is not stored: it is fl32(scale of the input * weight_scale[k]) by definition.
    """

    weight: Int8
    weight_scale: Float32
    bias: Int32 | None = None


@dataclass(frozen=True, kw_only=True)
class Conv(Weighted):
    """Weight [K, C/group, *kernel]; 1-D or 2-D. ``pads`` in ONNX order (begins, then ends)."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1


@dataclass(frozen=True, kw_only=True)
class Gemm(Weighted):
    """Weight [K, D] (ONNX transB = 1) on a rank-2 input [N, D]."""


@dataclass(frozen=True, kw_only=True)
class MatMul(Weighted):
    """Weight [D, N] with one scale per column on an input of rank 2 to 4 (batch dimension included)."""


@dataclass(frozen=True, kw_only=True)
class Add(Layer):
    """Sum of two activations of equal shape."""


@dataclass(frozen=True, kw_only=True)
class MaxPool(Layer):
    """Output has scale and zero point of the input, bit for bit. ``pads`` in ONNX order."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AveragePool(Layer):
    """``pads`` in ONNX order."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    count_include_pad: bool = False


@dataclass(frozen=True, kw_only=True)
class GlobalAveragePool(Layer):
    """Mean over all spatial positions; output keeps them as dimensions of size 1."""


@dataclass(frozen=True, kw_only=True)
class Concat(Layer):
    """Join along the channel axis; inputs may have their own scales."""


@dataclass(frozen=True, kw_only=True)
class Requant(Layer):
    """A lone Relu or Clip between two quantized tensors; their grids may differ."""


@dataclass(frozen=True, kw_only=True)
class Flatten(Layer):
    """[N, ...] to [N, D]; scale and zero point unchanged."""


@dataclass(frozen=True, kw_only=True)
class Reshape(Layer):
    """To [N, *shape]; scale and zero point unchanged."""

    shape: tuple[int, ...]


AnyLayer: TypeAlias = (
    Conv | Gemm | MatMul | Add | MaxPool | AveragePool | GlobalAveragePool | Concat | Requant | Flatten | Reshape
)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network: ``input`` and ``output`` name activations; ``layers`` stand in execution order.

    ``meta`` is what the file's metadata carries: ``task`` (str), ``preprocess`` (JSON-able mapping), ``weight_bits``
    (int), ``weight_range`` ("8bit" or "7bit"); ``labels`` (list of str) only when asked for.
    """

    activations: Mapping[str, Activation]
    layers: tuple[AnyLayer, ...]
    input: str
    output: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def weighted(self) -> Iterator[Conv | Gemm | MatMul]:
        """Layers that hold codes, in execution order."""
        for layer in self.layers:
            if isinstance(layer, Conv | Gemm | MatMul):
                yield layer

    def quantized_tensors(self) -> dict[str, NDArray[Any]]:
        """Every tensor that counts towards the codes digest, by its file name (``<module>.weight`` and so on)."""
        out: dict[str, NDArray[Any]] = {}

        def act(prefix: str, a: Activation) -> None:
            out[f"{prefix}.out_scale"] = np.asarray(a.scale, dtype=np.float32)
            out[f"{prefix}.out_zp"] = np.asarray(a.zero_point, dtype=np.int8)

        act(self.input, self.activations[self.input])
        for layer in self.layers:
            if isinstance(layer, Conv | Gemm | MatMul):
                out[f"{layer.name}.weight"] = np.ascontiguousarray(layer.weight, dtype=np.int8)
                out[f"{layer.name}.weight_scale"] = np.ascontiguousarray(layer.weight_scale, dtype=np.float32)
                if layer.bias is not None:
                    out[f"{layer.name}.bias"] = np.ascontiguousarray(layer.bias, dtype=np.int32)
            act(layer.name, self.activations[layer.output])
        return out

    def codes_digest(self) -> str:
        """SHA-256 over integer codes, scales and zero points; the same for checkpoint, ONNX file and C."""
        return codes_digest(self.quantized_tensors())


_TAGS = {"int8": b"i1", "int32": b"i4", "float32": b"f4"}


def codes_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over (name, byte 0, dtype tag, rank and dims as u32 LE, raw LE bytes), sorted by name."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        a = np.asarray(tensors[name])
        h.update(name.encode() + b"\0" + _TAGS[a.dtype.name])
        h.update(struct.pack(f"<{1 + a.ndim}I", a.ndim, *a.shape))
        h.update(np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")).data)
    return h.hexdigest()


def bias_scale(input_scale: np.float32, weight_scale: Float32) -> Float32:
    """fl32(s_x * s_w[k]): the one definition of a bias scale."""
    return np.multiply(np.float32(input_scale), weight_scale, dtype=np.float32)
