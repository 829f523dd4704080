"""The one training loop: a float phase, calibration, then quantization-aware training. Resumable by epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qunlearn.errors import ArtefactError, ConfigError, DivergedError
from qunlearn.quant.calibrate import calibrate
from qunlearn.quant.detie import detie
from qunlearn.quant.model import QuantModel, clamp_scales, scale_parameter_names
from qunlearn.quant.state import load_tensors, optimizer_tensors, restore_optimizer, save_tensors
from qunlearn_export.files import canonical_json

CALIBRATION_BATCHES = 8


class TrainingTask(Protocol):
    """The part of :class:`qunlearn.tasks.Task` that training needs."""

    def batch(self, samples: Any, index: NDArray[np.int64]) -> Any: ...
    def logits(self, model: nn.Module, batch: Any) -> Tensor: ...
    def loss(self, logits: Tensor, batch: Any) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training hyper-parameters.

    ``epochs`` passes over the data, of which the first ``float_share`` run without fake quantization; ``lr`` peak
    learning rate of SGD with Nesterov ``momentum``, one warm-up epoch, cosine to 0; scales learn at ``lr`` times
    ``scale_lr``. ``augment`` is ``none`` or ``crop_flip`` (pad 4, random crop, horizontal flip).
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    float_share: float = 0.6
    scale_lr: float = 0.01
    augment: str = "none"

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.epochs <= 10_000:
            problems.append("epochs must lie in 0..10000")
        if not 2 <= self.batch_size <= 65_536:
            problems.append("batch_size must lie in 2..65536")
        if not 0 < self.lr <= 10:
            problems.append("lr must lie in (0, 10]")
        if not 0 <= self.weight_decay <= 1:
            problems.append("weight_decay must lie in [0, 1]")
        if not 0 <= self.scale_lr <= 1:
            problems.append("scale_lr must lie in [0, 1]")
        if not 0 <= self.momentum < 1:
            problems.append("momentum must lie in [0, 1)")
        if not 0 <= self.float_share < 1:
            problems.append("float_share must lie in [0, 1)")
        if self.augment not in ("none", "crop_flip"):
            problems.append("augment must be none or crop_flip")
        if problems:
            raise ConfigError("; ".join(problems) + ".", remedy="Correct these settings.")

    @property
    def float_epochs(self) -> int:
        """Epochs without fake quantization."""
        return int(self.epochs * self.float_share)


def train(
    model: QuantModel,
    task: TrainingTask,
    samples: Any,
    recipe: Recipe,
    *,
    seed: int,
    state_file: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_epoch: Callable[[int, float], None] | None = None,
) -> QuantModel:
    """Train ``model`` in place and return it in evaluation mode.

    With ``state_file`` the state is written after every epoch; ``resume=True`` goes on from it and gives the bits of
    an uninterrupted run. ``on_epoch(epoch, loss)`` is called after each epoch. A non-finite loss is a DivergedError.
    """
    if recipe.epochs and len(samples) < 2:
        raise ConfigError(f"{len(samples)} training samples are too few.", remedy="Give at least 2.")
    optimizer = _optimizer(model, recipe)
    start = 0
    key = canonical_json({"recipe": asdict(recipe), "seed": seed, "data": samples.digest()})
    if resume and state_file is not None and Path(state_file).exists():
        start = _restore(model, optimizer, state_file, key)
    n_batches = len(samples) // recipe.batch_size + (len(samples) % recipe.batch_size >= 2)
    total = recipe.epochs * n_batches
    for epoch in range(start, recipe.epochs):
        if epoch == recipe.float_epochs:
            calibrate(model, _calibration_batches(task, samples, recipe, seed))
            optimizer = _optimizer(model, recipe, momentum_of=optimizer)
        model.set_enabled(epoch >= recipe.float_epochs)
        model.train()
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(seed, epoch, 1))
            for i, rows in enumerate(_batches(len(samples), recipe.batch_size, _mix(seed, epoch, 0))):
                lr = _lr(recipe, epoch * n_batches + i, total, n_batches)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["factor"]
                batch = task.batch(samples, rows)
                if recipe.augment == "crop_flip":
                    batch = _crop_flip(batch, _mix(seed, epoch * n_batches + i, 2))
                loss = task.loss(task.logits(model, batch), batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                clamp_scales(model)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise DivergedError(
                        f"training diverged in epoch {epoch + 1} (loss {losses[-1]}).", remedy="Use a smaller lr."
                    )
        bad = [n for n, p in model.named_parameters() if not bool(p.isfinite().all())]
        if bad:
            raise DivergedError(
                f"training diverged in epoch {epoch + 1}: {', '.join(bad[:4])} are not finite.",
                remedy="Use a smaller lr.",
            )
        if state_file is not None:
            tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
            save_tensors(state_file, tensors | optimizer_tensors(optimizer), {"epoch": epoch + 1, "key": key})
        if on_epoch is not None:
            on_epoch(epoch + 1, float(np.mean(losses)))
    model.set_enabled(True)
    if recipe.epochs == 0 and len(samples) >= 1:
        calibrate(model, _calibration_batches(task, samples, recipe, seed))
    detie(model)
    return model.eval()


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(2, np.uint64)[0] >> np.uint64(1))


def _batches(n: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(n)
    for start in range(0, n, size):
        rows = order[start : start + size]
        if len(rows) >= 2:
            yield rows


def _calibration_batches(task: TrainingTask, samples: Any, recipe: Recipe, seed: int) -> Iterator[Tensor]:
    size = min(max(recipe.batch_size, 2), 128)
    for i, rows in enumerate(_batches(len(samples), size, _mix(seed, 0, 3))):
        if i == CALIBRATION_BATCHES:
            return
        yield task.batch(samples, rows).x


def _optimizer(
    model: QuantModel, recipe: Recipe, momentum_of: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    scales = scale_parameter_names(model)
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    grid: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        (grid if name in scales else decay if p.ndim > 1 else plain).append(p)
    groups = [
        {"params": decay, "weight_decay": recipe.weight_decay, "factor": 1.0},
        {"params": plain, "weight_decay": 0.0, "factor": 1.0},
        {"params": grid, "weight_decay": 0.0, "factor": recipe.scale_lr},
    ]
    new = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    if momentum_of is not None:
        restore_optimizer(new, optimizer_tensors(momentum_of))
    return new


def _lr(recipe: Recipe, step: int, total: int, per_epoch: int) -> float:
    warm = min(per_epoch, max(1, total // 10))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _crop_flip(batch: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    x = batch.x
    n, _, h, w = x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    tops, lefts, flips = rng.integers(0, 9, n), rng.integers(0, 9, n), rng.random(n) < 0.5
    rows = torch.from_numpy(tops[:, None] + np.arange(h))
    cols = lefts[:, None] + np.arange(w)
    cols = torch.from_numpy(np.where(flips[:, None], cols[:, ::-1], cols).copy())
    index = torch.arange(n)[:, None, None]
    out = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
    return replace(batch, x=out.contiguous())


def _restore(model: QuantModel, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str], key: str) -> int:
    tensors, facts = load_tensors(path)
    if facts.get("key") != key:
        raise ArtefactError(
            f"{path} belongs to a run with other settings, seed or data.",
            remedy="Repeat the command exactly as it was interrupted, or start in a new folder.",
        )
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    restore_optimizer(optimizer, tensors)
    return int(facts["epoch"])
