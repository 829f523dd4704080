"""EC, erase at the core: unlearn at every stage of the network, alone or inside another method."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from qunlearn.errors import ConfigError
from qunlearn.fingerprint import digest_bytes
from qunlearn.hyper import hyper, hypers
from qunlearn.unlearn.auxiliary import AuxiliaryPart, Stages, pretrained
from qunlearn.unlearn.base import Unlearner
from qunlearn.unlearn.checkpoint import Part
from qunlearn.unlearn.context import Context
from qunlearn.unlearn.contrastive import FORMS
from qunlearn.unlearn.ec_oeu import ErasingOEU
from qunlearn.unlearn.erasure import Erasure, chosen_stages, stage_weights
from qunlearn.unlearn.oeu import OEU
from qunlearn.unlearn.pairing import Pairs
from qunlearn.unlearn.probe import device_of, to_device
from qunlearn.unlearn.representation import Representation
from qunlearn.unlearn.sgd import Epochs, EpochSGD, LossFunction, Plan, plain

WITHOUT_RETAIN_LOSS = ("bad_teacher", "boundary_shrink", "ga")
OF_THE_BASE = ("epochs", "lr", "momentum", "weight_decay", "schedule")


@dataclass(frozen=True, kw_only=True)
class EC(EpochSGD):
    """Minimise the sum over stages s of `w_s [CE(logits_s(x_r), y_r) + lam L_CU(z_s)]`; `base` puts it in a method.

    `z_s` are normalised features of stage s, brought to one width by auxiliary modules that are trained beforehand,
    live during the run only and are never exported. L_CU is one of two contrastive losses on the forget batch.
    """

    name: ClassVar[str] = "ec"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    source: ClassVar[str] = (
        "Lee, Kim, Kim 2026 (arXiv 2602.05375) for the idea; losses after arXiv 2503.06991 and arXiv 2401.10458; stage "
        "weights, modules, schedules and the stop rule on CKA are our own choice"
    )

    contrast: str = hyper("retain", choices=FORMS, doc="forget samples against retain samples, or among themselves")
    lam: float = hyper(0.1, low=0, high=2, search=(0.03, 1.0), log=True, doc="weight of the contrast")
    tau: float = hyper(0.5, low=0.01, high=1, doc="temperature of the contrast")
    gamma: float = hyper(1.0, low=0, high=2, doc="weight of all EC terms inside a base method")
    weights: str = hyper("depth", doc="of the stages: depth, uniform, reverse, or one number for each")
    stages: str = hyper("all", doc="which stages: all, last, or numbers such as 2,3")
    deep_ce: bool = hyper(True, doc="training loss of retain samples at the stages before the last")
    base: str = hyper("", doc="method to put EC into; empty: EC alone")
    base_settings: str = hyper("", doc="settings of the base, such as 'lr=0.01 epochs=3'")
    aux_epochs: int = hyper(3, low=1, high=50, unit="epochs", doc="training of the auxiliary modules")
    aux_cache: str = hyper("", doc="folder that keeps the auxiliary modules; empty: made anew in every run")
    purge_aux: bool = hyper(True, doc="delete the auxiliary modules afterwards: they have seen the forget data")
    eval_every: int = hyper(20, low=1, high=100_000, unit="steps", doc="steps between evaluations of the stop rule")

    def problems(self) -> list[str]:
        """Besides the ranges: the base must be a method with a loss, and owns its optimizer's settings."""
        out = super().problems()
        if not self.base:
            return [*out, "base_settings needs a base"] if self.base_settings else out
        try:
            inner = self.inner()
            out += [f"base {self.base}: {p}" for p in inner.problems()]
            out += ["base_settings need a number for lr"] * inner.unsettled
        except ConfigError as err:
            out.append(err.message.rstrip("."))
        known = hypers(type(self))
        if moved := [n for n in OF_THE_BASE if getattr(self, n) != known[n].default]:
            out.append(f"{', '.join(moved)} belong to the base: give them in base_settings")
        return out

    def inner(self) -> Unlearner:
        """The base method; ConfigError when there is none of that name, or when it has no loss to add to."""
        from qunlearn.unlearn import METHODS  # the registry imports this file

        cls = METHODS[self.base]
        if cls is EC or not issubclass(cls, Epochs | OEU):
            raise ConfigError(
                f"{self.base} has no loss that EC could be added to.",
                remedy="Use a method that takes gradient steps, such as rl, salun, scrub, ga or oeu.",
            )
        words = shlex.split(self.base_settings)
        if not all("=" in w for w in words):
            raise ConfigError(f"base_settings {self.base_settings!r} is malformed.", remedy="Write 'key=value ...'.")
        method = cls.from_settings(dict(w.split("=", 1) for w in words))
        return dataclasses.replace(method, bn=self.bn, train_scales=self.train_scales)

    def run(self, ctx: Context) -> None:
        """Auxiliary modules, then the base's loop (or the own one) with the terms of every stage added."""
        method = self.inner() if self.base else self
        if isinstance(method, OEU):
            ErasingOEU(method, ctx, self).loop()
        elif isinstance(method, Epochs):
            method.drive(ctx, self.plan(ctx), owner=self)

    def plan(self, ctx: Context) -> Plan:
        """The base's plan, or pairs of batches, with the terms of every stage; modules are trained here."""
        base = self.inner() if self.base else None
        own = base.plan(ctx) if isinstance(base, Epochs) else None
        pairs = Pairs(len(ctx.data.forget), len(ctx.data.retain), self.batch_size, self.batch_size, seed=ctx.seed)
        along = self.alongside(ctx)
        parts = {**(own.parts if own is not None else {}), **plain(ec=pairs), **along.parts}
        return Plan(
            lengths=own.lengths if own is not None else (pairs.steps_per_epoch,) * self.epochs,
            loss=self._loss(ctx, along.erasure, pairs, own),
            parts=parts,
            after=own.after if own is not None else None,
            extra=tuple(along.erasure.aux.parameters()),
            finish=along.finish,
            representation=along.representation,
        )

    def alongside(self, ctx: Context) -> Alongside:
        """Checks of the request, modules trained on the frozen network, and what happens to them at the end."""
        self._check(ctx)
        aux, path = pretrained(ctx, stages := Stages(ctx.model), epochs=self.aux_epochs, cache=self.aux_cache)
        part = AuxiliaryPart(aux)
        count = len(stages.names) + 1
        ctx.fields["skipped_anchors"] = 0

        def finish() -> None:
            if not self.purge_aux:
                return
            part.aux = None
            if path is not None and path.exists():
                ctx.fields["purged"] = [digest_bytes(path.read_bytes())]
                os.unlink(path)

        return Alongside(
            erasure=Erasure(
                ctx=ctx,
                aux=aux,
                stages=stages,
                weights=stage_weights(self.weights, count),
                chosen=chosen_stages(self.stages, count),
                contrast=self.contrast,
                tau=self.tau,
                deep_ce=self.deep_ce,
                head_ce=not self.base or self.base in WITHOUT_RETAIN_LOSS,
            ),
            parts={"auxiliary": part},
            representation=Representation(ctx, self.probe) if self.stop_rule else None,
            finish=finish,
        )

    def _check(self, ctx: Context) -> None:
        classes = np.unique(ctx.data.forget.targets())
        if self.contrast == "forget" and len(classes) < 2:
            raise ConfigError(
                "contrast=forget has no signal for a single class: all its pairs are of one class.",
                remedy="Use contrast=retain.",
            )
        if ctx.request_kind in ("random", "ids"):
            ctx.warn(
                "W-RANDOM-REQUEST",
                "EC is for classes and groups: a network retrained without random samples keeps its features",
            )

    def _loss(self, ctx: Context, erasure: Erasure, pairs: Pairs, base: Plan | None) -> LossFunction:
        device = device_of(ctx.model)

        def loss(epoch: int, i: int) -> tuple[Tensor, dict[str, Any]]:
            value, row = base.loss(epoch, i) if base is not None else (None, {})
            if value is not None and row.get("phase") == "max":
                return value, row
            rows_f, rows_r = pairs.next()
            forget = to_device(ctx.task.batch(ctx.data.forget, rows_f), device)
            retain = to_device(ctx.task.batch(ctx.data.retain, rows_r), device)
            terms = erasure(forget, retain, self.bn)
            ctx.fields["skipped_anchors"] += terms.skipped
            own = terms.supervision + self.lam * terms.contrast
            row |= {"ec_supervision": float(terms.supervision.detach()), "ec_contrast": float(terms.contrast.detach())}
            return (own if value is None else value + self.gamma * own), row

        return loss


@dataclass(frozen=True, kw_only=True)
class Alongside:
    """What EC brings into a loop: its terms, parts of a checkpoint, what the stop rule watches, and the end."""

    erasure: Erasure
    parts: Mapping[str, Part]
    representation: Representation | None
    finish: Callable[[], None]


def plug_ec(base: Unlearner, ec: EC) -> EC:
    """EC inside ``base``: a method whose loss is the base's plus EC's terms (``gamma``)."""
    given = {n: getattr(base, n) for n, h in hypers(type(base)).items() if getattr(base, n) != h.default}
    words = " ".join(f"{n}={shlex.quote('none' if v is None else str(v))}" for n, v in given.items())
    return dataclasses.replace(ec, base=base.name, base_settings=words)
