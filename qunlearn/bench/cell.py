"""One cell of a grid: one network, one request, one method with one configuration; its figures as plain data."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qunlearn import fingerprint, quant, tasks
from qunlearn.audit import layers, scores
from qunlearn.audit.mia import FPR, FPR_MIN_N
from qunlearn.audit.predictor import OnnxPredictor, Predictor, TorchPredictor
from qunlearn.audit.summary import gap, summary
from qunlearn.audit.utility import FLOOR, measure
from qunlearn.bench.grid import Grid
from qunlearn.bench.networks import Trained, most_passes, network
from qunlearn.bench.recipes import recipe_for
from qunlearn.bench.scene import ORIGINAL, RETRAINED, Scene, Spot, closed, keys_of, scene
from qunlearn.data.dataset import Dataset
from qunlearn.data.splits import Splits
from qunlearn.errors import QunlearnError
from qunlearn.tasks.similarity import cka
from qunlearn.unlearn import METHODS, Objective, TooCostlyError
from qunlearn_export import writer

CLOSED_SETS = ("forget", "retain", "heldout")
OPEN_SETS = ("forget", "retain", "heldout", "test", "forget_test")
CKA_FEWEST, CKA_SAMPLES = 50, 500


def file_of(model: quant.QuantModel, config: quant.RunConfig) -> OnnxPredictor:
    """The int8 file of a network, held in memory, under ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        writer.export(quant.lower(model, meta={"task": config.task, "preprocess": config.preprocess}), path)
        return OnnxPredictor(path.read_bytes())


def figures(grid: Grid, predictor: Predictor, splits: Splits, seed: int, *, tuning: bool) -> dict[str, Any]:
    """Accuracies and MIA of one artefact, fractions."""
    found = summary(
        predictor,
        splits,
        tasks.get("classification"),
        seed,
        nonmembers="heldout" if tuning else grid.mia_nonmembers,
        sets=CLOSED_SETS if tuning else OPEN_SETS,
    )
    return {k: v for k, v in found.items() if k.endswith("_accuracy") or k in ("mia", "mia_degenerate")}


def beside(predictor: Predictor, reference: Predictor, splits: Splits, *, tuning: bool) -> dict[str, Any]:
    """What tables print beside the headline: entropy, confidence, distance to the retrained file."""
    z, r = predictor.on(splits.forget), reference.on(splits.forget)
    out = {
        "entropy": float(scores.entropy(z).mean()),
        "max_probability": float(scores.max_probability(z).mean()),
        "kl_forget": float(scores.kl(r, z).mean()),
    }
    if tuning:
        return out
    out["kl_test"] = float(scores.kl(reference.on(splits.test), predictor.on(splits.test)).mean())
    if len(splits.test) >= FPR_MIN_N:
        outside = scores.confidence(predictor.on(splits.test), splits.test.targets())
        inside = scores.confidence(z, splits.forget.targets())
        out["tpr_at_fpr"] = float(scores.tpr_at_fpr(inside, outside, FPR).mean())
    return out


def similarity(predictor: Predictor, original: Predictor, splits: Splits, seed: int) -> float | None:
    """Debiased linear CKA of both files' penultimate features on the forget set; None where it is undefined."""
    rows = np.random.default_rng([seed, 41]).permutation(len(splits.forget))[:CKA_SAMPLES]
    samples = splits.forget.take(np.sort(rows))
    a, b = (layers.features(p, samples, (layers.PENULTIMATE,))[layers.PENULTIMATE] for p in (predictor, original))
    value = cka(a, b) if len(samples) >= CKA_FEWEST else math.nan
    return value if math.isfinite(value) else None


class Bench:
    """Runs cells of one grid; scenes and the figures of their fixed rows are kept for the next cell."""

    def __init__(self, grid: Grid, dataset: Dataset, work: Path) -> None:
        self.grid, self.dataset, self.work = grid, dataset, work
        self._scene: Scene | None = None
        self._files: dict[str, OnnxPredictor] = {}
        self._targets: dict[bool, dict[str, Any]] = {}
        self._judge: Objective | None = None

    def scene(self, spot: Spot) -> Scene:
        """The scene of a spot; the last one is kept."""
        if self._scene is None or self._scene.spot != spot:
            self._scene = scene(self.grid, self.dataset, spot, self.work)
            self._files.clear()
            self._targets.clear()
            self._judge = None
        return self._scene

    def _file(self, at: Scene, row: str) -> OnnxPredictor:
        if row not in self._files:
            trained = self._trained(at, row)
            self._files[row] = file_of(trained.model, trained.config)
        return self._files[row]

    def _trained(self, at: Scene, row: str) -> Trained:
        if row == ORIGINAL:
            return at.original
        if row == RETRAINED:
            return at.retrained
        return network(self.grid, self.dataset, keys_of(at.spot)[row], self.work)

    def row(self, spot: Spot, row: str) -> dict[str, Any]:
        """One of the fixed rows: the network as it is."""
        at = self.scene(spot)
        trained = self._trained(at, row)
        own = self._measured(at, at.splits, trained.model, self._file(at, row), tuning=False)
        epochs = recipe_for(self.dataset, self.grid.data, **self.grid.train).epochs
        return own | {"seconds": trained.seconds, "processor": trained.processor, "passes": float(epochs)}

    def run(self, spot: Spot, method: str, config: Mapping[str, Any], *, tuning: bool) -> dict[str, Any]:
        """Unlearn and measure; a run that fails is a cell with ``error``.

        A tuning run ends as soon as it costs more than the grid allows: it counts as failed anyway.
        """
        at = self.scene(spot)
        splits = closed(at.splits) if tuning else at.splits
        task = tasks.get("classification")
        started, busy = time.perf_counter(), time.process_time()
        try:
            unlearner = METHODS[self.grid.base(method)](**config)
            result = unlearner(
                at.original.model, splits, task, request_kind=at.splits.request_kind, card=at.card, seed=spot.seed,
                max_passes=most_passes(self.grid, self.dataset) if tuning else None,
            )  # fmt: skip
            processor = time.process_time() - busy
            shipped = file_of(result.model, at.original.config)
        except QunlearnError as err:
            failed = {"error": f"{type(err).__name__}: {err.message}", "seconds": time.perf_counter() - started}
            return failed | ({"passes": err.passes} if isinstance(err, TooCostlyError) else {})
        out = self._measured(at, splits, result.model, shipped, tuning=tuning)
        dead = [f for f in result.degenerate if f["code"] in ("D4", "D8")]
        return out | {
            "seconds": result.seconds,
            "processor": processor,
            "passes": result.passes,
            "codes_changed": result.changes.share,
            "latents_moved": result.changes.latent_changed / max(1, result.changes.codes),
            "lost_to_rounding": result.changes.lost / max(1, result.changes.codes),
            "dead": len(dead),
            "stop_reason": result.fields.get("stop_reason"),
            "warnings": list(result.warnings),
        }

    def _objective(self, at: Scene, model: quant.QuantModel) -> dict[str, Any]:
        """The stop rule's J of a network and whether it kept utility: what a user without a retrained network has.

        The band of a group request comes from the reference card. Without any band there is no J (None).
        """
        if self._judge is None:
            task, kind = tasks.get("classification"), at.splits.request_kind
            self._judge = Objective(
                at.original.model, at.splits, task, request_kind=kind, card=at.card, floor=FLOOR, seed=at.spot.seed
            )
        value, kept = self._judge(model)
        return {"J": value, "J_utility": kept}

    def _measured(
        self, at: Scene, splits: Splits, model: quant.QuantModel, shipped: OnnxPredictor, *, tuning: bool
    ) -> dict[str, Any]:
        seed = at.spot.seed
        onnx = figures(self.grid, shipped, splits, seed, tuning=tuning)
        reference = self._file(at, RETRAINED)
        if tuning not in self._targets:
            self._targets[tuning] = figures(self.grid, reference, splits, seed, tuning=tuning)
        against = self._targets[tuning]
        out: dict[str, Any] = {"onnx": onnx, "retrained": against, **beside(shipped, reference, splits, tuning=tuning)}
        finite = all(scores.finite(shipped.on(s)).all() for s in (splits.retain, splits.heldout))
        gate = measure(self._file(at, ORIGINAL), shipped, splits, floor=FLOOR) if finite else None
        out["utility"] = list(gate.reasons) if gate else ["F-NONFINITE"]
        if tuning:
            out |= self._objective(at, model)
        else:
            out["torch"] = figures(self.grid, TorchPredictor(model), splits, seed, tuning=False)
            out["gap"] = gap(onnx, against)
            out["cka"] = similarity(shipped, self._file(at, ORIGINAL), splits, seed)
        return out


def identity(grid: Grid, spot: Spot, method: str, config: Mapping[str, Any], *, tuning: bool) -> str:
    """What tells cells apart: a digest of everything that a cell's figures depend on, but for the code."""
    facts = {
        "data": grid.data, "subset": grid.subset, "train": dict(grid.train), "mia": grid.mia_nonmembers,
        "spot": asdict(spot), "method": method, "config": dict(config), "tuning": tuning,
    }  # fmt: skip
    if method in grid.variants:
        facts["of"] = grid.base(method)
    return fingerprint.config_digest(facts)
