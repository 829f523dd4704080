"""One run of orthogonal entropy unlearning: two backward passes at one point, projection, one update, diagnostics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.errors import DivergedError
from qunlearn.quant import layer_of
from qunlearn.quant.model import clamp_scales
from qunlearn.tasks.base import Batch
from qunlearn.unlearn import diagnostics
from qunlearn.unlearn.checkpoint import Part, PlainPart
from qunlearn.unlearn.compose import Composer
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.entropy import entropy_loss, normalized_entropy
from qunlearn.unlearn.loop import Loop, Observer, scheduled
from qunlearn.unlearn.micro import accumulate
from qunlearn.unlearn.modes import set_mode
from qunlearn.unlearn.orthogonal import Reference, add
from qunlearn.unlearn.pairing import Pairs
from qunlearn.unlearn.probe import confidence_quantile, device_of
from qunlearn_kernels.arena import GradientArena

if TYPE_CHECKING:
    from qunlearn.unlearn.base import Unlearner
    from qunlearn.unlearn.oeu import OEU

SWITCH_CONFIDENCE = 0.9
GATE_QUANTILE = 0.25


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
            len(ctx.data.forget), len(ctx.data.retain), cfg.batch_size, cfg.retain_batch_size,
            seed=ctx.seed, pairing=cfg.pairing,
        )  # fmt: skip
        self.total = cfg.max_steps
        if cfg.epochs is not None:
            self.total = min(self.total, cfg.epochs * self.pairs.steps_per_epoch)
        self.memory: dict[str, Any] = {"switched": cfg.loss == "e1", "noise": [], "gate_open": 0}
        self.gate = confidence_quantile(ctx.model, ctx.task, ctx.data.stop, GATE_QUANTILE) if cfg.sample_gate else None

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
            row |= diagnostics.deep(
                ctx, self.arena, rows_r, update, retain["loss"], bn=cfg.bn, noise=self.memory["noise"]
            )
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
