"""The bundle that travels with the examples, scanned against the real forget set and verified."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.cli import packing
from qunlearn.data import sources
from qunlearn.data.request import Request
from qunlearn_export import archive, bundle, keys, verify
from qunlearn_export.bundle import Model

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "signed_update"
SIGNER = keys.test_signer()


@pytest.fixture(scope="module")
def entries() -> dict[str, bytes]:
    return archive.read((FOLDER / "demo.qulb").read_bytes(), bundle.NAMES)


@pytest.fixture(scope="module")
def asked() -> packing.Asked:
    return packing.Asked(Request.parse("group=lucas"), sources.load("kws"), 0)


def test_it_holds(entries: dict[str, bytes]) -> None:
    trust = {keys.key_digest(SIGNER.public)[:8]: SIGNER.public}
    opened = verify.open_bundle(FOLDER / "demo.qulb", trust)
    base = Model.read(FOLDER / "base.onnx")
    assert verify.recompute(opened, base)
    kinds = {a["kind"] for a in opened.predicate["audits"]}
    assert kinds == {"onnx-all", "c-host", "torch-fq"}
    assert opened.predicate["parity"]["worst"]["c-host vs oracle"] == 0
    assert opened.predicate["verdict"] == {"overall": "inconclusive", "allowed": "inconclusive"}


def test_the_guard_finds_nothing_of_the_real_forget_set(entries: dict[str, bytes], asked: packing.Asked) -> None:
    graphs = [Model.read(d).graph for d in (entries["model.onnx"], (FOLDER / "base.onnx").read_bytes())]
    guard = asked.guard(*graphs)
    assert asked.samples == 360
    assert not guard.scan({**entries, "update.bin (expanded)": entries["weights.bin"]})
    # the same guard is awake: one sample of the set, put anywhere, is found
    stolen = asked.dataset.x[asked.request.select(asked.dataset, 0)[100]].tobytes()
    assert guard.scan({"weights.bin": entries["weights.bin"][:77] + stolen})


def test_nothing_of_it_is_found_by_other_means(entries: dict[str, bytes], asked: packing.Asked) -> None:
    whole = b"".join(entries.values())
    dataset = asked.dataset
    index = asked.request.select(dataset, 0)
    for i in index:
        raw = dataset.x[i].tobytes()
        for at in range(0, len(raw) - 15, 16):
            part = raw[at : at + 16]
            if len(set(part)) >= 8:
                assert part not in whole
        assert dataset.hashes[i].encode() not in whole
        assert str(dataset.ids[i]).encode() not in whole
    texts = b"".join(d for n, d in entries.items() if n.endswith(".json"))
    for word in (b"lucas", asked.request.digest(dataset, 0).encode(), asked.split.encode()):
        assert word not in texts
    assert hashlib.sha256(asked.canonical).hexdigest().encode() not in texts


def test_no_array_is_as_long_as_the_forget_set(entries: dict[str, bytes]) -> None:
    def lists(value: Any) -> Any:
        if isinstance(value, list):
            yield value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from lists(inner)

    for name in ("manifest.json", "report.json", "bom.cdx.json"):
        for found in lists(json.loads(entries[name])):
            assert not (len(found) > 16 and all(isinstance(v, int | float) for v in found)), name


def test_the_commands_of_its_page(call: Callable[..., Any], tmp_path: Path) -> None:
    test = ("--trust", "TEST", "--allow-test-key")
    assert call("verify", FOLDER / "demo.qulb", *test).code == 4
    store = tmp_path / "store"
    device = "7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10"
    assert call("device", "init", FOLDER / "base.onnx", "--store", store, *test, "--device-class", device).code == 0
    assert call("device", "apply", FOLDER / "demo.qulb", "--store", store).code == 0
    assert call("device", "apply", FOLDER / "demo.qulb", "--store", store).code == 3  # not twice


def test_the_base_is_the_shipped_network(entries: dict[str, bytes]) -> None:
    p = json.loads(entries["manifest.json"])["predicate"]
    base = Model.read(FOLDER / "base.onnx")
    assert base.digests() == p["base"]
    assert np.count_nonzero(np.frombuffer(base.blob, np.uint8) != np.frombuffer(entries["weights.bin"], np.uint8)) > 0


def test_verification_needs_the_base_install_only() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'sklearn', 'brevitas', 'safetensors', 'matplotlib', 'jinja2'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from qunlearn.cli import run\n"
        f"sys.exit(run(['verify', {str(FOLDER / 'demo.qulb')!r}, '--trust', 'TEST', '--allow-test-key', "
        f"'--base', {str(FOLDER / 'base.onnx')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "holds at level 2" in done.stdout
