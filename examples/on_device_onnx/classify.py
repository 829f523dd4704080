"""Classify sound or feature files with an int8 ONNX file, as a device does: numpy and onnxruntime, nothing else.

    python classify.py model.onnx seven.wav --selftest selftest.npz
    python classify.py model.onnx samples.npz

A ``.wav`` goes through the log-mel front end that the model's metadata name. A ``.npz`` holds ``x`` [N, C, H, W] as it
was before preprocessing (uint8 pixels, say) and, if known, ``y`` [N]. Preprocessing and class names come from the
metadata too. Take ``logmel.py``, ``qunlearn_export/runtime.py`` and ``errors.py`` along, or install the base package.

Exit: 0; 2 for a file that cannot be used; 3 where the self-test fails, and then nothing is classified.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

import logmel
import numpy as np

from qunlearn_export import runtime
from qunlearn_export.errors import QunlearnError


def preprocess(x: np.ndarray, record: Mapping[str, Any]) -> np.ndarray:
    """``(x / divisor - mean) / std`` per channel, float32; samples are taken to be behind the front end, if any."""
    if not record:
        return x.astype(np.float32)
    mean, std = (np.asarray(record[k], dtype=np.float32).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    return ((x.astype(np.float32) / np.float32(record["divisor"]) - mean) / std).astype(np.float32)


def load(path: str, record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """``x`` [N, C, H, W] before preprocessing, and ``y`` where the file has it."""
    if path.lower().endswith(".wav"):
        p = logmel.parameters(str(record.get("front_end", "none")))
        return logmel.features(logmel.read_wav(path, int(p["rate"])), p), None
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["x"], arrays.get("y")


def self_test(session: Any, path: str) -> tuple[int, int]:
    """How many vectors of ``path`` (made by make_selftest.py) this machine answers exactly, and how many there are."""
    with np.load(path, allow_pickle=False) as t:
        x = (t["codes"].astype(np.int32) - t["zero"]).astype(np.float32) * t["scale"]
        expected = t["logits"]
    logits = runtime.run(session, x)["logits"]
    return int((logits == expected).all(axis=1).sum()) if logits.shape == expected.shape else 0, len(expected)


def main() -> int:
    """The self-test if there is one, one line a sample, and the accuracy where labels are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("inputs", nargs="+", metavar="WAV|NPZ")
    parser.add_argument("--selftest", help="vectors made by make_selftest.py")
    args = parser.parse_args()
    try:
        session = runtime.make_session(args.model)
        metadata = session.get_modelmeta().custom_metadata_map
        if args.selftest is not None:
            passed, of = self_test(session, args.selftest)
            print(f"self-test: {passed} of {of} vectors equal")
            if passed != of:
                print("error: this machine does not give the audited answers", file=sys.stderr)
                return 3
        record = json.loads(metadata.get("qunlearn.preprocess", "{}"))
        loaded = [load(path, record) for path in args.inputs]
        logits = runtime.run(session, preprocess(np.concatenate([x for x, _ in loaded]), record))["logits"]
    except (QunlearnError, OSError, KeyError, ValueError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    names = json.loads(metadata.get("qunlearn.labels", "null")) or [str(k) for k in range(logits.shape[1])]
    chosen = logits.argmax(axis=1)
    for i, k in enumerate(chosen):
        print(f"{i:4d}  {names[k]}")
    labels = [y for _, y in loaded if y is not None]
    if len(labels) == len(loaded):
        right = chosen == np.concatenate(labels)
        print(f"accuracy {100 * float(right.mean()):.1f} % of {len(right)}")
    info = runtime.session_info(args.model)
    print(f"onnxruntime {info.version} on {info.machine}, entries {dict(info.entries)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
