"""CKA: have the features moved from the original's as far as a retrained network's would, and no further?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.intervals import LEVEL, Estimate, z_of
from qunlearn.audit.layers import chosen, features
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import available
from qunlearn.audit.verdict import Measurement
from qunlearn.data.dataset import Samples
from qunlearn.hyper import hyper
from qunlearn.tasks.similarity import cka_of, gram

FEWEST = 50
LOGITS = "logits"
PAIRS = (("after", "before"), ("after", "reference"), ("reference", "before"))
Grams = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Cka(Audit):
    """Similarity of the forget set's features to the original network's, against the retrained network's similarity.

    Linear CKA, debiased (the plain estimator reads d / (n + d) on independent features), mean over layers; every layer
    is in the table. A retrained network is not at 0.
    """

    name: ClassVar[str] = "cka"
    version: ClassVar[str] = "1"
    metric: ClassVar[str] = "cka_to_original"
    higher_side: ClassVar[str] = "under"
    sets: ClassVar[tuple[str, ...]] = ("forget", "retain", "forget_heldout")
    direction: ClassVar[str] = (
        "The retrained model's similarity to the original is the target: above it the features still are the "
        "original's (under-forgotten), below it they were erased further than never having seen the data does."
    )

    tol: float = hyper(0.15, low=0, low_open=True, high=1, unit="CKA", doc="Equivalence margin around the reference.")
    layers: str = hyper(
        "", doc="Layers, comma-separated; empty: residual sums, else dense layers, and the penultimate."
    )
    max_n: int = hyper(1000, low=FEWEST, high=10_000, unit="samples", doc="Most samples of a set.")
    halves: int = hyper(50, low=20, high=10_000, unit="half samples", doc="Half samples that the interval rests on.")

    def run(self, ctx: AuditContext) -> Measurement:
        """Every layer and pair of models, on forget, retain and, where there is one, the forgotten kind's held-out."""
        names = chosen(ctx.before, self.layers)
        rng = np.random.default_rng([ctx.seed, 41])
        rows: dict[str, dict[str, Any]] = {}
        grams: dict[str, dict[str, Grams]] = {}
        sizes = {}
        for label, samples in available(ctx.splits, self.sets).items():
            if len(samples) < FEWEST and label != "forget":
                continue
            if len(samples) > self.max_n:
                samples = samples.take(np.sort(rng.permutation(len(samples))[: self.max_n]))
            sizes[label] = len(samples)
            grams[label] = {who: self._grams(p, samples, names) for who, p in ctx.predictors().items()}
            rows[label] = {
                layer: {f"{a}, {b}": _number(cka_of(grams[label][a][layer], grams[label][b][layer])) for a, b in PAIRS
                        if a in grams[label]}
                for layer in (*names, LOGITS)
            }  # fmt: skip
        gates = [] if sizes["forget"] >= FEWEST else ["I-CKA-FEW"]
        own = grams["forget"]
        point = self._mean(own, "after", None)
        if math.isnan(point):
            gates.append("I-CKA-UNDEFINED")
        halves = [np.sort(rng.permutation(sizes["forget"])[: sizes["forget"] // 2]) for _ in range(self.halves)]
        value = _estimate(point, [self._mean(own, "after", h) for h in halves], sizes["forget"])
        reference = delta = None
        if "reference" in own:
            target = self._mean(own, "reference", None)
            if math.isnan(target):
                gates.append("I-CKA-UNDEFINED")
            each = [(self._mean(own, "after", h), self._mean(own, "reference", h)) for h in halves]
            reference = _estimate(target, [r for _, r in each], sizes["forget"])
            delta = _estimate(point - target, [a - r for a, r in each], sizes["forget"])
        return Measurement(
            value=value,
            before=1.0,
            reference=reference,
            delta=delta,
            gates=tuple(dict.fromkeys(gates)),
            n=sizes,
            metrics={
                "cka_to_original": {
                    "forget": {"after": value.to_json(), "reference": reference.to_json() if reference else None}
                }
            },
            tables={"layers": rows},
        )

    def _grams(self, predictor: Predictor, samples: Samples, names: tuple[str, ...]) -> Grams:
        found = {n: gram(f) for n, f in features(predictor, samples, names).items()}
        return {**found, LOGITS: gram(predictor.on(samples))}

    def _mean(self, own: Mapping[str, Grams], who: str, rows: NDArray[np.int64] | None) -> float:
        """Mean CKA to the original over layers and logits, on all samples or on some; NaN layers are left out."""
        values = []
        for layer, k in own[who].items():
            m = own["before"][layer]
            if rows is not None:
                k, m = k[np.ix_(rows, rows)], m[np.ix_(rows, rows)]
            values.append(cka_of(k, m))
        defined = [v for v in values if not math.isnan(v)]
        return float(np.mean(defined)) if len(defined) == len(values) else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _estimate(value: float, halves: list[float], n: int) -> Estimate:
    """Normal interval with the delete-half jackknife's error: the root mean square distance of half samples."""
    if math.isnan(value):
        return Estimate(value=0.0, lo=0.0, hi=0.0, level=LEVEL, method="undefined", n=n)
    away = [(h - value) ** 2 for h in halves if not math.isnan(h)]
    half = z_of(LEVEL) * math.sqrt(float(np.mean(away))) if away else 0.0
    return Estimate(value=value, lo=value - half, hi=value + half, level=LEVEL, method="delete-half jackknife", n=n)
