"""Orthogonal entropy unlearning: make the network uncertain on forget data, without going against retain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from qunlearn.errors import ConfigError
from qunlearn.hyper import hyper
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.entropy import entropy_loss
from qunlearn.unlearn.oeu_run import OEURun
from qunlearn.unlearn.pairing import REFUSED, check_pairing


@dataclass(frozen=True, kw_only=True)
class OEU(Unlearner):
    """Descend on the retain loss, and on an entropy loss of forget batches with its retain component removed.

    The result field ``guarantee`` says whether the forget part of the applied update is orthogonal to the current
    batch's retain gradient (``first-order``), and if not, why. To first order, on the current batch: nothing more.
    """

    name: ClassVar[str] = "oeu"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "lm")
    source: ClassVar[str] = (
        "idea: Zhang et al. 2026 (arXiv 2602.00567, abstract); how losses, optimizer and projection are combined is "
        "our own choice; relatives: PGU (WACV 2024), OrthoGrad (arXiv 2503.02312), GU (arXiv 2511.17100)"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "predecessor": {
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "batch_size": 256,
            "retain_batch_size": 256,
            "epochs": 10,
            "max_steps": 1_000_000,
            "lr": 0.01,
            "bn": "train",
        }
    }

    stop_rule: bool = hyper(True, doc="watch held-out data, stop in the target band, restore the best evaluation")
    loss: str = hyper(
        "e2", choices=("e2", "e1", "e2_then_e1"), doc="CE to uniform, negative entropy, or first e2 then e1"
    )
    lam: float = hyper(1.0, low=0, high=10, search=(0.1, 10), log=True, doc="weight of the forget part")
    optimizer: str = hyper("sgd", choices=("sgd", "adam"), doc="optimizer of both parts")
    momentum: float = hyper(0.0, low=0, high=0.999, doc="momentum of SGD")
    weight_decay: float = hyper(0.0, low=0, high=1, doc="weight decay; belongs to the retain part")
    lr: float | str = hyper(
        1e-3, low=0, high=10, low_open=True, choices=("auto",), search=(1e-5, 1e-1), log=True, doc="learning rate"
    )
    schedule: str = hyper("constant", choices=("constant", "cosine"), doc="learning rate over the run")
    batch_size: int = hyper(64, low=8, high=65_536, unit="samples", doc="forget samples of a step")
    retain_batch_size: int = hyper(64, low=8, high=65_536, unit="samples", doc="retain samples of a step")
    micro_batch: int | None = hyper(
        None, low=1, high=65_536, unit="samples", doc="samples of one backward pass, at most"
    )
    max_steps: int = hyper(300, low=1, high=1_000_000, unit="steps", doc="end of the run")
    epochs: int | None = hyper(None, low=1, high=10_000, unit="epochs", doc="end of the run, whichever comes first")
    diag_every: int = hyper(10, low=1, high=100_000, unit="steps", doc="steps between the costly diagnostics")
    scope: str = hyper("global", choices=("global", "layer", "tensor", "none"), doc="segments of the inner products")
    when: str = hyper("always", choices=("always", "conflict"), doc="project always, or only where <f, r> < 0")
    retain_ref: str = hyper(
        "batch", choices=("batch", "ema", "subspace"), doc="what the forget vector is orthogonal to"
    )
    project_at: str = hyper("gradient", choices=("gradient", "update", "metric"), doc="which vector is projected")
    k: int = hyper(8, low=1, high=64, doc="rank of retain_ref=subspace")
    ema_beta: float = hyper(0.9, low=0, high=0.99, doc="factor of retain_ref=ema")
    ema_only: bool = hyper(False, doc="project on the running mean alone (voids the guarantee)")
    eps: float = hyper(1e-12, low=0, high=1, doc="added to <r, r>")
    clip: float | None = hyper(
        None, low=0, high=1e6, low_open=True, doc="bound of the composed vector's norm, whole vector"
    )
    pairing: str = hyper("cycle_shorter", choices=("cycle_shorter", "zip_shortest"), doc="what an epoch is")
    sample_gate: bool = hyper(False, doc="no weight for forget samples already below the 25 % quantile of held-out p_y")

    def problems(self) -> list[str]:
        """Combinations that make no sense, besides the ranges."""
        out = super().problems()
        if self.pairing in REFUSED:
            out = [p for p in out if not p.startswith("pairing ")]
            try:
                check_pairing(self.pairing)
            except ConfigError as err:
                out.append(err.message.rstrip("."))
        if isinstance(self.clip, str):
            out.append("clipping tensor by tensor changes the direction of the update and is refused")
        if self.optimizer == "adam" and self.momentum:
            out.append("momentum belongs to optimizer sgd; Adam has its own")
        if self.project_at == "metric" and self.optimizer != "adam":
            out.append("project_at=metric needs optimizer=adam, whose second moment is the metric")
        if self.ema_only and self.retain_ref != "ema":
            out.append("ema_only needs retain_ref=ema")
        return out

    def guarantee(self) -> str:
        """What holds for the forget part of the update that is applied."""
        if self.scope == "none":
            return "void: scope none"
        if self.retain_ref == "ema" and self.ema_only:
            return "void: ema_only"
        if self.project_at == "gradient":
            if self.optimizer == "adam":
                return "void: adam"
            if self.momentum:
                return "void: momentum"
            if self.weight_decay:
                return "void: weight decay"
        return "one-sided: conflict" if self.when == "conflict" else "first-order"

    def forget_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The entropy loss that a run begins with; labels are not read."""
        return entropy_loss(logits, kind="e1" if self.loss == "e1" else "e2")

    def run(self, ctx: Context) -> None:
        """Pairs of batches, two backward passes at one point, projection, one update (DESIGN: Unlearner)."""
        OEURun(self, ctx, owner=self).loop()
