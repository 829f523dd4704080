"""The commands on real data: what they print, write and return; the same bits again, after SIGKILL too."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn import quant, tasks
from qunlearn.audit import AUDITS
from qunlearn.audit.predictor import OnnxPredictor
from qunlearn.audit.summary import summary
from qunlearn.cli import assess, journey
from qunlearn.data import sources
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.quant.state import load_tensors
from qunlearn.unlearn import METHODS
from qunlearn_export import runtime

Call = Callable[..., Any]

METRICS = {"forget", "retain", "heldout", "test", "mia"}
SLOW_OEU = ("--forget", "class=7", "--method", "oeu", "--set", "lr=0.0001", "--set", "momentum=0.9")
SLOW_OEU += ("--set", "project_at=update", "--set", "max_steps=90", "--set", "probe=64", "--seed", "3")
FT = ("--forget", "class=7", "--method", "ft", "--set", "lr=0.002", "--set", "epochs=1")


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain_trace(run: Path) -> list[dict[str, Any]]:
    """The trace without its clock."""
    rows = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def start(*argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qunlearn", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"ended with {process.returncode} before it could be interrupted"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.001)


def stopped(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Send a signal, give the exit code and stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_demo(call: Call, tmp_path: Path) -> None:
    done = call("demo", "--group", "lucas", "--json", "-o", tmp_path / "demo")
    assert done.code == 0, done.err
    value = done.json
    assert {"base", "retrained", "unlearned", "verdict", "parity", "code_changes", "seconds"} <= set(value)
    for role in ("base", "retrained", "unlearned"):
        assert set(value[role]) == METRICS
        assert all(0 <= v <= 1 for v in value[role].values()), role
    assert value["verdict"] in ("pass", "fail", "inconclusive")
    assert value["code_changes"]["codes_changed"] > 0
    assert 0 < value["seconds"] < 600
    assert value["base"]["forget"] > 0.95
    assert value["unlearned"]["forget"] < value["base"]["forget"] - 0.05

    folder = tmp_path / "demo"
    assert {"model.onnx", "report.html", "result.json"} <= {p.name for p in folder.iterdir()}
    dataset = sources.load("kws")
    splits = make_splits(dataset, Request("group", ("lucas",)), seed=journey.SEED)
    session = runtime.make_session(folder / "model.onnx")
    audited = {n: getattr(splits, n) for n in ("forget", "retain", "test")} | {"heldout": splits.heldout_audit}
    for name, samples in audited.items():
        logits = runtime.run(session, samples.inputs())["logits"]
        assert value["unlearned"][name] == pytest.approx(float((logits.argmax(axis=1) == samples.targets()).mean()))
    found = summary(
        OnnxPredictor(folder / "model.onnx"), splits, tasks.get("classification"), journey.SEED, nonmembers="test"
    )
    assert value["unlearned"]["mia"] == found["mia"]
    assert value["parity"]["file_digest"] == sha(folder / "model.onnx")
    for pair, top in (("onnx-off vs oracle", 1), ("onnx-all vs onnx-off", 1), ("torch-fq vs oracle", 2)):
        assert value["parity"]["logits"][pair]["max_abs"] <= top


def test_train_json(call: Call, home: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        options = ("--data", "digits", "--model", "resnet8@8", "--epochs", "2", "--seed", "4", "--json")
        done = call("train", *options, "-o", tmp_path / name)
        assert done.code == 0, done.err
        value = done.json
        assert value["samples"] == len(sources.load("digits").where("train"))
        assert 0.3 < value["train"]["accuracy"] <= 1
        assert {p.name for p in (tmp_path / name).iterdir()} == {"config.json", "model.safetensors", "result.json"}
        digests.append((value["model_digest"], value["codes_digest"], sha(tmp_path / name / "model.safetensors")))
    assert digests[0] == digests[1]
    other = json.loads((home / "base" / "result.json").read_text())
    assert other["model_digest"] != digests[0][0]


@pytest.mark.parametrize(
    ("name", "given", "grid"),
    [("mobilenetv2@0.1", (), "exact"), ("mobilenetv2@0.1", ("--grid", "free"), "free"), ("resnet8@4", (), "free")],
)
def test_the_grid_suits_the_network(call: Call, tmp_path: Path, name: str, given: Sequence[str], grid: str) -> None:
    args = ("train", "--data", "digits", "--model", name, "--epochs", 0, *given, "-o", tmp_path / "run")
    assert call(*args).code == 0
    assert quant.load_run(tmp_path / "run")[1].spec.grid == grid


def test_excluded_data_are_not_learnt(home: Path) -> None:
    base, without = (json.loads((home / n / "result.json").read_text()) for n in ("base", "without"))
    train = sources.load("digits").samples("train")
    assert base["samples"] - without["samples"] == int((train.targets() == 7).sum()) > 0
    assert base["heldout"]["accuracy"] > 0.9 > without["heldout"]["accuracy"]


def test_unlearn_json(call: Call, home: Path, tmp_path: Path) -> None:
    values = []
    for name in ("one", "two"):
        done = call("unlearn", home / "base", *FT, "--json", "-o", tmp_path / name)
        assert done.code == 0, done.err
        values.append(done.json)
        assert {p.name for p in (tmp_path / name).iterdir()} == {
            "config.json",
            "model.safetensors",
            "result.json",
            "trace.jsonl",
        }
    first, second = values
    assert first["digests"]["model_after"] == second["digests"]["model_after"] != first["digests"]["model_before"]
    assert sha(tmp_path / "one" / "model.safetensors") == sha(tmp_path / "two" / "model.safetensors")
    trained = json.loads((home / "base" / "result.json").read_text())
    assert first["digests"]["model_before"] == trained["model_digest"]
    assert first["request"]["kind"] == "class"
    assert set(first["before"]) == set(first["after"]) == {"forget", "retain", "heldout"}
    assert first["changes"]["codes_changed"] > 0
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["provenance"]["unlearned_from"] == trained["model_digest"]
    assert config["provenance"]["forgotten"] == first["request"]["digest"]

    other = call("unlearn", home / "base", *FT, "--seed", "1", "--json", "-o", tmp_path / "other").json
    assert other["digests"]["model_after"] != first["digests"]["model_after"]


def test_export_twice_and_inspect(call: Call, home: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        done = call("export", home / "oeu", "-o", file, "--json", "--parity-n", "64")
        assert done.code == 0, done.err
        value = done.json
        assert value["bytes"] == file.stat().st_size
        assert value["file_digest"] == sha(file)
        assert value["parity"]["verdict"] == "pass"
        result = json.loads((home / "oeu" / "result.json").read_text())
        assert value["codes_digest"] == result["digests"]["codes_after"]
    assert files[0].read_bytes() == files[1].read_bytes() == (home / "model.onnx").read_bytes()

    found = call("inspect", files[0], "--require", "int8", "--json")
    assert found.code == 0
    assert found.json["label"] == "int8-qdq"
    assert found.json["is_int8"] is True
    assert found.json["codes_digest"] == value["codes_digest"]
    assert found.json["findings"] == []


def test_export_as_operators_and_with_int8_ends(call: Call, home: Path, tmp_path: Path) -> None:
    plain = call("inspect", home / "model.onnx", "--json").json
    for form, io in (("qop", "float"), ("qop", "int8"), ("qdq", "int8")):
        file = tmp_path / f"{form}_{io}.onnx"
        done = call("export", home / "oeu", "-o", file, "--form", form, "--io", io, "--parity-n", "64", "--json")
        assert done.code == 0, done.err
        assert done.json["codes_digest"] == plain["codes_digest"]
        assert done.json["parity"]["verdict"] == "pass"
        assert [w.split(":")[0] for w in done.json["warnings"]] == (["W-IO-INT8"] if form == "qdq" else [])
        found = call("inspect", file, "--require", "int8", "--json")
        assert (found.code, found.json["label"]) == (0, f"int8-{form}")
        assert found.json["codes_digest"] == plain["codes_digest"]
    covered = done.json["coverage"], call("inspect", tmp_path / "qop_float.onnx", "--json").json["coverage"]
    assert covered[1]["integer"] == covered[1]["total"] == covered[0]["total"]
    text = call("export", home / "oeu", "-o", tmp_path / "m.onnx", "--no-parity", "--io", "int8").out
    assert "warning: W-IO-INT8" in text
    assert f"of {covered[0]['total']} nodes" in text


def test_audit_of_an_operator_file(call: Call, home: Path, tmp_path: Path) -> None:
    call("export", home / "oeu", "-o", tmp_path / "q.onnx", "--form", "qop", "--no-parity")
    shutil.copy(home / "model.onnx", tmp_path / "m.onnx")
    both = [audit(call, home, tmp_path / f"{n}.onnx", tmp_path / n) for n in ("q", "m")]
    assert both[0].code == both[1].code
    assert both[0].json["after"] == both[1].json["after"]


def test_dead_channels_are_repaired_only_on_request(call: Call, home: Path, tmp_path: Path) -> None:
    """Check D4: pruned channels with a tiny scale forbid the file; repaired, it agrees with its network."""
    model, config = quant.load_run(home / "base")
    step = next(s for s in model.steps if s.kind == "conv")
    with torch.no_grad():
        model.get_submodule(str(step.module)).weight[[0, 3]] = 0
        model.weight_quantizer_of(step).scale[[0, 3]] = 1e-12
    (tmp_path / "pruned").mkdir()
    quant.save_run(tmp_path / "pruned", model, config)
    target = tmp_path / "m.onnx"
    done = call("export", tmp_path / "pruned", "-o", target)
    assert (done.code, done.out, target.exists()) == (3, "", False)
    assert "D1" in done.err
    assert "--repair-dead" in done.err
    done = call("export", tmp_path / "pruned", "-o", target, "--repair-dead", "--parity-n", "64", "--json")
    assert done.code == 0, done.err
    assert done.json["parity"]["verdict"] == "pass"
    assert done.json["repaired"] == [f"{step.name}: dead channels 0, 3"]
    assert {f["code"] for f in done.json["findings"]} >= {"D4"}


def test_labels_travel_in_the_file(call: Call, home: Path, tmp_path: Path) -> None:
    done = call("export", home / "base", "-o", tmp_path / "m.onnx", "--no-parity", "--labels", "--json")
    assert done.code == 0, done.err
    assert done.json["parity"] is None
    metadata = call("inspect", tmp_path / "m.onnx", "--json").json["metadata"]
    held = [v for v in metadata.values() if v.startswith("[")]
    assert [str(k) for k in range(10)] in [json.loads(v) for v in held]


def audit(call: Call, home: Path, subject: Path, out: Path, *extra: object) -> Any:
    options = ("--before", home / "base", "--forget", "class=7", "--audit", "accuracy", "--json", "-o", out)
    return call("audit", subject, *options, *extra)


def test_audit_pass_of_the_retrained_network(call: Call, home: Path, tmp_path: Path) -> None:
    done = audit(call, home, home / "without", tmp_path / "a", "--reference", home / "without")
    assert (done.code, done.json["verdict"], done.json["reasons"]) == (0, "pass", [])
    assert set(done.json["after"]) == METRICS
    assert done.json["after"]["forget"] == 0.0
    assert (tmp_path / "a" / "report.html").stat().st_size > 10_000
    assert {"audit.json", "after.onnx", "before.onnx", "reference.onnx"} <= {p.name for p in (tmp_path / "a").iterdir()}


def test_audit_fails_a_network_that_forgot_nothing(call: Call, home: Path, tmp_path: Path) -> None:
    assert call("unlearn", home / "base", *FT, "-o", tmp_path / "ft").code == 0
    done = audit(call, home, tmp_path / "ft", tmp_path / "a", "--reference", home / "without")
    assert (done.code, done.json["verdict"]) == (3, "fail")
    assert any("UNDER" in r for r in done.json["reasons"])
    assert done.json["after"]["forget"] > 0.9


def test_a_strict_suite_runs_every_audit_on_network_and_file(call: Call, home: Path, tmp_path: Path) -> None:
    options = ("--before", home / "base", "--reference", home / "without", "--forget", "class=7", "--suite", "strict")
    done = call("audit", home / "oeu", *options, "--json", "-o", tmp_path / "a")
    assert done.code in (3, 4), done.err
    assert "eve: left out" in done.err
    results = done.json["results"]
    assert set(results) == {"c-host", "onnx-all", "torch-fq"}
    for kind in results:
        assert [r["audit"] for r in results[kind]] == list(assess.SUITES["strict"])
        assert not any("I-NOT-TRAINABLE" in r["reasons"] for r in results[kind])
    trained = [{r["audit"]: r["value"] for r in results[k]} for k in results]
    for name in ("relearn", "quant_recovery"):
        assert len({t[name] for t in trained}) == 1, "one training serves all kinds"
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("What it cannot show") == len(assess.SUITES["strict"])
    wrong = call("audit", home / "oeu", *options, "--audit", "mia", "-o", tmp_path / "b")
    assert (wrong.code, (tmp_path / "b").exists()) == (2, False)
    assert "not both" in wrong.err or "both --audit and --suite" in wrong.err


def test_an_audit_prints_verdicts_and_the_code_changes(
    call: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--before", home / "base", "--reference", home / "without", "--forget", "class=7", "--on", "onnx")
    loaded: list[str] = []
    opened: list[tuple[str, str]] = []
    load_run, predictor_of = quant.load_run, assess.predictor_of

    def load(folder: Path) -> Any:
        loaded.append(folder.name)
        return load_run(folder)

    def make(subject: assess.Subject, kind: str) -> Any:
        opened.append((subject.file.stem, kind))
        return predictor_of(subject, kind)

    monkeypatch.setattr(quant, "load_run", load)
    monkeypatch.setattr(assess, "predictor_of", make)
    done = call("audit", home / "oeu", *options, "-o", tmp_path / "a")
    assert sorted(loaded) == ["base", "oeu", "without"], "every run is loaded once"
    assert sorted(opened) == sorted((r, k) for r in assess.ROLES for k in ("onnx-all", "torch-fq"))
    assert done.code in (3, 4), done.err
    assert done.out.startswith(f"verdict: {'FAIL' if done.code == 3 else 'INCONCLUSIVE'}")
    for name in assess.SUITES["standard"]:
        assert any(line.startswith(f"{name} ") for line in done.out.splitlines()), name
    changes = json.loads((home / "oeu" / "result.json").read_text())["changes"]
    lines = done.out.splitlines()
    start = lines.index("integer codes, before to after")
    rows = {line.split()[0]: line.split() for line in lines[start + 3 : start + 4 + len(changes["layers"])]}
    assert list(rows) == [*(r["layer"] for r in changes["layers"]), "all"]
    for r in changes["layers"]:
        assert rows[r["layer"]][1:3] == [f"{r['codes']:,}", f"{r['codes_changed']:,}"]
    assert rows["all"][1:3] == [f"{changes['codes']:,}", f"{changes['codes_changed']:,}"]
    assert 0 < changes["codes_changed"] < changes["codes"]
    shutil.copy(home / "model.onnx", tmp_path / "m.onnx")
    alone = call("audit", tmp_path / "m.onnx", *options, "--audit", "accuracy", "-o", tmp_path / "b")
    assert "integer codes: compared for runs only" in alone.out
    untrained = call(
        "audit", tmp_path / "m.onnx", *options, "--audit", "relearn,quant_recovery", "--json", "-o", tmp_path / "c"
    )
    assert untrained.code in (3, 4), untrained.err
    for r in untrained.json["results"]["onnx-all"]:
        assert r["verdict"] != "pass"
        assert "I-NOT-TRAINABLE" in r["reasons"] or r["failure_side"] in ("under", "over", "utility"), r


def test_audit_of_the_untouched_network_is_no_pass(call: Call, home: Path, tmp_path: Path) -> None:
    done = audit(call, home, home / "base", tmp_path / "a", "--reference", home / "without")
    assert (done.code, done.json["verdict"]) == (4, "inconclusive")
    assert any(r.startswith("I-SAME-BYTES") for r in done.json["reasons"])


def test_audit_of_a_file_without_reference(call: Call, home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "model.onnx", tmp_path / "m.onnx")
    done = audit(call, home, tmp_path / "m.onnx", tmp_path / "a")
    assert done.code in (3, 4)
    assert done.json["verdict"] == {3: "fail", 4: "inconclusive"}[done.code]
    assert "reference" not in done.json
    logits = runtime.run(
        runtime.make_session(tmp_path / "m.onnx"),
        (forget := make_splits(sources.load("digits"), Request("class", ("7",)), seed=0).forget).inputs(),
    )["logits"]
    assert done.json["after"]["forget"] == pytest.approx(float(np.mean(logits.argmax(axis=1) == forget.targets())))


@pytest.mark.parametrize(("command", "registry"), [("methods", METHODS), ("audits", AUDITS)])
def test_listings(call: Call, command: str, registry: Any) -> None:
    assert set(call(command, "--json").json) == set(registry)
    text = call(command).out
    for name in registry:
        assert any(line.startswith(name) for line in text.splitlines())
        one = call(command, name, "--json")
        assert one.code == 0
        assert one.json["name"] == name
        assert one.json["parameters"]
        told = call(command, name).out
        assert all(p in told for p in one.json["parameters"])


@pytest.fixture(scope="module")
def unbroken(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted, in a process of its own."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    process = start("unlearn", home / "base", *SLOW_OEU, "-o", out)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def at_step(folder: Path, step: int) -> Callable[[], bool]:
    """Whether the checkpoint of ``folder`` has come to ``step``; files are written whole, so reading is safe."""

    def ready() -> bool:
        path = folder / "checkpoint.safetensors"
        return path.exists() and int(load_tensors(path)[1]["step"]) >= step

    return ready


@pytest.mark.parametrize("step", [0, 50])
def test_unlearn_survives_sigkill(call: Call, home: Path, unbroken: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "run"
    argv: Sequence[object] = ("unlearn", home / "base", *SLOW_OEU, "-o", out)
    process = start(*argv)
    wait_for(process, at_step(out, step))
    assert stopped(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (out / "config.json").exists()
    reached = int(load_tensors(out / "checkpoint.safetensors")[1]["step"])
    assert step <= reached < 90
    assert call(*argv).code == 2, "an interrupted run is not overwritten"
    other = [*argv[:-2], "--set", "lam=2", "--resume", "-o", out]
    assert call(*other).code == 2, "nor continued with other settings"

    done = call(*argv, "--resume", "--json")
    assert done.code == 0, done.err
    assert sha(out / "model.safetensors") == sha(unbroken / "model.safetensors")
    assert plain_trace(out) == plain_trace(unbroken)
    assert not list(out.glob("*checkpoint*"))
    whole = json.loads((unbroken / "result.json").read_text())
    assert done.json["digests"] == whole["digests"]
    assert done.json["after"] == whole["after"]


def test_train_survives_sigkill(call: Call, tmp_path: Path) -> None:
    options = ("train", "--data", "digits", "--model", "resnet8@8", "--epochs", "4", "--json", "-o")
    process = start(*options, tmp_path / "broken")
    wait_for(process, (tmp_path / "broken" / "train.state").exists)
    assert stopped(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    again = call(*options, tmp_path / "broken", "--resume")
    whole = call(*options, tmp_path / "whole")
    assert again.code == whole.code == 0
    assert again.json["model_digest"] == whole.json["model_digest"]
    assert sha(tmp_path / "broken" / "model.safetensors") == sha(tmp_path / "whole" / "model.safetensors")


def test_ctrl_c(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("unlearn", home / "base", *SLOW_OEU, "-o", out)
    wait_for(process, at_step(out, 0))
    code, err = stopped(process, signal.SIGINT)
    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (out / "config.json").exists()
    assert os.path.exists(out / "checkpoint.safetensors")


def test_ec_inside_another_method_with_a_card_of_features(call: Call, tmp_path: Path) -> None:
    """Data without groups: the card holds the CKA to a network without another class, and the stop rule uses it."""
    run = tmp_path / "base"
    assert (
        call("train", "--data", "digits", "--model", "resnet8@4", "--epochs", 2, "--reference-card", "-o", run).code
        == 0
    )
    card = json.loads((run / "card.json").read_text())
    assert card["groups"] == {}
    assert set(card["similarity"]) == {"class=9"}
    settings = ("base=rl", "base_settings=epochs=2 lr=0.02 batch_size=128", "aux_epochs=1", "stop_rule=true")
    flags = [word for s in settings for word in ("--set", s)]
    out = tmp_path / "ec"
    done = call("unlearn", run, "--forget", "class=3", "--method", "ec", *flags, "--set", "eval_every=3", "-o", out)
    assert done.code == 0, done.err
    assert any("cka_gap" in row for row in plain_trace(out))
