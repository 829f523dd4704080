"""One trial of a calibration: the crafted request beside its controls, all read at matched utility. Needs torch."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.audit import eve_flips, scores
from qunlearn.audit.eve_align import cosine, uniform_noise
from qunlearn.audit.eve_calibration import ARMS, COMPARATOR, TREATMENT, Reading
from qunlearn.audit.eve_craft import Aim, EveCraft
from qunlearn.audit.eve_request import replaced
from qunlearn.audit.predictor import FirmwarePredictor, OnnxPredictor, OraclePredictor, Predictor, TorchPredictor
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.eve import EveSplit, require_disjoint
from qunlearn.data.splits import Splits
from qunlearn.errors import DivergedError
from qunlearn.quant import QuantModel, lower
from qunlearn.quant.freeze import freeze_quant
from qunlearn_export.writer import serialize

PATIENCE = 15
"""Readings beyond the utility budget in a row after which an arm has ended for good [our choice]."""

CHUNK = 2048
"""Samples of one pass when an arm is read."""

Watch = Callable[[int, int, QuantModel], bool]


class Unlearning(Protocol):
    """An unlearning procedure whose steps can be watched; the command makes it from a method."""

    @property
    def digest(self) -> str:
        """Digest of method and settings."""

    def run(self, model: QuantModel, splits: Splits, *, seed: int, retain_only: bool, watch: Watch) -> None:
        """Unlearn ``splits.forget`` from a copy of ``model``; ``retain_only``: the same steps on kept samples alone.
        ``watch`` sees the copy after every step and ends the run by returning False."""


def answers(model: QuantModel, kind: str) -> Predictor:
    """What answers as artefact ``kind``: the network itself, or what is exported from it."""
    if kind.startswith("torch"):
        return TorchPredictor(model, kind=kind)
    data = serialize(lower(model))
    if kind == "oracle":
        return OraclePredictor(data)
    if kind.startswith("c-"):
        return FirmwarePredictor(data, kind=kind)
    return OnnxPredictor(data, level=kind.removeprefix("onnx-"))


class Matched:
    """Keeps the last step at which neither retain nor held-out accuracy had fallen by more than ``drop``."""

    def __init__(
        self, model: QuantModel, retain: Samples, heldout: Samples, *, drop: float, steps: int, every: int
    ) -> None:
        self._x = torch.from_numpy(np.concatenate([retain.inputs(), heldout.inputs()]))
        self._y, self._n = np.concatenate([retain.targets(), heldout.targets()]), len(retain)
        self._drop, self._steps, self._every = drop, steps, every
        self._start = self._accuracies(model)
        self._beyond = 0
        self.step, self.total, self.drops = 0, steps, (0.0, 0.0)
        self.state: Mapping[str, Tensor] | None = None
        self.seconds = 0.0

    def __call__(self, t: int, total: int, model: QuantModel) -> bool:
        """Read the network after step ``t``; False ends the run."""
        self.total = min(self._steps, total)
        if t % self._every and t < self.total:
            return True
        begun = time.perf_counter()
        now = self._accuracies(model)
        drops = (self._start[0] - now[0], self._start[1] - now[1])
        if max(drops) <= self._drop + 1e-9:
            self.step, self.drops, self._beyond = t, drops, 0
            self.state = {n: v.detach().clone() for n, v in model.state_dict().items()}
        else:
            self._beyond += 1
        self.seconds += time.perf_counter() - begun
        return t < self.total and self._beyond < PATIENCE

    def model(self, before: QuantModel) -> QuantModel:
        """The network at the step that was kept, in evaluation mode; the one before where none was."""
        out = copy.deepcopy(before).eval()
        if self.state is not None:
            out.load_state_dict(dict(self.state))
        return out

    @torch.no_grad()
    def _accuracies(self, model: nn.Module) -> tuple[float, float]:
        modes = [(m, m.training) for m in model.modules()]
        model.eval()
        try:
            z = np.concatenate([model(part).numpy() for part in torch.split(self._x, CHUNK)])
        finally:
            for module, training in modes:
                module.training = training
        right = scores.correct(z, self._y)
        return float(right[: self._n].mean()), float(right[self._n :].mean())


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all arms of one trial share."""

    model: QuantModel
    split: EveSplit
    heldout: Samples
    craft: EveCraft
    unlearning: Unlearning
    kind: str
    steps: int
    every: int
    seed: int

    def splits(self, forget: Samples) -> Splits:
        """What a method gets to see: the forget set in a data set of its own, the same kept samples."""
        dataset = forget.dataset
        half = np.arange(len(self.heldout)) % 2 == 0
        return Splits(
            forget=forget,
            retain=Samples(dataset, self.split.retain.index),
            heldout_stop=Samples(dataset, self.heldout.index[half]),
            heldout_audit=Samples(dataset, self.heldout.index[~half]),
            test=Samples(dataset, np.concatenate([self.split.targets.index, self.split.bystanders.index])),
            request_kind="ids",
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """``readings`` by arm, and the network of each arm (for tests that read it as several artefacts)."""

    readings: Mapping[str, Reading]
    models: Mapping[str, QuantModel]
    aim: Aim


def trial(bench: Bench) -> Trial:
    """All arms once. Retain and erased samples are disjoint by content, as are the private ones (else ConfigError)."""
    split, cfg, seed = bench.split, bench.craft.config, bench.seed
    require_disjoint([("erase", split.erase), ("retain", split.retain), ("targets", split.targets)])
    aim = bench.craft.aim(bench.model, split)
    samples, seconds = _requests(bench, aim)
    y = split.erase.targets()
    wrong = (
        y + np.random.default_rng([seed, 101]).integers(1, split.erase.num_classes, len(y))
    ) % split.erase.num_classes
    dataset = split.erase.dataset
    plain = replaced(dataset, split.erase.index[:0], split.erase.inputs(slice(0, 0)), y[:0])
    sets: dict[str, tuple[Dataset, NDArray[np.int64]]] = {
        "continued": (plain, split.erase.index),
        "fake_other": (plain, split.other.index),
        "fake_relabel": (replaced(dataset, split.erase.index, samples[TREATMENT], wrong), split.erase.index),
        **{a: (replaced(dataset, split.erase.index, x, y), split.erase.index) for a, x in samples.items()},
    }
    before = answers(bench.model, bench.kind)
    readings: dict[str, Reading] = {}
    models: dict[str, QuantModel] = {}
    steps = bench.steps
    for arm in sorted(ARMS, key=lambda a: a != "clean"):  # its number of steps is the budget of `continued`
        matched = Matched(
            bench.model, split.retain, bench.heldout, drop=cfg.utility_drop, steps=steps, every=bench.every
        )
        begun = time.perf_counter()
        if arm in sets:
            data, rows = sets[arm]
            with contextlib.suppress(DivergedError):  # beyond the budget: the step that was kept is read
                bench.unlearning.run(
                    bench.model,
                    bench.splits(Samples(data, rows)),
                    seed=seed,
                    retain_only=arm == "continued",
                    watch=matched,
                )
        if arm == "clean":
            steps = matched.total
        unlearn = time.perf_counter() - begun - matched.seconds
        models[arm] = matched.model(bench.model)
        begun = time.perf_counter()
        after = answers(models[arm], bench.kind)
        flips = flips_of(before, after, split.targets, aim.y_adv)
        verify = time.perf_counter() - begun
        noise = flips_of(before, after, split.bystanders, None)
        readings[arm] = Reading(
            flip=float(flips.flip.mean()),
            strict=float(flips.strict.mean()),
            resolved=bool(flips.resolved.all()),
            retain_drop=matched.drops[0],
            heldout_drop=matched.drops[1],
            bystanders=float(noise.flip.mean()),
            erased=float(scores.correct(after.on(split.erase), y).mean()),
            cos=_cos(bench, aim, samples[arm], y) if arm in samples else None,
            step=matched.step,
            margin=float(flips.after.min()),
            seconds={"craft": seconds.get(arm, 0.0), "unlearn": unlearn, "verify": verify},
        )
    return Trial(readings={a: readings[a] for a in ARMS}, models=models, aim=aim)


def flips_of(
    before: Predictor, after: Predictor, samples: Samples, wanted: NDArray[np.int64] | None
) -> eve_flips.Flips:
    """Readings of ``samples``, margins of at least one output step."""
    return eve_flips.read(
        before.on(samples), after.on(samples), samples.targets(), step=eve_flips.step_of(after), least=1, wanted=wanted
    )


def _requests(bench: Bench, aim: Aim) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
    """Samples of the arms that erase the owner's data, and the seconds that making them took."""
    split = bench.split
    out, seconds = {"clean": split.erase.inputs()}, {}
    out["random"] = aim.grid.values(uniform_noise(split.erase.inputs(), eps=aim.eps, grid=aim.grid, seed=bench.seed))
    for arm, aligned in ((COMPARATOR, False), (TREATMENT, True)):
        begun = time.perf_counter()
        found = bench.craft.craft(bench.model, split, aim, seed=bench.seed, aligned=aligned)
        seconds[arm] = time.perf_counter() - begun
        out[arm] = aim.grid.values(found.codes)
    return out, seconds


def _cos(bench: Bench, aim: Aim, x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    craft = bench.craft
    with freeze_quant(bench.model):
        g_bd = craft.direction(bench.model, bench.split, aim)
        return cosine(bench.model, torch.from_numpy(x), torch.from_numpy(y), g_bd, craft.forget_loss, craft.config)
