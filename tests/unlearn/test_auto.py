"""lr="auto": pilots that are beginnings of the run, scored by the stop rule's J, and what they may see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import ConfigError, DivergedError
from qunlearn.quant import QuantModel, state_digest
from qunlearn.tasks import Classification
from qunlearn.unlearn import auto
from qunlearn.unlearn.auto import Pilot, length, settle_lr
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.objective import Objective
from qunlearn.unlearn.oeu import OEU
from qunlearn.unlearn.rl import RL

Trained = Callable[..., QuantModel]
SHORT = {"max_steps": 24, "eval_every": 4, "probe": 100, "diag_every": 1000}


class Readable:
    """Splits of which only what a run may read can be read."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits

    def __getattr__(self, name: str) -> Any:
        if name not in ("forget", "retain", "heldout_stop"):
            raise AssertionError(f"{name} was read")
        return getattr(self._splits, name)


@pytest.fixture(scope="module")
def of_a_class(dataset: Any) -> Splits:
    return make_splits(dataset, Request.parse("class=3"), seed=0)


def test_settles_by_j_alone_and_again_the_same(trained: Trained, of_a_class: Splits, task: Classification) -> None:
    model, method = trained("mlp"), OEU(lr="auto", **SHORT)
    before, state, closed = state_digest(model), torch.get_rng_state(), Readable(of_a_class)
    said: list[str] = []
    found = settle_lr(method, model, closed, task, request_kind="class", seed=3, say=said.append)  # type: ignore[arg-type]
    assert state_digest(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert found.method == dataclasses.replace(method, lr=found.lr)
    best = min(found.pilots, key=Pilot.rank)
    assert best.lr == found.lr
    assert best.usable
    assert best.J is not None
    assert found.start > best.J  # closer to the target than doing nothing
    rates = [p.lr for p in found.pilots]
    assert {1e-5, 1e-4, 1e-3, 1e-2, 1e-1} <= set(rates)  # a decade apart over the declared range
    assert {round(found.lr / r, 1) for r in rates} & {3.2, 0.3}  # and half a decade beside the best
    assert len(said) == len(rates)
    again = settle_lr(method, model, of_a_class, task, request_kind="class", seed=3)
    assert again.pilots == found.pilots
    assert found.passes == sum(p.passes for p in found.pilots) > 0
    result = found.method(model, of_a_class, task, request_kind="class", seed=3)
    pilot = next(p for p in found.pilots if p.lr == found.lr)
    begun = [row for row in result.trace if row["step"] <= pilot.steps]
    assert begun[-1]["passes"] == pilot.passes  # the pilot was the beginning of this very run
    assert min(row["J"] for row in begun if "J" in row and row["utility_ok"]) == pilot.J
    assert result.fields["chosen"]["J"] <= pilot.J
    assert result.config["lr"] == found.lr


def test_damage_and_divergence_rank_last(
    trained: Trained, of_a_class: Splits, task: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [(1.0, 0.0, False), (2.0, None, False), (3.0, 0.5, True), (0.3, 0.5, True)]
    order = sorted((Pilot(lr=lr, J=j, usable=u, steps=1, passes=1.0) for lr, j, u in made), key=Pilot.rank)
    assert [p.lr for p in order] == [0.3, 3.0, 1.0, 2.0]
    run = OEU.run

    def breaks(self: OEU, ctx: Any) -> None:
        if float(self.lr) > 1e-3:
            raise DivergedError("oeu diverged.", remedy="Use a smaller lr.")
        run(self, ctx)

    monkeypatch.setattr(OEU, "run", breaks)
    found = settle_lr(OEU(lr="auto", lam=10.0, **SHORT), trained("mlp"), of_a_class, task, request_kind="class")
    lost = [p for p in found.pilots if p.lr > 1e-3]
    assert lost
    assert all(p.J is None and not p.usable and p.note.startswith("diverged after 0") for p in lost)
    assert found.lr <= 1e-3


def test_no_rate_that_helps_is_an_error_with_the_table(
    trained: Trained, of_a_class: Splits, task: Classification
) -> None:
    with pytest.raises(ConfigError, match=r"no learning rate.*doing nothing \(J 0\.000\).*1e-05: J.*0\.1: ") as caught:
        settle_lr(
            OEU(lr="auto", target_accuracy="0..1", **SHORT), trained("mlp"), of_a_class, task, request_kind="class"
        )
    assert "Give a number" in caught.value.remedy


def test_what_cannot_be_settled(trained: Trained, splits: Splits, task: Classification, dataset: Any) -> None:
    group = make_splits(dataset, Request.parse("group=g1"), seed=0)
    with pytest.raises(
        ConfigError, match="needs a target"
    ):  # no card, and every group of the held-out data was trained on
        settle_lr(OEU(lr="auto"), trained("mlp"), group, task, request_kind="group")
    with pytest.raises(ConfigError, match="needs stop_rule=true"):
        settle_lr(FT(lr="auto"), trained("mlp"), splits, task, request_kind="random")
    with pytest.raises(ConfigError, match="no number yet") as caught:
        RL(lr="auto", stop_rule=True)(trained("mlp"), splits, task, request_kind="random")
    assert "settle_lr" in caught.value.remedy


def test_pilots_are_short() -> None:
    assert [length(total, 5) for total in (4, 12, 60, 300)] == [4, 12, 15, 75]
    assert length(300, 20) == 80
    assert length(1000, 100) == 300
    assert length(30, 20) == 30  # two evaluations at least
    assert auto.SHARE == 4


def test_objective_of_the_original_is_its_distance_to_the_band(
    trained: Trained, of_a_class: Splits, task: Classification
) -> None:
    objective = Objective(trained("mlp"), of_a_class, task, request_kind="class")
    value, kept = objective(trained("mlp"))
    assert kept
    assert objective.band is not None
    start = objective.rule.start
    assert value == objective.band.distance(start.forget_accuracy, start.forget_confidence)
    assert value > 1.5  # accuracy and confidence, both near 1, both wanted near 0
