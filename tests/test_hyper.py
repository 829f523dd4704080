"""Hyper-parameters: every problem at once, texts to values, presets, and what the registry refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from qunlearn.errors import ConfigError
from qunlearn.hyper import hyper
from qunlearn.unlearn import METHODS, Unlearner, hypers, register
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.oeu import OEU
from qunlearn.unlearn.rl import RL


def test_all_problems_come_at_once() -> None:
    bad = OEU(lr=-1.0, lam=11, loss="e3", k=0, batch_size=2, momentum=float("nan"), epochs=True, bn="on")
    with pytest.raises(ConfigError) as caught:
        bad.validate()
    words = (
        "lr -1",
        "lam 11",
        "loss 'e3'",
        "k 0",
        "batch_size 2",
        "momentum = nan must be finite",
        "epochs",
        "bn 'on'",
    )
    for word in words:
        assert word in caught.value.message
    assert "qunlearn methods oeu" in caught.value.remedy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "momentum belongs to optimizer sgd"),
        ({"project_at": "metric"}, "needs optimizer=adam"),
        ({"ema_only": True}, "needs retain_ref=ema"),
        ({"pairing": "forget_then_retain"}, "cannot carry a projection"),
        ({"target_accuracy": "0.9..0.1"}, "not a range"),
    ],
)
def test_senseless_combinations_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OEU(**settings).validate()


def test_t11_clipping_that_changes_the_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match="changes the direction"):
        OEU(clip="tensor").validate()  # type: ignore[arg-type]


def test_lr_auto_needs_the_stop_rule_and_is_settled_before_a_run() -> None:
    for cls in (c for c in METHODS.values() if "lr" in hypers(c)):
        cls.from_settings({"lr": "auto", "stop_rule": "true"}).validate()
        assert hypers(cls)["lr"].search
        with pytest.raises(ConfigError, match="needs stop_rule=true"):
            cls.from_settings({"lr": "auto", "stop_rule": "false"}).validate()
    with pytest.raises(ConfigError, match="need a number for lr"):
        METHODS["ec"](base="rl", base_settings="lr=auto stop_rule=true").validate()


def test_every_default_is_valid_and_documented() -> None:
    for cls in METHODS.values():
        cls().validate()
        for h in hypers(cls).values():
            assert h.doc
            assert h.problem(h.default) is None


def test_settings_are_parsed_by_type() -> None:
    method = OEU.from_settings(
        {"lr": "0.003", "epochs": "none", "clip": "1", "k": "4", "stop_rule": "off", "scope": "layer"}
    )
    assert (method.lr, method.epochs, method.clip, method.k, method.stop_rule, method.scope) == (
        0.003, None, 1.0, 4, False, "layer",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        OEU.from_settings({"k": "many", "nothing": "1", "stop_rule": "perhaps"})
    for word in ("k must be a whole number", "'nothing' is unknown", "stop_rule must be true or false"):
        assert word in caught.value.message


def test_preset_and_what_it_does_to_the_guarantee() -> None:
    method = OEU.from_settings({"preset": "predecessor", "lr": "0.02"})
    assert (method.momentum, method.weight_decay, method.schedule, method.bn) == (0.9, 5e-4, "cosine", "train")
    assert (method.batch_size, method.epochs, method.lr) == (256, 10, 0.02)
    assert method.guarantee() == "void: momentum"
    with pytest.raises(ConfigError, match="no preset"):
        OEU.from_settings({"preset": "paper"})
    with pytest.raises(ConfigError, match="no preset"):
        RL.from_settings({"preset": "predecessor"})


@pytest.mark.parametrize(
    ("settings", "guarantee"),
    [
        ({}, "first-order"),
        ({"clip": 1.0}, "first-order"),
        ({"when": "conflict"}, "one-sided: conflict"),
        ({"scope": "none"}, "void: scope none"),
        ({"momentum": 0.9}, "void: momentum"),
        ({"optimizer": "adam"}, "void: adam"),
        ({"weight_decay": 1e-4}, "void: weight decay"),
        ({"retain_ref": "ema"}, "first-order"),
        ({"retain_ref": "ema", "ema_only": True}, "void: ema_only"),
        ({"project_at": "update", "momentum": 0.9, "weight_decay": 1e-4}, "first-order"),
        ({"project_at": "metric", "optimizer": "adam"}, "first-order"),
    ],
)
def test_guarantee(settings: dict[str, Any], guarantee: str) -> None:
    method = OEU(**settings)
    method.validate()
    assert method.guarantee() == guarantee


def test_call_is_final() -> None:
    with pytest.raises(ConfigError, match="final"):

        class Bad(Unlearner):
            def __call__(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
                return None

            def run(self, ctx: Context) -> None:
                return None


def test_register_lists_what_is_missing() -> None:
    class Loose(Unlearner):
        def run(self, ctx: Context) -> None:
            return None

    with pytest.raises(ConfigError) as caught:
        register(Loose)
    for word in ("name is not set", "tasks is not set", "source is not set", "keyword-only", "docstring"):
        assert word in caught.value.message

    @dataclass(frozen=True, kw_only=True)
    class Half(Unlearner):
        """Has a hyper-parameter without a doc and with a bad default."""

        name: ClassVar[str] = "half"
        tasks: ClassVar[tuple[str, ...]] = ("painting",)
        source: ClassVar[str] = "none"
        ships: ClassVar[str] = "nothing"
        x: int = 3
        y: float = hyper(5.0, low=0, high=1, doc="a number")

        def run(self, ctx: Context) -> None:
            return None

    with pytest.raises(ConfigError) as caught:
        register(Half)
    for word in ("x has no doc", "y 5 is outside 0..1", "painting", "ships must be"):
        assert word in caught.value.message
    assert "half" not in METHODS


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="twice"):
        register(OEU)
