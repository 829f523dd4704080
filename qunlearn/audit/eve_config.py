"""The settings that crafting, calibration and verification share. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from qunlearn.errors import ConfigError
from qunlearn.fingerprint import config_digest, plain
from qunlearn.hyper import hyper, parse_settings, problems

DILUTION = (
    "several targets in one request dilute each other: in the toy network four of them flipped at a rate of .56 each "
    "(kappa 0; clean .22, random .16), one alone in 8 of 8 runs"
)
"""What is said where more than one target is asked for; measured on the toy of the documentation."""


@dataclass(frozen=True, kw_only=True)
class EveConfig:
    """Erasure check by a customised perturbation: one configuration for request, calibration and verdict.

    Radii are in units of the network's input. The method is after arXiv 2602.03567, whose norm, radius and equations
    are not reproduced: every default is our own choice.
    """

    eps: float | None = hyper(
        None,
        low=0,
        low_open=True,
        high=1e6,
        unit="input",
        doc="L-infinity radius; none: half a feature's standard deviation, for stored 8-bit images 8 of 255 levels",
    )
    steps: int = hyper(250, low=1, high=100_000, unit="steps", doc="crafting steps of a restart")
    lr: float | None = hyper(None, low=0, low_open=True, high=1e6, unit="input", doc="Adam's step; none: eps / 10")
    kappa: float = hyper(
        0.0, low=0, high=1, doc="weight of the unlearning effect (cross-entropy of the altered samples)"
    )
    params: str = hyper("all", choices=("all", "classifier"), doc="latent parameters whose gradients are aligned")
    boundary: str = hyper(
        "grad", choices=("grad", "finetune"), doc="direction aimed at: gradient, or way to a fine-tuned copy"
    )
    align: str = hyper(
        "cos", choices=("cos", "soft_sign"), doc="cosine of gradients, or of tanh(g / median |g|) for Adam-like methods"
    )
    restarts: int = hyper(1, low=1, high=10, doc="starts; the best cosine after snapping wins")
    batch_size: int = hyper(256, low=1, high=65_536, unit="samples", doc="erased samples crafted at once")
    n_targets: int = hyper(1, low=1, high=64, doc="targets of one request; several dilute each other")
    target_confidence: float = hyper(0.95, low=0.5, high=0.99, unit="share", doc="confidence that a target should have")
    utility_drop: float = hyper(
        0.03, low=0, high=0.2, unit="share", doc="loss of retain and held-out accuracy at which every arm is read"
    )
    n_bystanders: int = hyper(20, low=10, high=1000, doc="samples of the targets' confidence that show the noise")
    surrogate: str = hyper(
        "", choices=("", "neg_ce"), doc="neg_ce: stand-in for a method that has no differentiable forget loss"
    )
    trials: int = hyper(60, low=8, high=10_000, doc="trials of a calibration")
    alpha: float = hyper(0.05, low=0, low_open=True, high=0.5, doc="level of all tests and bounds, one-sided")

    def __post_init__(self) -> None:
        bad = problems(self)
        if self.align == "sign":
            bad.append("the hard sign of a gradient has no derivative; use soft_sign")
        if bad:
            raise ConfigError(f"eve: {'; '.join(bad)}.", remedy="See docs/eve.md for the settings.")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """From texts ``key=value``; unknown keys are a ConfigError."""
        return cls(**parse_settings(cls, settings))

    def digest(self) -> str:
        """SHA-256 of what a request and its calibration must share; the number of trials and the level may differ."""
        kept = {k: v for k, v in plain(self).items() if k not in ("trials", "alpha")}
        return config_digest({"eve": 1, **kept})
