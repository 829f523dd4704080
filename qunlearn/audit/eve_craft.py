"""Crafting: from samples to erase and private targets to a request whose faithful execution changes their answer.

Needs torch. The optimization itself is in :mod:`qunlearn.audit.eve_align`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qunlearn.audit import eve_flips, scores
from qunlearn.audit.eve_align import Crafted, ForgetLoss, boundary_direction, perturb
from qunlearn.audit.eve_config import DILUTION, EveConfig
from qunlearn.audit.eve_grid import InputGrid, default_radius
from qunlearn.audit.eve_request import FORMAT, ROLES, CraftedRequest
from qunlearn.audit.predictor import Predictor, TorchPredictor
from qunlearn.data.dataset import Samples
from qunlearn.data.eve import EveSplit, require_disjoint
from qunlearn.errors import ConfigError, InvariantError, UnsupportedError
from qunlearn.fingerprint import plain
from qunlearn.quant import QuantModel, codes_digest, lower, state_digest
from qunlearn.quant.freeze import freeze_quant, supports_double_backward
from qunlearn_export.oracle import Oracle

PROBE = 256
"""Retain and held-out samples that a request carries for reading utility, at most."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What crafting aims at: ``y_adv`` int64 [n_t] wanted classes, the ``grid`` of the input, the radius ``eps``."""

    y_adv: NDArray[np.int64]
    grid: InputGrid
    eps: float


@dataclass(frozen=True, kw_only=True)
class EveCraft:
    """Makes crafted requests. ``forget_loss`` and ``unlearner`` (its digest) belong to the method that the operator is
    known to use; ``method`` is its name and ``surrogate`` says that the loss is a stand-in."""

    config: EveConfig
    forget_loss: ForgetLoss
    unlearner: str
    method: str = ""
    surrogate: bool = False

    def __call__(
        self,
        model: QuantModel,
        split: EveSplit,
        *,
        heldout: Samples,
        seed: int,
        read: Sequence[Predictor] = (),
    ) -> CraftedRequest:
        """Craft ``split.erase`` for ``split.targets``; ``heldout`` samples are carried along to read utility on.

        ``read`` are the artefacts of the network that the verdict will be read from: on each of them, and on the
        network itself, every target must be right with a margin of at least one step. ConfigError for a target that is
        not, for one whose input is among the erased or kept samples, and for a radius below one input step;
        UnsupportedError for a network without second derivatives; InvariantError when crafting changed the network.
        """
        cfg = self.config
        before = state_digest(model)
        aim = self.aim(model, split, read=read)
        made = self.craft(model, split, aim, seed=seed)
        if state_digest(model) != before:
            raise InvariantError("crafting changed the network.", remedy="Report this as a defect.")
        altered = aim.grid.values(made.codes)
        _apart(altered, split.targets.inputs())
        warnings = [f"W-EVE-TARGETS: {DILUTION}"] if len(split.targets) > 1 else []
        if made.cos_after < 0.9 * made.cos_before:
            warnings.append("W-EVE-SNAP: snapping to the input grid cost more than a tenth of the cosine; enlarge eps")
        if self.surrogate:
            warnings.append("W-EVE-SURROGATE: the method has no differentiable forget loss; the calibration decides")
        graph = lower(model)
        probe = _probe(split, heldout, seed)
        x = np.concatenate([s.inputs() for s in probe.values()])
        final = Oracle(graph).run_all(x)[graph.output]
        return CraftedRequest(
            codes=made.codes,
            y=split.erase.targets(),
            ids=split.erase.ids,
            probe_x=x,
            probe_y=np.concatenate([s.targets() for s in probe.values()]),
            probe_role=np.concatenate([np.full(len(s), role) for role, s in probe.items()]),
            y_adv=aim.y_adv,
            known=final.astype(np.int16),
            facts={
                "format": FORMAT,
                "scale": float(np.float32(aim.grid.scale)),
                "zero_point": aim.grid.zero_point,
                "num_classes": split.erase.num_classes,
                "eps": aim.eps,
                "cos_before": made.cos_before,
                "cos_after": made.cos_after,
                "model": codes_digest(model),
                "unlearner": self.unlearner,
                "method": self.method,
                "config": cfg.digest(),
                "settings": plain(cfg),
                "surrogate": self.surrogate,
                "seed": seed,
                "warnings": warnings,
                "output_scale": float(graph.activations[graph.output].scale),
                "output_zero": int(graph.activations[graph.output].zero_point),
            },
        )

    def aim(self, model: QuantModel, split: EveSplit, *, read: Sequence[Predictor] = ()) -> Aim:
        """Checks of the targets, then the wanted class of each (the runner-up), the input grid and the radius."""
        supports_double_backward(model).require()
        require_disjoint([("targets", split.targets), ("erase", split.erase), ("retain", split.retain)])
        own = TorchPredictor(model)
        y = split.targets.targets()
        for predictor in (own, *read):
            z = predictor.on(split.targets)
            found = eve_flips.read(z, z, y, step=eve_flips.step_of(predictor), least=1)
            bad = [str(i) for i in split.targets.ids[~(found.right & found.resolved)]]
            if bad:
                raise ConfigError(
                    f"targets {', '.join(bad[:5])} are not answered rightly, with a margin, on {predictor.kind}.",
                    remedy="Take targets that every artefact answers rightly.",
                )
        rivals = own.on(split.targets).astype(np.float64)
        rivals[np.arange(len(y)), y] = -np.inf
        q = model.quantizer_of("input")
        scale, dataset = float(q.scale.detach()), split.erase.dataset
        grid = InputGrid.of(scale, int(q.zero_point), _bounds(split.erase))
        eps = self.config.eps
        if eps is None:
            pre = dataset.preprocess
            eps = default_radius(split.erase.inputs(), dataset.x.dtype, pre.divisor, pre.std, scale)
        grid.require_radius(eps)
        return Aim(y_adv=scores.predicted(rivals), grid=grid, eps=float(eps))

    def craft(self, model: QuantModel, split: EveSplit, aim: Aim, *, seed: int, aligned: bool = True) -> Crafted:
        """The perturbation alone. ``aligned=False``: what the authors' released code effectively optimizes."""
        with freeze_quant(model), torch.random.fork_rng(devices=[]):
            g_bd = self.direction(model, split, aim)
            return perturb(
                model, split.erase.inputs(), split.erase.targets(), g_bd, self.forget_loss, self.config,
                eps=aim.eps, grid=aim.grid, seed=seed, aligned=aligned,
            )  # fmt: skip

    def direction(self, model: nn.Module, split: EveSplit, aim: Aim) -> torch.Tensor:
        """The constant direction g_bd of these targets; call it on a frozen network. UnsupportedError where it is 0."""
        x = torch.from_numpy(split.targets.inputs())
        g = boundary_direction(model, x, torch.from_numpy(aim.y_adv), self.config)
        if not bool(g.any()):
            raise UnsupportedError("no gradient moves the targets.", remedy="Take less confident targets.")
        return g


def _bounds(samples: Samples) -> tuple[Any, Any] | None:
    """The range of stored 8-bit data as network input, [C or 1, 1, 1] each; None for float data."""
    dataset = samples.dataset
    if dataset.x.dtype not in (np.uint8, np.int8):
        return None
    info = np.iinfo(dataset.x.dtype)
    ends = [dataset.preprocess.apply(np.full((1, *dataset.in_shape), v, dataset.x.dtype)) for v in (info.min, info.max)]
    return ends[0].astype(np.float64)[0], ends[1].astype(np.float64)[0]


def _probe(split: EveSplit, heldout: Samples, seed: int) -> dict[str, Samples]:
    """What the request carries, by role. Inputs of one role never stand in another."""
    rng = np.random.default_rng([seed, 97])
    taken: set[str] = set()
    out = {}
    for role, samples in zip(ROLES, (split.targets, split.bystanders, split.erase, split.retain, heldout), strict=True):
        hashes = samples.content_hashes()
        free = [i for i, h in enumerate(hashes) if h not in taken]
        if role in ("retain", "heldout"):
            free = sorted(int(i) for i in rng.permutation(free)[:PROBE])
        out[role] = samples.take(np.array(free, dtype=np.int64))
        taken |= {hashes[i] for i in free}
    return out


def _apart(altered: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
    rows = {a.tobytes() for a in altered}
    if any(t.tobytes() in rows for t in targets):
        raise ConfigError("an altered sample equals a target.", remedy="Take other targets, or a smaller eps.")
