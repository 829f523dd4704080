"""Changed bundles: every byte, re-signed lies, and thousands of mutations end in a clean refusal."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace

import bundle_cases as cases
import numpy as np
import pytest

from qunlearn_export import archive, bundle, capplier, container, delta, keys, schema, verify
from qunlearn_export.errors import ArtefactError, QunlearnError, VerificationError

REFUSED = {2, 3}
HANG = 2.0


@pytest.fixture(scope="module")
def data(world):
    return world.build().data


@pytest.fixture(scope="module")
def entries(data):
    return archive.read(data, bundle.NAMES)


def refusal(data: bytes) -> int:
    """Exit code of the refusal; an accepted bundle or any other exception fails the test."""
    start = time.perf_counter()
    with pytest.raises(QunlearnError) as caught:
        verify.open_bundle(data, cases.TRUST)
    assert time.perf_counter() - start < HANG
    assert caught.value.remedy
    return caught.value.exit_code


def test_every_byte_of_the_file(data):
    """Archive frame and contents: one flipped bit in each byte, one after the other."""
    flipped = bytearray(data)
    for i in range(len(data)):
        flipped[i] ^= 1 << i % 8
        assert refusal(bytes(flipped)) in REFUSED
        flipped[i] ^= 1 << i % 8
    assert bytes(flipped) == data


@pytest.mark.parametrize("name", bundle.NAMES)
def test_every_byte_of_every_entry_in_a_sound_archive(entries, name):
    step = 1 if len(entries[name]) < 1000 else 7
    for i in range(0, len(entries[name]), step):
        changed = bytearray(entries[name])
        changed[i] ^= 1 << i % 8
        assert refusal(archive.write({**entries, name: bytes(changed)})) in REFUSED


@pytest.mark.parametrize("name", bundle.NAMES)
def test_entries_left_out_emptied_and_lengthened(entries, name):
    rest = {n: d for n, d in entries.items() if n != name}
    assert refusal(archive.write(rest)) in REFUSED
    assert refusal(archive.write({**entries, name: b""})) in REFUSED
    assert refusal(archive.write({**entries, name: entries[name] + b"\0"})) in REFUSED


def test_frames_that_are_no_canonical_archive(entries, data):
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    bad = [b"", b"PK", data[:-1], data + b"\0", b"\0" + data, out.getvalue(), data + data]
    bad += [archive.write({**entries, "../evil": b"x"}), archive.write({**entries, "manifest.json.bak": b""})]
    # one entry twice, a local header that promises more than there is
    first = data[: data.index(b"PK\x03\x04", 4)]
    bad += [first + data, first[:18] + b"\xff\xff\xff\x7f" + first[22:]]
    for one in bad:
        assert refusal(one) == 2


def test_standard_tools_read_the_archive(entries, data):
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        assert packed.testzip() is None
        assert {n: packed.read(n) for n in packed.namelist()} == entries
        assert packed.namelist() == sorted(entries)
        assert {i.date_time for i in packed.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def change(entries: dict[str, bytes], edit: Callable[[dict], None]) -> bytes:
    value = json.loads(entries["manifest.json"])
    edit(value)
    return cases.resign({**entries, "manifest.json": json.dumps(value).encode()})


LIES = {
    "sequence": lambda v: v["predicate"].update(sequence=8),
    "base sequence": lambda v: v["predicate"].update(baseSequence=5),
    "device class": lambda v: v["predicate"]["device"].update({"class": "0" * 8 + "-0000-0000-0000-" + "0" * 12}),
    "layout digest": lambda v: v["predicate"]["device"].update(layout="0" * 64),
    "base digest": lambda v: v["predicate"]["base"].update(blob="0" * 64),
    "target": lambda v: v["predicate"]["target"].update(blob="0" * 64),
    "is not the target": lambda v: v["predicate"]["target"].update(onnx="0" * 64),
    "measured on another file": lambda v: v["predicate"]["audits"][0].update(file="0" * 64),
    "another file than": lambda v: v["predicate"]["audits"][1].update(before="0" * 64),
    "measured on": lambda v: v["predicate"]["audits"][2].update(codes="0" * 64),
    "other results": lambda v: v["predicate"]["audits"][0].update(result="0" * 64),
    "bom": lambda v: v["predicate"]["method"].update(name="ft"),
}


@pytest.mark.parametrize("message", LIES)
def test_a_signed_manifest_that_contradicts_the_rest(entries, message):
    with pytest.raises(VerificationError, match=message):
        verify.open_bundle(change(entries, LIES[message]), cases.TRUST)


def test_a_container_that_contradicts_the_manifest(entries):
    parsed = container.read(entries["update.bin"])
    for field, value in {
        "sequence": 9,
        "base_sequence": 1,
        "device_class": bytes(16),
        "layout": bytes(32),
        "target": bytes(32),
        "manifest": bytes(32),
        "base": bytes(32),
    }.items():
        header = replace(parsed.header, **{field: value})
        update = container.build(header, parsed.body, parsed.selftest, cases.SIGNER)
        assert refusal(archive.write({**entries, "update.bin": update})) == 3


def test_signatures_do_not_serve_for_each_other(entries):
    parsed = container.read(entries["update.bin"])
    swapped = entries["manifest.sig"][32:] + entries["update.bin"][64:]
    assert refusal(archive.write({**entries, "update.bin": swapped})) == 3
    sig = entries["manifest.sig"][:32] + parsed.signature
    assert refusal(archive.write({**entries, "manifest.sig": sig})) == 3


def test_another_trusted_key_for_the_container_is_refused(entries):
    """Both signatures must be of one key, even where two are trusted."""
    other = keys.LocalSigner(keys.Ed25519PrivateKey.generate())
    parsed = container.read(entries["update.bin"])
    header = replace(parsed.header, key_id=keys.key_digest(other.public)[:8])
    update = container.build(header, parsed.body, parsed.selftest, other)
    trust = {**cases.TRUST, keys.key_digest(other.public)[:8]: other.public}
    with pytest.raises(VerificationError):
        verify.open_bundle(archive.write({**entries, "update.bin": update}), trust)


def mutate(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """One of: flipped bits, cut, zeros, repeated part, part of another entry, inserted bytes."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, max(len(out), 1)))
        n = int(rng.integers(1, 64))
        match rng.integers(0, 6):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << int(rng.integers(8))
            case 1:
                del out[at : at + n]
            case 2:
                out[at : at + n] = bytes(len(out[at : at + n]))
            case 3:
                out[at:at] = out[at : at + n]
            case 4:
                start = int(rng.integers(0, max(len(other), 1)))
                out[at : at + n] = other[start : start + n]
            case _:
                out[at:at] = rng.bytes(n)
    return bytes(out)


def fuzz(entries: dict[str, bytes], data: bytes, n: int, seed: int) -> dict[str, int]:
    """``n`` mutations of the file, of entries in a sound archive, and of entries signed anew; refusals by kind.

    What the right key signed is only refused where it contradicts itself: the rest are ``claims``, other numbers or
    texts in manifest, report or model card.
    """
    rng = np.random.default_rng(seed)
    done = {"file": 0, "entry": 0, "signed": 0, "claims": 0}
    names = sorted(entries)
    for i in range(n):
        name, kind = names[i % len(names)], ("file", "entry", "signed")[i // len(names) % 3]
        if kind == "file":
            changed = mutate(rng, data, data)
        else:
            part = mutate(rng, entries[name], entries[names[int(rng.integers(len(names)))]])
            changed = archive.write({**entries, name: part})
            if kind == "signed" and name in ("manifest.json", "report.json", "bom.cdx.json", "weights.bin"):
                changed = cases.resign({**entries, name: part})
        if changed == data:
            continue
        start = time.perf_counter()
        try:
            opened = verify.open_bundle(changed, cases.TRUST)
        except QunlearnError as err:
            done[kind] += err.exit_code in REFUSED and bool(err.remedy)
        else:
            assert kind == "signed"
            assert name in ("manifest.json", "report.json", "bom.cdx.json")
            assert opened.predicate["target"]["blob"] == bundle.sha256(entries["weights.bin"])
            done["claims"] += 1
        assert time.perf_counter() - start < HANG
    return done


def test_mutated_bundles_are_refused(entries, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = fuzz(entries, data, 2100, seed=1)
    assert min(done[k] for k in ("file", "entry", "signed")) > 600
    assert done["claims"] < 70
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_ten_thousand_mutated_bundles_are_refused(entries, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = fuzz(entries, data, 10_500, seed=2)
    assert sum(done[k] for k in ("file", "entry", "signed")) >= 10_000
    assert not os.listdir(tmp_path)


def test_signed_bodies_that_do_not_give_the_target_fail_level_two(world, entries):
    """The decoder is reached, since the right key signed the mutated body; C and Python refuse the same ones."""
    rng = np.random.default_rng(11)
    parsed, c = container.read(entries["update.bin"]), capplier.CApplier()
    tried = 0
    for _ in range(400):
        body = mutate(rng, parsed.body, parsed.selftest)
        if body == parsed.body:
            continue
        header = replace(parsed.header, body_bytes=len(body))
        update = container.build(header, body, parsed.selftest, cases.SIGNER)
        opened = verify.open_bundle(cases.resign({**entries, "update.bin": update}), cases.TRUST)
        with pytest.raises(container.RefusedUpdateError) as caught:
            container.apply(opened.update, world.base.blob, world.base.layout)
        assert caught.value.code in (14, 15)
        assert answer(c, world, body) == answer(delta.decode, world, body)
        tried += 1
    with pytest.raises(container.RefusedUpdateError):
        verify.recompute(opened, world.base)
    assert tried > 300


def answer(apply: bundle.Applier, world: cases.World, body: bytes) -> bytes | None:
    try:
        return apply(world.base.blob, body, world.base.layout)
    except ArtefactError:
        return None


def test_signed_reports_with_a_place_for_samples_are_refused(entries):
    """The array that a careless or hostile maker would add has no place in the schema."""
    for edit in (
        lambda r: r.update(scores=[0.1] * 40),
        lambda r: r["audits"][0].update(per_sample=[0.1] * 40),
        lambda r: r["audits"][0]["metrics"][0].update(after=[0.1] * 40),
        lambda r: r["audits"][0]["metrics"].extend([r["audits"][0]["metrics"][0]] * 200),
    ):
        report = json.loads(entries["report.json"])
        edit(report)
        data = cases.resign({**entries, "report.json": schema.canonical(report)})
        assert refusal(data) == 2
