"""What the base class does around a method, and the claims it checks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch

from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.errors import ArtefactError, ConfigError, DivergedError, InvariantError, UnsupportedError
from qunlearn.quant import QuantModel, state_digest
from qunlearn.tasks import Classification
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.ga import GA
from qunlearn.unlearn.oeu import OEU

Trained = Callable[..., QuantModel]


@dataclass(frozen=True, kw_only=True)
class Hook(Unlearner):
    """Runs a function in place of a method."""

    name: ClassVar[str] = "hook"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    source: ClassVar[str] = "test"
    action: ClassVar[Callable[[Context], None]]

    def run(self, ctx: Context) -> None:
        type(self).action(ctx)


def _hook(action: Callable[[Context], None]) -> Hook:
    Hook.action = staticmethod(action)  # type: ignore[assignment]
    return Hook()


class Closed:
    """Splits whose test and audit parts must not be read."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits

    def __getattr__(self, name: str) -> Samples:
        if name not in ("forget", "retain", "heldout_stop"):
            raise AssertionError(f"{name} was read")
        value: Samples = getattr(self._splits, name)
        return value


def _nudge(ctx: Context) -> None:
    with torch.no_grad():
        ctx.model.get_parameter("fc.weight").mul_(0.9)


def test_a_change_passes_and_the_input_stays(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    before = state_digest(model)
    result = _hook(_nudge)(model, splits, task, request_kind="random")
    assert state_digest(model) == before == result.digests["model_before"]
    assert state_digest(result.model) == result.digests["model_after"] != before
    assert result.changes.codes_changed > 0
    assert not result.model.training
    assert json.loads(json.dumps(result.to_json()))["method"] == "hook"


def test_t09_nothing_changed_is_an_error(trained: Trained, splits: Splits, task: Classification) -> None:
    with pytest.raises(InvariantError, match="no integer code") as caught:
        OEU(lr=1e-7, max_steps=3)(trained("cnn"), splits, task, request_kind="random")
    assert "Raise lr" in caught.value.remedy
    with pytest.raises(InvariantError, match="no integer code"):
        _hook(lambda ctx: None)(trained("cnn"), splits, task, request_kind="random")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("fc.weight_quant.tensor_quant.scale", "promised to leave"),
        ("bn1.running_mean", "promised to leave"),
        ("input_quant.act_quant.fused_activation_quant_proxy.tensor_quant.zero_point", "promised to leave"),
    ],
)
def test_a_frozen_tensor_that_moves_is_an_error(
    trained: Trained, splits: Splits, task: Classification, tensor: str, message: str
) -> None:
    def action(ctx: Context) -> None:
        _nudge(ctx)
        value = ctx.model.state_dict()[tensor]
        value.add_(1)

    with pytest.raises(InvariantError, match=message) as caught:
        _hook(action)(trained("cnn"), splits, task, request_kind="random")
    assert tensor in caught.value.message


def test_non_finite_parameters_are_an_error(trained: Trained, splits: Splits, task: Classification) -> None:
    def action(ctx: Context) -> None:
        with torch.no_grad():
            ctx.model.get_parameter("fc.bias")[0] = float("nan")

    with pytest.raises(InvariantError, match=r"non-finite.*fc\.bias"):
        _hook(action)(trained("cnn"), splits, task, request_kind="random")


def test_changing_the_input_network_is_caught(trained: Trained, splits: Splits, task: Classification) -> None:
    def action(ctx: Context) -> None:
        _nudge(ctx)
        with torch.no_grad():
            ctx.before.get_parameter("fc.bias").add_(1)

    with pytest.raises(InvariantError, match="changed the network it was given"):
        _hook(action)(copy.deepcopy(trained("cnn")), splits, task, request_kind="random")


def test_the_global_generator_is_left_alone(trained: Trained, splits: Splits, task: Classification) -> None:
    def action(ctx: Context) -> None:
        _nudge(ctx)
        ctx.fields["draw"] = float(torch.rand(()))

    state = torch.get_rng_state()
    results = [_hook(action)(trained("cnn"), splits, task, request_kind="random", seed=s) for s in (1, 1, 2)]
    draws = [r.fields["draw"] for r in results]
    assert torch.equal(torch.get_rng_state(), state)
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("method", [OEU(max_steps=10), FT(epochs=1, stop_rule=True, bn="frozen")])
def test_t07_test_and_audit_parts_are_never_read(
    trained: Trained, splits: Splits, task: Classification, method: Unlearner
) -> None:
    closed: Any = Closed(splits)
    with pytest.raises(AssertionError, match="test was read"):
        _ = closed.test
    result = method(trained("cnn"), closed, task, request_kind="random")
    assert result.fields["chosen_step"] in [row["step"] for row in result.trace if row.get("snapshot")]


def test_inputs_are_checked(trained: Trained, splits: Splits, task: Classification, tmp_path: Path) -> None:
    class Speech(Classification):
        name = "speech"

    model = trained("cnn")
    with pytest.raises(UnsupportedError, match="does not support the task speech"):
        FT()(model, splits, Speech(), request_kind="random")
    with pytest.raises(UnsupportedError, match="fake-quantized"):
        FT()(torch.nn.Linear(1, 1), splits, task, request_kind="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="request kind"):
        FT()(model, splits, task, request_kind="speaker")
    with pytest.raises(ConfigError, match="no folder"):
        FT()(model, splits, task, request_kind="random", run_dir=tmp_path / "none")
    with pytest.raises(ConfigError, match="needs a run directory"):
        FT()(model, splits, task, request_kind="random", resume=True)
    with pytest.raises(ConfigError, match="checkpoint_every"):
        FT()(model, splits, task, request_kind="random", checkpoint_every=0)


def test_a_used_folder_needs_resume_and_the_same_run(
    trained: Trained, splits: Splits, task: Classification, tmp_path: Path
) -> None:
    model = trained("cnn")
    FT(epochs=1)(model, splits, task, request_kind="random", run_dir=tmp_path)
    with pytest.raises(ConfigError, match="earlier run"):
        FT(epochs=1)(model, splits, task, request_kind="random", run_dir=tmp_path)
    for method, seed in ((FT(epochs=2), 0), (FT(epochs=1), 1)):
        with pytest.raises(ArtefactError, match="other settings"):
            method(model, splits, task, request_kind="random", run_dir=tmp_path, resume=True, seed=seed)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ArtefactError, match="safetensors"):
        FT(epochs=1)(model, splits, task, request_kind="random", run_dir=tmp_path, resume=True)


def test_divergence_keeps_the_last_good_state(
    trained: Trained, splits: Splits, task: Classification, tmp_path: Path
) -> None:
    model = trained("cnn")
    with pytest.raises(DivergedError, match="step 1") as caught:
        GA(lr=10.0, momentum=0.0, weight_decay=1.0, epochs=400)(
            model, splits, _Exploding(), request_kind="random", run_dir=tmp_path
        )
    assert "last_good" in caught.value.message
    kept = safetensors.torch.load_file(tmp_path / "last_good.safetensors")
    assert set(kept) == set(model.state_dict())
    assert all(bool(v.isfinite().all()) for v in kept.values())


class _Exploding(Classification):
    """The loss turns infinite on the eleventh batch."""

    calls = 0

    def loss(self, logits: Any, batch: Any, *, reduction: str = "mean") -> Any:
        type(self).calls += 1
        value = super().loss(logits, batch, reduction=reduction)
        return value * float("inf") if type(self).calls > 10 else value


def test_gradient_ascent_with_a_large_rate_is_never_a_success(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    method = GA(lr=0.3, epochs=20, stop_rule=True, eval_every=2, utility_floor=0.001)
    try:
        result = method(trained("cnn"), splits, task, request_kind="random")
    except DivergedError:
        return
    assert result.fields["stop_reason"] in ("utility_floor", "over_forgot")
    assert result.fields["stop_verdict"] != "pass" or result.fields["chosen_step"] < len(result.trace) * 2


def test_trained_scales_leave_the_input_alone(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    result = OEU(max_steps=6, train_scales=True, target_accuracy="0..0.1", utility_floor=1.0)(
        model, splits, task, request_kind="random"
    )
    shared = {v.data_ptr() for v in model.state_dict().values()} & {
        v.data_ptr() for v in result.model.state_dict().values()
    }
    assert not shared
    assert result.changes.activation_scales_changed > 0
