"""Receipts: 100 bytes, fields in place, compared with the bundle they answer."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import replace

import bundle_cases as cases
import pytest

from qunlearn_export import verify
from qunlearn_export.errors import ArtefactError
from qunlearn_export.receipt import Receipt


@pytest.fixture(scope="module")
def opened(world):
    return verify.open_bundle(world.build().data, cases.TRUST)


@pytest.fixture(scope="module")
def good(world):
    return Receipt(
        code=0,
        passed=8,
        read_back=0,
        sequence=7,
        counter=7,
        erased=4,
        device=cases.DEVICE.bytes,
        old=hashlib.sha256(world.base.blob).digest()[:16],
        new=hashlib.sha256(world.target.blob).digest()[:16],
    )


def test_fields_in_place(good):
    data = good.to_bytes()
    assert len(data) == 100
    assert data[:8] == b"QUR1" + bytes([1, 0, 8, 0])
    assert struct.unpack_from("<III", data, 8) == (7, 7, 4)
    assert data[20:36] == cases.DEVICE.bytes
    assert data[36:52] + data[52:68] == good.old + good.new
    assert data[68:] == bytes(32)
    assert Receipt.from_bytes(data) == good


def test_it_fits_its_bundle(good, opened):
    assert good.problems(opened) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"code": 17}, "self-test failed"),
        ({"passed": 7}, "7 of 8"),
        ({"read_back": 1}, "not blank"),
        ({"read_back": 2}, "not done"),
        ({"sequence": 6}, "sequence 6"),
        ({"counter": 6}, "counter 6"),
        ({"device": bytes(16)}, "device class"),
        ({"old": bytes(16)}, "base"),
        ({"new": bytes(16)}, "target"),
    ],
)
def test_what_does_not_fit_is_named(good, opened, change, text):
    bad = replace(good, **change).problems(opened)
    assert len(bad) == 1
    assert text in bad[0]


def test_origin(good):
    key = b"device key"
    mac = hmac.new(key, good.signed(), hashlib.sha256).digest()
    assert good.authenticity(None) == "unauthenticated"
    assert good.authenticity(key) == "forged"
    assert replace(good, mac=mac).authenticity(None) == "not checked"
    assert replace(good, mac=mac).authenticity(key) == "authentic"
    assert replace(good, mac=mac, erased=5).authenticity(key) == "forged"
    assert replace(good, mac=mac).authenticity(b"other") == "forged"


def test_refused(good):
    data = good.to_bytes()
    for bad in (
        b"",
        data[:-1],
        data + b"\0",
        b"QUR2" + data[4:],
        data[:4] + b"\2" + data[5:],
        data[:5] + b"\1" + data[6:],
    ):
        with pytest.raises(ArtefactError):
            Receipt.from_bytes(bad)
    with pytest.raises(ArtefactError):
        Receipt.from_bytes(data[:7] + b"\3" + data[8:])
