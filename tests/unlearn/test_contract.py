"""Every registered method, at two bit widths: deterministic, honest about what moves, resumable to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qunlearn.data.splits import Splits
from qunlearn.quant import QuantModel, code_changes, scale_parameter_names
from qunlearn.tasks import Classification
from qunlearn.unlearn import METHODS, Unlearner, UnlearnResult, hypers

Trained = Callable[..., QuantModel]
BITS = ("w8a8", "w4a4")
FAST: dict[str, dict[str, Any]] = {
    "oeu": {"max_steps": 12, "retain_ref": "subspace", "k": 3, "project_at": "update", "momentum": 0.9, "lr": 2e-3},
    "ga": {"lr": 1e-3},
    "bad_teacher": {"lr": 1e-3},
    "ssd": {"alpha": 2.0, "importance": "batch"},
}
"""Settings that make a run short; a method that is not listed runs two epochs."""
SEEDLESS = ("ssd",)
"""Methods that draw nothing at random."""


def method(name: str, **more: Any) -> Unlearner:
    settings = FAST.get(name, {})
    if "epochs" in hypers(METHODS[name]) and "max_steps" not in settings:
        settings = {"epochs": 2, "batch_size": 128, **settings}
    return METHODS[name](**{"eval_every": 4, "probe": 100, **settings, **more})


def same(a: UnlearnResult, b: UnlearnResult) -> None:
    """Bit for bit, but for timings."""
    for (name, x), (other, y) in zip(a.model.state_dict().items(), b.model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(x, y), name
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in a.trace]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in b.trace]
    left, right = a.to_json(), b.to_json()
    del left["seconds"], right["seconds"]
    assert left == right


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", list(METHODS))
def test_contract(trained: Trained, splits: Splits, task: Classification, name: str, bits: str) -> None:
    model = trained("cnn", bits)
    m = method(name)
    result = m(model, splits, task, request_kind="random", seed=3)
    same(result, m(model, splits, task, request_kind="random", seed=3))
    other = m(model, splits, task, request_kind="random", seed=4)
    assert (other.digests["model_after"] == result.digests["model_after"]) == (name in SEEDLESS)

    assert code_changes(model, result.model).codes_changed > 0
    old, new = model.state_dict(), result.model.state_dict()
    frozen = set(scale_parameter_names(model))
    statistics = {n for n in old if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    frozen |= {n for n in old if n not in dict(model.named_parameters())} - statistics
    assert all(torch.equal(old[n], new[n]) for n in frozen)
    assert any(not torch.equal(old[n], new[n]) for n in statistics) == (m.bn == "train")

    assert result.passes > 0
    assert result.seconds > 0
    assert set(result.digests) == {
        "model_before", "model_after", "codes_before", "codes_after", "data", "config", "code",
    }  # fmt: skip
    assert [row["step"] for row in result.trace] == list(range(1, len(result.trace) + 1))
    assert {p.requires_grad for p in result.model.parameters()} == {p.requires_grad for p in model.parameters()}


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("rule", [False, True])
def test_resume_after_a_kill_at_any_step_gives_the_same_bits(
    trained: Trained, splits: Splits, task: Classification, name: str, rule: bool, tmp_path: Path
) -> None:
    model = trained("cnn")
    m = method(name, stop_rule=rule, target_accuracy="0.0..0.2" if rule else "")
    whole = m(model, splits, task, request_kind="random", seed=1)
    steps = len(whole.trace)
    for at in sorted({1, 2, steps // 2, steps - 1, steps} & set(range(1, steps + 1))):
        folder = tmp_path / str(at)
        folder.mkdir()

        def kill(step: int, total: int, row: Mapping[str, Any], at: int = at) -> None:
            if step == at:
                raise KeyboardInterrupt

        args: dict[str, Any] = {"request_kind": "random", "seed": 1, "run_dir": folder, "checkpoint_every": 2}
        with pytest.raises(KeyboardInterrupt):
            m(model, splits, task, progress=kill, **args)
        seen: list[int] = []
        again = m(model, splits, task, resume=True, progress=lambda s, t, r, seen=seen: seen.append(s), **args)
        same(whole, again)
        assert seen == list(range(at - at % 2 + 1 if at < steps else steps + 1, steps + 1))
        same(whole, m(model, splits, task, resume=True, **args))


SCRIPT = """
import importlib.util, json, pathlib, sys
spec = importlib.util.spec_from_file_location("contract_fixtures", sys.argv[1])
f = importlib.util.module_from_spec(spec)
spec.loader.exec_module(f)
from qunlearn.unlearn import METHODS
folder, resume = pathlib.Path(sys.argv[2]), sys.argv[3] == "resume"
data = f.digits()
splits = f.make_splits(data, f.Request.parse("random=10%"), seed=0)
model = f.fit("cnn", "w8a8", data.samples("train"), seed=0, epochs=1)
def show(step, total, row):
    print(step, flush=True)
m = METHODS["oeu"](max_steps=40, optimizer="adam", project_at="metric", retain_ref="ema", eval_every=3, probe=64,
                   target_accuracy="0.0..0.0", utility_floor=1.0, train_scales=True, sample_gate=True, bn="train")
for where in [folder] + [None] * resume:
    r = m(model, splits, f.Classification(), request_kind="random", run_dir=where, resume=resume and where is not None,
          progress=show, checkpoint_every=1)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in r.trace]
    print(r.digests["model_after"], json.dumps(rows, sort_keys=True), flush=True)
"""


def test_resume_after_sigkill(tmp_path: Path) -> None:
    run = [sys.executable, "-c", SCRIPT, str(Path(__file__).with_name("conftest.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "run"
    folder.mkdir()
    process = subprocess.Popen([*run, str(folder), "fresh"], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 17:
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    lines = subprocess.run(
        [*run, str(folder), "resume"], capture_output=True, text=True, env=environment, check=True
    ).stdout.splitlines()
    resumed, fresh = (line for line in lines if not line.isdigit())
    steps = [int(line) for line in lines if line.isdigit()]
    assert steps[0] > 17
    assert steps == [*range(steps[0], 41), *range(1, 41)]
    assert resumed == fresh
