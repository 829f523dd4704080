"""`qunlearn bundle` and `qunlearn verify` on a real run: build, check at three levels, and every wrong input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.cli import run
from qunlearn.data import sources
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import ConfigError
from qunlearn_export import archive, bundle, container, interop, keys, schema
from qunlearn_export import manifest as m
from qunlearn_export.receipt import Receipt

Call = Callable[..., Any]
CLASS = "7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10"


@dataclass(frozen=True)
class Site:
    """An audited run, a key pair, and a bundle made of them."""

    run: Path
    audit: Path
    keys: Path
    bundle: Path

    def build(self, *extra: object, out: Path | None = None, **change: object) -> list[object]:
        options: dict[str, object] = {
            "audit": self.audit,
            "forget": "class=7",
            "key": self.keys / "release.pem",
            "device-class": CLASS,
            "sequence": 2,
            "allow-verdict": "fail",
            **{k.replace("_", "-"): v for k, v in change.items()},
        }
        words: list[object] = ["bundle", "build", self.run]
        for name, value in options.items():
            words += [] if value is None else [f"--{name}", value]
        return [*words, *extra, "-o", out or self.bundle]

    @property
    def trust(self) -> list[object]:
        return ["--trust", self.keys / "release.pub.pem"]

    @property
    def signer(self) -> keys.LocalSigner:
        return keys.load_private(self.keys / "release.pem", None)


@pytest.fixture(scope="module")
def site(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(home / "oeu", folder / "oeu")
    found = Site(folder / "oeu", folder / "audit", folder / "keys", folder / "update.qulb")
    asked = ["--before", home / "base", "--reference", home / "without", "--forget", "class=7"]
    assert run([str(x) for x in ("audit", found.run, *asked, "-o", found.audit)]) in (0, 3, 4)
    assert run(["bundle", "keygen", "release", "-o", str(found.keys), "--no-passphrase"]) == 0
    os.environ["SOURCE_DATE_EPOCH"] = "1767225600"
    try:
        assert run([str(x) for x in found.build()]) == 0
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]
    return found


def test_build_says_what_it_made(call: Call, site: Site, tmp_path: Path) -> None:
    done = call(*site.build("--json", out=tmp_path / "u.qulb"))
    assert done.code == 0, done.err
    value = done.json
    assert value["kind"] == "delta"
    assert value["sizes"]["all"] == (tmp_path / "u.qulb").stat().st_size
    assert value["sizes"]["body"] < value["sizes"]["weights.bin"] / 2
    p = value["manifest"]["predicate"]
    result = json.loads((site.run / "result.json").read_text())
    assert p["method"] == {"name": "oeu", "version": "1", "config": result["digests"]["config"], "seed": 0}
    assert p["target"]["codes"] == result["digests"]["codes_after"]
    assert p["base"]["codes"] == result["digests"]["codes_before"]
    assert p["change"]["codesChanged"] == result["changes"]["codes_changed"] > 0
    assert p["change"]["lost"] == pytest.approx(result["changes"]["lost"] / result["changes"]["latent_changed"])
    assert p["parity"]["worst"]["c-host vs oracle"] == 0
    audit = json.loads((site.audit / "audit.json").read_text())
    assert p["verdict"] == {"overall": audit["verdict"], "allowed": "fail"}
    assert {(a["kind"], a["audit"]) for a in p["audits"]} == {
        (k, r["audit"]) for k, rs in audit["results"].items() for r in rs
    }
    text = call(*site.build(out=tmp_path / "v.qulb")).out
    assert "codes changed" in text
    for line in (x for x in text.splitlines() if " on onnx-all: " in x or " on torch-fq: " in x):
        assert "reference: retrained" in line


def test_the_salt_is_ours_alone(site: Site) -> None:
    salt = site.run / "request.salt"
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    assert salt.read_bytes() not in site.bundle.read_bytes()
    dataset, request = sources.load("digits"), Request.parse("class=7")
    p = json.loads(archive.read(site.bundle.read_bytes(), bundle.NAMES)["manifest.json"])["predicate"]
    assert p["request"]["commitment"] == m.commitment(salt.read_bytes(), "request", request.canonical_bytes(dataset, 0))
    split = make_splits(dataset, request, seed=0).digest()
    assert p["data"]["commitment"] == m.commitment(salt.read_bytes(), "split", split.encode())


def test_nothing_of_a_forget_sample_is_in_it(site: Site) -> None:
    """Searched by other means than the guard's: every 16-byte stretch of every sample, every digest, every name."""
    data = site.bundle.read_bytes()
    entries = archive.read(data, bundle.NAMES)
    dataset, request = sources.load("digits"), Request.parse("class=7")
    index = request.select(dataset, 0)
    model = bundle.Model.read(entries["model.onnx"])
    a = model.graph.activations[model.graph.input]
    inputs = dataset.preprocess.apply(dataset.x[index])
    codes = np.clip(np.rint(inputs / a.scale) + a.zero_point, -128, 127).astype(np.int8)
    for forms in (dataset.x[index], inputs.astype("<f4"), codes, np.moveaxis(codes, 1, -1)):
        for sample in forms:
            raw = np.ascontiguousarray(sample).tobytes()
            for at in range(0, len(raw) - 15, 16):
                part = raw[at : at + 16]
                if len(set(part)) >= 8:
                    assert part not in data
                    assert part.hex().encode() not in data
    plain = [dataset.hashes[i] for i in index]
    plain += [request.digest(dataset, 0), make_splits(dataset, request, seed=0).digest()]
    plain += [hashlib.sha256(t.encode()).hexdigest() for t in ("class=7", "7", '{"class": 7}', '{"class":7}')]
    for digest in plain:
        assert digest.encode() not in data
        assert bytes.fromhex(digest) not in data
    texts = b"".join(d for n, d in entries.items() if n.endswith(".json"))
    assert b"class 7" not in texts
    assert b"per_class" not in texts
    assert str(site.run).encode() not in data


def test_two_builds_are_equal(call: Call, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    assert call(*site.build(out=tmp_path / "again.qulb")).code == 0
    assert (tmp_path / "again.qulb").read_bytes() == site.bundle.read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert call(*site.build(out=tmp_path / "no.qulb")).code == 2
    assert not (tmp_path / "no.qulb").exists()


def test_runs_and_files_give_the_same_bundle(
    call: Call, home: Path, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    done = call(*site.build(base=home / "base", target=site.run, out=tmp_path / "runs.qulb"))
    assert done.code == 0, done.err
    files = {"base": site.audit / "before.onnx", "target": home / "model.onnx", "data": "digits"}
    done = call(*site.build(**files, out=tmp_path / "files.qulb"))
    assert done.code == 0, done.err
    for name in ("runs", "files"):
        assert (tmp_path / f"{name}.qulb").read_bytes() == site.bundle.read_bytes()


def test_verify_at_three_levels(call: Call, home: Path, site: Site) -> None:
    verdict = json.loads((site.audit / "audit.json").read_text())["verdict"]
    code = {"pass": 0, "fail": 3, "inconclusive": 4}[verdict]
    first = call("verify", site.bundle, *site.trust, "--json")
    assert (first.code, first.json["level"], first.json["holds"]) == (code, 1, True)
    assert call("verify", site.bundle, *site.trust, "--allow-verdict", "fail").code == 0
    second = call("verify", site.bundle, *site.trust, "--base", site.audit / "before.onnx")
    assert second.code == code
    assert "the C applier gives the same target" in second.out
    assert "c-host vs oracle 0 LSB" in second.out
    assert "a signature over a false claim is still valid" in second.out
    third = call("verify", site.bundle, *site.trust, *third_level(home, site), "--json")
    assert third.code == code, third.err
    again = {(r["audit"], r["kind"]): r for r in third.json["recomputed"]}
    assert set(again) == {(a, k) for a in ("accuracy", "mia", "smi") for k in ("onnx-all", "c-host")}
    for a in third.json["manifest"]["predicate"]["audits"]:
        if a["kind"] == "onnx-all":
            assert again[a["audit"], "onnx-all"]["value"] == a["value"]
    one = call("verify", site.bundle, *site.trust, *third_level(home, site), "--audit", "accuracy", "--json")
    assert {r["audit"] for r in one.json["recomputed"]} == {"accuracy"}


def third_level(home: Path, site: Site, **change: object) -> list[object]:
    options = {
        "base": site.audit / "before.onnx",
        "verify-level": 3,
        "data": "digits",
        "forget": "class=7",
        "salt": site.run / "request.salt",
        "reference": site.audit / "reference.onnx",
        **{k.replace("_", "-"): v for k, v in change.items()},
    }
    return [x for name, value in options.items() if value is not None for x in (f"--{name}", value)]


def resigned(site: Site, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The bundle with a changed manifest, signed by the very maker: a false claim under a valid signature."""
    entries = archive.read(site.bundle.read_bytes(), bundle.NAMES)
    value = json.loads(entries["manifest.json"])
    edit(value["predicate"])
    from qunlearn_export import bom

    entries["bom.cdx.json"] = bom.make(value["predicate"], bom.model_facts(json.loads(entries["bom.cdx.json"])))
    for subject in value["subject"]:
        if subject["name"] == "bom.cdx.json":
            subject["digest"]["sha256"] = bundle.sha256(entries["bom.cdx.json"])
    text, signer = schema.canonical(value), site.signer
    entries["manifest.json"] = text
    entries["manifest.sig"] = keys.key_digest(signer.public) + signer.sign(m.signed_bytes(text))
    update = container.read(entries["update.bin"])
    header = replace(update.header, manifest=hashlib.sha256(text).digest())
    entries["update.bin"] = container.build(header, update.body, update.selftest, signer)
    return archive.write(entries)


def test_level_three_finds_a_forged_audit(call: Call, home: Path, site: Site, tmp_path: Path) -> None:
    def better(p: dict[str, Any]) -> None:
        row = next(a for a in p["audits"] if (a["kind"], a["audit"]) == ("onnx-all", "accuracy"))
        shift = 0.5 if row["value"] < 0.4 else -0.4
        row["value"] += shift
        row["interval"] |= {"lo": row["value"] - 0.01, "hi": row["value"] + 0.01}

    def passed(p: dict[str, Any]) -> None:
        p["verdict"]["overall"] = "pass"
        for a in p["audits"]:
            a.update(verdict="pass", failureSide="none")

    verdict = json.loads((site.audit / "audit.json").read_text())["verdict"]
    for name, edit, text in (("value", better, "outside"), ("verdict", passed, "the manifest says pass")):
        forged = tmp_path / f"{name}.qulb"
        forged.write_bytes(resigned(site, edit))
        base = ("--base", site.audit / "before.onnx")
        assert call("verify", forged, *site.trust, *base, "--allow-verdict", "fail").code == 0
        done = call("verify", forged, *site.trust, *third_level(home, site), "--allow-verdict", "fail")
        if name == "verdict" and verdict == "pass":
            continue
        assert done.code == 3
        assert text in done.err


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"forget": "class=6"}, 3, "request is not the one committed to"),
        ({"salt": None}, 2, "level 3"),
        ({"base": None}, 2, "level 3"),
        ({"reference": None}, 2, "retrained network"),
        ({"reference": "BASE"}, 2, "retrained network"),
        ({"audit": "eve"}, 2, "no such audit"),
        ({"data": "kws"}, 3, "request is not the one committed to"),
    ],
)
def test_level_three_on_other_data(
    call: Call, home: Path, site: Site, change: dict[str, object], code: int, text: str
) -> None:
    given = {k: site.audit / "before.onnx" if v == "BASE" else v for k, v in change.items()}
    done = call("verify", site.bundle, *site.trust, *third_level(home, site, **given))
    assert (done.code, done.out) == (code, "")
    assert text in done.err


def test_another_salt_is_refused(call: Call, home: Path, site: Site, tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_bytes(bytes(32))
    salt.chmod(0o600)
    done = call("verify", site.bundle, *site.trust, *third_level(home, site, salt=salt))
    assert done.code == 3
    salt.chmod(0o644)
    assert "others may read" in call("verify", site.bundle, *site.trust, *third_level(home, site, salt=salt)).err


def test_changed_and_foreign_bundles(call: Call, site: Site, tmp_path: Path) -> None:
    data = bytearray(site.bundle.read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "changed.qulb"
    changed.write_bytes(bytes(data))
    assert call("verify", changed, *site.trust).code == 2
    assert call("verify", tmp_path / "absent.qulb", *site.trust).code == 2
    assert run(["bundle", "keygen", "other", "-o", str(tmp_path), "--no-passphrase"]) == 0
    done = call("verify", site.bundle, "--trust", tmp_path / "other.pub.pem")
    assert done.code == 3
    assert "not trusted" in done.err
    # two trusted keys: either may have signed
    both = ["--trust", tmp_path / "other.pub.pem", *site.trust]
    assert call("verify", site.bundle, *both, "--allow-verdict", "fail").code == 0
    assert call("verify", site.bundle).code == 2


@pytest.mark.parametrize(
    ("change", "extra", "code", "text"),
    [
        ({"allow_verdict": None}, [], {3, 4}, "overall verdict is"),
        ({"sequence": 1}, [], {2}, "Sequences rise"),
        ({"sequence": 0}, [], {2}, "0 is not in the range"),
        ({"sequence": None}, [], {2}, "sequence"),
        ({"device_class": "watch"}, [], {2}, "no UUID"),
        ({"key": None}, [], {2}, "--key FILE"),
        ({"key": "TEST"}, [], {2}, "published TEST key"),
        ({"key": "absent.pem"}, [], {2}, "cannot read"),
        ({"signer": "cat"}, [], {2}, "one hand"),
        ({"key": None, "signer": "cat"}, [], {2}, "--public"),
        ({"forget": "class=77"}, [], {2}, "do not exist"),
        ({"data": "kws"}, [], {3}, "other data or for another request"),
        ({"forget": "class=6"}, [], {3}, "other data or for another request"),
        ({"audit": "nowhere"}, [], {2}, "cannot read audit results"),
        ({"base": "TARGET"}, [], {3}, "same codes"),
        ({"target": "REFERENCE"}, [], {3}, "measured on other codes"),
        ({"mode": "full"}, ["--delta-only"], {2}, "leaves no model"),
        ({"salt": "SHORT"}, [], {2}, "salt of 32 bytes"),
    ],
)
def test_builds_that_are_refused(
    call: Call,
    site: Site,
    tmp_path: Path,
    change: dict[str, object],
    extra: list[str],
    code: set[int],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = tmp_path / "short.salt"
    short.write_bytes(b"short")
    short.chmod(0o600)
    places = {"TARGET": site.audit / "after.onnx", "REFERENCE": site.audit / "reference.onnx", "SHORT": short}
    given = {k: places.get(str(v), v) for k, v in change.items()}
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    done = call(*site.build(*extra, out=out / "u.qulb", **given))
    assert done.code in code, done.err
    assert text in done.err
    assert "Traceback" not in done.err
    assert not list(out.iterdir())


def test_results_of_another_file_are_refused(call: Call, site: Site, tmp_path: Path) -> None:
    other = tmp_path / "audit"
    shutil.copytree(site.audit, other)
    value = json.loads((other / "audit.json").read_text())
    value["results"]["onnx-all"][0]["artefact"]["file_digest"] = "0" * 64
    (other / "audit.json").write_text(json.dumps(value))
    done = call(*site.build(audit=other, out=tmp_path / "u.qulb"))
    assert done.code == 3
    assert "accuracy on onnx-all was measured on another file" in done.err
    assert not (tmp_path / "u.qulb").exists()


def test_a_run_that_is_not_an_unlearned_one(call: Call, home: Path, site: Site, tmp_path: Path) -> None:
    other = Site(home / "base", site.audit, site.keys, site.bundle)
    done = call(*other.build(out=tmp_path / "u.qulb", salt=tmp_path / "salt"))
    assert done.code == 2
    assert "not the run of an unlearning method" in done.err


def test_the_published_key_works_when_allowed(call: Call, site: Site, tmp_path: Path) -> None:
    out = tmp_path / "u.qulb"
    assert call(*site.build("--allow-test-key", out=out, key="TEST")).code == 0
    assert call("verify", out, "--trust", "TEST").code == 2
    assert call("verify", out, "--trust", "TEST", "--allow-test-key", "--allow-verdict", "fail").code == 0


def test_keys_with_a_passphrase(call: Call, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse battery\n")
    done = call("bundle", "keygen", "k", "-o", tmp_path / "keys", "--passphrase-file", phrase, "--json")
    assert done.code == 0, done.err
    private = tmp_path / "keys" / "k.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert done.json["private"] == str(private)
    assert len(done.json["key_id"]) == 16
    outputs = [done.out + done.err]
    out = tmp_path / "u.qulb"
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong horse battery\n")
    for file, code in ((wrong, 2), (phrase, 0)):
        done = call(*site.build("--passphrase-file", file, "--debug" if code == 0 else "--json", out=out, key=private))
        outputs.append(done.out + done.err)
        assert done.code == code
        assert "Traceback" not in done.err
        assert out.exists() == (code == 0)
    monkeypatch.setenv("QUNLEARN_SIGNING_KEY", str(private))
    monkeypatch.setenv("QUNLEARN_PASSPHRASE_FILE", str(phrase))
    assert call(*site.build(out=out, key=None)).code == 0
    # no terminal, no passphrase
    monkeypatch.delenv("QUNLEARN_PASSPHRASE_FILE")
    done = call(*site.build(out=out, key=None))
    assert (done.code, "no passphrase was given" in done.err) == (2, True)
    private.chmod(0o644)
    done = call(*site.build("--passphrase-file", phrase, out=out, key=private))
    outputs.append(done.out + done.err)
    assert (done.code, "others may read" in done.err) == (2, True)
    lines = private.read_text().splitlines()[1:-1]
    for text in outputs:
        assert not any(line in text for line in lines)
        assert "horse battery" not in text


@pytest.mark.parametrize("name", ["../up", "a/b", "", "TEST", "."])
def test_names_of_keys(call: Call, tmp_path: Path, name: str) -> None:
    assert call("bundle", "keygen", name, "-o", tmp_path / "keys", "--no-passphrase").code == 2
    assert not (tmp_path / "keys").exists()


def test_keygen_writes_nothing_over(call: Call, tmp_path: Path) -> None:
    assert call("bundle", "keygen", "k", "-o", tmp_path, "--no-passphrase").code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert call("bundle", "keygen", "k", "-o", tmp_path, "--no-passphrase").code == 2
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert call("bundle", "keygen", "j", "-o", tmp_path).code == 2


def test_a_device_installs_it_and_answers(call: Call, site: Site, tmp_path: Path) -> None:
    """The same bundle on a Linux device's store; the receipt that the update leaves fits the bundle."""
    store, file, key = tmp_path / "store", tmp_path / "receipt.bin", tmp_path / "device.key"
    key.write_bytes(bytes(range(32)))
    start = ("device", "init", site.audit / "before.onnx", "--store", store, *site.trust, "--device-class", CLASS)
    assert call(*start).code == 0
    done = call("device", "apply", site.bundle, "--store", store, "--receipt", file, "--mac-key", key)
    assert done.code == 0, done.err
    check = ("bundle", "receipt", file, "--bundle", site.bundle, *site.trust)
    assert call(*check, "--json").json["authenticity"] == "not checked"
    found = call(*check, "--mac-key", key, "--json")
    assert (found.code, found.json["fits"], found.json["authenticity"]) == (0, True, "authentic")
    assert found.json["sequence"] == found.json["counter"] == 2
    given = Receipt.from_bytes(file.read_bytes())
    file.write_bytes(replace(given, sequence=1).to_bytes())
    done = call(*check, "--mac-key", key)
    assert done.code == 3
    assert "sequence 1, the bundle has 2" in done.out
    assert "forged" in done.out
    file.write_bytes(replace(given, mac=bytes(32)).to_bytes())
    assert call(*check, "--json").json["authenticity"] == "unauthenticated"
    assert call(*check, "--mac-key", key).code == 3
    file.write_bytes(b"nothing")
    assert call(*check).code == 2


def test_other_envelopes_hold_what_ships(
    call: Call, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is of the target's weights and names this manifest; a tool that fails leaves nothing behind."""
    seen: list[dict[str, Any]] = []

    def image(blob: bytes, **given: Any) -> bytes:
        seen.append({"blob": blob, **given})
        return b"image"

    monkeypatch.setattr(interop, "imgtool", lambda: "imgtool")
    monkeypatch.setattr(interop, "model_signing", lambda: None)
    monkeypatch.setattr(interop, "mcuboot_image", image)
    monkeypatch.setattr(interop, "model_signature", lambda file, key: hashlib.sha256(file).digest())
    names = {"imgtool": tmp_path / "w.img", "model-signing": tmp_path / "m.sig", "model-signing-key": "ec.pem"}
    done = call(*site.build("--json", out=tmp_path / "u.qulb", **names))
    assert done.code == 0, done.err
    entries = archive.read((tmp_path / "u.qulb").read_bytes(), bundle.NAMES)
    manifest = hashlib.sha256(entries["manifest.json"]).digest()
    assert seen == [{"blob": entries["weights.bin"], "sequence": 2, "manifest": manifest, "key": None}]
    assert (tmp_path / "m.sig").read_bytes() == hashlib.sha256(entries["model.onnx"]).digest()
    assert done.json["wrapped"] == {str(tmp_path / "w.img"): 5, str(tmp_path / "m.sig"): 32}

    def fails(*_: Any, **__: Any) -> bytes:
        raise ConfigError("imgtool ended with 1 and no image.", remedy="")

    monkeypatch.setattr(interop, "mcuboot_image", fails)
    out = tmp_path / "none"
    out.mkdir()
    assert call(*site.build(out=out / "u.qulb", imgtool=out / "w.img")).code == 2
    assert not list(out.iterdir())


def test_help_of_the_group(call: Call) -> None:
    assert "keygen" in call("bundle", "--help").out
    assert "level" in call("verify", "--help").out
