"""Build the built-in keyword set ``qunlearn/data/assets/kws.npz`` from the Free Spoken Digit Dataset.

    python benchmarks/build_kws.py [--data-dir DIR] [-o FILE]

DIR (default: the environment variable ``QUNLEARN_DATA``, then ``../shared/data`` beside the repository) holds
``fsdd.npz``: ``x`` int16 [3000, 8000] at 8 kHz padded to one second, ``y``, ``speaker`` (an index into ``speakers``),
``take``. The result is byte-stable: the same input gives the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.arrays import read_npz
from qunlearn.data.dataset import content_hashes
from qunlearn.data.features import FrontEnd
from qunlearn.data.partition import strata, stratified_part
from qunlearn.errors import DataError, QunlearnError
from qunlearn_export.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "qunlearn" / "data" / "assets" / "kws.npz"
SEED = 20
HELDOUT = 0.2
TEST_TAKES = 5
LIMIT = 2_500_000


def find_source(data_dir: str | None) -> Path | None:
    """The path of ``fsdd.npz``, or None when no folder has it."""
    folders = [data_dir] if data_dir else [os.environ.get("QUNLEARN_DATA"), str(ROOT.parent / "shared" / "data")]
    for folder in folders:
        if folder and (Path(folder) / "fsdd.npz").is_file():
            return Path(folder) / "fsdd.npz"
    return None


def build(source: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the keyword set: x uint8 [N,1,49,32], y uint8, group, id, split."""
    raw = read_npz(source)
    lacks = sorted({"x", "y", "take", "speaker", "speakers"} - set(raw))
    if lacks:
        raise DataError(f"{source} lacks {', '.join(lacks)}.", remedy="Give the file that docs/data.md describes.")
    pcm, y, take = raw["x"], raw["y"].astype(np.int64), raw["take"]
    group = raw["speakers"][raw["speaker"]].astype(np.str_)
    x = FrontEnd().apply(pcm)
    ids = np.array([f"{g}_{d}_{t}" for g, d, t in zip(group, y, take, strict=True)])
    split = np.where(take < TEST_TAKES, "test", "train").astype("<U7")
    pool = np.flatnonzero(split == "train")
    cells = strata(y, group)
    mask = stratified_part(
        content_hashes(x[pool], y[pool]), [cells[i] for i in pool], HELDOUT, seed=SEED, purpose="kws.heldout"
    )
    split[pool[mask]] = "heldout"
    return {"x": x, "y": y.astype(np.uint8), "group": group, "id": ids, "split": split}


def pack(arrays: dict[str, NDArray[Any]]) -> bytes:
    """The arrays as a compressed ``.npz`` with fixed dates and order, hence byte-stable."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            body = io.BytesIO()
            np.lib.format.write_array(body, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, body.getvalue(), compresslevel=9)
    return out.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Build and write the file; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build qunlearn/data/assets/kws.npz from fsdd.npz.")
    parser.add_argument("--data-dir", help="folder that holds fsdd.npz (default: QUNLEARN_DATA)")
    parser.add_argument("-o", "--output", type=Path, default=ASSET)
    args = parser.parse_args(argv)
    source = find_source(args.data_dir)
    if source is None:
        print("fsdd.npz not found. Give its folder by --data-dir or QUNLEARN_DATA.", file=sys.stderr)
        return 2
    try:
        arrays = build(source)
    except QunlearnError as err:
        print(err, file=sys.stderr)
        return err.exit_code
    data = pack(arrays)
    if len(data) > LIMIT:
        print(f"the file would have {len(data)} bytes, the limit is {LIMIT}. Use fewer codes.", file=sys.stderr)
        return 3
    write_atomic(args.output, data)
    counts = {p: int((arrays["split"] == p).sum()) for p in ("train", "heldout", "test")}
    print(f"{args.output}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}, {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
