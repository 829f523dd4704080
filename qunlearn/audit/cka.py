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
from qunlearn.audit.layers import PENULTIMATE, by_layer, chosen
from qunlearn.audit.predictor import Predictor
from qunlearn.audit.sets import available
from qunlearn.audit.verdict import Measurement
from qunlearn.data.dataset import Samples
from qunlearn.hyper import hyper

FEWEST = 50
LOGITS = "logits"
ESTIMATORS = ("debiased", "batch_biased")
PAIRS = (("after", "before"), ("after", "reference"), ("reference", "before"))
Grams = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Cka(Audit):
    """Similarity of the forget set's features to the original network's, against the retrained network's similarity.

    Linear CKA, debiased (the plain estimator reads d / (n + d) on independent features). The penultimate layer decides;
    every layer, pair of models and sample set is in the table. A retrained network is not at 0.
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
    cannot: ClassVar[str] = (
        "Features that moved are not features that forgot: they may have moved elsewhere for other reasons, and two "
        "retrained networks differ too. It says nothing about answers."
    )

    tol: float = hyper(0.15, low=0, low_open=True, high=1, unit="CKA", doc="Equivalence margin around the reference.")
    layer: str = hyper(PENULTIMATE, doc="The layer that decides: penultimate, logits, or one of those compared.")
    layers: str = hyper("", doc="Compared layers, comma-separated; empty: residual sums, else dense layers.")
    estimator: str = hyper("debiased", choices=ESTIMATORS, doc="batch_biased: the plain estimator, for comparison.")
    max_n: int = hyper(1000, low=FEWEST, high=10_000, unit="samples", doc="Most samples of the forget set.")
    table_n: int = hyper(400, low=FEWEST, high=10_000, unit="samples", doc="Most samples of sets that are only tabled.")
    halves: int = hyper(50, low=20, high=10_000, unit="half samples", doc="Half samples that the interval rests on.")

    def run(self, ctx: AuditContext) -> Measurement:
        """Every layer and pair of models, on forget, retain and, where there is one, the forgotten kind's held-out."""
        names = chosen(ctx.before, self.layers)
        names = tuple(n for n in dict.fromkeys([*names, self.layer]) if n != LOGITS) if names else ()
        decides = self.layer if names or self.layer == LOGITS else LOGITS
        rng = np.random.default_rng([ctx.seed, 41])
        rows: dict[str, dict[str, Any]] = {}
        sizes = {}
        own: dict[str, Grams] = {}
        for label, samples in available(ctx.splits, self.sets).items():
            if len(samples) < FEWEST and label != "forget":
                continue
            most = self.max_n if label == "forget" else self.table_n
            if len(samples) > most:
                samples = samples.take(np.sort(rng.permutation(len(samples))[:most]))
            sizes[label] = len(samples)
            grams = {who: self._grams(p, samples, names) for who, p in ctx.predictors().items()}
            rows[label] = {layer: self._pairs(grams, layer) for layer in (*names, LOGITS)}
            own = grams if label == "forget" else own
        gates = [] if sizes["forget"] >= FEWEST else ["I-CKA-FEW"]
        n = sizes["forget"]
        marks = np.zeros((n, self.halves))
        for h in range(self.halves):
            marks[rng.permutation(n)[: n // 2], h] = 1
        point, half = self._decide(own, "after", decides, marks)
        value = _estimate(point, half, n)
        reference = delta = None
        if "reference" in own:
            target, at = self._decide(own, "reference", decides, marks)
            reference, delta = _estimate(target, at, n), _estimate(point - target, half - at, n)
        if math.isnan(point) or (reference is not None and reference.method == UNDEFINED):
            gates.append("I-CKA-UNDEFINED")
        return Measurement(
            value=value,
            before=1.0,
            reference=reference,
            delta=delta,
            gates=tuple(gates),
            warnings=() if names else ("W-NO-FEATURES",),
            n=sizes,
            metrics={
                "cka_to_original": {
                    "forget": {"after": value.to_json(), "reference": reference.to_json() if reference else None}
                }
            },
            tables={"layers": rows, "order": [*names, LOGITS], "decides": decides, "estimator": self.estimator},
        )

    def _grams(self, predictor: Predictor, samples: Samples, names: tuple[str, ...]) -> Grams:
        from qunlearn.tasks.similarity import gram  # its package imports torch

        found = {n: gram(f) for n, f in by_layer(predictor, samples, names)}
        return {**found, LOGITS: gram(predictor.on(samples))}

    def _pairs(self, grams: Mapping[str, Grams], layer: str) -> dict[str, float | None]:
        """CKA of every pair of models at one layer (None: undefined), and ``gap``: what is above the retrained pair."""
        from qunlearn.tasks.similarity import cka_of

        out = {
            f"{a}, {b}": _number(cka_of(grams[a][layer], grams[b][layer], estimator=self.estimator))
            for a, b in PAIRS
            if a in grams and b in grams
        }
        ours, theirs = out["after, before"], out.get("reference, before")
        return {**out, "gap": None if ours is None or theirs is None else ours - theirs}

    def _decide(
        self, own: Mapping[str, Grams], who: str, layer: str, marks: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """CKA to the original at the deciding layer, on all samples and on every half of them."""
        from qunlearn.tasks.similarity import cka_of, cka_on

        k, m = own[who][layer], own["before"][layer]
        return cka_of(k, m, estimator=self.estimator), cka_on(k, m, marks, estimator=self.estimator)


UNDEFINED = "undefined"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _estimate(value: float, halves: NDArray[np.float64], n: int) -> Estimate:
    """Normal interval with the delete-half jackknife's error: the root mean square distance of half samples."""
    away = (halves - value) ** 2
    if math.isnan(value) or np.isnan(away).all():
        return Estimate(value=0.0, lo=0.0, hi=0.0, level=LEVEL, method=UNDEFINED, n=n)
    half = z_of(LEVEL) * math.sqrt(float(np.nanmean(away)))
    return Estimate(value=value, lo=value - half, hi=value + half, level=LEVEL, method="delete-half jackknife", n=n)
