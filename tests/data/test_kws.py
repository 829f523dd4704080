"""The built-in keyword set: what it holds, its size and licence, and that the script builds the same bytes again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scripts import benchmark

from qunlearn.data.builtin import ASSETS
from qunlearn.data.features import FrontEnd
from qunlearn.data.request import Request
from qunlearn.data.sources import load
from qunlearn.data.splits import make_splits

DIGEST = "b76b58cfc7f8e669f76d5fe218168053efc657f095a90d836dbc0452dd241b68"
ROOT = Path(__file__).resolve().parents[2]
GIVEN = os.environ.get("QUNLEARN_DATA")


def test_the_set_is_what_networks_were_trained_on() -> None:
    data = load("kws")
    assert data.digest() == DIGEST
    assert load("kws", seed=9).digest() == DIGEST
    assert (data.in_shape, data.num_classes, data.x.dtype.name) == ((1, 49, 32), 10, "uint8")
    assert {p: len(data.where(p)) for p in ("train", "heldout", "test")} == {"train": 2160, "heldout": 540, "test": 300}
    assert data.group_names == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    assert data.ids[data.where("test")[0]].rsplit("_", 1)[1] in set("01234")
    assert len(set(data.hashes)) == 3000
    assert FrontEnd.parse(data.preprocess.front_end) == FrontEnd()
    assert np.abs(data.samples("test").inputs()).max() <= 2.0


def test_every_speaker_has_a_share_of_every_part() -> None:
    data = load("kws")
    assert data.group is not None
    for part, low, high in (("train", 350, 370), ("heldout", 80, 100), ("test", 50, 50)):
        counts = [int((data.group[data.where(part)] == g).sum()) for g in data.group_names]
        assert low <= min(counts) <= max(counts) <= high


def test_forgetting_a_speaker() -> None:
    splits = make_splits(load("kws"), Request.parse("group=theo"), seed=0)
    assert splits.counts()["forget.test"] == 50
    assert len(splits.test) == 250
    assert len(splits.forget) + len(splits.retain) == 2160


def test_the_file_is_small_and_carries_its_licence() -> None:
    assert (ASSETS / "kws.npz").stat().st_size <= 2_500_000
    text = (ASSETS / "kws.LICENSE.txt").read_text()
    assert "CC BY-SA 4.0" in text
    assert "Changes that were made" in text
    assert "benchmarks/build_kws.py" in text


def test_the_script_builds_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = benchmark("build_kws")
    source = build.find_source(GIVEN) or build.find_source(None)
    if source is None:
        pytest.skip("fsdd.npz is neither in QUNLEARN_DATA nor in ../shared/data")
    out = tmp_path / "kws.npz"
    assert build.main(["--data-dir", str(source.parent), "-o", str(out)]) == 0
    assert out.read_bytes() == (ASSETS / "kws.npz").read_bytes()
    assert "{'train': 2160, 'heldout': 540, 'test': 300}" in capsys.readouterr().out


def test_the_script_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = benchmark("build_kws")
    assert build.main(["--data-dir", str(tmp_path), "-o", str(tmp_path / "k.npz")]) == 2
    (tmp_path / "fsdd.npz").write_bytes(b"nothing")
    assert build.main(["--data-dir", str(tmp_path), "-o", str(tmp_path / "k.npz")]) == 2
    err = capsys.readouterr().err
    assert "fsdd.npz not found" in err
    assert "is not a readable .npz file" in err
    assert not (tmp_path / "k.npz").exists()


def test_a_small_recording_set_goes_through_the_script(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 24
    np.savez(
        tmp_path / "fsdd.npz",
        x=rng.integers(-2000, 2000, (n, 8000)).astype(np.int16),
        y=np.arange(n) % 2,
        speaker=np.arange(n) // 2 % 2,
        take=np.arange(n) // 4 + 2,
        speakers=np.array(["ann", "bob"]),
    )
    build = benchmark("build_kws")
    made = [build.build(tmp_path / "fsdd.npz") for _ in range(2)]
    assert build.pack(made[0]) == build.pack(made[1])
    assert made[0]["x"].shape == (n, 1, 49, 32)
    take = np.arange(n) // 4 + 2
    np.testing.assert_array_equal(made[0]["split"] == "test", take < 5)
    assert made[0]["id"][5] == "ann_1_3"
