"""The Linux store: updates in, refusals with the device's codes, power cuts at every operation, no way back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bundle_cases as cases
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qunlearn.cli import run as cli
from qunlearn_export import archive, bundle, container, device, keys, manifest, selftest
from qunlearn_export.errors import ArtefactError, ConfigError, UnsupportedError, VerificationError
from qunlearn_export.oracle import Oracle
from qunlearn_export.receipt import Receipt
from qunlearn_export.store import Disk, Store
from qunlearn_export.verify import open_bundle

TRUST = cases.TRUST


@pytest.fixture(scope="module")
def built(world):
    return {
        "delta": world.build(mode="delta").data,
        "full": world.build(mode="full").data,
        "auto": world.build().data,
    }


@pytest.fixture
def store(world, tmp_path):
    device.init(tmp_path / "store", world.base.file, device_class=cases.DEVICE, trust=TRUST, sequence=6)
    return Store(tmp_path / "store")


def runs(store: Store, model: bundle.Model, sequence: int) -> None:
    """After a start that model is active and whole, and nothing else is left."""
    active = store.boot()
    assert active is not None
    assert active.sequence == sequence
    assert store.read(active, "model.onnx") == model.file
    assert store.read(active, "weights.bin") == model.blob
    assert store.counter() == sequence
    assert store.old_slots() == []
    assert not [p for p in store.folder.iterdir() if p.name.startswith(".new-")]


def tree(store: Store) -> dict[str, bytes]:
    return {str(p.relative_to(store.folder)): p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["delta", "full"])
def test_apply_then_run(world, store, built, kind):
    done = device.apply(store, built[kind])
    assert done.sequence == 7
    assert done.removed == 3
    runs(store, world.target, 7)
    everything = b"".join(tree(store).values())
    assert world.base.blob[:64] not in everything
    assert world.base.file not in everything
    opened = open_bundle(built[kind], TRUST)
    receipt = Receipt.from_bytes((store.folder / "receipt.bin").read_bytes())
    assert receipt.problems(opened) == []
    assert receipt.authenticity(None) == "unauthenticated"
    _, logits = device.predict(store, world.inputs)
    assert np.array_equal(logits, Oracle(world.target.graph).logits(world.inputs).reshape(len(world.inputs), -1))
    assert manifest.parse(store.read(device.start(store)[0], "manifest.json")) == opened.manifest


def test_receipt_with_a_device_key(store, built):
    done = device.apply(store, built["delta"], mac_key=b"k" * 32)
    assert done.receipt.authenticity(b"k" * 32) == "authentic"
    assert done.receipt.authenticity(b"x" * 32) == "forged"


def signed(world, built, signer=cases.SIGNER, selftest_block=None, **changes):
    """The delta bundle with header fields changed, both signatures made anew where the signer is the maker."""
    entries = archive.read(built["delta"], bundle.NAMES)
    update = container.read(entries["update.bin"])
    test = update.selftest if selftest_block is None else selftest_block
    if selftest_block is not None:
        import hashlib

        changes["payload"] = hashlib.sha256(update.body + test).digest()
        changes["selftest_bytes"] = len(test)
    entries["update.bin"] = container.build(replace(update.header, **changes), update.body, test, signer)
    return archive.write(entries)


REFUSALS = {
    "key id": ({"key_id": bytes(8)}, 10),
    "class": ({"device_class": bytes(16)}, 18),
    "layout": ({"layout": bytes(32)}, 19),
    "blob bytes": ({"blob_bytes": 16}, 19),
    "sequence equal": ({"sequence": 6}, 16),
    "sequence lower": ({"sequence": 5}, 16),
    "base sequence": ({"base_sequence": 5}, 16),
    "payload": ({"payload": bytes(32)}, 12),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_have_the_devices_codes(world, store, built, name):
    changes, code = REFUSALS[name]
    before = tree(store)
    with pytest.raises(VerificationError) as err:
        device.apply(store, signed(world, built, **changes))
    assert device.code_of(err.value) == code
    assert err.value.remedy
    assert tree(store) == before
    runs(store, world.base, 6)


def test_other_refusals(world, store, built):
    with pytest.raises(VerificationError) as err:
        device.apply(store, signed(world, built, signer=keys.LocalSigner(Ed25519PrivateKey.generate())))
    assert device.code_of(err.value) == 10
    entries = archive.read(built["delta"], bundle.NAMES)
    for data, code in ((entries["update.bin"][:-1], 11), (entries["update.bin"][:68] + b"\2\0", 11)):
        with pytest.raises(ArtefactError) as bad:
            device.apply(store, archive.write({**entries, "update.bin": data}))
        assert device.code_of(bad.value) == code
    future = entries["update.bin"][:68] + b"\2\0" + entries["update.bin"][70:]
    with pytest.raises(ArtefactError) as bad:
        device.apply(store, archive.write({**entries, "update.bin": future}))
    assert device.code_of(bad.value) == 21
    with pytest.raises(ArtefactError, match="bundle"):
        device.apply(store, b"PK")
    with pytest.raises(ArtefactError, match="carries no update"):
        device.apply(store, archive.write({k: v for k, v in entries.items() if k != "update.bin"}))
    with pytest.raises(UnsupportedError, match="carries no model"):
        device.apply(store, world.build(with_onnx=False).data)
    runs(store, world.base, 6)


def test_update_bin_alone_is_not_trusted(world, store, built):
    """A right update.bin in a bundle whose other entries were changed is refused before anything is written."""
    entries = archive.read(built["delta"], bundle.NAMES)
    before = tree(store)
    for name in sorted(set(entries) - {"update.bin"}):
        changed = bytes([entries[name][0] ^ 1]) + entries[name][1:]
        with pytest.raises((VerificationError, ArtefactError)):
            device.apply(store, archive.write({**entries, name: changed}))
    assert tree(store) == before


def test_mutated_bundles_are_refused_and_nothing_is_written(store, built):
    rng = np.random.default_rng(1)
    before = tree(store)
    for _ in range(300):
        data = bytearray(built["delta"])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(data)))
            data[at : at + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(0, 3)))
        if bytes(data) == built["delta"]:
            continue
        with pytest.raises((ArtefactError, VerificationError)):
            device.apply(store, bytes(data))
    assert tree(store) == before
    assert [p.name for p in store.folder.parent.iterdir()] == [store.folder.name]


def test_wrong_base_is_13(world, tmp_path, built):
    device.init(tmp_path / "s", world.target.file, device_class=cases.DEVICE, trust=TRUST, sequence=6)
    store = Store(tmp_path / "s")
    with pytest.raises(VerificationError) as err:
        device.apply(store, built["delta"])
    assert device.code_of(err.value) == 13
    runs(store, world.target, 6)


def test_failing_self_test_is_17(world, store, built, monkeypatch):
    monkeypatch.setattr(device, "self_test", lambda model, test: 3)
    before = tree(store)
    with pytest.raises(VerificationError) as err:
        device.apply(store, built["delta"])
    assert device.code_of(err.value) == 17
    assert tree(store) == before


def test_self_test_tells_the_models_apart(world):
    test = selftest.generate(world.target.graph, world.base.graph)
    assert device.self_test(world.target, test) == len(test.seeds)
    assert device.self_test(world.base, test) < len(test.seeds)
    assert device.self_test(world.target, replace(test, inputs=test.inputs + 1)) == 0


def test_rollback_is_refused_full_and_delta(world, store, built):
    device.apply(store, built["delta"])
    for kind in ("delta", "full"):
        with pytest.raises(VerificationError) as err:
            device.apply(store, built[kind])
        assert device.code_of(err.value) == 16
    runs(store, world.target, 7)


def test_old_model_written_back_does_not_run(world, store, built, tmp_path):
    """Somebody restores the store's files of before, all but the counter."""
    before = tree(store)
    device.apply(store, built["delta"])
    for name, data in before.items():
        if name != "counter.json":
            path = store.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    with pytest.raises(VerificationError, match="no model that may run"):
        device.start(store)
    assert store.counter() == 7
    newer = world.build(sequence=9, base_sequence=6, mode="full").data
    device.apply(store, newer)
    runs(store, world.target, 9)


@pytest.mark.parametrize("name", ["weights.bin", "model.onnx", "selftest.bin"])
def test_damaged_model_does_not_run(store, name):
    path = store.slot(6) / name
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(VerificationError, match="no model that may run"):
        device.start(store)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format":1}', "nan", "[" * 5000, '{"format":1,"sequence":-1}\n'])
def test_damaged_state_is_a_clean_refusal(store, text):
    right = (store.folder / "active.json").read_text()
    (store.folder / "active.json").write_text(text)
    with pytest.raises(VerificationError, match="no model that may run"):
        device.start(store)
    (store.folder / "active.json").write_text(right)
    (store.folder / "counter.json").write_text(text)
    with pytest.raises(ArtefactError, match="malformed"):
        device.start(store)


def test_full_disk_is_20_and_the_old_model_runs(world, built, tmp_path):
    class Full(Disk):
        def write(self, path: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    device.init(tmp_path / "s", world.base.file, device_class=cases.DEVICE, trust=TRUST, sequence=6)
    with pytest.raises(VerificationError) as err:
        device.apply(Store(tmp_path / "s", Full()), built["delta"])
    assert device.code_of(err.value) == 20
    runs(Store(tmp_path / "s"), world.base, 6)


def test_one_process_at_a_time(store, built):
    with store.locked(), pytest.raises(ConfigError, match="another process"):
        device.apply(store, built["delta"])


def test_rollback_check(world, store, built, tmp_path):
    old = tmp_path / "old.qulb"
    old.write_bytes(built["delta"])
    found = device.rollback_check(store, [old])
    assert found.codes == {str(old): 0}  # it would install: not an old one
    assert len(found.problems) == 1
    device.apply(store, built["delta"])
    found = device.rollback_check(store, [old])
    assert (found.problems, found.codes) == ((), {str(old): 16})
    (store.folder / "slot-0000000006").mkdir()
    assert "old slots are left" in device.rollback_check(store, []).problems[0]
    os.unlink(store.folder / "counter.json")
    assert "counter is 0" in device.rollback_check(store, []).problems[0]


def test_init_refuses(world, tmp_path, store):
    with pytest.raises(ConfigError, match="not an empty folder"):
        device.init(store.folder, world.base.file, device_class=cases.DEVICE, trust=TRUST)
    with pytest.raises(ConfigError, match="sequence 0"):
        device.init(tmp_path / "x", world.base.file, device_class=cases.DEVICE, trust=TRUST, sequence=0)
    with pytest.raises(ArtefactError):
        device.init(tmp_path / "x", b"no model", device_class=cases.DEVICE, trust=TRUST)
    assert not (tmp_path / "x").exists()


def test_command_line(world, built, tmp_path, capsys):
    files = {"base.onnx": world.base.file, "u.qulb": built["auto"], "key.pem": keys.public_pem(cases.SIGNER.public)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    np.save(tmp_path / "x.npy", world.inputs)
    store, bundle_file = str(tmp_path / "store"), str(tmp_path / "u.qulb")
    init = ["device", "init", str(tmp_path / "base.onnx"), "--store", store, "--trust", str(tmp_path / "key.pem")]
    init += ["--device-class", str(cases.DEVICE), "--sequence", "6"]
    assert cli(init) == 2  # the published key
    assert "TEST" in capsys.readouterr().err
    assert cli([*init, "--allow-test-key"]) == 0
    assert cli(["device", "verify", bundle_file, "--store", store]) == 0
    assert cli(["device", "rollback-check", bundle_file, "--store", store]) == 3
    capsys.readouterr()
    receipt = str(tmp_path / "receipt.bin")
    assert cli(["device", "apply", bundle_file, "--store", store, "--receipt", receipt, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sequence"] == 7
    assert Receipt.from_bytes(Path(receipt).read_bytes()).code == 0
    assert cli(["device", "apply", bundle_file, "--store", store, "--json"]) == 3
    told = capsys.readouterr()
    assert json.loads(told.out)["code"] == 16
    assert told.err.startswith("device code 16\nerror:")
    assert cli(["device", "verify", bundle_file, "--store", store]) == 3
    assert cli(["device", "rollback-check", bundle_file, "--store", store]) == 0
    out = str(tmp_path / "y.npy")
    capsys.readouterr()
    assert cli(["device", "run", str(tmp_path / "x.npy"), "--store", store, "-o", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = Oracle(world.target.graph).logits(world.inputs).reshape(len(world.inputs), -1)
    assert told["classes"] == expected.argmax(1).tolist()
    assert np.array_equal(np.load(out), expected)
    assert cli(["device", "run", bundle_file, "--store", store]) == 2
    assert cli(["device", "verify", bundle_file, "--store", str(tmp_path / "none")]) == 2
    assert cli(["device", "verify", bundle_file, "--store", str(tmp_path)]) == 2


def test_base_install_is_enough():
    """Neither torch nor the packages for training are imported on the way."""
    code = (
        "import sys; import qunlearn_export.device, qunlearn.cli.cmd_device; "
        "print(sorted({'torch', 'brevitas', 'sklearn', 'safetensors', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
