"""Updates on a simulated device: accepted, refused with the right code, and never rolled back."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from box import CLASS, NEVER, OTHER, OUTPUTS, SIGNER, Box, Shape, block, library, make
from delta_cases import Fold, blob

PAGE = 256


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    return library(tmp_path_factory.mktemp("device"))


FOLDS = (
    Fold(weight=0, count=600, channels=6, inner=100, bias=0, zero=0),
    Fold(weight=608, count=400, channels=8, inner=0, bias=8, zero=3),
)
SHAPE = Shape(sizes=(1008, 16, 16, 48), folds=FOLDS)


def model(seed: int, base: bytes | None = None, share: float = 0.05) -> bytes:
    """A random blob, or one with ``share`` of the base's weights moved by one and some other values changed."""
    rng = np.random.default_rng(seed)
    w, b, m, p = SHAPE.sizes
    if base is None:
        parts = (rng.integers(-128, 128, w), rng.integers(-9999, 9999, b), rng.integers(0, 2**31, m))
        return blob(*parts, rng.integers(-128, 128, p))
    out = bytearray(base)
    for i in np.flatnonzero(rng.random(w) < share):
        code = struct.unpack_from("b", out, i)[0]
        struct.pack_into("b", out, i, code - 1 if code > 0 else code + 1)
    for i in range(w, w + 4 * b, 4):
        struct.pack_into("<i", out, i, struct.unpack_from("<i", out, i)[0] + int(rng.integers(-3, 4)))
    out[-1] ^= 1
    return bytes(out)


OLD = model(0)
NEW = model(1, OLD)
NEXT = model(2, NEW)


@pytest.fixture(params=["two slots", "in place"])
def box(request, lib):
    made = Box(lib, SHAPE, in_place=request.param == "in place")
    assert made.boot() == 30  # blank flash: nothing to run
    assert made.provision(OLD, 5) == 0
    assert (made.state.sequence, made.state.counter, made.state.ready) == (5, 5, 1)
    return made


def survivors(image: bytes, old: bytes, new: bytes) -> list[int]:
    """Stretches of 32 bytes of the old blob that the new one does not have and that are still in the image."""
    parts = [old[i : i + 32] for i in range(0, len(old), 32)]
    assert any(part not in new for part in parts)
    return [i for i, part in enumerate(parts) if part not in new and part in image]


@pytest.mark.parametrize("full", [False, True])
def test_update_commits_erases_and_tells(box, lib, full):
    update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, full=full)
    rc, receipt = box.update(update)
    assert rc == 0
    state = box.state
    assert (state.ready, state.bound, state.sequence, state.counter, state.blank) == (1, 1, 6, 6, 0)
    assert state.breaches == 0
    assert box.running() == NEW
    assert survivors(box.flash(), OLD, NEW) == []
    assert set(box.journal()) == {255}
    assert receipt[:8] == b"QUR1" + bytes([1, 0, 6, 0])
    assert struct.unpack_from("<III", receipt, 8) == (6, 6, state.erased)
    assert receipt[20:36] == CLASS
    assert state.erased >= 6
    assert box.boot() == 0
    assert box.running() == NEW
    again = make(lib, SHAPE, NEW, NEXT, sequence=9 if full else 7, base_sequence=6, full=full)
    assert box.update(again)[0] == 0
    assert box.running() == NEXT
    assert box.state.breaches == 0


def test_sixty_updates_wear_the_counter_round(box, lib):
    """More sequence numbers than both counter pages have cells: the pages take turns, and the number never falls."""
    blobs = (OLD, NEW)
    bodies = [make(lib, SHAPE, blobs[i % 2], blobs[1 - i % 2], sequence=6 + i, base_sequence=5 + i) for i in range(60)]
    for i, update in enumerate(bodies):
        assert box.update(update)[0] == 0
        assert box.state.counter == 6 + i
    assert box.state.breaches == 0
    assert box.boot() == 0
    assert box.running() == blobs[60 % 2]


def refused(box, update, code):
    """The code comes back, the old model goes on, and nothing was written."""
    before = box.flash()
    rc, receipt = box.update(update)
    assert rc == code
    assert receipt[5] == code
    assert box.state.sequence == 5
    assert box.boot() == 0
    assert box.running() == OLD
    assert box.state.bound
    if code not in (17,):
        assert box.flash() == before


def test_every_refusal_has_its_code(box, lib):
    def made(**changes):
        given = {"sequence": 6, "base_sequence": 5, **changes}
        return make(lib, SHAPE, OLD, NEW, **given)

    good = made()
    refused(box, made(signer=OTHER), 10)
    refused(box, made(key_id=bytes(8)), 10)
    refused(box, good[:287], 11)
    refused(box, good + b"\0", 11)
    refused(box, good[:64] + b"QUP2" + good[68:], 11)
    refused(box, good[:68] + b"\2\0" + good[70:], 21)
    refused(box, good[:70] + b"\2" + good[71:], 11)
    refused(box, good[:71] + b"\1" + good[72:], 11)  # the old slot must be erased
    refused(box, good[:280] + b"\1" + good[281:], 11)
    refused(box, good[:300] + bytes([good[300] ^ 1]) + good[301:], 12)
    refused(box, good[:-1] + bytes([good[-1] ^ 1]), 12)
    refused(box, made(base=bytes(32)), 13)
    for sequence in (0, 4, 5):
        for full in (False, True):
            refused(box, made(sequence=sequence, full=full), 16)
    refused(box, made(base_sequence=4), 16)
    refused(box, made(device_class=bytes(16)), 18)
    refused(box, made(layout=bytes(32)), 19)
    refused(box, made(blob_bytes=SHAPE.blob_bytes + 16), 19)
    refused(box, made(scratch_bytes=10**6), 19)
    refused(box, made(full=True, base=b"x" * 32), 11)
    assert box.update(good)[0] == 0


def test_what_only_the_decoder_can_see(box, lib):
    body = bytearray(make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5))
    good = bytes(body[288 : 288 + struct.unpack_from("<I", body, 100)[0]])
    refused(box, make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, body=good + b"\0"), 14)
    refused(box, make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, body=good[:-1]), 14)
    refused(box, make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, target=bytes(32)), 15)
    refused(box, make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, full=True, target=bytes(32)), 15)


def wrong_tests(lib):
    good = block(lib, SHAPE, NEW)
    yield "the old model's answers", block(lib, SHAPE, OLD)
    yield "last code", good[:-1] + bytes([good[-1] ^ 1])
    yield "empty", b""
    yield "no vector", struct.pack("<HHI", 0, OUTPUTS, 12)
    yield "other outputs", struct.pack("<HHI", 6, OUTPUTS - 1, 12) + good[8:-6]
    yield "other inputs", struct.pack("<HHI", 6, OUTPUTS, 13) + good[8:]
    yield "cut", good[:-1]
    yield "reserved seed", good[:8] + struct.pack("<I", 15) + good[12:]


def test_failing_self_test_leaves_the_old_model_running(lib):
    for name, test in wrong_tests(lib):
        box = Box(lib, SHAPE)
        assert box.provision(OLD, 5) == 0
        update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, test=test)
        rc, receipt = box.update(update)
        assert rc == 17, name
        assert receipt[5] == 17
        assert receipt[6] < 6
        assert box.state.bound, name
        assert box.running() == OLD
        assert survivors(box.flash(), NEW, OLD) == []
        assert box.state.counter == 5
        assert box.update(make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5))[0] == 0


def test_failing_self_test_in_place_waits_for_a_full_update(lib):
    box = Box(lib, SHAPE, in_place=True)
    assert box.provision(OLD, 5) == 0
    bad = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, test=block(lib, SHAPE, OLD))
    for _ in range(2):
        assert box.update(bad)[0] == 17
        assert box.state.ready == 0
        assert box.boot() == 30
    assert box.update(make(lib, SHAPE, OLD, NEW, sequence=7, base_sequence=5))[0] == 13  # no other delta
    assert box.update(make(lib, SHAPE, OLD, NEW, sequence=5, base_sequence=5, full=True))[0] == 16
    assert box.update(make(lib, SHAPE, OLD, NEXT, sequence=7, base_sequence=5, full=True))[0] == 0
    assert box.boot() == 0
    assert box.running() == NEXT
    assert survivors(box.flash(), OLD, NEXT) + survivors(box.flash(), NEW, NEXT) == []


def test_in_place_needs_its_flag(lib):
    update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, in_place=False)
    for in_place, code in ((True, 19), (False, 0)):
        box = Box(lib, SHAPE, in_place=in_place)
        box.provision(OLD, 5)
        assert box.update(update)[0] == code


def test_two_keys_and_rotation(lib):
    box = Box(lib, SHAPE, trusted=(OTHER.public, SIGNER.public))
    box.provision(OLD, 5)
    assert box.update(make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5))[0] == 0
    assert box.update(make(lib, SHAPE, NEW, NEXT, sequence=7, base_sequence=6, signer=OTHER))[0] == 0
    box = Box(lib, SHAPE, trusted=())
    box.provision(OLD, 5)
    assert box.update(make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5))[0] == 10


def test_every_bit_of_header_and_signature(lib):
    """No bit of the first 288 bytes may change; a thousand bits of the payload neither."""
    box = Box(lib, SHAPE)
    box.provision(OLD, 5)
    good = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5)
    before = box.flash()
    rng = np.random.default_rng(5)
    bits = [*range(288 * 8), *rng.integers(288 * 8, len(good) * 8, 2000)]
    seen = set()
    for bit in bits:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        rc, _ = box.update(bytes(bad))
        where = bit // 8
        if where < 64 or 72 <= where < 96 or 108 <= where < 280:
            assert rc == 10 or (rc == 11 and 108 <= where < 112), bit
        elif where >= 288:
            assert rc == 12, bit
        else:
            assert rc in (10, 11, 21), bit
        seen.add(rc)
    assert seen == {10, 11, 12, 21}
    assert box.flash() == before
    assert box.update(good)[0] == 0


def test_nothing_is_parsed_before_the_signature(lib):
    """Wrong class, layout and sequence in an update that is not signed: the code is the signature's."""
    box = Box(lib, SHAPE)
    box.provision(OLD, 5)
    update = make(
        lib, SHAPE, OLD, NEW, sequence=1, base_sequence=0, device_class=bytes(16), layout=bytes(32), signer=OTHER
    )
    assert box.update(update)[0] == 10
    signed = make(lib, SHAPE, OLD, NEW, sequence=1, base_sequence=0, device_class=bytes(16), layout=bytes(32))
    assert box.update(signed)[0] == 18


def test_digest_is_recomputed_when_asked(lib):
    for careful, code in ((True, 30), (False, 0)):
        box = Box(lib, SHAPE, careful=careful)
        box.provision(OLD, 5)
        flash, used = box.snapshot()
        box.restore((bytes([flash[0] ^ 1]) + flash[1:], used))
        assert box.boot() == code


def test_old_image_written_back_is_not_run(lib):
    """Somebody restores the old slot with its record: the counter knows better."""
    box = Box(lib, SHAPE)
    box.provision(OLD, 5)
    before = box.snapshot()
    pages = box.slot_bytes
    assert box.update(make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5))[0] == 0
    flash, used = box.snapshot()
    meta = 2 * pages
    rolled = before[0][:pages] + b"\xff" * pages + before[0][meta : meta + 2 * PAGE] + flash[meta + 2 * PAGE :]
    marks = before[1][: (meta + 2 * PAGE) // 16] + used[(meta + 2 * PAGE) // 16 :]
    box.restore((rolled, marks))
    assert box.boot() == 30
    assert box.state.counter == 6
    assert box.update(make(lib, SHAPE, OLD, NEXT, sequence=7, base_sequence=5))[0] == 16
    assert box.update(make(lib, SHAPE, OLD, NEXT, sequence=7, base_sequence=5, full=True))[0] == 0
    assert box.running() == NEXT
    assert survivors(box.flash(), OLD, NEXT) == []


@pytest.mark.parametrize("unit", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("in_place", [False, True])
def test_program_units(lib, unit, in_place):
    box = Box(lib, SHAPE, unit=unit, page=512, in_place=in_place)
    assert box.provision(OLD, 1) == 0
    assert box.update(make(lib, SHAPE, OLD, NEW, sequence=2, base_sequence=1))[0] == 0
    assert box.running() == NEW
    assert box.state.breaches == 0
    assert box.state.dead == 0
    box.power(NEVER)
    assert box.boot() == 0


def test_provision_only_into_blank_flash(box):
    assert box.provision(NEW, 6) == 20
    assert box.boot() == 0
    assert box.running() == OLD


def test_public_key_is_the_signers(lib):
    """The control of every test above: the device trusts this key and no other."""
    assert SIGNER.public != OTHER.public
    box = Box(lib, SHAPE, trusted=(OTHER.public,))
    box.provision(OLD, 5)
    assert box.update(make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5))[0] == 10
