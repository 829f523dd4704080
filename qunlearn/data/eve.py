"""The samples of one erasure check: what is erased, other samples, what is kept, private targets and bystanders.

numpy only. Nothing is shared by content: hashes are taken over the inputs alone, so that a target in the erased batch
is found under another label too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.dataset import Dataset, Samples, content_hashes, name_some
from qunlearn.data.partition import check_seed
from qunlearn.data.splits import divide_heldout
from qunlearn.errors import ConfigError, DataError

CANDIDATES = 5
"""Held-out samples looked at for each target and bystander; a new seeded draw for every seed [our choice]."""


def input_hashes(samples: Samples) -> list[str]:
    """SHA-256 (hex) of every network input, labels left out."""
    return content_hashes(samples.inputs(), np.zeros(len(samples), np.int64))


def require_disjoint(sets: Iterable[tuple[str, Samples]]) -> None:
    """ConfigError that lists the ids where two of the named sets share an input, whatever its label."""
    owner: dict[str, str] = {}
    bad: dict[tuple[str, str], list[str]] = {}
    for name, samples in sets:
        for sample, h in zip(samples.ids, input_hashes(samples), strict=True):
            first = owner.setdefault(h, name)
            if first != name:
                bad.setdefault((first, name), []).append(str(sample))
    if bad:
        text = "; ".join(f"{a} and {b} share {name_some(ids)}" for (a, b), ids in bad.items())
        raise ConfigError(
            f"the sets of an erasure check overlap: {text}.",
            remedy="A target must be in no batch that the operator may use: take other targets, or remove duplicates.",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EveSplit:
    """``erase`` and ``other``: training samples of equal number; ``retain``: the rest of the training samples;
    ``targets`` and ``bystanders``: held-out samples that nothing is trained on. No two sets share an input."""

    erase: Samples
    other: Samples
    retain: Samples
    targets: Samples
    bystanders: Samples

    def __post_init__(self) -> None:
        require_disjoint((n, getattr(self, n)) for n in ("erase", "other", "retain", "targets", "bystanders"))


def split_eve(
    dataset: Dataset,
    n_e: int,
    n_t: int,
    n_bystanders: int,
    seed: int,
    *,
    confidence: NDArray[np.float64],
    wanted: float = 0.95,
    erase: Samples | None = None,
) -> EveSplit:
    """Draw one check by ``seed``.

    ``confidence`` float64 [N]: probability of the true class where the network before unlearning is right, NaN where it
    is wrong (only held-out samples are read). Of a seeded draw of the audit half of held-out, the ``n_t`` nearest to
    ``wanted`` are targets and the next nearest bystanders: the same confidence band. ``erase`` fixes the samples that
    are erased in place of drawing ``n_e``. Samples whose input another set holds are left out of ``retain``; too few
    samples are a DataError.
    """
    check_seed(seed)
    rng = np.random.default_rng([int(seed), *b"eve"])
    hashes = content_hashes(Samples(dataset, np.arange(len(dataset))).inputs(), np.zeros(len(dataset), np.int64))
    train = dataset.where("train")
    gone = rng.choice(train, min(n_e, len(train)), replace=False) if erase is None else erase.index
    taken = {hashes[i] for i in gone}
    rest = np.array([i for i in train if hashes[i] not in taken], dtype=np.int64)
    pool = divide_heldout(dataset, seed)[1]
    used = {hashes[i] for i in train}
    pool = np.array([i for i in pool if hashes[i] not in used and np.isfinite(confidence[i])], dtype=np.int64)
    _, first = np.unique([hashes[i] for i in pool], return_index=True)
    pool = pool[np.sort(first)]
    want = n_t + n_bystanders
    if len(gone) < max(1, n_e if erase is None else 1) or len(rest) < 2 * len(gone) or len(pool) < want:
        raise DataError(
            f"{len(train)} training samples and {len(pool)} correctly answered held-out ones are too few for {n_e} "
            f"erased samples, {n_t} targets and {n_bystanders} bystanders.",
            remedy="Give more data, or erase fewer samples.",
        )
    other = rng.choice(rest, len(gone), replace=False)
    shared = {hashes[i] for i in other}
    retain = np.array([i for i in rest if hashes[i] not in shared], dtype=np.int64)
    drawn = rng.choice(pool, min(len(pool), CANDIDATES * want), replace=False)
    ranked = drawn[np.argsort(np.abs(confidence[drawn] - wanted), kind="stable")]
    return EveSplit(
        erase=Samples(dataset, np.sort(gone)),
        other=Samples(dataset, np.sort(other)),
        retain=Samples(dataset, retain),
        targets=Samples(dataset, ranked[:n_t]),
        bystanders=Samples(dataset, ranked[n_t:want]),
    )
