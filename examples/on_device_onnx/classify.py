"""Classify the samples of a .npz file with an int8 ONNX file, as a device does: numpy and onnxruntime, nothing else.

    python classify.py model.onnx samples.npz

``samples.npz`` holds ``x`` [N, C, H, W] as it was before preprocessing (uint8 pixels, say) and, if known, ``y`` [N].
Preprocessing and class names are read from the file's metadata. Take ``qunlearn_export/runtime.py`` and ``errors.py``
along, or install the base package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from qunlearn_export import runtime
from qunlearn_export.errors import QunlearnError


def preprocess(x: np.ndarray, record: Mapping[str, Any]) -> np.ndarray:
    """``(x / divisor - mean) / std`` per channel, float32; samples are taken to be behind the front end, if any."""
    if not record:
        return x.astype(np.float32)
    mean, std = (np.asarray(record[k], dtype=np.float32).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    return ((x.astype(np.float32) / np.float32(record["divisor"]) - mean) / std).astype(np.float32)


def main() -> int:
    """One line a sample, and the accuracy where labels are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("samples")
    args = parser.parse_args()
    try:
        session = runtime.make_session(args.model)
        metadata = session.get_modelmeta().custom_metadata_map
        with np.load(args.samples, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays.get("y")
        record = json.loads(metadata.get("qunlearn.preprocess", "{}"))
        logits = runtime.run(session, preprocess(x, record))["logits"]
    except (QunlearnError, OSError, KeyError, ValueError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    names = json.loads(metadata.get("qunlearn.labels", "null")) or [str(k) for k in range(logits.shape[1])]
    chosen = logits.argmax(axis=1)
    for i, k in enumerate(chosen):
        print(f"{i:4d}  {names[k]}")
    if y is not None:
        print(f"accuracy {100 * float((chosen == y).mean()):.1f} % of {len(y)}")
    info = runtime.session_info(args.model)
    print(f"onnxruntime {info.version} on {info.machine}, entries {dict(info.entries)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
