"""What a calibration proves: flips by arm over its trials, exact bounds and tests, whether it may be used. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qunlearn.audit import eve_stats
from qunlearn.errors import ArtefactError
from qunlearn.fingerprint import config_digest, plain
from qunlearn_export.files import canonical_json, write_atomic

FORMAT = 1
INPUT = "eve_calibration"
"""Key of the calibration in ``AuditContext.inputs``."""

NULL = ("no_unlearning", "continued", "fake_other", "fake_relabel")
ATTRIBUTION = ("clean", "random")
CONTROLS = (*NULL, *ATTRIBUTION)
COMPARATOR, TREATMENT = "released_code", "eve"
ARMS: Mapping[str, str] = MappingProxyType(
    {
        "no_unlearning": "after = before",
        "continued": "the same steps on kept samples only",
        "fake_other": "other, unaltered samples unlearned in their place",
        "fake_relabel": "the altered samples with wrong labels",
        "clean": "the samples unaltered",
        "random": "the samples with uniform noise of the same radius",
        "released_code": "the samples altered to maximise cross-entropy only",
        "eve": "the crafted request",
    }
)
"""Every arm of a trial. In null arms the owner's data drive nothing; attribution arms erase without perturbation."""

MIN_VERIFIABILITY, NOISE = 0.75, 0.10
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One arm of one trial: ``flip`` and ``strict`` (mean over targets), ``resolved``, drops of retain and held-out
    accuracy, ``bystanders`` their flip rate, ``erased`` accuracy on the clean erased samples, ``cos`` (None where the
    arm has no samples of its own), ``step`` it was read at, ``seconds`` of craft, unlearn and verify."""

    flip: float
    strict: float
    resolved: bool
    retain_drop: float
    heldout_drop: float
    bystanders: float
    erased: float
    cos: float | None
    step: int
    margin: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Trials on one network (or several of one recipe: ``model`` is then empty and fits none) with one unlearner.

    ``model``, ``unlearner`` and ``config`` are digests; ``kind`` the artefact kind that answers were read from;
    ``trials`` one mapping arm to reading each; ``alpha`` the one-sided level of every test and bound.
    """

    model: str
    unlearner: str
    config: str
    kind: str
    alpha: float
    utility_drop: float
    trials: tuple[Mapping[str, Reading], ...]
    settings: Mapping[str, Any]

    @property
    def n(self) -> int:
        """Number of trials."""
        return len(self.trials)

    def flips(self, arm: str) -> list[bool]:
        """Per trial, whether every target of the arm flipped."""
        return [t[arm].flip >= 1 - _ROUNDING for t in self.trials]

    def count(self, arm: str) -> int:
        """Trials in which the arm flipped."""
        return sum(self.flips(arm))

    @property
    def verifiability(self) -> float:
        """V_hat: share of trials in which the crafted request flipped its targets."""
        return self.count(TREATMENT) / self.n

    @property
    def p0(self) -> float:
        """Largest one-sided upper bound of the flip rate over the null arms: false positives."""
        return max(eve_stats.upper(self.count(a), self.n, self.alpha) for a in NULL)

    @property
    def l1(self) -> float:
        """One-sided lower bound of the flip rate of the crafted request: detection."""
        return eve_stats.lower(self.count(TREATMENT), self.n, self.alpha)

    def p_value(self, control: str) -> float:
        """Exact paired sign test of the crafted request against a control arm, one-sided."""
        pairs = list(zip(self.flips(TREATMENT), self.flips(control), strict=True))
        return eve_stats.sign_test(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))

    def mean(self, arm: str, field: str) -> float:
        """Mean of a reading's number over the trials; trials without one are left out."""
        values = [getattr(t[arm], field) for t in self.trials]
        kept = [float(v) for v in values if v is not None]
        return float(np.mean(kept)) if kept else float("nan")

    @property
    def noise(self) -> float:
        """Bystander flips up to which a verdict calls an update clean: those of the clean arm and a tenth."""
        return self.mean("clean", "bystanders") + NOISE

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """Why it may not be used; empty for a valid calibration (rules i to iv of the specification)."""
        out = []
        if self.verifiability < MIN_VERIFIABILITY - _ROUNDING:
            out.append(f"the crafted request flipped {self.count(TREATMENT)} of {self.n}")
        for arm in CONTROLS:
            p = self.p_value(arm)
            if p > self.alpha:
                out.append(f"the crafted request does not beat {arm} (p = {p:.3f})")
        worst = max(max(r.retain_drop, r.heldout_drop) for t in self.trials for r in t.values())
        if worst > self.utility_drop + _ROUNDING:
            out.append(f"an arm was read at a utility drop of {worst:.3f}")
        if self.mean(TREATMENT, "bystanders") > self.noise + _ROUNDING:
            out.append("bystanders flip more often than under clean erasure")
        return tuple(out)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but times."""
        return config_digest(self._body(times=False))

    def _body(self, *, times: bool) -> dict[str, Any]:
        out: dict[str, Any] = {"format": FORMAT, **plain({k: getattr(self, k) for k in self.__dataclass_fields__})}
        if not times:
            for trial in out["trials"]:
                for reading in trial.values():
                    reading.pop("seconds")
        return out

    def summary(self) -> dict[str, Any]:
        """What a report prints: per arm count and rates, bounds, tests, problems."""
        arms = {
            a: {
                "flips": self.count(a),
                "strict": sum(t[a].strict >= 1 - _ROUNDING for t in self.trials),
                "bystanders": self.mean(a, "bystanders"),
                "erased": self.mean(a, "erased"),
                "retain_drop": self.mean(a, "retain_drop"),
                "step": self.mean(a, "step"),
                "cos": None if all(t[a].cos is None for t in self.trials) else self.mean(a, "cos"),
                "p": self.p_value(a) if a in CONTROLS else None,
                "seconds": {k: self._seconds(a, k) for k in ("craft", "unlearn", "verify")},
            }
            for a in ARMS
        }
        return {
            "trials": self.n, "arms": arms, "verifiability": self.verifiability, "l1": self.l1, "p0": self.p0,
            "problems": list(self.problems), "digest": self.digest, "kind": self.kind, "model": self.model,
            "unlearner": self.unlearner, "config": self.config, "settings": plain(self.settings),
        }  # fmt: skip

    def _seconds(self, arm: str, phase: str) -> float:
        return float(np.mean([t[arm].seconds.get(phase, 0.0) for t in self.trials]))

    def save(self, path: Path) -> Path:
        """Write canonical JSON."""
        return write_atomic(path, (canonical_json(self._body(times=True)) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """From JSON; ArtefactError when it is damaged or of another format."""
        try:
            body = json.loads(path.read_text())
            if not isinstance(body, dict) or body.pop("format") != FORMAT or set(body) != set(cls.__dataclass_fields__):
                raise ValueError("unknown format")
            trials = tuple({arm: Reading(**r) for arm, r in t.items()} for t in body.pop("trials"))
            found = cls(trials=trials, **body)
            if not trials or any(set(t) != set(ARMS) for t in trials):
                raise ValueError("a trial lacks an arm")
            found.summary()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise ArtefactError(
                f"{path} is no calibration: {err}.", remedy="Make one with `qunlearn eve calibrate`."
            ) from err
        return found


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Head and one row an arm of :meth:`Calibration.summary`, as text."""
    head = ["arm", "flips", "strict", "p (eve beats it)", "cos", "bystanders", "clean erased acc.", "step", "craft s",
            "unlearn s", "verify s"]  # fmt: skip
    rows = [head]
    for arm in ARMS:
        r = found["arms"][arm]
        s = r["seconds"]
        rows.append(
            [
                arm,
                f"{r['flips']}/{found['trials']}",
                f"{r['strict']}/{found['trials']}",
                "-" if r["p"] is None else f"{r['p']:.4f}",
                "-" if r["cos"] is None else f"{r['cos']:.2f}",
                f"{r['bystanders']:.3f}",
                f"{r['erased']:.2f}",
                f"{r['step']:.0f}",
                *(f"{s[k]:.2f}" for k in ("craft", "unlearn", "verify")),
            ]
        )
    return rows


def pooled(parts: Sequence[Calibration]) -> Calibration:
    """Trials of several networks of one recipe as one table; it belongs to no single network."""
    first = parts[0]
    same = {(p.unlearner, p.config, p.kind, p.alpha, p.utility_drop) for p in parts}
    if len(same) != 1:
        raise ArtefactError("calibrations of different settings cannot be pooled.", remedy="Calibrate them alike.")
    return Calibration(
        model=first.model if len({p.model for p in parts}) == 1 else "",
        unlearner=first.unlearner,
        config=first.config,
        kind=first.kind,
        alpha=first.alpha,
        utility_drop=first.utility_drop,
        trials=tuple(t for p in parts for t in p.trials),
        settings=first.settings,
    )
