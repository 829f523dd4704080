"""Building and verifying bundles: what goes in, what is refused, what two builds have in common."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import bundle_cases as cases
import numpy as np
import pytest

from qunlearn_export import archive, bundle, capplier, container, evidence, keys, selftest, verify, writer
from qunlearn_export import manifest as m
from qunlearn_export.bundle import Model
from qunlearn_export.errors import ArtefactError, ConfigError, InvariantError, VerificationError


@pytest.fixture(scope="module")
def built(world):
    return world.build()


def test_levels_one_and_two_hold(world, built):
    opened = verify.open_bundle(built.data, cases.TRUST)
    assert opened.predicate["sequence"] == 7
    assert len(opened.checks) == 4
    checks = verify.recompute(opened, world.base, applier=capplier.CApplier())
    assert "the C applier gives the same target" in checks
    assert any("c-host vs oracle 0 LSB" in c for c in checks)


def test_the_device_side_gets_the_target(world, built):
    update = container.read(archive.read(built.data, bundle.NAMES)["update.bin"])
    container.authenticate(update, cases.TRUST)
    container.admit(
        update.header, device_class=cases.DEVICE.bytes, layout=world.base.layout, counter=6, active_sequence=6
    )
    container.check_payload(update)
    assert container.apply(update, world.base.blob, world.base.layout) == world.target.blob
    test = selftest.SelfTest.from_bytes(update.selftest)
    assert selftest.passed(test, world.target.graph) == len(test.seeds) == 8
    assert selftest.passed(test, world.base.graph) < 8


def test_entries_and_sizes(world, built):
    entries = archive.read(built.data, bundle.NAMES)
    assert set(entries) == set(bundle.NAMES)
    assert entries["weights.bin"] == world.target.blob
    assert entries["model.onnx"] == world.target.file
    assert len(entries["update.bin"]) == 288 + built.sizes["body"] + built.sizes["self-test"]
    assert set(archive.read(world.build(delta_only=True, with_onnx=False).data, bundle.NAMES)) == set(bundle.NAMES) - {
        "weights.bin",
        "model.onnx",
    }


def test_no_digest_goes_in_a_circle(built):
    entries = archive.read(built.data, bundle.NAMES)
    update, text = entries["update.bin"], entries["manifest.json"]
    assert hashlib.sha256(update).hexdigest().encode() not in text
    assert container.read(update).header.manifest == hashlib.sha256(text).digest()
    assert "update.bin" not in m.subjects(json.loads(text))


def test_two_builds_are_equal(world, built):
    assert world.build().data == built.data


def test_two_processes_build_equal_bundles(python):
    code = (
        "import sys; sys.path.insert(0, 'tests/export')\n"
        "import conftest, bundle_cases, hashlib\n"
        "base = conftest.Nets().tiny(seed=3)\n"
        "print(hashlib.sha256(bundle_cases.make(base, bundle_cases.unlearned(base)).build().data).hexdigest())"
    )
    done = [python(code, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout


def test_the_signed_text_is_the_envelopes_encoding(built):
    text = archive.read(built.data, bundle.NAMES)["manifest.json"]
    kind = b"application/vnd.in-toto+json"
    expected = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(text)).encode(), text])
    assert m.signed_bytes(text) == expected
    signature = archive.read(built.data, bundle.NAMES)["manifest.sig"]
    assert signature[:32] == hashlib.sha256(cases.SIGNER.public).digest()
    assert keys.verify(cases.SIGNER.public, signature[32:], expected)


def test_full_and_auto_modes(world):
    full = world.build(mode="full")
    assert full.kind == "full"
    opened = verify.open_bundle(full.data, cases.TRUST)
    assert opened.update.header.base_sequence == 0
    assert opened.update.header.base == bytes(32)
    assert opened.predicate["baseSequence"] == 6
    assert verify.recompute(opened, None)
    assert world.build(mode="auto").kind == "delta"
    with pytest.raises(ConfigError, match="leaves no model"):
        world.build(mode="full", delta_only=True)


def test_auto_takes_the_blob_where_the_delta_is_not_smaller(world, nets):
    other = nets.tiny(seed=3)
    noisy = cases.make(other, cases.unlearned(other, share=1.0))
    rng = np.random.default_rng(0)
    layers = tuple(
        replace(x, weight=rng.integers(-127, 128, x.weight.shape).astype(np.int8)) if hasattr(x, "weight") else x
        for x in other.layers
    )
    far = cases.make(other, replace(other, layers=layers))
    assert noisy.build().sizes["body"] < len(noisy.target.blob)
    made = far.build()
    assert made.sizes["body"] <= len(far.target.blob)
    assert (made.kind == "full") == (made.sizes["body"] == len(far.target.blob))


def test_in_place_flag_and_scratch(world):
    opened = verify.open_bundle(world.build(in_place=True).data, cases.TRUST)
    assert opened.update.header.in_place
    assert opened.update.header.scratch_bytes == world.base.layout.scratch_bytes > 0
    assert not verify.open_bundle(world.build().data, cases.TRUST).update.header.in_place


def test_another_layout_needs_a_full_update(world, nets):
    base = nets.tiny(seed=3)
    fc = next(x for x in base.layers if x.name == "fc")
    wider = nets.with_layer(
        base,
        "fc",
        weight=np.concatenate([fc.weight, fc.weight[:1]]),
        weight_scale=np.append(fc.weight_scale, fc.weight_scale[:1]),
        bias=np.append(fc.bias, fc.bias[:1]),
    )
    acts = {**wider.activations, "fc.out": replace(wider.activations["fc.out"], shape=(6,))}
    grown = cases.make(base, replace(wider, activations=acts))
    made = grown.build()
    assert made.kind == "full"
    with pytest.raises(ConfigError, match="--mode full"):
        grown.build(mode="delta")
    with pytest.raises(ConfigError, match="new firmware"):
        grown.build(in_place=True)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("results/onnx-all/0/artefact/file_digest", "0" * 64, "accuracy on onnx-all was measured on another file"),
        ("results/onnx-all/1/digests/model_after", "0" * 64, "mia on onnx-all was measured on another file"),
        ("results/onnx-all/1/digests/model_before", "0" * 64, "mia on onnx-all compares with another base"),
        ("results/torch-fq/0/artefact/codes_digest", "0" * 64, "accuracy on torch-fq was measured on other codes"),
        ("results/c-host/0/artefact/file_digest", "0" * 64, "accuracy on c-host was measured on another file"),
        ("results/c-host/1/digests/model_before", "0" * 64, "mia on c-host compares with another base"),
        ("results/onnx-all/0/artefact/kind", "onnx-off", "labelled onnx-off"),
        ("results/onnx-all/0/digests/data_split", "0" * 64, "different data"),
        ("tables/parity", None, "no parity table"),
        ("tables/parity/verdict", "fail", "parity is fail"),
        ("tables/parity/file_digest", "0" * 64, "parity was measured on another file"),
        ("tables/degenerate", [{"code": "D1", "level": "error", "where": "fc"}], "D1 at fc"),
    ],
)
def test_results_measured_on_other_files_are_refused(world, path, value, message):
    with pytest.raises(VerificationError, match=message):
        world.build(audit=world.audited(path, value))


def test_results_on_another_split_are_refused(world):
    """The guard looks for the samples of one request; results of another one say nothing about it."""
    with pytest.raises(VerificationError, match="other data or for another request"):
        world.build(split="f" * 64)


@pytest.mark.parametrize("path", ["results", "shipping", "tables", "environment", "digests", "verdict"])
def test_incomplete_results_are_refused(world, path):
    with pytest.raises(ArtefactError, match="not complete"):
        world.build(audit=world.audited(path, {} if path != "shipping" else []))


def test_results_of_less_than_what_ships_are_refused(world):
    with pytest.raises(ArtefactError, match="not complete"):
        world.build(audit=world.audited("shipping", ["onnx-all", "c-target"]))


@pytest.mark.parametrize(("verdict", "code"), [("fail", 3), ("inconclusive", 4)])
def test_a_worse_verdict_is_refused_and_named_when_allowed(world, verdict, code):
    audit = world.audited("verdict", verdict)
    with pytest.raises(VerificationError, match=f"overall verdict is {verdict}") as caught:
        world.build(audit=audit)
    assert caught.value.exit_code == code
    made = world.build(audit=audit, allow=verdict)
    assert made.manifest["predicate"]["verdict"] == {"overall": verdict, "allowed": verdict}


def test_a_failed_result_counts_whatever_the_summary_says(world):
    audit = world.audited("results/onnx-all/1/verdict", "fail")
    audit["results"]["onnx-all"][1] |= {"failure_side": "under", "reasons": ["F-UNDER"]}
    with pytest.raises(VerificationError, match="overall verdict is fail"):
        world.build(audit=audit)


def test_the_change_table_must_be_that_of_the_files(world):
    layer = {
        "layer": "conv1",
        "codes": 144,
        "codes_changed": 9,
        "max_step": 2,
        "bias_changed": 1,
        "scales_changed": 0,
        "lost": 40,
        "latent_changed": 50,
    }
    moved = bundle.change(world.base.graph, world.target.graph)["codesChanged"]
    table = {"codes_changed": moved, "lost": 300, "latent_changed": 400, "layers": [layer]}
    made = world.build(audit=world.audited("tables/change", table))
    assert made.manifest["predicate"]["change"]["lost"] == 0.75
    assert made.manifest["predicate"]["change"]["codesChanged"] == moved > 0
    report = json.loads(archive.read(made.data, bundle.NAMES)["report.json"])
    assert report["change"][0] == {
        "layer": "conv1",
        "codes": 144,
        "codesChanged": 9,
        "maxAbs": 2,
        "biasChanged": 1,
        "scalesChanged": 0,
        "lost": 0.8,
    }
    with pytest.raises(VerificationError, match="the change table says"):
        world.build(audit=world.audited("tables/change", {**table, "codes_changed": moved + 1}))


def test_few_forget_samples_leave_a_verdict_only(world):
    audit = cases.audit(world.base, world.target)
    for results in audit["results"].values():
        for r in results:
            r["n"] = {"forget": 9, "retain": 100}
    made = world.build(audit=audit, samples=9)
    p = made.manifest["predicate"]
    assert p["request"]["samples"] == "1-9"
    for a in p["audits"]:
        assert (a["value"], a["interval"], a["reference"]["value"], a["verdict"]) == (None, None, None, "pass")
    report = json.loads(archive.read(made.data, bundle.NAMES)["report.json"])
    for row in (row for a in report["audits"] for row in a["metrics"]):
        assert all(row[c] is None for c in ("before", "after", "reference", "delta")), row


def test_no_count_and_no_class_of_forget_samples(built):
    text = b"".join(archive.read(built.data, bundle.NAMES)[n] for n in ("manifest.json", "report.json", "bom.cdx.json"))
    assert b"per_class" not in text
    assert b'"n"' not in text
    assert b"e" * 64 not in text  # the plain digest of the split


@pytest.mark.parametrize(
    "changes",
    [{"sequence": 6}, {"sequence": 5}, {"sequence": 2**32}, {"base_sequence": -1}, {"mode": "patch"}],
)
def test_sequences_and_modes_that_do_not_fit(world, changes):
    with pytest.raises(ConfigError):
        world.build(**changes)


def test_equal_networks_are_nothing_to_ship(world):
    with pytest.raises(VerificationError, match="same codes"):
        world.build(target=world.base)


def test_an_applier_that_errs_stops_the_build(world):
    with pytest.raises(InvariantError, match="does not give the target"):
        bundle.build(world.order, cases.SIGNER, epoch=cases.EPOCH, applier=lambda *_: world.base.blob)


def test_a_self_test_that_cannot_tell_is_said(nets):
    base = nets.tiny(seed=3)
    bias = next(x for x in base.layers if x.name == "fc").bias.copy()
    bias[0] += 1  # too small a step to be seen in any output
    same = cases.make(base, nets.with_layer(base, "fc", bias=bias))
    assert same.build().warnings == ("the self-test passes on the base too: it cannot tell the two networks apart",)


def test_one_changed_code_in_model_onnx_is_named(world, built):
    """Acceptance 11: every digest recomputed, everything signed anew by the right key; level 2 still finds it."""
    graph = world.target.graph
    pw = next(x for x in graph.layers if x.name == "pw")
    weight = pw.weight.copy()
    weight[3, 2, 0, 0] += 1 if weight[3, 2, 0, 0] < 127 else -1
    layers = tuple(replace(x, weight=weight) if x.name == "pw" else x for x in graph.layers)
    forged = Model.read(writer.serialize(replace(graph, layers=layers)))
    entries = dict(archive.read(built.data, bundle.NAMES))
    value = json.loads(entries["manifest.json"])
    old, new = world.target.digests(), forged.digests()
    text = json.dumps(value).replace(old["onnx"], new["onnx"])
    entries["manifest.json"], entries["model.onnx"] = text.encode(), forged.file
    entries["bom.cdx.json"] = entries["bom.cdx.json"].replace(old["onnx"].encode(), new["onnx"].encode())
    data = cases.resign(entries)
    opened = verify.open_bundle(data, cases.TRUST)
    with pytest.raises(VerificationError, match=r"weight of pw differs at element 26"):
        verify.recompute(opened, world.base)


def test_level_two_finds_a_forged_change_table(world, built):
    entries = dict(archive.read(built.data, bundle.NAMES))
    value = json.loads(entries["manifest.json"])
    value["predicate"]["change"]["codesChanged"] += 1
    entries["manifest.json"] = json.dumps(value).encode()
    opened = verify.open_bundle(cases.resign(entries), cases.TRUST)
    with pytest.raises(VerificationError, match="change table"):
        verify.recompute(opened, world.base)


def test_level_two_needs_the_right_base(world, built):
    opened = verify.open_bundle(built.data, cases.TRUST)
    with pytest.raises(ConfigError, match="needs the base's ONNX"):
        verify.recompute(opened, None)
    with pytest.raises(VerificationError, match="base given is not the manifest's"):
        verify.recompute(opened, world.target)


def test_who_signed_must_be_trusted(built):
    other = keys.LocalSigner(keys.Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError, match="not trusted"):
        verify.open_bundle(built.data, {keys.key_digest(other.public)[:8]: other.public})
    # a key id that points to another key helps nobody
    with pytest.raises(VerificationError, match="not trusted"):
        verify.open_bundle(built.data, {keys.key_digest(cases.SIGNER.public)[:8]: other.public})


def test_plain_hashes_of_guessed_requests_are_nowhere(built):
    """Trap 7: whoever guesses the request cannot confirm the guess by any 64-digit field."""
    text = archive.read(built.data, bundle.NAMES)["manifest.json"].decode()
    fields = set(re.findall(r"[0-9a-f]{64}", text))
    guesses = [REQUEST, *(f"group=speaker{i}".encode() for i in range(999))]
    assert len(guesses) == 1000
    assert not fields & {hashlib.sha256(x).hexdigest() for x in guesses}
    p = json.loads(text)["predicate"]
    assert p["request"]["commitment"] == m.commitment(cases.SALT, "request", cases.REQUEST)
    assert p["data"]["commitment"] == m.commitment(cases.SALT, "split", b"e" * 64)


REQUEST = cases.REQUEST


def test_evidence_needs_results_of_this_project(tmp_path):
    for name, text in (("none.json", None), ("list.json", "[]"), ("bad.json", "{")):
        file = tmp_path / name
        if text is not None:
            file.write_text(text)
        with pytest.raises(ArtefactError):
            evidence.load(file)
