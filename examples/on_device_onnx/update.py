"""A Linux device takes a signed update (base install): factory, sound, update, the same sound, the same update again.

    python update.py ../signed_update/base.onnx ../signed_update/demo.qulb seven.wav --store store

The same steps on the command line: ``qunlearn device init | verify | run | apply | rollback-check``. The demo's bundle
is signed with the published TEST key, worth nothing as a signature; a product names its own public key. Exit: 0; 2 for
a file that cannot be used; 3 where the device refuses the update and the old model runs on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from uuid import UUID

import classify

from qunlearn_export import device, keys, runtime
from qunlearn_export.errors import QunlearnError
from qunlearn_export.store import Store

DEVICE_CLASS = UUID("7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10")


def hear(store: Store, sound: str) -> None:
    """Classify ``sound`` with the running model; its self-test runs first."""
    active, model = device.start(store)
    metadata = runtime.make_session(model.file).get_modelmeta().custom_metadata_map
    record = json.loads(metadata.get("qunlearn.preprocess", "{}"))
    x, _ = classify.load(sound, record)
    _, logits = device.predict(store, classify.preprocess(x, record))
    print(f"model {active.sequence}: self-test passed, heard {int(logits[0].argmax())}")


def main() -> int:
    """One line a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("bundle")
    parser.add_argument("sound")
    parser.add_argument("--store", required=True, help="new folder")
    args = parser.parse_args()
    try:
        device.init(args.store, args.base, device_class=DEVICE_CLASS, trust=keys.trusted(["TEST"], allow_test_key=True))
        store = Store(Path(args.store))
        hear(store, args.sound)
        done = device.apply(store, args.bundle)
        print(f"update {done.sequence} installed, {done.removed} old files erased")
        hear(store, args.sound)
        again = device.rollback_check(store, [args.bundle])
        print(f"the same update again: refused with code {again.codes[args.bundle]}, counter {again.counter}")
    except (QunlearnError, OSError, ValueError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 3 if isinstance(err, QunlearnError) and device.code_of(err) else 2
    return 3 if again.problems else 0


if __name__ == "__main__":
    sys.exit(main())
