"""Digests of what went into a run: the samples it could read."""

from __future__ import annotations

from qunlearn.data.dataset import Samples, digest_lines


def data_digest(forget: Samples, retain: Samples, stop: Samples) -> str:
    """SHA-256 over the sorted (content hash, role) pairs of the three sets that a method may read."""
    roles = (("forget", forget), ("retain", retain), ("heldout.stop", stop))
    return digest_lines(f"{h} {role}" for role, samples in roles for h in samples.content_hashes())
