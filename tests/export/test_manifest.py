"""Manifest, report and bill of materials: every field needed, none free, one spelling only."""

from __future__ import annotations

import copy
import json
from typing import Any

import bundle_cases as cases
import pytest

from qunlearn_export import archive, bom, bundle, evidence
from qunlearn_export import manifest as m
from qunlearn_export import schema as s
from qunlearn_export.errors import ArtefactError


@pytest.fixture(scope="module")
def entries(world):
    return archive.read(world.build().data, bundle.NAMES)


@pytest.fixture(scope="module")
def statement(entries):
    return json.loads(entries["manifest.json"])


def objects(value: Any, path: tuple = ()):
    """Paths of all objects inside a value."""
    if isinstance(value, dict):
        yield path
        for k, v in value.items():
            yield from objects(v, (*path, k))
    elif isinstance(value, list):
        for i, v in enumerate(value[:2]):
            yield from objects(v, (*path, i))


def at(value: Any, path: tuple) -> Any:
    for step in path:
        value = value[step]
    return value


FREE = {("predicate", "parity", "worst"), ("predicate", "parity", "entries")}


def test_each_field_removed_and_each_object_with_one_more(statement):
    m.check(statement)
    tried = 0
    for path in objects(statement):
        if path in FREE or (path[:2] == ("predicate", "rerun") and path[-1] == "inputs"):
            continue
        for key in at(statement, path):
            changed = copy.deepcopy(statement)
            del at(changed, path)[key]
            with pytest.raises(ArtefactError, match="lacks"):
                m.check(changed)
            tried += 1
        changed = copy.deepcopy(statement)
        at(changed, path)["more"] = 1
        with pytest.raises(ArtefactError, match="unknown field"):
            m.check(changed)
    assert tried > 100


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("predicate", "sequence"), 0),
        (("predicate", "sequence"), 2**32),
        (("predicate", "sequence"), True),
        (("predicate", "sequence"), 7.0),
        (("predicate", "sequence"), 6),
        (("predicate", "baseSequence"), 7),
        (("predicate", "format"), True),
        (("predicate", "format"), 2),
        (("predicate", "issued"), "yesterday"),
        (("predicate", "device", "class"), "7D8C1A52-95A4-4A3E-8AD1-0E5F6F5F9A10"),
        (("predicate", "change", "share"), 1.5),
        (("predicate", "change", "codesChanged"), 10**6),
        (("predicate", "request", "samples"), "40"),
        (("predicate", "limits"), ["none"]),
        (("predicate", "limits"), []),
        (("predicate", "audits"), []),
        (("predicate", "audits", 0, "value"), 1e99),
        (("predicate", "audits", 0, "value"), 0.99),
        (("predicate", "audits", 0, "value"), None),
        (("predicate", "audits", 0, "verdict"), "fail"),
        (("predicate", "audits", 0, "file"), "AB" * 32),
        (("predicate", "audits", 0, "reasons"), ["because theo said so"]),
        (("predicate", "audits", 0, "interval"), [0.6, 0.8]),
        (("predicate", "environment", "python"), "3.11\n/home/me"),
        (("predicate", "environment", "python"), "/home/me/bin"),
        (("subject", 0, "name"), "update.bin"),
        (("_type",), "https://in-toto.io/Statement/v0.1"),
        (("predicateType",), "urn:other"),
    ],
)
def test_values_out_of_range(statement, path, value):
    changed = copy.deepcopy(statement)
    at(changed, path[:-1])[path[-1]] = value
    with pytest.raises(ArtefactError, match="malformed"):
        m.check(changed)


def test_one_spelling_only(entries):
    text = entries["manifest.json"]
    assert m.parse(text)
    for other in (
        text[:-1],
        text + b"\n",
        b" " + text,
        text.replace(b'"format":1', b'"format": 1'),
        text.replace(b'"sequence":7', b'"sequence":7.0'),
        text.replace(b'"sequence":7', b'"sequence":7e0'),
        text.replace(b'"sequence":7', b'"sequence":7,"sequence":7'),
        text.replace(b'"_type"', b'"\\u005ftype"'),
        text.replace(b'"value":0.7', b'"value":NaN'),
        text.replace(b'"value":0.7', b'"value":Infinity'),
        text.replace(b'"value":0.7', b'"value":0.70'),
        text.replace(b"oeu", "oeü".encode()),
        b"[" * 100_000,
        b"{}\n",
        b"[]\n",
        b"1" * 10_000 + b"\n",
    ):
        with pytest.raises(ArtefactError):
            m.parse(other)


def test_buckets_hide_counts():
    assert [m.bucket(n) for n in (1, 9, 10, 99, 100, 999, 1000, 123456)] == [
        *["1-9"] * 2,
        *["10-99"] * 2,
        *["100-999"] * 2,
        *["1000+"] * 2,
    ]


def test_commitments_depend_on_key_label_and_content():
    seen = {
        m.commitment(key, label, content)
        for key in (bytes(32), bytes(31) + b"\1")
        for label in ("request", "split")
        for content in (b"", b"a")
    }
    assert len(seen) == 8
    # RFC 4231, test case 2, with the label as part of the data
    import hashlib
    import hmac

    assert m.commitment(b"Jefe", "a", b"b") == hmac.new(b"Jefe", b"a\0b", hashlib.sha256).hexdigest()


def test_the_limits_are_in_every_manifest_and_say_what_a_signature_is_not(statement):
    text = " ".join(statement["predicate"]["limits"])
    for said in ("a signature over a false claim is still valid", "backups", "base and delta together"):
        assert said in text


def test_nothing_of_the_host_is_in_the_manifest(entries):
    import getpass
    import socket

    text = entries["manifest.json"].decode()
    for word in (socket.gethostname(), "/home", "/tmp", "/root"):
        assert word not in text
    assert f'"{getpass.getuser()}"' not in text


def test_the_report_keeps_aggregates_only(world, entries):
    report = json.loads(entries["report.json"])
    s.require(report, evidence.REPORT, "report.json")
    rows = report["audits"][0]["metrics"]
    assert {r["metric"] for r in rows} == {"forget_accuracy", "gap_to_retrain"}
    assert rows[1] == {
        "metric": "gap_to_retrain",
        "set": "forget, retain",
        "before": {"value": 0.3, "lo": None, "hi": None},
        "after": {"value": 0.1, "lo": None, "hi": None},
        "reference": None,
        "delta": None,
    }


@pytest.mark.parametrize("value", [[0.1] * 40, {"speaker_f_001": 0.5}, "text"])
def test_a_table_with_values_of_samples_is_refused(world, value):
    audit = world.audited("results/onnx-all/0/tables/metrics/forget_accuracy/forget/after", value)
    with pytest.raises(ArtefactError):
        world.build(audit=audit)
    audit = world.audited("results/onnx-all/0/value", value)
    with pytest.raises(ArtefactError):
        world.build(audit=audit)


def test_a_metric_named_after_a_person_is_refused(world):
    audit = world.audited("results/onnx-all/0/tables/metrics/theo's accuracy", {"forget": {}})
    with pytest.raises(ArtefactError):
        world.build(audit=audit)


def test_bill_of_materials_validates_strictly(entries):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(entries["bom.cdx.json"].decode()) is None
    broken = json.loads(entries["bom.cdx.json"])
    broken["metadata"]["component"]["kind"] = "model"
    assert validator.validate_str(json.dumps(broken)) is not None


def test_bill_of_materials_says_what_the_manifest_says(world, entries, statement):
    document = json.loads(entries["bom.cdx.json"])
    p, component = statement["predicate"], document["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": p["target"]["onnx"]}]
    assert component["pedigree"]["ancestors"][0]["hashes"][0]["content"] == p["base"]["onnx"]
    facts = {x["name"]: x["value"] for x in component["properties"]}
    assert facts["qunlearn:sequence"] == "7"
    assert facts["qunlearn:codes_digest"] == p["target"]["codes"]
    assert facts["qunlearn:method"] == "oeu"
    assert facts["qunlearn:request_commitment"] == p["request"]["commitment"]
    assert bom.make(p, bundle.model_facts(world.target.graph)) == entries["bom.cdx.json"]
    other = world.build(sequence=8).manifest["predicate"]
    again = json.loads(bom.make(other, bundle.model_facts(world.target.graph)))
    assert again["serialNumber"] == document["serialNumber"]  # of the target's codes


def test_source_date_epoch_is_the_time(statement):
    assert statement["predicate"]["issued"] == m.issued(cases.EPOCH) == "2026-01-01T00:00:00Z"
