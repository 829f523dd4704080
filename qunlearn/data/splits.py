"""The splits of an unlearning run: forget, retain, heldout (stop and audit), test.

``make_splits`` applies a deletion request to a data set. For ``class`` and ``group`` requests the forgotten class or
group is taken out of ``heldout`` and ``test`` too: these then measure what must be kept. The samples taken out stand
beside them as ``forget_heldout`` and ``forget_test``, never trained on and of the forgotten kind: what a network
should do on the forget set after forgetting, it already does on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qunlearn.data.dataset import Dataset, Samples, digest_lines, name_some
from qunlearn.data.partition import strata, stratified_part
from qunlearn.data.request import Request
from qunlearn.errors import DataError

ROLES = {
    "forget": "forget",
    "retain": "retain",
    "heldout_stop": "heldout.stop",
    "heldout_audit": "heldout.audit",
    "test": "test",
    "forget_heldout": "forget.heldout",
    "forget_test": "forget.test",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Views of one data set that never share a sample, by position nor by content; else a DataError lists the ids.

    ``forget``: training samples to be erased. ``retain``: the other training samples. ``heldout_stop``: never trained
    on, for stopping rules and tuning. ``heldout_audit``: never trained on, non-members of audits. ``test``: for
    reports only. These five are never empty. ``forget_heldout`` and ``forget_test``: samples of the forgotten class or
    group in the parts heldout and test; None for ``random`` and ``ids`` requests and where there are none.
    ``request_kind`` is the request's kind, or empty.
    """

    forget: Samples
    retain: Samples
    heldout_stop: Samples
    heldout_audit: Samples
    test: Samples
    forget_heldout: Samples | None = None
    forget_test: Samples | None = None
    request_kind: str = ""

    def __post_init__(self) -> None:
        roles = list(self.roles())
        if any(samples.dataset is not self.forget.dataset for _, samples in roles):
            raise DataError("the splits are views of different data sets.", remedy="Build them from one data set.")
        empty = [role for role, samples in roles if not len(samples)]
        bad = [f"{role} is empty" for role in empty]
        owner: dict[str, str] = {}
        clashes: dict[tuple[str, str], list[str]] = {}
        for role, samples in roles:
            for name, h in zip(samples.ids, samples.content_hashes(), strict=True):
                first = owner.setdefault(h, role)
                if first != role:
                    clashes.setdefault((first, role), []).append(str(name))
        bad += [f"{a} and {b} share samples: {name_some(ids)}" for (a, b), ids in clashes.items()]
        if bad:
            remedy = (
                "Samples of equal content must be in one split: ask to forget all of them, or remove the duplicates."
                if clashes
                else "Give more data, or a smaller request."
            )
            raise DataError(f"splits of {self.forget.dataset.name!r}: {'; '.join(bad)}.", remedy=remedy)

    def __repr__(self) -> str:
        return "Splits(" + ", ".join(f"{role}={len(samples)}" for role, samples in self.roles()) + ")"

    def roles(self) -> Iterator[tuple[str, Samples]]:
        """The splits with their names in digests and messages; absent ones are left out."""
        for field, role in ROLES.items():
            samples = getattr(self, field)
            if samples is not None:
                yield role, samples

    @property
    def dataset(self) -> Dataset:
        """The data set that all splits view."""
        return self.forget.dataset

    @property
    def heldout(self) -> Samples:
        """Stop and audit part together."""
        return Samples(self.dataset, np.sort(np.concatenate([self.heldout_stop.index, self.heldout_audit.index])))

    def counts(self) -> dict[str, int]:
        """Number of samples of every split."""
        return {role: len(samples) for role, samples in self.roles()}

    def digest(self) -> str:
        """SHA-256 (hex) over the sorted (content hash, role) pairs; order, ids and paths do not matter."""
        return digest_lines(f"{h} {role}" for role, samples in self.roles() for h in samples.content_hashes())


def divide_heldout(dataset: Dataset, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the stop and of the audit half of the part ``heldout``.

    Seeded, stratified by class and group; samples of equal content are on one side. It does not depend on the request,
    so that a sample that tuned one run never audits another of the same seed.
    """
    pool = dataset.where("heldout")
    group = None if dataset.group is None else dataset.group[pool]
    hashes = [dataset.hashes[i] for i in pool]
    stop = stratified_part(hashes, strata(dataset.y[pool], group), 0.5, seed=seed, purpose="heldout.stop")
    return pool[stop], pool[~stop]


def _forgotten_kind(dataset: Dataset, request: Request) -> NDArray[np.bool_]:
    """Mask of the samples, of all parts, that belong to the forgotten class or group."""
    if request.kind == "class":
        return np.isin(dataset.y, request.classes(dataset))
    if request.kind == "group" and dataset.group is not None:
        return np.isin(dataset.group, request.groups(dataset))
    return np.zeros(len(dataset), bool)


def make_splits(dataset: Dataset, request: Request, *, seed: int) -> Splits:
    """The splits of ``dataset`` under ``request``; ``seed`` drives random requests and the halves of heldout."""
    forget = request.select(dataset, seed)
    retain = np.setdiff1d(dataset.where("train"), forget)
    kind = _forgotten_kind(dataset, request)
    stop, audit = divide_heldout(dataset, seed)
    test, heldout = dataset.where("test"), dataset.where("heldout")

    def beside(index: NDArray[np.int64]) -> Samples | None:
        taken = index[kind[index]]
        return Samples(dataset, taken) if len(taken) else None

    return Splits(
        forget=Samples(dataset, forget),
        retain=Samples(dataset, retain),
        heldout_stop=Samples(dataset, stop[~kind[stop]]),
        heldout_audit=Samples(dataset, audit[~kind[audit]]),
        test=Samples(dataset, test[~kind[test]]),
        forget_heldout=beside(heldout),
        forget_test=beside(test),
        request_kind=request.kind,
    )


def training_samples(dataset: Dataset, exclude: Request | None = None, seed: int = 0) -> Samples:
    """The part ``train``, without what ``exclude`` selects (``seed`` as in :func:`make_splits`).

    Samples left over whose content equals an excluded one's are a DataError that lists them: a reference network must
    not have seen the content it is meant to lack. So is an empty rest.
    """
    train = dataset.where("train")
    if exclude is None:
        return Samples(dataset, train)
    gone = exclude.select(dataset, seed)
    rest = np.setdiff1d(train, gone)
    lost = {dataset.hashes[i] for i in gone}
    twins = [str(dataset.ids[i]) for i in rest if dataset.hashes[i] in lost]
    if twins:
        raise DataError(
            f"training samples of {dataset.name!r} equal excluded ones in content: {name_some(twins)}.",
            remedy="Exclude them too, or remove the duplicates.",
        )
    if not len(rest):
        raise DataError(f"{exclude.describe()} leaves no training sample.", remedy="Exclude less.")
    return Samples(dataset, rest)
