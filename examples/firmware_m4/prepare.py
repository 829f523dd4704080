"""What the application needs beside the generated code, from the model, a bundle and a sound (base install).

    python prepare.py model.onnx update.qulb seven.wav FOLDER

Writes ``settings.h`` (preprocessing, device class), ``key.h`` (the trusted key), ``features.bin``, ``update.bin``.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from uuid import UUID

import numpy as np

from qunlearn_export import keys, runtime

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "on_device_onnx"))
import logmel  # noqa: E402

DEVICE_CLASS = UUID("7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10")


def main() -> int:
    """Write the files."""
    if len(sys.argv) != 5:
        print(__doc__, file=sys.stderr)
        return 2
    model, bundle, sound, folder = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    metadata = runtime.make_session(model).get_modelmeta().custom_metadata_map
    record = json.loads(metadata["qunlearn.preprocess"])
    front = logmel.parameters(record["front_end"])
    values = {"DIVISOR": record["divisor"], "MEAN": record["mean"][0], "STD": record["std"][0]}
    lines = [f"#define {name} {float(np.float32(v))!r}f" for name, v in values.items()]
    lines += [f"#define DEVICE_CLASS {', '.join(map(str, DEVICE_CLASS.bytes))}"]
    (folder / "settings.h").write_text("\n".join(lines) + "\n")
    # The published TEST key, for this example only. Yours: the .h file that `qunlearn bundle keygen` writes.
    raw = next(iter(keys.trusted(["TEST"], allow_test_key=True).values()))
    (folder / "key.h").write_text(keys.c_header(raw, "TEST"))
    codes = logmel.features(logmel.read_wav(sound, int(front["rate"])), front)
    (folder / "features.bin").write_bytes(codes.tobytes())
    with zipfile.ZipFile(bundle) as archive:
        (folder / "update.bin").write_bytes(archive.read("update.bin"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
