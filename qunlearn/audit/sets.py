"""The sample sets that audits read, under the rule for forgotten classes and groups.

A class or group that the request takes away **as a whole** is no part of ``heldout`` and ``test`` when utility is
measured, since a retrained model cannot be right on it either; its own held-out and test samples are read beside, as
``forget_heldout`` and ``forget_test``. :func:`qunlearn.data.splits.make_splits` divides them so for class and group
requests. The same rule is applied here to requests by id that happen to name a whole class or group (all recordings of
one speaker): what is in ``forget`` and not in ``retain`` is forgotten as a whole, whatever the request was called.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.dataset import Samples
from qunlearn.data.splits import Splits
from qunlearn.errors import ConfigError, DataError

NAMES = ("forget", "retain", "heldout", "heldout_stop", "heldout_all", "test", "forget_heldout", "forget_test")
"""Every set by name. ``heldout`` is the part reserved for audits, ``heldout_stop`` the one for stopping rules,
``heldout_all`` both together (utility is read on it: twice the samples, and no attack or verdict value reads it)."""


def _belongs(samples: Samples, splits: Splits) -> NDArray[np.bool_]:
    """Which samples belong to a class or group that is forgotten as a whole, bool [n]."""
    gone = np.setdiff1d(splits.forget.targets(), splits.retain.targets())
    out: NDArray[np.bool_] = np.isin(samples.targets(), gone)
    forget, retain, group = splits.forget.group, splits.retain.group, samples.group
    if forget is not None and retain is not None and group is not None:
        out = out | np.isin(group, np.setdiff1d(forget, retain))
    return out


def kept(samples: Samples, splits: Splits) -> Samples:
    """``samples`` without the classes and groups that are forgotten as a whole; none left is a DataError."""
    rows = np.flatnonzero(~_belongs(samples, splits))
    if rows.size == 0:
        raise DataError(
            "every held-out or test sample belongs to what is forgotten; utility cannot be measured.",
            remedy="Give held-out and test samples of the classes or groups that stay.",
        )
    return samples.take(rows)


def gone(samples: Samples, splits: Splits) -> Samples | None:
    """The samples of classes and groups that are forgotten as a whole; None where there are none."""
    rows = np.flatnonzero(_belongs(samples, splits))
    return samples.take(rows) if rows.size else None


def pick(splits: Splits, name: str) -> Samples | None:
    """The set of that name, or None where it is empty by nature; an unknown name is a ConfigError."""
    match name:
        case "forget":
            return splits.forget
        case "retain":
            return splits.retain
        case "heldout":
            return kept(splits.heldout_audit, splits)
        case "heldout_stop":
            return kept(splits.heldout_stop, splits)
        case "heldout_all":
            return kept(splits.heldout, splits)
        case "test":
            return kept(splits.test, splits)
        case "forget_heldout":
            return gone(splits.heldout_audit, splits) if splits.forget_heldout is None else splits.forget_heldout
        case "forget_test":
            return gone(splits.test, splits) if splits.forget_test is None else splits.forget_test
        case _:
            raise ConfigError(f"unknown sample set {name!r}.", remedy=f"Known: {', '.join(NAMES)}.")


def need(splits: Splits, name: str) -> Samples:
    """The set of that name; an empty one is a DataError."""
    samples = pick(splits, name)
    if samples is None or len(samples) == 0:
        raise DataError(f"the set {name!r} is empty.", remedy="Choose another data set or request.")
    return samples


def available(splits: Splits, names: tuple[str, ...]) -> Mapping[str, Samples]:
    """Those of ``names`` that hold samples, in that order."""
    found = ((name, pick(splits, name)) for name in names)
    return {name: samples for name, samples in found if samples is not None and len(samples) > 0}
