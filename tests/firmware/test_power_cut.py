"""Power goes before or inside every flash operation of an update, of the start after it, and of both in turn."""

from __future__ import annotations

import numpy as np
import pytest
from box import Box, library, make
from test_update_c import NEW, NEXT, OLD, SHAPE, survivors


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    return library(tmp_path_factory.mktemp("device"))


def device(lib, in_place: bool, unit: int = 16) -> Box:
    box = Box(lib, SHAPE, in_place=in_place, unit=unit)
    assert box.provision(OLD, 5) == 0
    return box


def settle(box: Box, update: bytes, in_place: bool, full: bool) -> str:
    """Boot after a cut, check what must hold, then finish the update. Returns which model came up."""
    box.power()
    stored = box.stored_counter()
    assert stored >= 5
    rc = box.boot()
    state = box.state
    assert state.breaches == 0
    assert box.stored_counter() == state.counter >= stored
    assert state.counter in (5, 6)
    if rc == 30:
        assert in_place
        came = "recovery"
        assert state.ready == 0
    else:
        assert rc == 0
        assert state.bound
        came = {5: "old", 6: "new"}[state.sequence]
        assert box.running() == (OLD if came == "old" else NEW)
        assert state.counter == state.sequence
        assert set(box.journal()) == {255}
        if not in_place:
            idle = (1 - state.slot) * box.slot_bytes
            assert set(box.flash()[idle : idle + box.slot_bytes]) == {255}
    if came == "new":
        assert survivors(box.flash(), OLD, NEW) == []
        assert box.update(update)[0] == 16
    else:
        assert box.update(update)[0] == 0
        assert box.running() == NEW
        assert survivors(box.flash(), OLD, NEW) == []
    assert box.boot() == 0
    assert box.state.counter == 6
    assert box.running() == NEW
    assert box.state.breaches == 0
    return came


@pytest.mark.parametrize("full", [False, True], ids=["delta", "full"])
@pytest.mark.parametrize("in_place", [False, True], ids=["two slots", "in place"])
def test_cut_at_and_inside_every_operation(lib, in_place, full):
    box = device(lib, in_place)
    update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5, full=full)
    start = box.snapshot()
    box.power()
    assert box.update(update)[0] == 0
    total = box.state.ops
    assert total > 80
    seen = {}
    for cut in range(total + 1):
        for torn, seed in ((0, 1), (1, 3), (1, 77)):
            box.restore(start)
            box.power()
            assert box.boot() == 0
            box.power(cut, torn, seed + cut)
            rc, _ = box.update(update)
            assert (rc == 20) == (cut < total), (cut, rc)
            assert box.state.breaches == 0
            came = settle(box, update, in_place, full)
            seen.setdefault(came, []).append(cut)
    assert max(seen["old"]) < min(seen["new"]) + 2
    assert set(seen) == ({"old", "recovery", "new"} if in_place else {"old", "new"})
    if in_place:  # the old model ends with the first page that changes
        assert max(seen["old"]) < min(seen["recovery"]) + 2


@pytest.mark.parametrize("in_place", [False, True], ids=["two slots", "in place"])
def test_second_cut_while_the_first_is_settled(lib, in_place):
    """After a cut in the update, the power goes again at every operation of the start and of the repeated update."""
    box = device(lib, in_place)
    update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5)
    start = box.snapshot()
    box.power()
    assert box.update(update)[0] == 0
    total = box.state.ops
    rng = np.random.default_rng(4)
    cases = 0
    for first in range(0, total, 5):
        box.restore(start)
        box.boot()
        box.power(first, 1, first + 9)
        box.update(update)
        middle = box.snapshot()
        for second in sorted({*range(8), *rng.integers(8, total, 12)}):
            box.restore(middle)
            box.power(int(second), int(second) % 2, int(second) + 5)
            rc = box.boot()
            if rc in (0, 30) and not box.state.dead:
                box.update(update)
            settle(box, update, in_place, False)
            cases += 1
    assert cases > 200


def test_many_cuts_in_a_row_still_end(lib):
    """A device that loses power again and again during one in-place update comes through."""
    box = device(lib, in_place=True)
    update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5)
    rng = np.random.default_rng(8)
    for turn in range(40):
        box.power(int(rng.integers(3, 40)), turn % 2, turn + 1)
        if box.boot() in (0, 30) and not box.state.dead:
            box.update(update)
        if box.state.sequence == 6 and not box.state.dead:
            break
    settle(box, update, True, False)


def test_log_spoilt_by_too_many_cuts_waits_for_a_full_update(lib):
    """In place: every cut inside READY costs a cell; when none is left the update stops, a full one starts anew."""
    box = device(lib, in_place=True)
    update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5)
    box.power(40, 1)  # past the first page
    box.update(update)
    spoilt = 0
    for turn in range(60):
        box.power()
        box.boot()
        assert box.state.ready == 0
        box.power(17, 1, turn + 1)  # the data page is erased and written; the power goes inside READY
        rc, _ = box.update(update)
        assert rc == 20
        if not box.state.dead:
            break
        spoilt += 1
    assert spoilt >= 8
    box.power()
    assert box.boot() == 30
    assert box.update(update)[0] == 20
    assert box.update(make(lib, SHAPE, OLD, NEXT, sequence=7, base_sequence=5, full=True))[0] == 0
    assert box.boot() == 0
    assert box.running() == NEXT


def test_full_update_over_half_an_update(lib):
    """In place: half of one update, then another full one, cut at every operation: never a mixture that runs."""
    box = device(lib, in_place=True)
    half = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5)
    other = make(lib, SHAPE, OLD, NEXT, sequence=7, base_sequence=5, full=True)
    box.power()
    start = box.snapshot()
    box.update(half)
    middle = box.state.ops // 2
    box.restore(start)
    box.power()
    box.boot()
    box.power(middle)
    assert box.update(half)[0] == 20
    box.power()
    assert box.boot() == 30
    assert box.state.sequence == 5
    stuck = box.snapshot()
    assert box.update(other)[0] == 0
    total = box.state.ops
    for cut in range(total):
        for torn in (0, 1):
            box.restore(stuck)
            box.power()
            assert box.boot() == 30
            box.power(cut, torn, cut + 1)
            assert box.update(other)[0] == 20
            box.power()
            rc = box.boot()
            assert rc in (0, 30)
            if rc == 0:
                assert box.running() == NEXT
                continue
            assert box.update(other)[0] == 0
            assert box.running() == NEXT
            assert box.state.breaches == 0
            assert survivors(box.flash(), OLD, NEXT) == []


def test_control_the_simulator_counts_breaches(lib):
    """The checks above can fail: a driver that programs twice, or a forgotten page, is seen."""
    box = device(lib, in_place=False)
    flash, used = box.snapshot()
    box.restore((flash, b"\1" * len(used)))
    box.update(make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5))
    assert box.state.breaches > 0
    assert survivors(flash, OLD, NEW) != []


def test_counter_page_change_is_safe(lib):
    """The update at which the counter changes its page, cut everywhere."""
    box = device(lib, in_place=False)
    sequence, base, target = 5, OLD, NEW
    while True:
        snapshot = box.snapshot()
        box.power()
        update = make(lib, SHAPE, base, target, sequence=sequence + 1, base_sequence=sequence)
        flash = box.flash()
        second = box.meta_start + 3 * 256
        assert box.update(update)[0] == 0
        if flash[second : second + 256] == b"\xff" * 256 != box.flash()[second : second + 256]:
            break
        sequence, base, target = sequence + 1, target, base
    total = box.state.ops
    for cut in range(total):
        for torn in (0, 1):
            box.restore(snapshot)
            box.boot()
            box.power(cut, torn, cut + 1)
            box.update(update)
            assert box.stored_counter() >= sequence
            box.power()
            assert box.boot() == 0
            assert box.state.counter == box.state.sequence
            assert box.state.counter in (sequence, sequence + 1)
            assert box.running() == (base if box.state.sequence == sequence else target)


def test_new_slot_decays_before_the_counter_moves(lib):
    """Both models confirmed, the new one no longer right: the old one, still allowed by the counter, runs."""
    box = device(lib, in_place=False)
    update = make(lib, SHAPE, OLD, NEW, sequence=6, base_sequence=5)
    start = box.snapshot()
    ran = 0
    for cut in range(200):
        box.restore(start)
        box.boot()
        box.power(cut)
        if box.update(update)[0] == 0:
            break
        flash, used = box.snapshot()
        at = (1 - box.state.slot if box.state.sequence == 5 else box.state.slot) * box.slot_bytes
        box.restore((flash[:at] + bytes([flash[at] ^ 1]) + flash[at + 1 :], used))
        box.power()
        rc = box.boot()
        assert rc == (30 if box.stored_counter() == 6 else 0)
        if rc == 0:
            assert box.running() == OLD
        ran += rc == 30
    assert ran > 0
