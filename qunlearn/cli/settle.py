"""``--set lr=auto`` of ``qunlearn unlearn``: pilots before the run, kept in its folder for a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qunlearn import quant, tasks
from qunlearn.cli.common import Settings
from qunlearn.cli.workspace import write_json
from qunlearn.data.splits import Splits
from qunlearn.errors import ArtefactError
from qunlearn.fingerprint import config_digest
from qunlearn.unlearn import ReferenceCard, Unlearner, settle_lr
from qunlearn.unlearn.auto import with_lr

NAME = "lr_auto.json"
MAX_BYTES = 1 << 16


def settled(
    settings: Settings,
    method: Unlearner,
    model: quant.QuantModel,
    splits: Splits,
    task: str,
    *,
    card: ReferenceCard | None,
    seed: int,
    folder: Path,
    resume: bool,
) -> tuple[Unlearner, dict[str, Any]]:
    """(method with a number for lr, what was found). A resumed run takes the rate that its folder knows."""
    file = folder / NAME
    identity = config_digest(
        {"config": method.config(), "model": quant.state_digest(model), "kind": splits.request_kind, "seed": seed,
         "forget": sorted(str(i) for i in splits.forget.ids), "card": card.to_json() if card is not None else None}
    )  # fmt: skip
    if resume and file.exists():
        found = _known(file, identity)
        return with_lr(method, found["lr"]), found
    settings.say("lr=auto: pilots, scored by the stop rule's J (0 is perfect)")
    search = settle_lr(
        method, model, splits, tasks.get(task), request_kind=splits.request_kind, card=card, seed=seed,
        say=settings.say,
    )  # fmt: skip
    settings.say(f"lr=auto: {search.lr:g} after {search.passes:.2f} passes, {search.seconds:.1f} s")
    value = search.to_json()
    write_json(file, {"identity": identity, **value})
    return search.method, value


def _known(file: Path, identity: str) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
        found = json.loads(raw[:MAX_BYTES])
        same = found.pop("identity") == identity
        numbers = all(type(found[k]) is float for k in ("lr", "start", "passes", "seconds"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as err:
        raise ArtefactError(f"{file} is malformed: {err}.", remedy="Remove the folder, start anew.") from err
    if not same or not numbers:
        raise ArtefactError(
            f"{file} was written under other settings or for another network.", remedy="Use another output folder."
        )
    return dict(found)
