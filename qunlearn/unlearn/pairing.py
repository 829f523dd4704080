"""Which samples a step sees: shuffled passes, and pairs of a forget and a retain batch.

Sampling is without replacement inside a pass. An incomplete last batch is kept if it has at least two samples. All
state is plain data (:meth:`Pass.state`), so that a run can stop at any step and go on with the same batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ArtefactError, ConfigError, DataError

PAIRINGS = ("cycle_shorter", "zip_shortest")
REFUSED = {
    "forget_then_retain": "all forget batches before all retain batches cannot carry a projection, which needs both "
    "gradients at one and the same parameters"
}


def rng_for(seed: int, purpose: str) -> np.random.Generator:
    """A generator that depends on the seed and on a word, so that its uses are independent of each other."""
    return np.random.default_rng([seed, *purpose.encode()])


def batches_per_pass(n: int, batch_size: int) -> int:
    """Batches in one pass over ``n`` samples; a last batch of one sample is dropped unless it is the only one."""
    full, rest = divmod(n, batch_size)
    return full + (1 if rest >= 2 or (rest == 1 and full == 0) else 0)


class Pass:
    """Endless shuffled passes over ``n`` samples: :meth:`next` returns the positions of the next batch."""

    def __init__(self, n: int, batch_size: int, *, seed: int, purpose: str) -> None:
        if n < 1:
            raise DataError(f"the {purpose} set is empty.", remedy="Check the deletion request and the split.")
        self.n = n
        self.batch_size = batch_size
        self.purpose = purpose
        self.count = batches_per_pass(n, batch_size)
        self.samples_seen = 0
        self._rng = rng_for(seed, f"pass.{purpose}")
        self._order = np.empty(0, np.int64)
        self._position = self.count

    def next(self) -> NDArray[np.int64]:
        """Positions int64 [<= batch_size]; a new shuffle starts when the pass is over."""
        if self._position >= self.count:
            self.restart()
        start = self._position * self.batch_size
        self._position += 1
        rows = self._order[start : start + self.batch_size]
        self.samples_seen += len(rows)
        return rows

    def restart(self) -> None:
        """Begin a fresh pass with a new shuffle of this loader's own generator."""
        self._order = self._rng.permutation(self.n).astype(np.int64)
        self._position = 0

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`load` needs, as plain JSON data."""
        return {
            "n": self.n,
            "batch_size": self.batch_size,
            "rng": self._rng.bit_generator.state,
            "order": self._order.tolist(),
            "position": self._position,
            "samples_seen": self.samples_seen,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`; ArtefactError when it belongs to other data."""
        if state.get("n") != self.n or state.get("batch_size") != self.batch_size:
            raise ArtefactError(
                f"the saved position of the {self.purpose} loader is for {state.get('n')} samples in batches of "
                f"{state.get('batch_size')}, this run has {self.n} in batches of {self.batch_size}.",
                remedy="Resume with the data and settings of the interrupted run.",
            )
        self._rng.bit_generator.state = state["rng"]
        self._order = np.asarray(state["order"], np.int64)
        self._position = int(state["position"])
        self.samples_seen = int(state["samples_seen"])


class Pairs:
    """One forget and one retain batch a step.

    ``cycle_shorter``: an epoch is one pass over the longer loader, the shorter restarts with a fresh shuffle of its own
    generator; so a small forget set is visited many times an epoch (``samples_seen`` counts). ``zip_shortest``: an
    epoch ends with the shorter loader, and both begin anew.
    """

    def __init__(
        self,
        n_forget: int,
        n_retain: int,
        batch_size: int,
        retain_batch_size: int,
        *,
        seed: int,
        pairing: str = "cycle_shorter",
    ) -> None:
        check_pairing(pairing)
        self.pairing = pairing
        self.forget = Pass(n_forget, batch_size, seed=seed, purpose="forget")
        self.retain = Pass(n_retain, retain_batch_size, seed=seed, purpose="retain")
        pick = max if pairing == "cycle_shorter" else min
        self.steps_per_epoch = pick(self.forget.count, self.retain.count)
        self._step = 0

    def next(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the next forget batch and of the next retain batch."""
        if self.pairing == "zip_shortest" and self._step % self.steps_per_epoch == 0:
            self.forget.restart()
            self.retain.restart()
        self._step += 1
        return self.forget.next(), self.retain.next()

    def state(self) -> dict[str, Any]:
        """Plain JSON data for :meth:`load`."""
        return {"forget": self.forget.state(), "retain": self.retain.state(), "step": self._step}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.forget.load(state["forget"])
        self.retain.load(state["retain"])
        self._step = int(state["step"])


def check_pairing(pairing: str) -> None:
    """ConfigError for an order of batches that is unknown or that cannot carry a simultaneous projection."""
    if pairing in PAIRINGS:
        return
    why = REFUSED.get(pairing)
    text = f"pairing {pairing!r} is refused: {why}." if why else f"pairing {pairing!r} is unknown."
    raise ConfigError(text, remedy=f"Use one of {', '.join(PAIRINGS)}.")
