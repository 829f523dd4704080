"""Seeded, stratified division of samples, in which samples of equal content always stay together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qunlearn.errors import ConfigError


def check_seed(seed: int) -> None:
    """A seed is a whole number, 0 or more; anything else is a ConfigError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"the seed must be a whole number, 0 or more, not {seed!r}.", remedy="Such as --seed 0.")


def strata(y: NDArray[np.int64], group: NDArray[np.str_] | None) -> list[tuple[int, str]]:
    """The stratum of every sample: its class, and its group where there is one."""
    names = [""] * len(y) if group is None else [str(g) for g in group]
    return list(zip((int(v) for v in y), names, strict=True))


def stratified_part(
    hashes: Sequence[str], cells: Sequence[tuple[int, str]], fraction: float, *, seed: int, purpose: str
) -> NDArray[np.bool_]:
    """Choose about ``fraction`` of the samples, from every stratum alike: a mask, bool [N].

    ``hashes`` are content hashes: equal ones are chosen together (they count for the stratum of the first of them).
    ``cells`` is the stratum of every sample. Rounding is carried over from one stratum to the next, so that the total
    is within one unit of ``fraction * N`` however small the strata are. The choice depends on the seed, on
    ``purpose`` (a word that keeps different divisions of one data set independent) and on the contents, not on the
    order of the samples.
    """
    check_seed(seed)
    rng = np.random.default_rng([int(seed), *purpose.encode()])
    units: dict[str, list[int]] = {}
    for i, h in enumerate(hashes):
        units.setdefault(h, []).append(i)
    by_cell: dict[tuple[int, str], list[str]] = {}
    for h, members in units.items():
        by_cell.setdefault(min(cells[i] for i in members), []).append(h)
    mask = np.zeros(len(hashes), bool)
    seen = chosen = 0
    for cell in sorted(by_cell):
        names = sorted(by_cell[cell])
        seen += len(names)
        want = min(len(names), max(0, round(fraction * seen) - chosen))
        chosen += want
        for k in rng.permutation(len(names))[:want]:
            mask[units[names[int(k)]]] = True
    return mask


def assign_parts(
    hashes: Sequence[str],
    y: NDArray[np.int64],
    group: NDArray[np.str_] | None,
    *,
    seed: int,
    given: NDArray[np.str_] | None = None,
    heldout: float = 0.2,
    test: float = 0.2,
) -> NDArray[np.str_]:
    """Complete a division into ``train``, ``heldout`` and ``test``: array of these words [N].

    ``given`` holds an official division; what it lacks is taken from its ``train`` samples: first ``test`` (a share of
    them), then ``heldout`` (a share of the rest), both seeded and stratified by class and group.
    """
    part = np.full(len(y), "train") if given is None else given.astype(np.str_)
    part = part.astype(np.promote_types(part.dtype, np.dtype("<U7")))
    cells = strata(y, group)
    for name, share in (("test", test), ("heldout", heldout)):
        if (part == name).any():
            continue
        pool = np.flatnonzero(part == "train")
        mask = stratified_part(
            [hashes[int(i)] for i in pool], [cells[int(i)] for i in pool], share, seed=seed, purpose=f"part.{name}"
        )
        part[pool[mask]] = name
    return part
