"""Bands from each source, and the stop rule on written-out trajectories."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qunlearn.audit import scores, utility
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import ConfigError
from qunlearn.quant import QuantModel, state_digest
from qunlearn.tasks import Classification
from qunlearn.unlearn import METHODS
from qunlearn.unlearn.card import GroupValue, ReferenceCard
from qunlearn.unlearn.probe import Probe, group_values
from qunlearn.unlearn.stopping import ENTROPY_SLACK, Band, Evaluation, Evaluator, StopRule, target_band

Trained = Callable[..., QuantModel]


class Table(nn.Module):
    """Answers class 0 for every input whose first pixel is dark, else the class in the second pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        right = nn.functional.one_hot(x[:, 0, 0, 1].round().long(), 3).float()
        wrong = nn.functional.one_hot(torch.remainder(x[:, 0, 0, 1].round().long() + 1, 3), 3).float()
        return 4.0 * torch.where(x[:, 0, 0, :1] > 0.5, right, wrong) + self.w


def _table(right: list[int], y: list[int], group: list[str] | None = None) -> Samples:
    """Samples of three classes; ``right[i]`` says whether :class:`Table` gets sample i right."""
    n = len(y)
    x = np.zeros((n, 1, 1, 3), np.float32)
    x[:, 0, 0, 0], x[:, 0, 0, 1], x[:, 0, 0, 2] = right, y, np.arange(n)
    names = None if group is None else np.array(group)
    part = np.full(n, "train")
    data = Dataset(
        name="table", x=x, y=np.array(y), ids=np.array([f"s{i}" for i in range(n)]), part=part, group=names,
        class_names=("a", "b", "c"),
    )  # fmt: skip
    data = dataclasses.replace(data, preprocess=type(data.preprocess)((0.0,), (1.0,), 1.0))
    return Samples(data, np.arange(n))


def test_random_band_is_weighted_by_the_classes_of_the_forget_set(task: Classification) -> None:
    stop = _table([1] * 40 + [1] * 20 + [0] * 20, [0] * 40 + [1] * 40)
    forget = _table([1] * 40, [0] * 10 + [1] * 30)
    retain = _table([1] * 100, [0] * 100)
    band = target_band(Table(), task, forget=forget, retain=retain, stop=stop, request_kind="random", tol=0.02)
    assert band is not None
    mean = 0.25 * 1.0 + 0.75 * 0.5
    variance = 0.75**2 * 0.25 / 40 + 0.75 * 0.25 / 40
    half = 1.96 * variance**0.5 + 0.02
    assert band.accuracy == pytest.approx((mean - half, mean + half))
    p_right, p_wrong = np.exp(4) / (np.exp(4) + 2), 1 / (np.exp(4) + 2)
    assert sum(band.confidence) / 2 == pytest.approx(0.25 * p_right + 0.75 * (p_right + p_wrong) / 2, abs=1e-6)
    assert (band.source, band.note) == ("heldout", "")


def test_random_band_says_when_it_is_biased_or_blind(task: Classification) -> None:
    stop, half = _table([1] * 9, [0] * 9), _table([1] * 30, [0] * 20 + [1] * 10)
    band = target_band(Table(), task, forget=half, retain=half, stop=stop, request_kind="ids")
    assert band is not None
    assert "too high" in band.note
    assert "left out" in band.note
    other = _table([1] * 3, [2] * 3)
    assert target_band(Table(), task, forget=other, retain=half, stop=stop, request_kind="random") is None


def _groups() -> tuple[Samples, Samples]:
    forget = _table([1] * 100, [0] * 100, ["anna"] * 100)
    retain = _table([1] * 100, [0] * 100, ["bert"] * 50 + ["carl"] * 50)
    return forget, retain


def test_group_band_prefers_groups_never_trained_on(task: Classification) -> None:
    forget, retain = _groups()
    right = [1] * 30 + [1] * 6 + [0] * 4 + [1] * 8 + [0] * 2
    stop = _table(right, [0] * 50, ["bert"] * 30 + ["dora"] * 10 + ["emil"] * 10)
    card = ReferenceCard(groups={"anna": GroupValue(accuracy=0.1, confidence=0.1, samples=9)})
    args = {"forget": forget, "retain": retain, "request_kind": "group", "card": card}
    band = target_band(Table(), task, stop=stop, tol=0.02, **args)  # type: ignore[arg-type]
    assert band is not None
    assert band.source == "unseen groups"
    assert band.accuracy == pytest.approx((0.58, 0.82))


def test_group_band_from_the_card(task: Classification) -> None:
    forget, retain = _groups()
    stop = _table([1] * 10, [0] * 10, ["bert"] * 10)
    values = {
        "bert": GroupValue(accuracy=0.5, confidence=0.4, samples=9),
        "carl": GroupValue(accuracy=0.9, confidence=0.7, samples=9),
    }
    args = {"forget": forget, "retain": retain, "stop": stop, "request_kind": "group"}
    band = target_band(Table(), task, card=ReferenceCard(groups=values), **args)  # type: ignore[arg-type]
    assert band is not None
    assert band.source == "card (all)"
    assert band.accuracy == pytest.approx((0.48, 0.92))
    assert band.confidence == pytest.approx((0.38, 0.72))
    values["anna"] = GroupValue(accuracy=0.7, confidence=0.5, samples=9)
    band = target_band(Table(), task, card=ReferenceCard(groups=values), **args)  # type: ignore[arg-type]
    assert band is not None
    assert band.source == "card (own)"
    half = 1.96 * (0.7 * 0.3 / 100) ** 0.5 + 0.02
    assert band.accuracy == pytest.approx((0.7 - half, 0.7 + half))
    assert target_band(Table(), task, **args) is None  # type: ignore[arg-type]


def test_class_band_and_declared_band(task: Classification) -> None:
    forget, retain = _groups()
    args = {"forget": forget, "retain": retain, "stop": retain}
    band = target_band(Table(), task, request_kind="class", **args)  # type: ignore[arg-type]
    assert band == Band(accuracy=(0.0, 0.02), confidence=(0.0, 0.05), source="class")
    band = target_band(Table(), task, request_kind="group", declared_accuracy="0.60..0.75", **args)  # type: ignore[arg-type]
    assert band == Band(accuracy=(0.6, 0.75), confidence=(0.0, 1.0), source="declared")
    for text in ("0.7", "0.8..0.6", "a..b", "-1..2", "nan..1"):
        with pytest.raises(ConfigError, match="range"):
            target_band(Table(), task, request_kind="group", declared_accuracy=text, **args)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown"):
        target_band(Table(), task, request_kind="speaker", **args)  # type: ignore[arg-type]


BAND = Band(accuracy=(0.66, 0.74), confidence=(0.0, 1.0), source="declared")
START = Evaluation(
    step=0, forget_accuracy=0.998, forget_confidence=0.98, retain_accuracy=1.0, heldout_accuracy=0.97
)  # fmt: skip


def _rule(band: Band | None = BAND) -> StopRule:
    return StopRule(band=band, start=START, utility_floor=0.03)


def _at(step: int, a_f: float, a_r: float = 0.99, a_h: float | None = 0.96) -> Evaluation:
    return Evaluation(step=step, forget_accuracy=a_f, forget_confidence=a_f, retain_accuracy=a_r, heldout_accuracy=a_h)


def _run(rule: StopRule, values: list[Evaluation]) -> int:
    for i, e in enumerate(values):
        rule.observe(e)
        if rule.reason is not None:
            return i + 1
    return len(values)


def test_t07_a_non_monotone_trajectory_ends_at_the_right_snapshot() -> None:
    rule = _rule()
    trajectory = [_at(75, 0.95), _at(90, 0.742), _at(105, 0.856), _at(120, 0.816)]
    assert _run(rule, trajectory) == 4
    assert rule.reason is None
    assert rule.best == trajectory[1]
    assert rule.judge(trajectory[1])[0] == "fail"
    assert rule.best_objective == pytest.approx(0.002 + 0.01 + 0.01)


def test_target_needs_two_confirmations_in_a_row() -> None:
    rule = _rule()
    assert _run(rule, [_at(5, 0.7), _at(10, 0.8), _at(15, 0.72), _at(20, 0.7, 0.995), _at(25, 0.7)]) == 4
    assert rule.reason == "target_reached"
    assert rule.best is not None
    assert rule.best.step == 20
    assert rule.judge(rule.best) == ("pass", "none")


def test_t08_over_forgetting_is_a_failure_and_rolls_back() -> None:
    rule = _rule()
    assert _run(rule, [_at(5, 0.8), _at(10, 0.5), _at(15, 0.3), _at(20, 0.2), _at(25, 0.1)]) == 4
    assert rule.reason == "over_forgot"
    assert rule.best is not None
    assert rule.best.step == 5
    assert rule.judge(_at(20, 0.2)) == ("fail", "over")


def test_lost_utility_stops_and_rolls_back() -> None:
    rule = _rule()
    assert _run(rule, [_at(5, 0.9), _at(10, 0.7, 0.9), _at(15, 0.7, 0.99, 0.9), _at(20, 0.7, 0.5)]) == 4
    assert rule.reason == "utility_floor"
    assert rule.best is not None
    assert rule.best.step == 5
    assert rule.judge(_at(20, 0.7, 0.5)) == ("fail", "utility")


def test_a_network_that_grew_unsure_of_everybody_has_lost_utility() -> None:
    start = dataclasses.replace(START, heldout_entropy=0.04)
    for entropy, drift, usable in ((0.089, 0.5, True), (0.091, 0.5, False), (0.091, None, True), (0.0, 0.5, True)):
        rule = StopRule(band=BAND, start=start, utility_floor=0.03, entropy_drift=drift)
        e = dataclasses.replace(_at(5, 0.7), heldout_entropy=entropy)
        assert rule.utility_ok(e) == usable
        assert rule.judge(e)[0] == ("pass" if usable else "fail")
        for step in (5, 10, 15):
            rule.observe(dataclasses.replace(e, step=step))
        assert (rule.best_usable, rule.reason) == (usable, "target_reached" if usable else None)
    sharp = dataclasses.replace(START, heldout_entropy=0.4)
    rule = StopRule(band=BAND, start=sharp, utility_floor=0.03, entropy_drift=0.5)
    usable_at = [rule.utility_ok(dataclasses.replace(_at(5, 0.7), heldout_entropy=h)) for h in (0.19, 0.21, 0.61)]
    assert usable_at == [False, True, False]


def test_the_rule_allows_the_entropy_that_the_audits_allow(splits: Splits, trained: Trained) -> None:
    model = trained("cnn")
    start = Probe(Classification(), splits.heldout_stop, size=2000, seed=0, purpose="x")(model).entropy
    z = Classification().predict(model, splits.heldout_stop).astype(np.float64)
    assert start == pytest.approx(float(scores.entropy(z).mean()) / np.log(10), abs=1e-6)
    assert (METHODS["oeu"]().entropy_drift, ENTROPY_SLACK) == (utility.ENTROPY_FACTOR, utility.ENTROPY_SLACK)


def test_controls_that_must_fail() -> None:
    assert _rule().judge(START) == ("fail", "under")
    assert _rule().judge(_at(1, 0.1, 0.1, 0.1)) == ("fail", "utility")
    assert _rule().judge(_at(1, 0.1)) == ("fail", "over")


def test_without_a_band_only_utility_decides_and_nothing_passes() -> None:
    rule = _rule(None)
    assert _run(rule, [_at(5, 0.9), _at(10, 0.5), _at(15, 0.4, 0.8)]) == 3
    assert rule.best is not None
    assert rule.best.step == 10
    assert rule.judge(rule.best) == ("inconclusive", "none")
    assert rule.judge(_at(15, 0.4, 0.8)) == ("fail", "utility")


def test_state_survives_json_at_every_point() -> None:
    trajectory = [_at(5, 0.8), _at(10, 0.7, 0.9), _at(15, 0.7), _at(20, 0.6), _at(25, 0.71, 0.99, None), _at(30, 0.7)]
    trajectory[2] = dataclasses.replace(trajectory[2], heldout_entropy=0.03)
    whole = _rule()
    for e in trajectory:
        cut = _rule()
        cut.load(json.loads(json.dumps(whole.state())))
        assert cut == whole
        assert cut.observe(e) == whole.observe(e)
        assert cut == whole


def test_evaluations_change_nothing_and_read_at_most_size_samples(
    trained: Trained, splits: Splits, task: Classification
) -> None:
    model = trained("cnn")
    before = state_digest(model)
    model.train()
    try:
        evaluate = Evaluator(
            task, forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop, request_kind="random",
            size=50, seed=1,
        )  # fmt: skip
        first, second = evaluate(model, 3), evaluate(model, 3)
        assert all(m.training for m in model.modules())
    finally:
        model.eval()
    assert first == second
    assert state_digest(model) == before
    assert [len(p.rows) for p in (evaluate.forget, evaluate.retain)] == [50, 50]


def test_evaluation_equals_a_direct_count(trained: Trained, splits: Splits, task: Classification) -> None:
    model = trained("cnn")
    value = Probe(task, splits.retain, size=2000, seed=0, purpose="x")(model)
    logits = task.predict(model, splits.retain)
    y = splits.retain.targets()
    p = torch.from_numpy(logits).double().softmax(1).numpy()[np.arange(len(y)), y]
    assert value.accuracy == pytest.approx(float((logits.argmax(1) == y).mean()))
    assert value.confidence == pytest.approx(float(p.mean()), abs=1e-6)
    assert value.samples == len(y)


def test_a_forgotten_class_is_left_out_of_heldout_accuracy(dataset: Dataset, task: Classification) -> None:
    forget = Samples(dataset, np.flatnonzero((dataset.y == 7) & (dataset.part == "train")))
    retain = Samples(dataset, np.flatnonzero((dataset.y != 7) & (dataset.part == "train")))
    stop = dataset.samples("heldout")
    evaluate = Evaluator(task, forget=forget, retain=retain, stop=stop, request_kind="class", size=2000, seed=0)
    assert evaluate.heldout is not None
    assert len(evaluate.heldout.rows) == int((stop.targets() != 7).sum())


def test_group_values_split_by_group(trained: Trained, dataset: Dataset, task: Classification) -> None:
    samples = dataset.samples("heldout")
    values = group_values(trained("cnn"), task, samples)
    assert sorted(values) == sorted(dataset.group_names)
    hits = task.predict(trained("cnn"), samples).argmax(1) == samples.targets()
    assert samples.group is not None
    assert values["g2"].accuracy == pytest.approx(float(hits[samples.group == "g2"].mean()))
    assert sum(v.samples for v in values.values()) == len(samples)


def test_random_band_covers_retrained_networks(
    dataset: Dataset, task: Classification, trained: Trained, retrained: Callable[[Splits, int], QuantModel]
) -> None:
    inside = 0
    for seed in (0, 1, 2):
        own = make_splits(dataset, Request.parse("random=10%"), seed=seed)
        args = {"forget": own.forget, "retain": own.retain, "stop": own.heldout_stop}
        band = target_band(trained("mlp", "w8a8", seed), task, request_kind="random", **args)  # type: ignore[arg-type]
        assert band is not None
        value = Probe(task, own.forget, size=2000, seed=0, purpose="x")(retrained(own, seed + 10))
        inside += int(band.accuracy[0] <= value.accuracy <= band.accuracy[1])
    assert inside >= 2
