"""Training and checkpoints: resumable to the bit, deterministic, strict, versioned."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qunlearn import models, quant, tasks
from qunlearn.data.dataset import Samples
from qunlearn.errors import ArtefactError, ConfigError, DivergedError
from qunlearn.quant.state import load_tensors, save_tensors

RECIPE = quant.Recipe(epochs=4, float_share=0.5, batch_size=64)


def fresh(example: torch.Tensor, seed: int = 0) -> quant.QuantModel:
    net = models.build("resnet8@8", in_shape=(1, 8, 8), num_classes=10, seed=seed)
    return quant.prepare(net, quant.QuantSpec(), example)


class InterruptError(Exception):
    pass


def test_same_seed_same_digest(example: torch.Tensor, digits: Samples, task: tasks.Task) -> None:
    a, b, c = (quant.train(fresh(example), task, digits, RECIPE, seed=s) for s in (0, 0, 1))
    assert quant.state_digest(a) == quant.state_digest(b) != quant.state_digest(c)
    assert quant.codes_digest(a) == quant.codes_digest(b)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_is_bit_identical(
    stop: int, example: torch.Tensor, digits: Samples, task: tasks.Task, tmp_path: Path
) -> None:
    want = quant.state_digest(quant.train(fresh(example), task, digits, RECIPE, seed=3))

    def interrupt(epoch: int, _loss: float) -> None:
        if epoch == stop:
            raise InterruptError

    state = tmp_path / "state"
    with pytest.raises(InterruptError):
        quant.train(fresh(example), task, digits, RECIPE, seed=3, state_file=state, on_epoch=interrupt)
    again = quant.train(fresh(example), task, digits, RECIPE, seed=3, state_file=state, resume=True)
    assert quant.state_digest(again) == want
    with pytest.raises(ArtefactError, match="other settings"):
        quant.train(fresh(example), task, digits, RECIPE, seed=4, state_file=state, resume=True)


@pytest.mark.slow
def test_sigkill_of_the_command_at_several_moments(tmp_path: Path) -> None:
    common = ["--data", "digits", "--model", "resnet8@8", "--epochs", "6", "--seed", "1"]
    command = [sys.executable, "-m", "qunlearn", "train", *common]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole"
    subprocess.run([*command, "-o", str(whole)], check=True, capture_output=True, env=env)
    want = json.loads((whole / "result.json").read_text())["model_digest"]
    kills = 0
    for moment in (0.05, 0.6):
        folder = tmp_path / f"killed{moment}"
        process = subprocess.Popen([*command, "-o", str(folder)], stderr=subprocess.DEVNULL, env=env)
        deadline = time.monotonic() + 60
        while not (folder / "train.state").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        done = subprocess.run([*command, "--resume", "-o", str(folder)], check=True, capture_output=True, env=env)
        assert done.returncode == 0
        assert json.loads((folder / "result.json").read_text())["model_digest"] == want
        assert not list(folder.glob("*.tmp")) or kills
    assert kills >= 1


CHILD = """
import os, signal, sys, threading
import numpy as np, torch
from qunlearn import models, quant, tasks
from qunlearn.data import sources

torch.set_num_threads(int(sys.argv[2]))
digits = sources.load("digits").samples("train").take(np.arange(400))
net = models.build("resnet8@8", in_shape=(1, 8, 8), num_classes=10, seed=0)
model = quant.prepare(net, quant.QuantSpec(), torch.from_numpy(digits.inputs(np.arange(64))))

def kill(epoch, loss):
    if epoch == 1:
        threading.Timer(0.08, os.kill, (os.getpid(), signal.SIGKILL)).start()

quant.train(model, tasks.get("classification"), digits, quant.Recipe(epochs=4, float_share=0.5, batch_size=64), seed=3,
            state_file=sys.argv[1], on_epoch=kill)
"""


def test_sigkill_in_the_middle_of_an_epoch(
    example: torch.Tensor, digits: Samples, task: tasks.Task, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-c", CHILD, str(state), str(torch.get_num_threads())]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    _, facts = load_tensors(state)
    assert 1 <= int(facts["epoch"]) < RECIPE.epochs
    want = quant.state_digest(quant.train(fresh(example), task, digits, RECIPE, seed=3))
    again = quant.train(fresh(example), task, digits, RECIPE, seed=3, state_file=state, resume=True)
    assert quant.state_digest(again) == want


def test_a_huge_learning_rate_is_an_error(digits: Samples, task: tasks.Task, tmp_path: Path) -> None:
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = quant.prepare(net, quant.QuantSpec(), torch.from_numpy(digits.inputs(np.arange(64))))
    state = tmp_path / "state"
    recipe = quant.Recipe(epochs=20, lr=10.0, weight_decay=1.0, float_share=0.95)
    with pytest.raises(DivergedError, match="diverged in epoch"):
        quant.train(model, task, digits, recipe, seed=0, state_file=state)
    if state.exists():
        assert all(bool(t.isfinite().all()) for t in load_tensors(state)[0].values()), "the last good state is kept"


def test_weights_that_leave_float32_in_the_last_step_are_an_error(digits: Samples, task: tasks.Task) -> None:
    model = quant.prepare(
        models.build("resnet8@4", in_shape=(1, 8, 8), num_classes=10, seed=0),
        quant.QuantSpec(),
        torch.from_numpy(digits.inputs(np.arange(16))),
    )

    def poison(grad: torch.Tensor) -> torch.Tensor:
        return torch.full_like(grad, float("inf"))

    weight = model.get_submodule("head").weight
    assert isinstance(weight, torch.Tensor)
    weight.register_hook(poison)
    with pytest.raises(DivergedError, match=r"epoch 1: .*head\.weight"):
        quant.train(model, task, digits.take(np.arange(16)), quant.Recipe(epochs=1, batch_size=16), seed=0)


def test_the_float_phase_does_not_quantize(digits: Samples, task: tasks.Task, example: torch.Tensor) -> None:
    model, seen = fresh(example), []

    def look(epoch: int, _loss: float) -> None:
        seen.append({q.enabled for _, q in model.quantizers()})

    quant.train(model, task, digits.take(np.arange(64)), RECIPE, seed=0, on_epoch=look)
    assert seen == [{False}, {False}, {True}, {True}]
    assert all(q.enabled for _, q in model.quantizers())
    assert not model.training


def test_augmented_training_repeats(digits: Samples, task: tasks.Task, example: torch.Tensor) -> None:
    recipe = quant.Recipe(epochs=2, float_share=0.5, augment="crop_flip")
    few = digits.take(np.arange(128))
    a, b = (quant.state_digest(quant.train(fresh(example), task, few, recipe, seed=5)) for _ in range(2))
    assert a == b


def test_training_leaves_the_global_random_state(digits: Samples, task: tasks.Task, example: torch.Tensor) -> None:
    torch.manual_seed(7)
    model = fresh(example)
    before = torch.get_rng_state()
    quant.train(model, task, digits.take(np.arange(64)), quant.Recipe(epochs=1), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_divergence_is_an_error(example: torch.Tensor, digits: Samples, task: tasks.Task) -> None:
    model = fresh(example)
    with torch.no_grad():
        model.get_submodule("head").weight.fill_(1e38)
    with pytest.raises(DivergedError, match="diverged"):
        quant.train(model, task, digits, quant.Recipe(epochs=2, float_share=0.9), seed=0)


def test_recipe_reports_all_problems() -> None:
    with pytest.raises(ConfigError, match=r"epochs.*batch_size.*lr.*weight_decay.*augment"):
        quant.Recipe(epochs=-1, batch_size=1, lr=0, weight_decay=-1, augment="mirror")


def test_zero_epochs_only_quantizes(example: torch.Tensor, digits: Samples, task: tasks.Task) -> None:
    model = fresh(example)
    before = model.get_submodule("head").weight.detach().clone()
    quant.train(model, task, digits, quant.Recipe(epochs=0), seed=0)
    assert torch.equal(model.get_submodule("head").weight, before)
    assert quant.lower(model).codes_digest()


def test_crop_and_flip_keep_pixels_and_repeat(task: tasks.Task, digits: Samples) -> None:
    from qunlearn.quant.train import _crop_flip

    batch = task.batch(digits, np.arange(16))
    a, b, c = (_crop_flip(batch, s).x for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == batch.x.shape
    padded = torch.nn.functional.pad(batch.x, (4, 4, 4, 4))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # [n, 1, 9, 9, 8, 8]
    flipped = []
    for image, options in zip(a, windows, strict=True):
        plain = bool((options[0] == image[0]).all(-1).all(-1).any())
        mirrored = bool((options[0].flip(-1) == image[0]).all(-1).all(-1).any())
        assert plain or mirrored, "every result is a window of the padded image, mirrored or not"
        flipped.append(mirrored and not plain)
    assert 0 < sum(flipped) < 16


@pytest.fixture
def run(trained: quant.QuantModel, tmp_path: Path) -> Path:
    config = quant.RunConfig(
        model="resnet8@8", in_shape=(1, 8, 8), num_classes=10, spec=trained.spec, data="digits", task="classification"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    return quant.save_run(folder, trained, config)


def test_round_trip_is_bit_equal(run: Path, trained: quant.QuantModel, digits: Samples) -> None:
    again, config = quant.load_run(run)
    assert quant.state_digest(again) == quant.state_digest(trained)
    x = torch.from_numpy(digits.inputs(np.arange(32)))
    with torch.no_grad():
        assert torch.equal(again(x), trained(x))
    assert config == quant.RunConfig.from_json(config.to_json())


def edit(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors, facts = load_tensors(run / "model.safetensors")
    change(tensors)
    save_tensors(run / "model.safetensors", tensors, facts)


SCALE = "head.weight_quant.tensor_quant.scale"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop(SCALE), f"missing {SCALE}"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda t: t.update({SCALE: torch.zeros(3)}), SCALE),
        (lambda t: t.update({"head.bias": torch.full((10,), float("nan"))}), "not finite"),
        (lambda t: t["head.bias"].add_(1), "digest"),
    ],
)
def test_loading_is_strict(run: Path, change: Callable[[dict[str, torch.Tensor]], object], word: str) -> None:
    edit(run, change)
    with pytest.raises(ArtefactError, match=word):
        quant.load_run(run)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 2}, "newer"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"num_classes": "ten"}, "num_classes"),
        ({"extra": 1}, "unknown extra"),
        ({"in_shape": [1, -8, 8]}, "in_shape"),
        ({"spec": {"bits": 8}}, "spec"),
    ],
)
def test_configs_are_strict(run: Path, change: dict[str, object], word: str) -> None:
    value = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(value | change))
    with pytest.raises(ArtefactError, match=word):
        quant.load_run(run)


def test_truncated_and_foreign_files(run: Path, tmp_path: Path) -> None:
    data = (run / "model.safetensors").read_bytes()
    for body in (b"", b"\x00" * 7, data[:100], b"\xff" * 64, (2**40).to_bytes(8, "little") + data[8:]):
        (run / "model.safetensors").write_bytes(body)
        with pytest.raises(ArtefactError):
            quant.load_run(run)
    shutil.rmtree(run)
    with pytest.raises(ArtefactError, match="no run directory"):
        quant.load_run(run)
