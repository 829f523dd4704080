"""EC: its terms by hand, what the modules leave behind, the stop rule on CKA, EC inside other methods."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qunlearn import quant
from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import ConfigError
from qunlearn.quant import QuantModel
from qunlearn.quant.state import state_digest
from qunlearn.tasks import Classification
from qunlearn.unlearn import METHODS, GroupValue, ReferenceCard, plug_ec
from qunlearn.unlearn.auxiliary import Stages, build, pretrained
from qunlearn.unlearn.context import Context, Data
from qunlearn.unlearn.contrastive import forget_form, retain_form
from qunlearn.unlearn.ec import EC
from qunlearn.unlearn.erasure import Erasure, chosen_stages, stage_weights
from qunlearn.unlearn.representation import layers_of, similarity, target
from qunlearn_export import writer

Trained = Callable[..., QuantModel]
FAST: dict[str, Any] = {"epochs": 1, "batch_size": 64, "aux_epochs": 1, "lr": 0.02}


@pytest.fixture(scope="module")
def classes(dataset: Dataset) -> Splits:
    """Classes 3 and 8 forgotten."""
    return make_splits(dataset, Request("class", ("3", "8")), seed=0)


def context(model: QuantModel, splits: Splits, task: Classification, **more: Any) -> Context:
    own = copy.deepcopy(model)
    for name, p in own.named_parameters():
        p.requires_grad_(not name.endswith(".scale"))
    return Context(
        model=own, before=model, data=Data(forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop),
        task=task, request_kind="class", card=None, seed=0, identity="", **more,
    )  # fmt: skip


@pytest.mark.parametrize("contrast", ["retain", "forget"])
def test_terms_by_hand(trained: Trained, classes: Splits, task: Classification, contrast: str) -> None:
    """The sum over stages of w_s (CE + L_CU), from features read one by one."""
    ctx = context(trained("cnn"), classes, task)
    stages = Stages(ctx.model)
    with torch.random.fork_rng():
        aux = build(ctx, stages).eval()
    count = len(stages.names) + 1
    erasure = Erasure(
        ctx=ctx, aux=aux, stages=stages, weights=stage_weights("depth", count), chosen=set(range(count)),
        contrast=contrast, tau=0.5, deep_ce=True, head_ce=True,
    )  # fmt: skip
    forget = task.batch(classes.forget, np.arange(0, 40))
    retain = task.batch(classes.retain, np.arange(0, 50))
    terms = erasure(forget, retain, "frozen")
    values_f, values_r = (ctx.model.activations(b.x) for b in (forget, retain))
    supervision, expected = 0.0, 0.0
    for s in range(count):
        if s < count - 1:
            e_f, e_r = (aux.project[s](v[stages.names[s]]) for v in (values_f, values_r))
            z_r = aux.classify[s](e_r)
        else:
            e_f, e_r = (v[stages.last].flatten(1) for v in (values_f, values_r))
            z_r = values_r[stages.output]
        u_f, u_r = F.normalize(e_f, dim=1), F.normalize(e_r, dim=1)
        weight = (s + 1) / count
        supervision += weight * float(F.cross_entropy(z_r, retain.y).detach())
        if contrast == "retain":
            value, _ = retain_form(u_f, forget.y, u_r, retain.y, 0.5)
        else:
            value, _ = forget_form(u_f, forget.y, 0.5)
        expected += weight * float(value.detach())
    assert count >= 2
    assert float(terms.supervision.detach()) == pytest.approx(supervision, rel=1e-5)
    assert float(terms.contrast.detach()) == pytest.approx(expected, rel=1e-4)
    assert set(classes.forget.targets().tolist()) == {3, 8}


def test_stage_weights_and_choice() -> None:
    assert stage_weights("depth", 4) == [0.25, 0.5, 0.75, 1.0]
    assert stage_weights("reverse", 4) == [1.0, 0.75, 0.5, 0.25]
    assert stage_weights("uniform", 2) == [1.0, 1.0]
    assert stage_weights("0.1,2", 2) == [0.1, 2.0]
    assert chosen_stages("all", 3) == {0, 1, 2}
    assert chosen_stages("last", 3) == {2}
    assert chosen_stages("1,3", 3) == {0, 2}
    for text in ("1", "a,b", "1,-2"):
        with pytest.raises(ConfigError, match="stages"):
            stage_weights(text, 2)
    with pytest.raises(ConfigError, match="stages"):
        chosen_stages("4", 3)


def test_single_class_with_the_forget_form_is_refused(dataset: Dataset, trained: Trained, task: Classification) -> None:
    one = make_splits(dataset, Request.parse("class=3"), seed=0)
    with pytest.raises(ConfigError, match="contrast=retain"):
        EC(contrast="forget", **FAST)(trained("cnn"), one, task, request_kind="class")
    result = EC(**FAST)(trained("cnn"), one, task, request_kind="class")
    assert result.fields["skipped_anchors"] >= 0


def test_random_requests_warn(trained: Trained, splits: Splits, task: Classification) -> None:
    result = EC(**FAST)(trained("cnn"), splits, task, request_kind="random")
    assert any(w.startswith("W-RANDOM-REQUEST") for w in result.warnings)


def test_modules_leave_no_trace(trained: Trained, classes: Splits, task: Classification, tmp_path: Path) -> None:
    """Training them moves no backbone tensor; a run of no steps exports the original's file; names stay."""
    model = trained("cnn")
    before = state_digest(model)
    ctx = context(model, classes, task)
    with torch.random.fork_rng():
        pretrained(ctx, Stages(model), epochs=1, cache="")
    assert state_digest(model) == before
    EC(**{**FAST, "lr": 1e-30, "weight_decay": 0.0, "momentum": 0.0}).run(ctx)
    files = [writer.export(quant.lower(m), tmp_path / f"{i}.onnx") for i, m in enumerate((model, ctx.model.eval()))]
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    assert len(files) == 2
    assert [n for n, _ in ctx.model.named_parameters()] == [n for n, _ in model.named_parameters()]
    x = task.batch(classes.forget, np.arange(8)).x
    assert torch.equal(model(x), ctx.model(x))


def test_cached_modules_give_the_same_run_and_are_purged(
    trained: Trained, classes: Splits, task: Classification, tmp_path: Path
) -> None:
    model, args = trained("cnn"), {"request_kind": "class"}
    fresh = EC(**FAST, purge_aux=False, aux_cache=str(tmp_path))(model, classes, task, **args)
    (kept,) = tmp_path.iterdir()
    cached = EC(**FAST, purge_aux=False, aux_cache=str(tmp_path))(model, classes, task, **args)
    assert cached.digests["model_after"] == fresh.digests["model_after"]
    assert cached.passes < fresh.passes
    import hashlib

    digest = hashlib.sha256(kept.read_bytes()).hexdigest()
    purged = EC(**FAST, aux_cache=str(tmp_path))(model, classes, task, **args)
    assert purged.fields["purged"] == [digest]
    assert not list(tmp_path.iterdir())
    assert purged.digests["model_after"] == fresh.digests["model_after"]


def test_checkpoint_holds_no_modules_after_a_purge(
    trained: Trained, classes: Splits, task: Classification, tmp_path: Path
) -> None:
    from qunlearn.quant.state import load_tensors

    for purge in (True, False):
        folder = tmp_path / str(purge)
        folder.mkdir()
        EC(**FAST, purge_aux=purge)(trained("cnn"), classes, task, request_kind="class", run_dir=folder)
        tensors, _ = load_tensors(folder / "checkpoint.safetensors")
        assert any(n.startswith("auxiliary/") for n in tensors) != purge


@pytest.mark.parametrize("bn", ["frozen", "retain_only", "train"])
def test_batchnorm_modes(trained: Trained, classes: Splits, task: Classification, bn: str) -> None:
    model = trained("cnn")
    result = EC(**FAST, bn=bn)(model, classes, task, request_kind="class")
    statistics = {n for n in model.state_dict() if n.endswith(("running_mean", "running_var"))}
    old, new = model.state_dict(), result.model.state_dict()
    assert any(not torch.equal(old[n], new[n]) for n in statistics) == (bn != "frozen")


def test_retain_only_statistics_come_from_retain_batches(
    trained: Trained, classes: Splits, task: Classification
) -> None:
    """One step without a learning rate: the statistics equal those of a retain batch alone."""
    model = trained("cnn")
    ctx = context(model, classes, task)
    stages = Stages(ctx.model)
    with torch.random.fork_rng():
        aux = build(ctx, stages).eval()
    erasure = Erasure(
        ctx=ctx, aux=aux, stages=stages, weights=[1.0] * (len(stages.names) + 1), chosen={0}, contrast="retain",
        tau=0.5, deep_ce=True, head_ce=True,
    )  # fmt: skip
    forget = task.batch(classes.forget, np.arange(40))
    retain = task.batch(classes.retain, np.arange(50))
    erasure(forget, retain, "retain_only")
    other = copy.deepcopy(model)
    other.eval()
    for module in other.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        other(retain.x)
    for name, value in ctx.model.state_dict().items():
        if "running" in name:
            assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("base", ["ga", "rl", "salun", "scrub", "bad_teacher", "neggrad_plus", "oeu"])
def test_inside_other_methods(trained: Trained, classes: Splits, task: Classification, base: str) -> None:
    model = trained("cnn")
    own: dict[str, Any] = {"max_steps": 4, "loss": "e2"} if base == "oeu" else {"epochs": 1, "batch_size": 64}
    inner = METHODS[base](**own, lr=1e-3)
    ec = EC(aux_epochs=1, batch_size=64, stop_rule=False)
    result = plug_ec(inner, ec)(model, classes, task, request_kind="class", seed=1)
    nothing = plug_ec(inner, EC(aux_epochs=1, batch_size=64, gamma=0.0))(
        model, classes, task, request_kind="class", seed=1
    )
    assert result.config["base"] == base
    assert result.digests["model_after"] != nothing.digests["model_after"]
    if base == "ga":
        assert (
            nothing.digests["model_after"]
            == inner(model, classes, task, request_kind="class", seed=1).digests["model_after"]
        )


def test_projection_acts_on_the_sum(trained: Trained, classes: Splits, task: Classification) -> None:
    """Inside OEU the contrast is part of the forget gradient: it is orthogonal to the retain gradient all the same."""
    inner = METHODS["oeu"](max_steps=3, lr=1e-3)
    result = plug_ec(inner, EC(aux_epochs=1, lam=2.0))(trained("cnn"), classes, task, request_kind="class")
    assert all(abs(row["cos_after"]) <= 1e-6 for row in result.trace)


def test_bases_that_cannot_carry_it(trained: Trained, classes: Splits, task: Classification) -> None:
    for base, settings, text in (("ssd", "", "no loss"), ("nonsense", "", "nonsense"), ("rl", "lr", "malformed")):
        with pytest.raises(ConfigError, match=text):
            EC(base=base, base_settings=settings)(trained("cnn"), classes, task, request_kind="class")
    with pytest.raises(ConfigError, match="base_settings"):
        EC(base="rl", lr=0.5)(trained("cnn"), classes, task, request_kind="class")


def test_stop_rule_on_cka(trained: Trained, classes: Splits, task: Classification) -> None:
    """With a target, J grows by the distance to it and the trace says so; else it is reported."""
    model = trained("cnn")
    names = layers_of(model)
    card = ReferenceCard(
        groups={"g0": GroupValue(accuracy=0.5, confidence=0.5, samples=10)},
        similarity={"class=1": dict.fromkeys(names, (0.8, 0.9)), "class=2": dict.fromkeys(names, (0.6, 1.0))},
    )
    goal = target(card, "class", classes.forget)
    assert goal is not None
    assert goal[names[0]] == pytest.approx((0.7, 0.95))
    m = EC(**{**FAST, "epochs": 2}, stop_rule=True, eval_every=4, probe=100)
    with_card = m(model, classes, task, request_kind="class", card=card)
    without = m(model, classes, task, request_kind="class")
    rows = [[r for r in run.trace if "J" in r] for run in (with_card, without)]
    assert rows[0][0]["cka_gap"] == pytest.approx(rows[0][0]["J"] - rows[1][0]["J"], abs=1e-9)
    assert "cka_gap" not in rows[1][0]
    assert 0 < rows[1][0]["cka_forget"] <= 1
    assert target(None, "class", classes.forget) is None
    assert target(card, "random", classes.forget) is None


def test_similarity_of_two_networks(trained: Trained, classes: Splits, task: Classification) -> None:
    a, b = trained("cnn"), trained("cnn", seed=1)
    same = similarity(task, a, a, (classes.forget, classes.retain), size=100, seed=0)
    other = similarity(task, a, b, (classes.forget, classes.retain), size=100, seed=0)
    assert set(same) == set(layers_of(a))
    assert all(v == pytest.approx((1, 1), abs=1e-9) for v in same.values())
    assert all(max(v) < 0.999 for v in other.values())


def test_card_keeps_similarity(tmp_path: Path) -> None:
    card = ReferenceCard(
        groups={"a": GroupValue(accuracy=0.5, confidence=0.5, samples=3)}, similarity={"group=a": {"x": (0.5, 0.9)}}
    )
    assert ReferenceCard.load(card.save(tmp_path / "card.json")) == card
    old = {k: v for k, v in card.to_json().items() if k != "similarity"} | {"version": 1}
    assert ReferenceCard.from_json(old).similarity == {}
    with pytest.raises(ConfigError, match="pair"):
        ReferenceCard(groups=card.groups, similarity={"group=a": {"x": (0.5, 7.0)}})


def test_skipped_anchors_are_counted_across_a_resume(
    trained: Trained, classes: Splits, task: Classification, tmp_path: Path
) -> None:
    m = EC(epochs=1, batch_size=4, aux_epochs=1, lr=1e-3)
    args: dict[str, Any] = {"request_kind": "class", "seed": 0}
    whole = m(trained("cnn"), classes, task, **args)
    assert whole.fields["skipped_anchors"] > 0

    def kill(step: int, total: int, row: Any) -> None:
        if step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        m(trained("cnn"), classes, task, run_dir=tmp_path, progress=kill, **args)
    again = m(trained("cnn"), classes, task, run_dir=tmp_path, resume=True, **args)
    assert again.fields["skipped_anchors"] == whole.fields["skipped_anchors"]


def test_t09_steps_follow_the_longer_loader(trained: Trained, classes: Splits, task: Classification) -> None:
    """The forget set is shorter and starts anew: an epoch is a pass over the retain set."""
    result = EC(**FAST)(trained("cnn"), classes, task, request_kind="class")
    longer, shorter = len(classes.retain) / 64, len(classes.forget) / 64
    assert shorter + 2 < longer
    assert longer - 1 <= len(result.trace) <= longer + 1


PROCESS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fixtures", sys.argv[1])
f = importlib.util.module_from_spec(spec)
spec.loader.exec_module(f)
from qunlearn.unlearn import METHODS
data = f.digits()
splits = f.make_splits(data, f.Request("class", ("3", "8")), seed=0)
model = f.fit("cnn", "w8a8", data.samples("train"), seed=0, epochs=1)
settings = {"epochs": 1, "batch_size": 128}
for name, more in [word.split(":") for word in sys.argv[2:]]:
    m = METHODS[name](**settings, **({"aux_epochs": 1} if name == "ec" else {}), bn=more)
    print(name, m(model, splits, f.Classification(), request_kind="class").digests["model_after"], flush=True)
"""


def test_t12_two_runs_in_one_process_equal_two_processes() -> None:
    """No state lives on a method between runs (teachers, modules, optimizers)."""
    fixtures = str(Path(__file__).with_name("conftest.py"))

    def run(*names: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, fixtures, *names], capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return done.stdout.splitlines()

    together = run("ec:frozen", "scrub:train", "ec:frozen", "scrub:train")
    assert together[:2] == together[2:]
    assert run("scrub:train", "ec:frozen") == together[:2][::-1]
