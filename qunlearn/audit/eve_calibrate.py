"""Calibration: repeated trials on the owner's own copy of the network and of the unlearning procedure. Needs torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import scores
from qunlearn.audit.eve_arms import Bench, Trial, Unlearning, trial
from qunlearn.audit.eve_calibration import Calibration
from qunlearn.audit.eve_craft import EveCraft
from qunlearn.audit.predictor import TorchPredictor
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.eve import EveSplit, split_eve
from qunlearn.fingerprint import plain
from qunlearn.quant import QuantModel, codes_digest


def confidences(model: QuantModel, dataset: Dataset, among: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """True-class probability float64 [N] where the network is right, NaN elsewhere and outside ``among``."""
    rows = np.arange(len(dataset)) if among is None else among
    samples = Samples(dataset, rows)
    z, y = TorchPredictor(model).on(samples), samples.targets()
    out = np.full(len(dataset), np.nan)
    out[rows] = np.where(scores.correct(z, y), scores.confidence(z, y), np.nan)
    return out


def rest_of(heldout: Samples, split: EveSplit) -> Samples:
    """Held-out samples without targets and bystanders."""
    return Samples(
        heldout.dataset, np.setdiff1d(heldout.index, np.concatenate([split.targets.index, split.bystanders.index]))
    )


@dataclass(frozen=True, kw_only=True)
class EveCalibrate:
    """Makes calibrations. ``kind`` is the artefact kind that answers are read from; ``steps`` the budget of every arm,
    of which each ``every``-th is looked at."""

    craft: EveCraft
    unlearning: Unlearning
    kind: str = "onnx-all"
    steps: int = 150
    every: int = 1

    def __call__(
        self,
        model: QuantModel,
        dataset: Dataset,
        *,
        n_erase: int,
        seed: int,
        trials: int | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Calibration:
        """``trials`` (default: those of the configuration) independent draws of erased samples, targets, bystanders."""
        total = self.craft.config.trials if trials is None else trials
        found = []
        for r in range(total):
            found.append(self.trial(model, dataset, n_erase=n_erase, seed=seed + r))
            if progress is not None:
                flips = sum(int(t.readings["eve"].flip == 1) for t in found)
                progress(r + 1, total, f"trials, flipped in {flips}")
        return self.pool(model, found)

    def trial(self, model: QuantModel, dataset: Dataset, *, n_erase: int, seed: int) -> Trial:
        """One draw with all its arms."""
        cfg = self.craft.config
        split = split_eve(
            dataset, n_erase, cfg.n_targets, cfg.n_bystanders, seed,
            confidence=confidences(model, dataset), wanted=cfg.target_confidence,
        )  # fmt: skip
        return trial(
            Bench(
                model=model,
                split=split,
                heldout=rest_of(dataset.samples("heldout"), split),
                craft=self.craft,
                unlearning=self.unlearning,
                kind=self.kind,
                steps=self.steps,
                every=self.every,
                seed=seed,
            )
        )

    def pool(self, model: QuantModel, found: list[Trial]) -> Calibration:
        """The calibration of these trials of one network."""
        cfg = self.craft.config
        return Calibration(
            model=codes_digest(model),
            unlearner=self.unlearning.digest,
            config=cfg.digest(),
            kind=self.kind,
            alpha=cfg.alpha,
            utility_drop=cfg.utility_drop,
            trials=tuple(t.readings for t in found),
            settings={"eve": plain(cfg), "method": self.craft.method, "steps": self.steps, "every": self.every},
        )
