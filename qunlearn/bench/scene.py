"""Where a cell stands: networks, splits and reference card of one network, bit width, request and seed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn import quant, tasks
from qunlearn.bench.grid import Grid
from qunlearn.bench.networks import SECOND, Key, Trained, network
from qunlearn.bench.recipes import reference_seed
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import InvariantError
from qunlearn.unlearn import ReferenceCard, group_values

ORIGINAL, RETRAINED, SECOND_RETRAINED = "original", "retrained", "second retrained"
ROWS = (ORIGINAL, RETRAINED, SECOND_RETRAINED)


class Closed(Samples):
    """A test split that refuses to be read: what a tuner gets."""

    def _refuse(self) -> InvariantError:
        return InvariantError("the test split was read while tuning.", remedy="Report this defect.")

    def raw(self, idx: Any = None) -> NDArray[Any]:
        raise self._refuse()

    def targets(self, idx: Any = None) -> NDArray[np.int64]:
        raise self._refuse()


def closed(splits: Splits) -> Splits:
    """The same splits with a test split that raises on access."""
    out = copy.copy(splits)
    object.__setattr__(out, "test", Closed(splits.test.dataset, splits.test.index))
    object.__setattr__(out, "forget_test", None)
    return out


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where a cell stands: network, bit width, inline request, seed."""

    model: str
    bits: str
    request: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that all methods of one spot share."""

    spot: Spot
    splits: Splits
    original: Trained
    retrained: Trained
    card: ReferenceCard | None


def keys_of(spot: Spot) -> dict[str, Key]:
    """The networks that a spot needs, by row name."""
    original = Key(model=spot.model, bits=spot.bits, seed=spot.seed)
    gone = replace(original, request=spot.request, split_seed=spot.seed)
    return {
        ORIGINAL: original,
        RETRAINED: replace(gone, seed=reference_seed(spot.seed)),
        SECOND_RETRAINED: replace(gone, seed=SECOND + spot.seed),
    }


def scene(grid: Grid, dataset: Dataset, spot: Spot, work: Path) -> Scene:
    """Networks (from the work folder) and splits; the card of a group request has the retrained network's values."""
    keys = keys_of(spot)
    request = Request.parse(spot.request)
    splits = make_splits(dataset, request, seed=spot.seed)
    original = network(grid, dataset, keys[ORIGINAL], work)
    retrained = network(grid, dataset, keys[RETRAINED], work)
    card = None
    if request.kind == "group":
        values = group_values(retrained.model, tasks.get("classification"), splits.forget)
        card = ReferenceCard(groups=values, model_digest=quant.state_digest(original.model), seed=spot.seed)
    return Scene(spot=spot, splits=splits, original=original, retrained=retrained, card=card)
