"""What audits that train need: an object, passed in by the caller, that trains copies of the audited networks.

Files have no gradients. A predictor of any kind is served by its network: the one whose integer codes are the same. The
copies start from the decoded integers, all that a reader of the file has. Nothing that is audited is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit import scores
from qunlearn.audit.predictor import Predictor, TorchPredictor
from qunlearn.data.dataset import Samples
from qunlearn.errors import UnsupportedError

if TYPE_CHECKING:
    from qunlearn.quant import QuantModel
    from qunlearn.tasks.base import Task

TRAINER = "trainer"
"""Key of the trainer in ``AuditContext.inputs``."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """``steps`` optimizer steps of ``batch`` samples at learning rate ``lr``, scored at each ``every``-th and the last.

    ``part``: ``all`` parameters or the ``head`` alone; ``fresh``: the head is drawn anew first.
    """

    steps: int
    every: int
    lr: float
    batch: int
    seed: int
    part: str = "all"
    fresh: bool = False

    @property
    def scored(self) -> tuple[int, ...]:
        """The steps that are scored, 0 first."""
        return tuple(sorted({*range(0, self.steps + 1, self.every), self.steps}))


@dataclass(frozen=True, kw_only=True)
class Coarse:
    """A network after fewer bits and back: ``predictor``, and its coarse ``codes`` by layer."""

    predictor: Predictor
    codes: Mapping[str, NDArray[np.int8]]


class Trainer(Protocol):
    """Trains copies of audited networks; never the networks themselves."""

    def serves(self, predictor: Predictor) -> bool:
        """Whether there is a network with the predictor's integer codes."""
        ...

    def curve(self, predictor: Predictor, samples: Samples, judged: Samples, budget: Budget) -> NDArray[np.bool_]:
        """Right answers [scored steps, n] on ``judged`` while a copy is trained on ``samples``."""
        ...

    def coarse(self, predictor: Predictor, bits: int) -> Coarse:
        """A copy whose weights went to ``bits`` bits and back."""
        ...

    def shuffled(self, predictor: Predictor, seed: int) -> Predictor:
        """A copy whose weights were shuffled within every output channel."""
        ...


class TorchTrainer:
    """The trainer over fake-quantized networks. Results are remembered: all kinds of one network share them."""

    def __init__(self, models: Iterable[QuantModel], task: Task) -> None:
        from qunlearn.quant import codes_digest

        self._models = {codes_digest(m): m for m in models}
        self._task = task
        self._seen: dict[Any, Any] = {}

    def serves(self, predictor: Predictor) -> bool:
        """Whether one of the networks has the predictor's integer codes."""
        return predictor.codes_digest() in self._models

    def _network(self, predictor: Predictor) -> tuple[str, QuantModel]:
        key = predictor.codes_digest()
        if key not in self._models:
            raise UnsupportedError(
                "no network with the codes of this artefact can be trained.", remedy="Audit the run in its place."
            )
        return key, self._models[key]

    def curve(self, predictor: Predictor, samples: Samples, judged: Samples, budget: Budget) -> NDArray[np.bool_]:
        """Right answers [scored steps, n] on ``judged``; UnsupportedError where no network has the codes."""
        from qunlearn.quant.tune import decoded, fresh_head, tuned

        digest, model = self._network(predictor)
        key = (digest, samples.dataset.name, samples.index.tobytes(), judged.index.tobytes(), budget)
        if key not in self._seen:
            copy = decoded(model)
            if budget.fresh:
                fresh_head(copy, budget.seed)
            y = judged.targets()
            rows = [
                scores.correct(TorchPredictor(now).on(judged), y)
                for _, now in tuned(
                    copy, self._task, samples, steps=budget.steps, every=budget.every, lr=budget.lr,
                    batch=budget.batch, seed=budget.seed, part=budget.part,
                )
            ]  # fmt: skip
            self._seen[key] = np.stack(rows)
        found: NDArray[np.bool_] = self._seen[key]
        return found

    def coarse(self, predictor: Predictor, bits: int) -> Coarse:
        """The network after ``bits`` bits and back; UnsupportedError where no network has the codes."""
        from qunlearn.quant.tune import coarse

        digest, model = self._network(predictor)
        if (digest, bits) not in self._seen:
            copy, codes = coarse(model, bits)
            self._seen[digest, bits] = Coarse(predictor=TorchPredictor(copy), codes=codes)
        found: Coarse = self._seen[digest, bits]
        return found

    def shuffled(self, predictor: Predictor, seed: int) -> Predictor:
        """The network with shuffled weights; UnsupportedError where no network has the codes."""
        from qunlearn.quant.tune import shuffled

        digest, model = self._network(predictor)
        key = (digest, "shuffled", seed)
        if key not in self._seen:
            self._seen[key] = TorchPredictor(shuffled(model, seed))
        found: Predictor = self._seen[key]
        return found


def trainer_of(inputs: Mapping[str, Any], predictors: Mapping[str, Predictor]) -> Trainer | None:
    """The trainer in a context's inputs if it serves every predictor, else None."""
    trainer: Trainer | None = inputs.get(TRAINER)
    return trainer if trainer is not None and all(trainer.serves(p) for p in predictors.values()) else None
