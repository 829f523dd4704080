"""From an int8 QDQ file back to the integer graph; refuses anything that fails the static check."""

from __future__ import annotations

import os

from qunlearn_export.check import TIE_LIMIT, check_or_raise, load_model
from qunlearn_export.graph import Graph
from qunlearn_export.runtime import MAX_BYTES


def read(file: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES, tie_limit: float = TIE_LIMIT) -> Graph:
    """The graph of a file that this project wrote: codes, scales and zero points, bit for bit.

    ArtefactError when it cannot be read or exceeds the limits, VerificationError when it fails S1 to S13.
    """
    return check_or_raise(load_model(file, max_bytes=max_bytes), tie_limit=tie_limit)
