"""The sample sets of the statistical membership audit and of the attacks beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qunlearn.audit.sets import need, pick
from qunlearn.data.dataset import Samples
from qunlearn.data.partition import strata, stratified_part
from qunlearn.data.splits import Splits
from qunlearn.errors import DataError


@dataclass(frozen=True, kw_only=True)
class AuditSets:
    """Members ``m`` (retain), never trained ``n`` (half of held-out's audit part), forgotten ``u``, and the ``spare``
    half of held-out: a self check of SMI, and the population of RMIA."""

    m: Samples
    n: Samples
    u: Samples
    spare: Samples


def audit_sets(splits: Splits, *, max_n: int, seed: int) -> AuditSets:
    """The four sets, each cut to ``max_n`` by a seeded choice that keeps the shares of the classes.

    They are sorted by content: the order of the data cannot matter. DataError where a half of held-out is empty.
    """
    heldout = need(splits, "heldout")
    half = _part(heldout, 0.5, seed, "smi.spare")
    if half.all() or not half.any():
        raise DataError("the held-out part of audits cannot be halved.", remedy="Hold more samples out.")
    n, spare = heldout.take(np.flatnonzero(half)), heldout.take(np.flatnonzero(~half))
    found = {"m": need(splits, "retain"), "n": n, "u": splits.forget, "spare": spare}
    return AuditSets(**{name: _cut(samples, max_n, seed, f"smi.{name}") for name, samples in found.items()})


def gone_sets(splits: Splits, sets: AuditSets, *, seed: int) -> AuditSets:
    """For classes that are forgotten as a whole: members are the forget set, never trained ones their own held-out.

    Without held-out samples of what is forgotten the sets stay, but for the members.
    """
    beside = pick(splits, "forget_heldout")
    if beside is None:
        return replace(sets, m=sets.u)
    half = _part(beside, 0.5, seed, "smi.spare")
    return replace(sets, m=sets.u, n=_sorted(beside, half), spare=_sorted(beside, ~half))


def _cut(samples: Samples, most: int, seed: int, purpose: str) -> Samples:
    kept = np.ones(len(samples), bool)
    if len(samples) > most:
        kept = _part(samples, most / len(samples), seed, purpose)
    return _sorted(samples, kept)


def _sorted(samples: Samples, kept: NDArray[np.bool_]) -> Samples:
    hashes = samples.content_hashes()
    return samples.take(np.array(sorted(np.flatnonzero(kept), key=lambda i: hashes[int(i)]), dtype=np.int64))


def _part(samples: Samples, share: float, seed: int, purpose: str) -> NDArray[np.bool_]:
    return stratified_part(samples.content_hashes(), strata(samples.targets(), None), share, seed=seed, purpose=purpose)
