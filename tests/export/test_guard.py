"""The confidentiality guard: seven encodings of a sample, ids and plain digests are found; a clean bundle passes."""

from __future__ import annotations

import base64
import hashlib
import json
import time

import bundle_cases as cases
import numpy as np
import pytest

from qunlearn_export import archive, bundle, guard, writer
from qunlearn_export.errors import VerificationError


def codes(world) -> np.ndarray:
    a = world.base.graph.activations[world.base.graph.input]
    return np.clip(np.rint(world.inputs / a.scale) + a.zero_point, -128, 127).astype(np.int8)


ENCODINGS = {
    "as stored": lambda w: w.stored[3].tobytes(),
    "as float32": lambda w: w.inputs[3].astype("<f4").tobytes(),
    "as int8 codes, NCHW": lambda w: codes(w)[3].tobytes(),
    "as int8 codes, NHWC": lambda w: np.ascontiguousarray(codes(w)[3].transpose(1, 2, 0)).tobytes(),
    "as uint8, NHWC": lambda w: np.ascontiguousarray(w.stored[3].transpose(1, 2, 0)).tobytes(),
    "in base64": lambda w: base64.b64encode(w.inputs[3].tobytes()),
    "in hexadecimal": lambda w: w.stored[3].tobytes().hex().encode(),
}


@pytest.fixture(scope="module")
def entries(world):
    return archive.read(world.build().data, bundle.NAMES)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_planted_sample_is_found_in_any_entry(world, entries, name):
    planted = ENCODINGS[name](world)
    clean = {"weights.bin": entries["weights.bin"], "report.json": entries["report.json"]}
    assert not world.order.guard.scan(clean)
    for at in (0, 1, 777, len(clean["weights.bin"])):
        data = clean["weights.bin"]
        changed = {**clean, "weights.bin": data[:at] + planted + data[at:]}
        hits = world.order.guard.scan(changed)
        assert hits
        assert {h.entry for h in hits} == {"weights.bin"}
        assert "forget sample" in hits[0].what


@pytest.mark.parametrize("name", ENCODINGS)
def test_one_window_of_a_sample_is_enough(world, name):
    """32 bytes out of the middle, at an odd place: found; 31: not looked for."""
    raw = ENCODINGS[{"in base64": "as float32", "in hexadecimal": "as stored"}.get(name, name)](world)
    window = raw[37 : 37 + 32]
    wrap = {"in base64": base64.b64encode, "in hexadecimal": lambda b: b.hex().upper().encode()}.get(name, bytes)
    noise = np.random.default_rng(0).bytes(501)
    assert world.order.guard.scan({"update.bin": noise + b"\0" + wrap(window) + b"\0" + noise})
    assert not world.order.guard.scan({"update.bin": noise + b"\0" + wrap(window[:31]) + b"\0" + noise})


@pytest.mark.parametrize("alphabet", ["standard", "url", "folded", "folded in JSON"])
def test_spellings_of_base64(world, alphabet):
    raw = b"x" + world.inputs[5].tobytes()
    text = {
        "standard": base64.b64encode(raw),
        "url": base64.urlsafe_b64encode(raw),
        "folded": base64.encodebytes(raw),
        "folded in JSON": json.dumps({"a": base64.encodebytes(raw).decode()}).encode(),
    }[alphabet]
    assert world.order.guard.scan({"report.json" if "JSON" in alphabet else "update.bin": text})


def test_hits_name_places_not_contents(world):
    secret = world.stored[0].tobytes()
    with pytest.raises(VerificationError) as caught:
        world.order.guard.refuse({"report.json": b"{}", "weights.bin": bytes(100) + secret})
    text = str(caught.value)
    assert "weights.bin at byte 100" in text
    assert secret.hex()[:16] not in text
    assert cases.IDS[0] not in text


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        ("report.json", json.dumps({"note": f"see {cases.IDS[4]}."}).encode()),
        ("report.json", json.dumps({cases.IDS[4]: 1}).encode()),
        ("weights.bin", b"\1\2" + cases.IDS[4].encode() + b"\3"),
        ("update.bin", base64.b64encode(b"...." + cases.IDS[4].encode() * 4)),
    ],
)
def test_ids_are_found(world, entry, data):
    hits = world.order.guard.scan({entry: data})
    assert [h.what for h in hits] == ["the id of a forget sample"]
    assert cases.IDS[4] not in str(hits[0])


def test_an_id_in_the_metadata_of_the_network_is_found(world, nets):
    base = nets.tiny(seed=3, labels=["a", "b"])
    model = writer.serialize(nets.tiny(seed=3))
    assert not guard.Guard({}, ["ab12"]).scan({"model.onnx": model})
    assert base.meta["labels"]
    import onnx

    proto = onnx.load_from_string(model)
    proto.metadata_props.add(key="note", value="made for ab12")
    assert guard.Guard({}, ["ab12"]).scan({"model.onnx": proto.SerializeToString()})


def test_what_is_no_hit(world):
    g = guard.Guard(world.order.guard.forms.parts, ["2026", "1234", "ab", "00ff", "input"])
    innocent = {
        "issued": "2026-01-01T00:00:00Z",
        "count": 1234,
        "ab": 1,
        "digest": "00ff" * 16,
        "device": "00ff1234-2026-1234-2026-001234562026",
        "text": "inputs of 1234 kinds",
    }
    assert not g.scan({"manifest.json": json.dumps(innocent).encode()})
    assert g.scan({"manifest.json": json.dumps({"x": "input"}).encode()})
    assert g.scan({"manifest.json": json.dumps({"x": "1234"}).encode()})


def test_windows_of_few_values_are_no_hit(world):
    """Padding and flat regions are everywhere; a window needs 8 distinct values."""
    flat = world.stored[:1].copy()
    flat[:] = 7
    flat.reshape(-1)[:5] = range(5)
    forms = {"a forget sample as stored": (flat.tobytes(),)}
    assert not guard.Guard(forms, []).scan({"weights.bin": bytes([7]) * 500 + bytes(500)})
    rich = bytes(range(8)) * 4
    assert guard.Guard({"a": (rich,)}, []).scan({"weights.bin": bytes(50) + rich})


@pytest.mark.parametrize("wrap", ["hex", "HEX", "raw", "base64"])
def test_plain_digests_are_found(world, wrap):
    for content in (cases.REQUEST, world.stored[7].tobytes()):
        digest = hashlib.sha256(content).digest()
        data = {
            "hex": json.dumps({"request": digest.hex()}).encode(),
            "HEX": json.dumps({"request": digest.hex().upper()}).encode(),
            "raw": digest,
            "base64": base64.b64encode(digest),
        }[wrap]
        hits = world.order.guard.scan({"update.bin" if wrap in ("raw", "base64") else "report.json": data})
        assert hits
        assert "plain digest" in hits[0].what


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", hashlib.sha256(cases.REQUEST).hexdigest()),
        ("name", "speaker_f_004"),
    ],
)
def test_the_builder_refuses(world, field, value):
    with pytest.raises(VerificationError, match=r"manifest\.json at byte"):
        world.build(method={**world.order.method, field: value})


def test_the_builder_refuses_a_network_with_a_sample_in_it(world, nets):
    """A weight tensor that is a forget sample: found in weights.bin, update.bin and model.onnx."""
    from dataclasses import replace

    graph = world.target.graph
    down = next(x for x in graph.layers if x.name == "down")
    weight = down.weight.copy()
    stolen = codes(world)[3].reshape(-1)[: weight.size]
    weight.reshape(-1)[: stolen.size] = np.maximum(stolen, -127)
    layers = tuple(replace(x, weight=weight) if x.name == "down" else x for x in graph.layers)
    made = cases.make(world.base.graph, replace(graph, layers=layers))
    with pytest.raises(VerificationError, match=r"int8 codes in (model.onnx|weights.bin|update.bin)"):
        made.build()


def test_a_window_is_found_in_a_delta_only_bundle_after_expanding(world):
    hits = world.order.guard.scan({"update.bin (expanded)": bytes(3) + codes(world)[9].tobytes()})
    assert hits[0].entry == "update.bin (expanded)"


def test_large_inputs_are_searched_in_bounded_time():
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (2000, 1, 49, 32)).astype(np.uint8)
    from qunlearn_export.graph import Activation

    a = Activation(name="input", shape=(1, 49, 32), scale=np.float32(0.02), zero_point=0)
    forms = guard.sample_forms(stored, stored.astype(np.float32) / 255, [a])
    g = guard.Guard(forms, [f"person_{i}_x" for i in range(2000)])
    start = time.perf_counter()
    assert not g.scan({"weights.bin": rng.bytes(300_000)})
    assert time.perf_counter() - start < 60
    assert g.scan({"weights.bin": rng.bytes(1000) + stored[-1].tobytes()[-32:]})
