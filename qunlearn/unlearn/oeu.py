"""Orthogonal entropy unlearning: make the network uncertain on forget data, without going against retain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.errors import ConfigError, DivergedError
from qunlearn.hyper import hyper
from qunlearn.quant import layer_of
from qunlearn.quant.model import clamp_scales
from qunlearn.tasks.base import Batch
from qunlearn.unlearn import diagnostics
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.checkpoint import Part, PlainPart
from qunlearn.unlearn.compose import Composer, Update
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.entropy import entropy_loss, normalized_entropy
from qunlearn.unlearn.loop import Loop, Observer, scheduled
from qunlearn.unlearn.micro import accumulate
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.orthogonal import Reference, add
from qunlearn.unlearn.pairing import REFUSED, Pairs, check_pairing
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn_kernels.arena import GradientArena

SWITCH_CONFIDENCE = 0.9
GATE_QUANTILE = 0.25


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


class OEURun:
    """The state of one run. ``owner`` is the method whose stop rule and checkpoints it has; ``more`` parts of these."""

    representation: Observer | None = None
    finish: Callable[[], None] | None = None

    def __init__(self, cfg: OEU, ctx: Context, *, owner: Unlearner) -> None:
        self.cfg, self.ctx, self.owner = cfg, ctx, owner
        self.more: dict[str, Part] = {}
        self.rows: dict[str, NDArray[np.int64]] = {}
        self.parameters = ctx.trainable()
        self.params = list(self.parameters.values())
        layers = layer_of(ctx.model)
        self.arena = GradientArena(self.parameters.items(), groups={n: layers[n] for n in self.parameters})
        self.reference = Reference(
            self.arena,
            kind=cfg.retain_ref,
            scope=cfg.scope,
            when=cfg.when,
            k=cfg.k,
            beta=cfg.ema_beta,
            ema_only=cfg.ema_only,
            eps=cfg.eps,
        )
        self.composer = Composer(
            self.arena,
            self.reference,
            optimizer=cfg.optimizer,
            project_at=cfg.project_at,
            lam=cfg.lam,
            momentum=cfg.momentum,
            weight_decay=cfg.weight_decay,
            clip=cfg.clip,
        )
        self.pairs = Pairs(
            len(ctx.data.forget),
            len(ctx.data.retain),
            cfg.batch_size,
            cfg.retain_batch_size,
            seed=ctx.seed,
            pairing=cfg.pairing,
        )
        self.total = cfg.max_steps
        if cfg.epochs is not None:
            self.total = min(self.total, cfg.epochs * self.pairs.steps_per_epoch)
        self.memory: dict[str, Any] = {"switched": cfg.loss == "e1", "noise": [], "gate_open": 0}
        self.gate = self._gate()

    def state(self) -> dict[str, Any]:
        """Loss switch, noise window and gate counter, for the checkpoint."""
        return self.memory

    def load(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self.memory = state

    def loop(self) -> None:
        """All steps."""
        ctx, cfg = self.ctx, self.cfg
        guarantee = cfg.guarantee()
        ctx.fields["guarantee"] = guarantee
        if guarantee.startswith("void") and cfg.project_at == "gradient":
            ctx.warn("W-GUARANTEE-VOID", f"{guarantee}; the forget part of the update is not orthogonal to r")
        if cfg.scope == "tensor":
            single = [n for n, p in self.parameters.items() if p.numel() == 1]
            if single:
                ctx.warn(
                    "W-ONE-ELEMENT",
                    "scope tensor removes the whole forget gradient of one-element tensors: " + ", ".join(single),
                )
        if ctx.task.name == "lm":
            ctx.warn("W-UNIFORM-TOKENS", "uniform tokens destroy fluency; take the confidence band from held-out text")
        parts: dict[str, Part] = {
            "pairs": PlainPart(self.pairs),
            "reference": self.reference,
            "composer": self.composer,
            "memory": PlainPart(self),
            **self.more,
        }
        loop = Loop(ctx, self.owner, total=self.total, parts=parts, representation=self.representation)
        loop.run(self.step, finish=self.finish)
        ctx.fields |= {
            "samples_seen": {"forget": self.pairs.forget.samples_seen, "retain": self.pairs.retain.samples_seen},
        }
        if cfg.sample_gate:
            ctx.fields["gate_open_fraction"] = self.memory["gate_open"] / max(1, self.pairs.forget.samples_seen)

    def step(self, t: int) -> dict[str, Any]:
        """One pair of batches, one update."""
        ctx, cfg = self.ctx, self.cfg
        rows_f, rows_r = self.pairs.next()
        self.rows = {"forget": rows_f, "retain": rows_r}
        retain = self._backward("retain", rows_r)
        forget = self._backward("forget", rows_f)
        ctx.count(len(rows_r) + len(rows_f))
        r, f = self.arena.row("retain"), self.arena.row("forget")
        lr = scheduled(float(cfg.lr), cfg.schedule, t, self.total)
        for name, gradient, value in (("retain", r, retain["loss"]), ("forget", f, forget["loss"])):
            if not np.isfinite(value) or not bool(torch.stack(torch.aminmax(gradient)).isfinite().all()):
                raise DivergedError(f"non-finite {name} loss or gradient.", remedy="Use a smaller lr.")
        update = self.composer(r, f, lr)
        row: dict[str, Any] = {
            "epoch": (t - 1) // self.pairs.steps_per_epoch + 1,
            "lr": lr,
            "L_r": retain["loss"],
            "L_f": forget["loss"],
            "entropy": forget["entropy"],
            "conf_f": forget["conf_f"],
            "seen_forget": self.pairs.forget.samples_seen,
            "seen_retain": self.pairs.retain.samples_seen,
            **diagnostics.geometry(self.arena, cfg.scope, r, f, update),
        }
        deep = t % cfg.diag_every == 0
        if deep:
            row |= self._diagnose(rows_r, update, retain["loss"])
        if cfg.loss == "e2_then_e1" and forget["conf_f"] < SWITCH_CONFIDENCE:
            self.memory["switched"] = True
        whole = update.retain.add_(update.forget)  # in place: nothing below needs the parts
        with torch.no_grad():
            add(self.params, self.arena.split(whole))
            if cfg.train_scales:
                clamp_scales(ctx.model)
        if deep:
            delta = dict(zip(self.parameters, self.arena.split(whole), strict=True))
            row |= diagnostics.code_state(ctx.before, ctx.model, delta)
        return row

    def _backward(self, role: str, rows: NDArray[np.int64]) -> dict[str, float]:
        ctx, cfg = self.ctx, self.cfg
        self.arena.bind(role)
        set_mode(ctx.model, cfg.bn, role)
        return accumulate(
            ctx.task,
            ctx.data.retain if role == "retain" else ctx.data.forget,
            rows,
            device_of(ctx.model),
            self.retain_loss if role == "retain" else self.forget_loss,
            micro_batch=cfg.micro_batch,
            finish=self._collect,
        )

    def _collect(self) -> Tensor:
        self.arena.collect()
        return self.arena.row(str(self.arena.bound))

    def retain_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """What the retain gradient is of, and nothing more for the trace."""
        return self.ctx.task.loss(self.ctx.task.logits(self.ctx.model, batch), batch), {}

    def forget_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """What the forget gradient is of, with entropy and confidence for the trace."""
        task = self.ctx.task
        logits = task.logits(self.ctx.model, batch)
        mask = getattr(batch, "mask", None)
        with torch.no_grad():
            p_y = torch.exp(-task.loss(logits, batch, reduction="none"))
            entropy = float(normalized_entropy(logits, mask))
        weight = None
        if self.gate is not None:
            weight = (p_y >= self.gate).to(logits.dtype)
            self.memory["gate_open"] += int(weight.sum())
        loss = entropy_loss(logits, kind="e1" if self.memory["switched"] else "e2", mask=mask, weight=weight)
        return loss, {"entropy": entropy, "conf_f": float(p_y.mean())}

    def _diagnose(self, rows_r: NDArray[np.int64], update: Update, before: float) -> dict[str, Any]:
        """``before`` is the loss of the retain pass, which with frozen BatchNorm is the loss before the update."""
        ctx, cfg, task = self.ctx, self.cfg, self.ctx.task
        ctx.model.eval()
        device = device_of(ctx.model)
        batch = to_device(task.batch(ctx.data.retain, rows_r), device)

        def loss() -> float:
            return float(task.loss(task.logits(ctx.model, batch), batch))

        if cfg.bn != "frozen":
            with torch.no_grad():
                before = loss()
        out: dict[str, Any] = diagnostics.actual_changes(loss, self.arena, update, before)
        half = len(rows_r) // 2
        if half:
            pieces = (rows_r[:half], rows_r[half : 2 * half])
            halves = [to_device(task.batch(ctx.data.retain, p), device) for p in pieces]
            ctx.count(2 * half)
            estimate = diagnostics.half_batches(task, ctx.model, self.params, halves, len(ctx.data.retain))
            window = [*self.memory["noise"], estimate]
            self.memory["noise"] = [list(pair) for pair in window[-diagnostics.WINDOW :]]
            square = sum(b for _, b in self.memory["noise"])
            out["rho2"] = sum(a for a, _ in self.memory["noise"]) / square if square > 0 else 0.0
        return out

    def _gate(self) -> float | None:
        if not self.cfg.sample_gate:
            return None
        ctx, parts = self.ctx, []
        for start in range(0, len(ctx.data.stop), 256):
            batch = ctx.task.batch(ctx.data.stop, np.arange(start, min(start + 256, len(ctx.data.stop))))
            batch = to_device(batch, device_of(ctx.before))
            set_mode(ctx.model, "frozen", "forget")
            with torch.no_grad():
                parts.append(torch.exp(-ctx.task.loss(ctx.task.logits(ctx.model, batch), batch, reduction="none")))
        return float(torch.quantile(torch.cat(parts).double(), GATE_QUANTILE))
