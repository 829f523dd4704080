"""On the workstation (base install): self-test vectors of an int8 ONNX file, for classify.py on the device.

    python make_selftest.py model.onnx selftest.npz

Inputs are corner codes and pseudo-random codes, so that no sample of any data set travels; the expected logits come
from the integer oracle. A device that answers one of them differently does not run the network that was audited.
"""

from __future__ import annotations

import sys

import numpy as np

from qunlearn_export import oracle, reader, selftest


def main() -> int:
    """Write the file."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    graph = reader.read(sys.argv[1])
    first, last = graph.activations[graph.input], graph.activations[graph.output]
    test = selftest.generate(graph)
    np.savez_compressed(
        sys.argv[2],
        codes=selftest.vectors(graph, test.seeds),
        scale=np.float32(first.scale),
        zero=np.int32(first.zero_point),
        logits=oracle.dequantize(test.expected, last),
    )
    print(f"{len(test.seeds)} vectors in {sys.argv[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
