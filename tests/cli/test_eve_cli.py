"""``qunlearn eve`` end to end on a toy run: craft, unlearn what was submitted, verify on file, C and dumped logits."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import GLOSSARY, Calibration, CraftedRequest, EveAudit, EveConfig
from qunlearn.audit.eve_calibration import ARMS, Reading
from qunlearn.audit.predictor_logits import LogitsPredictor, read_rows
from qunlearn.cli import assess, run
from qunlearn.data import sources
from qunlearn.errors import ArtefactError, ConfigError
from qunlearn_export.oracle import Oracle
from qunlearn_export.reader import read

Call = Callable[..., Any]
METHOD = ("--method", "graddiff", "--set", "lr=0.01", "--set", "momentum=0", "--set", "weight_decay=0")
METHOD += ("--set", "schedule=constant", "--set", "epochs=35")
CRAFT = ("--with", "steps=120", "--with", "trials=8")


def strong(request: CraftedRequest, **kw: Any) -> Calibration:
    """A calibration of 60 flips in 60 that belongs to this request: real ones of this size take minutes."""

    def reading(arm: str) -> Reading:
        hit = float(arm == "eve")
        return Reading(
            flip=hit, strict=hit, resolved=True, retain_drop=0.01, heldout_drop=0.01, bystanders=0.0, erased=0.9,
            cos=None, step=9, margin=1.0, seconds={},
        )  # fmt: skip

    facts = {k: request.facts[k] for k in ("model", "unlearner", "config")}
    trials = tuple({arm: reading(arm) for arm in ARMS} for _ in range(60))
    return Calibration(
        **{**facts, "kind": "onnx-all", "alpha": 0.05, "utility_drop": 0.03, "trials": trials, "settings": {}, **kw}
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``request``, ``after`` (unlearned as submitted), both files, ``strong.json``, ``ids.txt``."""
    folder = tmp_path_factory.mktemp("eve")
    data = sources.load("qunlearn.bench.gaussians:data")
    ids = np.random.default_rng(5).choice(data.ids[data.where("train")], 30, replace=False)
    (folder / "ids.txt").write_text("\n".join(ids))
    forget = ["--forget", f"ids=@{folder / 'ids.txt'}"]
    toy = ["--data", "qunlearn.bench.gaussians:data", "--model", "qunlearn.bench.gaussians:network", "--epochs", "20"]
    steps: list[list[Any]] = [
        ["train", *toy, "-o", folder / "base"],
        ["eve", "craft", folder / "base", *forget, *METHOD, *CRAFT, "-o", folder / "request"],
        ["unlearn", folder / "base", *forget, *METHOD, "--submitted", folder / "request", "-o", folder / "after"],
        ["export", folder / "base", "-o", folder / "base.onnx", "--no-parity"],
        ["export", folder / "after", "-o", folder / "after.onnx", "--no-parity"],
    ]
    for step in steps:
        assert run([str(a) for a in step]) == 0, step
    strong(CraftedRequest.load(folder / "request")).save(folder / "strong.json")
    return folder


def verify(home: Path, *more: object, calibration: bool = True, files: bool = True) -> list[object]:
    out: list[object] = ["eve", "verify", "--request", home / "request"]
    out += ["--calibration", home / "strong.json"] if calibration else []
    out += ["--before", home / "base.onnx", "--after", home / "after.onnx"] if files else []
    return [*out, *more]


def dump(home: Path, folder: Path, *, shuffled: bool = False, flip: bool = False) -> list[Path]:
    """Logits of the probe as a board would print them."""
    x = CraftedRequest.load(home / "request").probe_x
    out = []
    for name in ("base", "after"):
        graph = read(home / f"{name}.onnx")
        codes = Oracle(graph).run_all(x)[graph.output].astype(int)
        if flip and name == "after":
            codes[3, 0] = -codes[3, 0] - 1
        rows = [[i, *row] for i, row in enumerate(codes)] if shuffled else codes.tolist()
        rows = rows[::-1] if shuffled else rows
        head = "row,a,b,c,d,e\n" if shuffled else "# from the board\n"
        out.append(folder / f"{name}.csv")
        out[-1].write_text(head + "\n".join(",".join(map(str, r)) for r in rows) + "\n")
    return out


def test_a_faithful_update_passes_on_the_int8_file_and_smi_stands_beside(
    home: Path, call: Call, tmp_path: Path
) -> None:
    done = call(*verify(home, "-o", tmp_path / "out"))
    assert done.code == 0, done.out + done.err
    assert done.out.startswith("eve: PASS on onnx-all\n")
    assert "target 1: flipped" in done.out
    assert "\nsmi (beside it, on the unaltered samples): " in done.out
    assert "deleted" not in done.out.lower()
    assert "false positives at most 0.049" in done.out
    assert all(c in done.out for c in ("no_unlearning", "continued", "fake_other", "fake_relabel", "clean", "random"))
    saved = json.loads((tmp_path / "out" / "eve.json").read_text())
    assert (saved["verdict"], saved["eve"]["reference"]["kind"]) == ("pass", "calibration")
    assert saved["beside"]["audit"] == "smi"
    assert (tmp_path / "out" / "eve.txt").read_text() in done.out + "\n"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_same_verdict_from_generated_c(home: Path, call: Call) -> None:
    done = call(*verify(home, "--on", "c", "--json"))
    assert done.code == 0, done.err
    assert done.json["eve"]["artefact"]["kind"] == "c-host"
    assert done.json["eve"]["warnings"] == ["W-EVE-KIND: calibrated on onnx-all"]


def test_verify_needs_neither_torch_nor_brevitas(home: Path, tmp_path: Path) -> None:
    dumped = [str(p) for p in dump(home, tmp_path)]
    commands = [[str(a) for a in verify(home)], [str(a) for a in verify(home, "--on", "c-target", "--logits", *dumped)]]
    code = (
        "import sys, json; from qunlearn.cli import run\n"
        "for name in ('torch', 'brevitas', 'torchao', 'safetensors'): sys.modules[name] = None\n"
        f"codes = [run(c) for c in json.loads({json.dumps(commands)!r})]\n"
        "sys.exit(0 if codes == [0, 0] else 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("shuffled", [False, True])
def test_dumped_logits_give_the_verdict_of_the_file(shuffled: bool, home: Path, call: Call, tmp_path: Path) -> None:
    done = call(*verify(home, "--on", "c-target", "--logits", *dump(home, tmp_path, shuffled=shuffled), "--json"))
    assert done.code == 0, done.out + done.err
    assert done.json["eve"]["artefact"]["kind"] == "c-target"
    assert done.json["eve"]["tables"]["parity"] == {
        "verdict": "pass", "rows_differ": 0, "file_digest": done.json["eve"]["artefact"]["file_digest"],
    }  # fmt: skip


def test_dumped_logits_without_files_are_recognised_by_their_answers_but_cannot_pass(
    home: Path, call: Call, tmp_path: Path
) -> None:
    files = dump(home, tmp_path)
    done = call(*verify(home, "--on", "c-target", "--logits", *files, "--json", files=False))
    assert (done.code, done.json["eve"]["reasons"]) == (4, ["I-PARITY-MISSING"])
    swapped = call(*verify(home, "--on", "c-target", "--logits", files[1], files[0], "--json", files=False))
    assert swapped.code in (3, 4)
    assert any("another network" in r for r in swapped.json["eve"]["reasons"]) or swapped.code == 3


def test_dumped_logits_that_are_not_those_of_the_file_fail(home: Path, call: Call, tmp_path: Path) -> None:
    done = call(*verify(home, "--on", "c-target", "--logits", *dump(home, tmp_path, flip=True), "--json"))
    assert (done.code, done.json["eve"]["failure_side"]) == (3, "parity")


@pytest.mark.parametrize("text", ["", "a,b\n", "1,2\n3\n", "row,a\n0,1\n0,2\n", "1.5,2\n"])
def test_malformed_dumps_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ArtefactError, match="rows"):
        read_rows(path)


def test_a_dump_of_another_size_or_sample_is_refused(home: Path) -> None:
    request = CraftedRequest.load(home / "request")
    codes = np.zeros((len(request.probe_x), 5), np.int64)
    with pytest.raises(ConfigError, match="one row for every row"):
        LogitsPredictor(codes[1:], request.probe, scale=0.1, zero_point=0)
    predictor = LogitsPredictor(codes, request.probe, scale=0.1, zero_point=0)
    with pytest.raises(ConfigError, match="not run on the device"):
        predictor.logits(request.probe_x[:1] + 1)


def test_without_or_with_a_foreign_calibration_nothing_passes(home: Path, call: Call, tmp_path: Path) -> None:
    done = call(*verify(home, "--json", calibration=False))
    assert (done.code, done.json["eve"]["reasons"]) == (4, ["I-EVE-NO-CALIBRATION"])
    foreign = strong(CraftedRequest.load(home / "request"), unlearner="f" * 64).save(tmp_path / "foreign.json")
    done = call(*verify(home, "--calibration", foreign, "--json", calibration=False))
    assert done.code == 4
    assert done.json["eve"]["reasons"] == ["I-EVE-FOREIGN: calibrated for another unlearner"]


def test_an_update_that_never_happened_is_no_pass(home: Path, call: Call) -> None:
    argv = verify(home, "--json")
    argv[argv.index("--after") + 1] = home / "base.onnx"
    done = call(*argv)
    assert done.code == 4
    assert "W-SAME-BYTES" in done.json["eve"]["warnings"]


def test_what_craft_writes(home: Path) -> None:
    folder = home / "request"
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {
        "request.npz": 0o600, "probe.npz": 0o600, "submission.npz": 0o644,
    }  # fmt: skip
    request = CraftedRequest.load(folder)
    assert sorted(request.ids) == sorted((home / "ids.txt").read_text().split())
    with np.load(folder / "probe.npz") as probe:
        assert probe["x"].tobytes() == request.probe_x.tobytes()
        assert len(probe["codes"]) == len(request.probe_x)
        assert probe["codes"].dtype == np.int8
    assert request.facts["cos_after"] > 0.6


def test_submitted_samples_must_be_those_of_the_request(home: Path, call: Call, tmp_path: Path) -> None:
    ids = (home / "ids.txt").read_text().split()
    (tmp_path / "fewer.txt").write_text("\n".join(ids[1:]))
    argv = ["unlearn", home / "base", "--forget", f"ids=@{tmp_path / 'fewer.txt'}", *METHOD]
    done = call(*argv, "--submitted", home / "request", "-o", tmp_path / "x")
    assert done.code == 2
    assert "30 samples were submitted, the request names 29, 29 are the same" in done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--logits", "a", "b"), "dumped logits are of firmware, not of onnx-all"),
        (("--on", "nothing"), "unknown artefact kind"),
        (("--after", "/nothing.onnx"), "is no file"),
    ],
)
def test_wrong_options_of_verify(more: tuple[str, ...], said: str, home: Path, call: Call) -> None:
    done = call(*verify(home, *more))
    assert done.code == 2
    assert said in done.err
    assert call("eve", "verify", "--request", home / "request").code == 2


def test_wrong_settings_of_craft(home: Path, call: Call, tmp_path: Path) -> None:
    base = ["eve", "craft", home / "base", "--forget", f"ids=@{home / 'ids.txt'}", "-o", tmp_path / "x"]
    for more, code, said in (
        (("--method", "ssd"), 5, "surrogate=neg_ce"),
        (("--method", "ga", "--with", "align=sign"), 2, "hard sign"),
        (("--method", "ga", "--with", "eps=0.0001"), 2, "less than one step"),
        (("--method", "ga", "--with", "radius=1"), 2, "'radius' is unknown"),
    ):
        done = call(*base, *more)
        assert (done.code, said in done.err) == (code, True), done.err
    assert not (tmp_path / "x" / "request.npz").exists()


def test_a_short_calibration_is_written_and_is_not_valid(home: Path, call: Call, tmp_path: Path) -> None:
    argv = ["eve", "calibrate", home / "base", "--erase", "30", *METHOD, "--with", "steps=2", "--with", "trials=8"]
    done = call(*argv, "--steps", "2", "--on", "torch", "-o", tmp_path / "c.json", "--json")
    assert done.code == 0, done.err
    found = Calibration.load(tmp_path / "c.json")
    assert found.n == 8
    assert found.problems
    assert found.model == CraftedRequest.load(home / "request").facts["model"]
    assert found.unlearner == CraftedRequest.load(home / "request").facts["unlearner"]
    assert done.json["trials"] == 8
    assert call(*argv, "-o", tmp_path).code == 2


def test_audit_reads_the_request_beside_the_other_audits(home: Path, call: Call, tmp_path: Path) -> None:
    argv = ["audit", home / "after.onnx", "--before", home / "base", "--forget", f"ids=@{home / 'ids.txt'}"]
    argv += ["--on", "onnx", "--audit", "eve,smi", "--eve", home / "request", "--calibration", home / "strong.json"]
    done = call(*argv, "-o", tmp_path / "audit", "--json")
    results = {r["audit"]: r for r in done.json["results"]["onnx-all"]}
    assert results["eve"]["verdict"] == "pass", results["eve"]["reasons"]
    assert results["eve"]["reference"]["kind"] == "calibration"
    assert set(results) == {"eve", "smi"}
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "Erasure check by a private target" in page
    assert 'aria-label="Audit eve: private target: 1 of 1 flipped; bystanders: ' in page
    assert len(results["eve"]["tables"]["bystanders"]) == results["eve"]["n"]["bystanders"]
    assert escape(EveAudit.cannot) in page
    assert escape(GLOSSARY["verifiability"].formula) in page
    assert "deleted" not in page


def test_the_strict_suite_holds_eve_where_a_request_was_given() -> None:
    assert [a.name for a in assess.parse_audits(None, "strict", request=True)][-1] == "eve"
    assert "eve" not in [a.name for a in assess.parse_audits(None, "strict")]
    for text, suite, request in (("eve", None, False), ("smi", None, True), (None, "standard", True)):
        with pytest.raises(ConfigError, match="--eve REQUEST"):
            assess.parse_audits(text, suite, request=request)


def test_a_request_of_other_settings_has_another_digest(home: Path) -> None:
    request = CraftedRequest.load(home / "request")
    assert request.facts["config"] == EveConfig(steps=120).digest()
    changed = replace(request, facts={**request.facts, "seed": 1})
    assert changed.digest != request.digest
