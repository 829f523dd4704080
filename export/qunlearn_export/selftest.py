"""The self-test block: input vectors made from seeds, and the output codes that the target network must give.

Seeds 0 to 3 are corner cases, seeds from 16 on start a 32-bit xorshift generator (G. Marsaglia, Journal of Statistical
Software 8(14), 2003, triple 13, 17, 5); nothing of any data set is in it. Input codes are in the firmware's order:
channel last. Expected codes come from the integer oracle.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn_export.errors import ArtefactError, ConfigError
from qunlearn_export.graph import Graph
from qunlearn_export.oracle import Oracle, dequantize

Codes = NDArray[np.int8]
CORNERS = (0, 1, 2, 3)
FIRST_RANDOM = 16
MAX_VECTORS = 64
_HEAD = struct.Struct("<HHI")


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """``expected`` [n, outputs] int8 for the inputs of ``seeds``, each of ``inputs`` codes."""

    seeds: tuple[int, ...]
    inputs: int
    expected: Codes

    def to_bytes(self) -> bytes:
        """The block: u16 n, u16 outputs, u32 inputs, then n times u32 seed and the codes."""
        rows = b"".join(struct.pack("<I", s) + e.tobytes() for s, e in zip(self.seeds, self.expected, strict=True))
        return _HEAD.pack(len(self.seeds), self.expected.shape[1], self.inputs) + rows

    @classmethod
    def from_bytes(cls, block: bytes) -> SelfTest:
        """The inverse; ArtefactError for a wrong length, no vector, or a reserved seed."""
        if len(block) < _HEAD.size:
            raise _bad("it is cut off")
        n, outputs, inputs = _HEAD.unpack_from(block)
        if not n or not outputs or not inputs or n > MAX_VECTORS:
            raise _bad("a count is out of range")
        if len(block) != _HEAD.size + n * (4 + outputs):
            raise _bad("its length is not that of its vectors")
        rows = np.frombuffer(block, dtype=np.uint8, offset=_HEAD.size).reshape(n, 4 + outputs)
        seeds = tuple(int(s) for s in np.ascontiguousarray(rows[:, :4]).view("<u4").ravel())
        if any(len(CORNERS) <= s < FIRST_RANDOM for s in seeds):
            raise _bad("a seed is reserved")
        return cls(seeds=seeds, inputs=inputs, expected=np.ascontiguousarray(rows[:, 4:]).view(np.int8))


def codes(seed: int, n: int, zero_point: int) -> Codes:
    """``n`` input codes of one seed; ``zero_point`` is that of the network's input. ConfigError for seeds 4 to 15."""
    if seed in CORNERS:
        if seed == 3:
            return np.where(np.arange(n) % 2, 127, -128).astype(np.int8)
        return np.full(n, (-128, 127, zero_point)[seed], dtype=np.int8)
    if not FIRST_RANDOM <= seed < 2**32:
        raise ConfigError(f"self-test seed {seed} is reserved.", remedy="Use 0 to 3, or 16 and above.")
    out = np.empty(n, dtype=np.uint8)
    state = seed
    for i in range(n):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        out[i] = state >> 24
    return out.view(np.int8)


def vectors(graph: Graph, seeds: Sequence[int]) -> Codes:
    """Inputs of the seeds as the oracle reads them: int8 [n, *shape], channel first; generated channel last."""
    a = graph.activations[graph.input]
    count = int(np.prod(a.shape))
    flat = np.stack([codes(s, count, a.zero_point) for s in seeds])
    if len(a.shape) < 2:
        return flat.reshape(len(seeds), *a.shape)
    return np.ascontiguousarray(np.moveaxis(flat.reshape(len(seeds), *a.shape[1:], a.shape[0]), -1, 1))


def outputs(graph: Graph, seeds: Sequence[int]) -> Codes:
    """Output codes of the oracle [n, K] for the seeds."""
    given = dequantize(vectors(graph, seeds), graph.activations[graph.input])
    return Oracle(graph).run(given).reshape(len(seeds), -1)


def generate(target: Graph, base: Graph | None = None, *, n: int = 8) -> SelfTest:
    """The corner cases and ``n`` - 4 random vectors, expected from the oracle on ``target``.

    With ``base``, random vectors on which the two networks differ are taken first, so that the block can tell them
    apart where 32 candidates can. The candidates follow from the target's codes: the same networks give the same block.
    """
    if not len(CORNERS) < n <= MAX_VECTORS:
        raise ConfigError(f"{n} self-test vectors.", remedy=f"Ask for 5 to {MAX_VECTORS}.")
    wanted = n - len(CORNERS)
    if base is not None and _ends(base) != _ends(target):
        base = None
    tried = _candidates(target.codes_digest(), max(32, wanted) if base is not None else wanted)
    expected = outputs(target, tried)
    order = np.arange(len(tried))
    if base is not None:
        differs = (expected != outputs(base, tried)).any(axis=1)
        order = np.argsort(~differs, kind="stable")
    chosen = sorted(order[:wanted])
    return SelfTest(
        seeds=(*CORNERS, *(tried[i] for i in chosen)),
        inputs=int(np.prod(target.activations[target.input].shape)),
        expected=np.concatenate([outputs(target, CORNERS), expected[chosen]]),
    )


def passed(test: SelfTest, graph: Graph) -> int:
    """How many vectors the oracle on ``graph`` answers exactly; 0 when the shapes do not fit."""
    shape = graph.activations[graph.input].shape
    if test.inputs != int(np.prod(shape)):
        return 0
    found = outputs(graph, test.seeds)
    if found.shape != test.expected.shape:
        return 0
    return int((found == test.expected).all(axis=1).sum())


def _ends(graph: Graph) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return graph.activations[graph.input].shape, graph.activations[graph.output].shape


def _candidates(text: str, n: int) -> tuple[int, ...]:
    out: list[int] = []
    for i in range(2 * n + 8):
        seed = int.from_bytes(hashlib.sha256(f"{text} self-test {i}".encode()).digest()[:4], "little")
        if seed >= FIRST_RANDOM and seed not in out:
            out.append(seed)
    return tuple(out[:n])


def _bad(text: str) -> ArtefactError:
    return ArtefactError(f"the self-test block is malformed: {text}.", remedy="Fetch the update again from its maker.")
