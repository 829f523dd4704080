"""Mutated updates and delta bodies through the C side under address and undefined-behaviour sanitizers.

Every answer is compared with the Python verifier's, and the program itself checks that a blob which is accepted has the
announced digest and that a refusal leaves the old model running.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections import Counter

import numpy as np
import pytest
from box import CLASS, SIGNER, SOURCES, make
from clib import SANITIZE, build
from test_update_c import NEW, OLD, SHAPE, lib  # noqa: F401

from qunlearn_export import container, delta, keys
from qunlearn_export.errors import ArtefactError

UPDATES, BODIES = 20_000, 20_000


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    names = (*(n for n in SOURCES if n != "harness_device.c"), "harness.c", "fuzz_main.c")
    flags = tuple("-O2" if f == "-O1" else f for f in SANITIZE)
    return build(tmp_path_factory.mktemp("fuzz") / "fuzz", names, flags=flags)


def header(in_place: bool) -> bytes:
    pages = -(-SHAPE.blob_bytes // 256)
    log = -(-(3 + 2 * pages + 8) * 16 // 256)
    numbers = (in_place, 256, 16, pages, log, *SHAPE.sizes, len(SHAPE.folds), 1, 0)
    rows = [v for f in SHAPE.folds for v in (f.weight, f.count, f.channels, f.inner, f.bias, f.zero)]
    out = struct.pack(f"<{12 + len(rows)}I", *numbers, *rows)
    out += bytes.fromhex(SHAPE.digest()) + CLASS + SIGNER.public
    return out + struct.pack("<II", 5, len(OLD)) + OLD


def answers(program, tmp_path, in_place: bool, kind: int, cases: list[bytes]) -> bytes:
    path = tmp_path / "cases"
    path.write_bytes(header(in_place) + b"".join(struct.pack("<II", kind, len(c)) + c for c in cases))
    done = subprocess.run([str(program), str(path)], capture_output=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert len(done.stdout) == len(cases)
    return done.stdout


def mutate(rng, data: bytes) -> bytes:
    """Flip bits, set bytes to extremes, copy, drop, insert, cut; one to four times."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(out))) if out else 0
        what = rng.integers(8)
        if what < 3 and out:
            out[at] ^= 1 << int(rng.integers(8))
        elif what == 3 and out:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif what == 4:
            out[at:at] = rng.bytes(int(rng.integers(1, 5)))
        elif what == 5:
            del out[at : at + int(rng.integers(1, 5))]
        elif what == 6 and out:
            n = int(rng.integers(1, 9))
            out[at : at + n] = bytes([int(rng.choice([0, 255]))]) * n
        elif what == 7 and rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def expected(data: bytes) -> int:
    """The Python verifier's code for a device that runs OLD as number 5, without the self-test."""
    try:
        update = container.read(data, max_blob=2**23)
        container.authenticate(update, {keys.key_digest(SIGNER.public)[:8]: SIGNER.public})
        scratch = 4 * sum(f.channels for f in SHAPE.folds)
        container.admit(update.header, device_class=CLASS, layout=SHAPE, counter=5, active_sequence=5, arena=scratch)
        container.check_payload(update)
        container.apply(update, OLD, SHAPE)
    except (container.MalformedUpdateError, container.RefusedUpdateError) as err:
        return err.code
    return 0


def resigned(rng, good: bytes) -> bytes:
    """Body or self-test mutated, digests and signature right again; sometimes a header field too."""
    size = struct.unpack_from("<I", good, 100)[0]
    body, test = good[288 : 288 + size], good[288 + size :]
    if rng.random() < 0.8:
        body = mutate(rng, body)
    else:
        test = mutate(rng, test)
    fields = bytearray(good[64:288])
    if rng.random() < 0.1:
        fields[int(rng.integers(224))] ^= 1 << int(rng.integers(8))
    struct.pack_into("<II", fields, 36, len(body), len(test))
    if good[70] == 1 and rng.random() < 0.7:
        body = (body + bytes(SHAPE.blob_bytes))[: SHAPE.blob_bytes]
        struct.pack_into("<I", fields, 36, len(body))
    if rng.random() < 0.5:  # the announced digest is that of what comes out
        try:
            new = body if good[70] == 1 else delta.decode(OLD, body, SHAPE)
            fields[112:144] = hashlib.sha256(new).digest()
        except ArtefactError:
            pass
    fields[144:176] = hashlib.sha256(body + test).digest()
    return SIGNER.sign(container.DOMAIN + bytes(fields)) + bytes(fields) + body + test


@pytest.mark.parametrize("in_place", [False, True], ids=["two slots", "in place"])
def test_mutated_updates(program, lib, tmp_path, in_place):  # noqa: F811
    rng = np.random.default_rng(in_place)
    good = [make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, full=f) for f in (False, False, True)]
    cases = []
    for i in range(UPDATES // 2):
        source = good[i % 3]
        cases.append(resigned(rng, source) if rng.random() < 0.7 else mutate(rng, source))
    found = answers(program, tmp_path, in_place, 0, cases)
    counts = Counter()
    for case, code in zip(cases, found, strict=True):
        wanted = expected(case)
        # the Python side stops before the self-test
        assert code == wanted or (wanted == 0 and code == 17), (code, wanted)
        counts[code] += 1
    assert {0, 10, 11, 12, 14, 15, 17} <= set(counts), counts
    assert counts[14] > 500
    assert counts[17] > 500


def test_mutated_bodies(program, tmp_path):
    rng = np.random.default_rng(2)
    good = delta.encode(OLD, NEW, SHAPE)
    cases = [mutate(rng, good) for _ in range(BODIES)]
    found = answers(program, tmp_path, False, 1, cases)
    counts = Counter(found)
    assert set(counts) == {0, 14}
    assert counts[14] > BODIES // 4
    for i in rng.integers(0, BODIES, 2000):
        try:
            delta.decode(OLD, cases[i], SHAPE)
            assert found[i] == 0
        except ArtefactError:
            assert found[i] == 14
