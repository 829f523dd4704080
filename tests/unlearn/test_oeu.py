"""OEU as a whole: against a plain float64 re-implementation, and the traps of its specification."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qunlearn.data.dataset import Dataset
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import DivergedError, InvariantError
from qunlearn.quant import QuantModel, scale_parameter_names, state_digest
from qunlearn.tasks import Batch, Classification
from qunlearn.unlearn import ReferenceCard, UnlearnResult, diagnostics
from qunlearn.unlearn.card import GroupValue
from qunlearn.unlearn.oeu import OEU
from qunlearn.unlearn.pairing import Pairs
from qunlearn.unlearn.stopping import Evaluator

Trained = Callable[..., QuantModel]


def _run(model: QuantModel, splits: Splits, task: Classification, **settings: Any) -> UnlearnResult:
    settings = {"stop_rule": False, "max_steps": 10, **settings}
    return OEU(**settings)(model, splits, task, request_kind="random")


def _float_net(model: QuantModel) -> QuantModel:
    out = copy.deepcopy(model)
    out.set_enabled(False)
    return out


def _oracle(model: QuantModel, splits: Splits, task: Classification, *, lr: float, lam: float, steps: int) -> nn.Module:
    """Float64, tensor lists, autograd.grad, global projection: nothing of the arena, nothing of the loop."""
    net = copy.deepcopy(model).double().eval()
    scales = scale_parameter_names(net)
    params = [p for n, p in sorted(net.named_parameters()) if n not in scales]
    pairs = Pairs(len(splits.forget), len(splits.retain), 64, 64, seed=0)
    for _ in range(steps):
        rows_f, rows_r = pairs.next()
        br, bf = task.batch(splits.retain, rows_r), task.batch(splits.forget, rows_f)
        r = torch.autograd.grad(nn.functional.cross_entropy(net(br.x.double()), br.y), params)
        f = torch.autograd.grad(-net(bf.x.double()).log_softmax(1).mean(), params)
        fr, rr = sum((a * b).sum() for a, b in zip(f, r, strict=True)), sum((a * a).sum() for a in r)
        with torch.no_grad():
            for p, a, b in zip(params, f, r, strict=True):
                p.sub_(lr * (b + lam * (a - fr / rr * b)))
    return net


def test_equals_a_plain_float64_oracle(trained: Trained, splits: Splits, task: Classification) -> None:
    model = _float_net(trained("mlp"))
    result = _run(model, splits, task, lr=3e-3, lam=0.7, max_steps=8)
    expected = dict(_oracle(model, splits, task, lr=3e-3, lam=0.7, steps=8).named_parameters())
    for name, p in result.model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", ["free", "exact"])
def test_code_shares_of_the_trace_equal_the_change_table(
    trained: Trained, splits: Splits, task: Classification, grid: str
) -> None:
    result = _run(trained("cnn", grid=grid), splits, task, max_steps=10, diag_every=10)
    assert result.trace[-1]["codes_changed"] == pytest.approx(result.changes.share)
    assert result.trace[-1]["codes_lost"] == pytest.approx(result.changes.lost / result.changes.latent_changed)


def test_two_runs_are_bit_equal_and_diagnostics_do_not_touch_the_run(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    a = _run(trained("cnn"), splits, task, diag_every=1)
    b = _run(trained("cnn"), splits, task, diag_every=1000)
    assert a.digests["model_after"] == b.digests["model_after"]
    assert b.passes < a.passes


def test_trace_carries_the_diagnostics(trained: Trained, splits: Splits, task: Classification) -> None:
    result = _run(trained("cnn"), splits, task, diag_every=2, stop_rule=True, eval_every=5)
    assert result.fields["guarantee"] == "first-order"
    for row in result.trace:
        want = {"L_r", "L_f", "entropy", "conf_f", "norm_r", "norm_f", "norm_fperp", "cos_before", "cos_after"}
        want |= {"removed", "conflicting_segments", "dLr_pred", "dLr_pred_forget", "seen_forget", "seen_retain"}
        if row["step"] % 2 == 0:
            want |= {"dLr_actual", "dLr_forget_actual", "rho2", "codes_changed", "codes_lost", "lsb_step"}
        if row["step"] % 5 == 0:
            want |= {"a_f", "c_f", "a_r", "a_h", "J", "in_band", "utility_ok", "snapshot"}
        assert want <= set(row)
        assert abs(row["dLr_pred_forget"]) <= 1e-6 * row["norm_r"] * row["norm_update_forget"]
        assert row["norm_fperp"] ** 2 == pytest.approx(row["norm_f"] ** 2 * (1 - row["removed"]), rel=1e-6)
        assert row["dLr_pred"] == pytest.approx(-1e-3 * row["norm_r"] ** 2, rel=1e-4)
    assert result.fields["samples_seen"]["forget"] == result.trace[-1]["seen_forget"]


def test_costly_diagnostics_equal_what_can_be_recomputed(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    """One step: losses on the same batch before, after, and after the retain part alone (lam 0); codes; conflicts."""
    model = trained("cnn")
    args: dict[str, Any] = {"max_steps": 1, "diag_every": 1, "lr": 1e-2, "scope": "tensor"}
    result, alone = _run(model, splits, task, **args), _run(model, splits, task, lam=0.0, **args)
    rows_f, rows_r = Pairs(len(splits.forget), len(splits.retain), 64, 64, seed=0).next()
    br, bf = task.batch(splits.retain, rows_r), task.batch(splits.forget, rows_f)
    with torch.no_grad():
        before, after, only = (float(task.loss(m(br.x), br)) for m in (model, result.model, alone.model))
    row = result.trace[0]
    assert row["dLr_actual"] == pytest.approx(after - before, abs=1e-6)
    assert row["dLr_forget_actual"] == pytest.approx(after - only, abs=1e-6)
    assert alone.trace[0]["dLr_forget_actual"] == 0
    scales = set(scale_parameter_names(model))
    steps = []
    for step in model.steps:
        if step.kind in ("conv", "linear"):
            name = f"{step.module}.weight"
            moved = result.model.get_parameter(name) - model.get_parameter(name)
            steps.append((moved.abs() / model.weight_quantizer_of(step).scale).detach().flatten())
    assert row["lsb_step"] == pytest.approx(float(torch.cat(steps).median()), rel=1e-3)
    net = copy.deepcopy(model).eval()
    params = [p for n, p in net.named_parameters() if n not in scales]
    r = torch.autograd.grad(task.loss(net(br.x), br), params)
    f = torch.autograd.grad(-net(bf.x).log_softmax(1).mean(), params)
    assert row["conflicting_segments"] == sum(float((a * b).sum()) < 0 for a, b in zip(r, f, strict=True))
    assert 0 < row["conflicting_segments"] < len(params)


def test_rho2_is_one_for_the_whole_retain_set_and_a_ratio_over_the_last_fifty(
    trained: Trained, splits: Splits, task: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained("mlp")
    whole = _run(model, splits, task, retain_batch_size=len(splits.retain), diag_every=1, max_steps=3)
    assert [row["rho2"] for row in whole.trace] == pytest.approx([1.0] * 3, abs=1e-9)
    one = _run(model, splits, task, retain_batch_size=64, diag_every=1, max_steps=3)
    assert all(row["rho2"] < 0.9 for row in one.trace)
    calls = iter(range(100))
    monkeypatch.setattr(diagnostics, "half_batches", lambda *_: (float(next(calls)), 2.0))
    many = _run(model, splits, task, diag_every=1, max_steps=55)
    assert many.trace[3]["rho2"] == pytest.approx((0 + 1 + 2 + 3) / 8)
    assert many.trace[-1]["rho2"] == pytest.approx(sum(range(5, 55)) / 100)


@pytest.mark.parametrize("broken", ["retain", "forget"])
def test_a_non_finite_loss_names_the_part_and_the_step(
    trained: Trained, splits: Splits, task: Classification, broken: str
) -> None:
    calls: list[int] = []

    class Breaking(Classification):
        def logits(self, model: nn.Module, batch: Batch) -> Tensor:
            out = super().logits(model, batch)
            if torch.is_grad_enabled():
                calls.append(1)
                if len(calls) == {"retain": 5, "forget": 6}[broken]:
                    return out * float("nan")
            return out

    with pytest.raises(DivergedError, match=f"step 3: non-finite {broken}"):
        OEU(stop_rule=False, max_steps=5, diag_every=1000)(trained("mlp"), splits, Breaking(), request_kind="random")


def test_t01_e1_does_nothing_on_a_certain_network_and_e2_does(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    model = copy.deepcopy(trained("mlp", "w8a8", 0, 30))
    with torch.no_grad():
        model.get_parameter("5.weight").mul_(6.0)
        for name in ("5.weight_quant.tensor_quant.scale",):
            model.get_parameter(name).mul_(6.0)
        for name, p in model.named_parameters():
            if name.startswith("5_act") and name.endswith(".scale"):
                p.mul_(6.0)
    logits = torch.from_numpy(task.predict(model, splits.forget)).double().softmax(1)
    sure = logits.max(1).values > 0.9999
    forget = splits.forget.take(np.flatnonzero(sure.numpy()))
    own = Splits(
        forget=forget, retain=splits.retain, heldout_stop=splits.heldout_stop, heldout_audit=splits.heldout_audit,
        test=splits.test,
    )  # fmt: skip
    assert len(forget) > 60
    args: dict[str, Any] = {"max_steps": 1, "lr": 1e-3, "lam": 10.0, "scope": "none", "diag_every": 1}
    with pytest.raises(InvariantError, match="no integer code"):
        _run(model, own, task, loss="e1", **args)
    args["lr"] = 0.1
    e1, e2 = (_run(model, own, task, loss=loss, **args) for loss in ("e1", "e2"))
    assert e1.trace[0]["norm_f"] < 0.02 * e2.trace[0]["norm_f"]
    assert any(w.startswith("W-LOST-TO-ROUNDING") for w in e1.warnings)
    assert e2.changes.codes_changed > 3 * e1.changes.codes_changed


@pytest.mark.parametrize(
    ("settings", "void"),
    [
        ({"momentum": 0.9}, True),
        ({"optimizer": "adam"}, True),
        ({"momentum": 0.9, "project_at": "update"}, False),
        ({"optimizer": "adam", "project_at": "update"}, False),
        ({"optimizer": "adam", "project_at": "metric"}, False),
    ],
)
def test_t02_trace_and_guarantee_agree(
    trained: Trained, splits: Splits, task: Classification, settings: dict[str, Any], void: bool
) -> None:
    result = _run(trained("cnn"), splits, task, max_steps=15, **settings)
    relative = [
        abs(row["dLr_pred_forget"]) / (row["norm_r"] * row["norm_update_forget"]) for row in result.trace[1:]
    ]  # fmt: skip
    assert result.fields["guarantee"].startswith("void") == void
    assert any(w.startswith("W-GUARANTEE-VOID") for w in result.warnings) == void
    if void:
        assert np.mean(relative) > 0.05
    else:
        assert max(relative) <= 1e-6


def test_t03_one_element_tensors_are_named_under_scope_tensor_and_kept_under_layer(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    model = trained("cnn")
    args: dict[str, Any] = {"train_scales": True, "lam": 1.0}
    tensor = _run(model, splits, task, scope="tensor", **args)
    warning = next(w for w in tensor.warnings if w.startswith("W-ONE-ELEMENT"))
    scalars = [n for n in scale_parameter_names(model) if model.get_parameter(n).numel() == 1]
    assert scalars
    assert all(n in warning for n in scalars)
    layer = _run(model, splits, task, scope="layer", **args)
    assert not any(w.startswith("W-ONE-ELEMENT") for w in layer.warnings)


def test_t04_micro_batches_give_the_same_update(trained: Trained, splits: Splits, task: Classification) -> None:
    model = _float_net(trained("mlp"))
    whole = _run(model, splits, task, max_steps=4, lr=1e-2)
    parts = _run(model, splits, task, max_steps=4, lr=1e-2, micro_batch=17)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    assert whole.passes == parts.passes


WORKER = """
import importlib.util, pathlib, sys, torch
spec = importlib.util.spec_from_file_location("oeu_fixtures", sys.argv[1])
f = importlib.util.module_from_spec(spec)
spec.loader.exec_module(f)
from qunlearn.unlearn.oeu import OEU
folder, rank = sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
data = f.digits()
splits = f.make_splits(data, f.Request.parse("random=10%"), seed=0)
model = f.fit("mlp", "w8a8", data.samples("train"), seed=0, epochs=2)
model.set_enabled(False)
def run(name):
    r = OEU(stop_rule=False, max_steps=4, lr=1e-2)(model, splits, f.Classification(), request_kind="random")
    flat = torch.cat([p.detach().flatten() for p in r.model.parameters()])
    pathlib.Path(folder, name).write_bytes(flat.numpy().tobytes())
run(f"{rank}of2")
torch.distributed.destroy_process_group()
if rank == 0:
    run("alone")
"""


@pytest.mark.slow
def test_t04_two_processes_give_the_same_update(tmp_path: Path) -> None:
    base = [sys.executable, "-c", WORKER, str(Path(__file__).with_name("conftest.py")), str(tmp_path)]
    runs = [subprocess.Popen([*base, str(rank)]) for rank in (0, 1)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    one, other, alone = (
        np.frombuffer((tmp_path / name).read_bytes(), np.float32) for name in ("0of2", "1of2", "alone")
    )
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, alone, rtol=0, atol=1e-6)


def test_t05_both_losses_see_the_same_parameters(trained: Trained, splits: Splits, task: Classification) -> None:
    seen: list[tuple[int, str]] = []

    class Watching(Classification):
        def logits(self, model: nn.Module, batch: Batch) -> Tensor:
            if torch.is_grad_enabled():
                seen.append((len(batch), state_digest(model)))
            return super().logits(model, batch)

    OEU(stop_rule=False, max_steps=5, diag_every=1000)(trained("cnn"), splits, Watching(), request_kind="random")
    digests = [d for _, d in seen]
    assert len(digests) == 10
    assert digests[0::2] == digests[1::2]
    assert len(set(digests)) == 5


def test_t06_frozen_statistics_stay_bit_identical(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    names = [n for n, _ in model.named_buffers() if "running" in n or "tracked" in n]
    assert names
    after = {bn: _run(model, splits, task, bn=bn).model.state_dict() for bn in ("frozen", "retain_only", "train")}
    assert all(torch.equal(after["frozen"][n], model.state_dict()[n]) for n in names)
    moved = {
        bn: int(after[bn]["bn1.num_batches_tracked"] - model.state_dict()["bn1.num_batches_tracked"]) for bn in after
    }
    assert moved == {"frozen": 0, "retain_only": 10, "train": 20}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_t08_run_to_convergence_is_judged_over_forgotten(
    seed: int, dataset: Dataset, trained: Trained, task: Classification
) -> None:
    splits = make_splits(dataset, Request.parse("group=g1"), seed=0)
    card = ReferenceCard(groups={"g1": GroupValue(accuracy=0.88, confidence=0.75, samples=200)})
    blind = {"utility_floor": 1.0, "entropy_drift": None}  # utility must not choose the snapshot here
    method = OEU(lr=0.01, lam=3.0, max_steps=120, scope="none", eval_every=3, **blind)
    result = method(trained("cnn"), splits, task, request_kind="group", card=card, seed=seed)
    evaluations = [row for row in result.trace if row.get("a_f") is not None]
    assert result.fields["stop_reason"] == "over_forgot"
    assert (result.fields["stop_verdict"], result.fields["stop_failure_side"]) == ("fail", "over")
    assert all(row["a_f"] < 0.6 for row in evaluations)
    best = min(evaluations, key=lambda row: row["J"])
    assert (result.fields["chosen_step"], result.fields["chosen"]["J"]) == (best["step"], best["J"]), "rolled back"
    assert result.fields["band"]["source"] == "card (own)"


def test_no_reference_is_inconclusive(dataset: Dataset, trained: Trained, task: Classification) -> None:
    splits = make_splits(dataset, Request.parse("group=g1"), seed=0)
    result = OEU(max_steps=10)(trained("cnn"), splits, task, request_kind="group")
    assert result.fields["stop_reason"] == "no_reference"
    assert result.fields["stop_verdict"] == "inconclusive"
    assert any(w.startswith("W-NO-REFERENCE") for w in result.warnings)


def test_the_chosen_evaluation_describes_the_returned_network(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    method = OEU(max_steps=40, lr=5e-3, target_accuracy="0.70..0.80", eval_every=2)
    result = method(trained("cnn"), splits, task, request_kind="random", seed=2)
    evaluate = Evaluator(
        task, forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop, request_kind="random",
        size=method.probe, seed=2,
    )  # fmt: skip
    again = evaluate(result.model, result.fields["chosen_step"]).to_json()
    assert {k: result.fields["chosen"][k] for k in again} == again


def test_t12_samples_seen_are_counted(trained: Trained, splits: Splits, task: Classification) -> None:
    result = _run(trained("cnn"), splits, task, max_steps=100, epochs=1)
    seen = result.fields["samples_seen"]
    steps = math.ceil(len(splits.retain) / 64)
    assert len(result.trace) == steps
    assert seen["retain"] == len(splits.retain)
    assert seen["forget"] == steps // 2 * 120 + steps % 2 * 64


def test_t14_stop_and_audit_halves_share_no_content(dataset: Dataset) -> None:
    for text in ("random=10%", "group=g2", "class=7"):
        splits = make_splits(dataset, Request.parse(text), seed=1)
        assert not set(splits.heldout_stop.content_hashes()) & set(splits.heldout_audit.content_hashes())


def test_e2_then_e1_switches_once_confidence_has_fallen(trained: Trained, splits: Splits, task: Classification) -> None:
    result = _run(trained("mlp"), splits, task, loss="e2_then_e1", max_steps=60, lr=1e-2, lam=3.0)
    negative = [row["L_f"] < 0 for row in result.trace]
    first = next(i for i, row in enumerate(result.trace) if row["conf_f"] < 0.9)
    assert not any(negative[: first + 1])
    assert all(negative[first + 1 :])
    assert any(negative)


def test_sample_gate_leaves_out_what_is_already_forgotten(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    result = _run(trained("cnn"), splits, task, sample_gate=True, max_steps=40, lr=1e-2)
    plain = _run(trained("cnn"), splits, task, max_steps=40, lr=1e-2)
    assert 0 < result.fields["gate_open_fraction"] < 1
    assert result.trace[-1]["conf_f"] > plain.trace[-1]["conf_f"]


def test_conflict_leaves_agreeing_gradients_alone(trained: Trained, splits: Splits, task: Classification) -> None:
    result = _run(trained("mlp"), splits, task, when="conflict", max_steps=25)
    assert result.fields["guarantee"] == "one-sided: conflict"
    for row in result.trace:
        if row["cos_before"] < 0:
            assert abs(row["cos_after"]) <= 1e-6
        else:
            assert row["cos_after"] == pytest.approx(row["cos_before"])
            assert row["removed"] == pytest.approx(0.0, abs=1e-12)


def test_clip_bounds_the_composed_vector(trained: Trained, splits: Splits, task: Classification) -> None:
    model = _float_net(trained("mlp"))
    result = _run(model, splits, task, clip=0.5, lr=1e-2, max_steps=1)
    moved = sum(
        float((p.double() - q.double()).square().sum())
        for p, q in zip(model.state_dict().values(), result.model.state_dict().values(), strict=True)
    )
    assert moved**0.5 == pytest.approx(0.5 * 1e-2, rel=1e-4)
    assert abs(result.trace[0]["cos_after"]) <= 1e-6


def test_predecessor_preset_runs(trained: Trained, splits: Splits, task: Classification) -> None:
    method = OEU.from_settings({"preset": "predecessor", "epochs": "2", "stop_rule": "off"})
    result = method(trained("cnn"), splits, task, request_kind="random")
    assert result.fields["guarantee"] == "void: momentum"
    assert len(result.trace) == 2 * 5
    assert result.trace[-1]["lr"] < result.trace[0]["lr"] == 0.01
