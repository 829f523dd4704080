"""Level 3 of `qunlearn verify`: the audits of a manifest, computed again on one's own data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from qunlearn.cli import packing
from qunlearn.cli.common import Settings, require_workstation
from qunlearn.errors import ConfigError, VerificationError
from qunlearn_export import manifest as m
from qunlearn_export.bundle import sha256
from qunlearn_export.runtime import read_bytes
from qunlearn_export.verify import Opened

TORCH = ("torch-fq", "torch-reloaded")
PRIVATE = ("eve",)
"""Audits that read private inputs of the data owner: nobody else can recompute them."""


def audits(
    settings: Settings,
    opened: Opened,
    base: Path,
    source: str,
    forget: str,
    salt: Path,
    reference: Path | None,
    names: list[str] | None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Recompute the audits named (default: all) on the kinds of the manifest that need no training checkpoint.

    Returns what was found and sentences on what held. VerificationError when a commitment is not that of the request
    and the data, a value lies outside the manifest's interval, or a verdict is worse than the one signed.
    """
    require_workstation()
    from qunlearn.cli import artefact, assess
    from qunlearn.data.splits import make_splits

    p = opened.predicate
    mine = [a for a in p["audits"] if a["kind"] not in TORCH and a["audit"] not in PRIVATE]
    rows = [a for a in mine if names is None or a["audit"] in names]
    known = sorted({a["audit"] for a in mine})
    if not rows or (names is not None and not set(names) <= set(known)):
        raise ConfigError("no such audit is in the manifest.", remedy=f"It has {', '.join(known)}.")
    target = opened.entries.get("model.onnx")
    if target is None:
        raise ConfigError("the bundle carries no model.onnx.", remedy="Ask its maker for one, built --with-onnx.")
    seed = int(p["rerun"][0]["seed"])
    asked = packing.asked(settings, Path(), source, forget, seed)
    splits = make_splits(asked.dataset, asked.request, seed=seed)
    key = packing.read_salt(salt)
    if m.commitment(key, "request", asked.canonical) != p["request"]["commitment"]:
        raise VerificationError("the request is not the one committed to.", remedy="Check --forget and --salt.")
    if m.commitment(key, "split", splits.digest().encode()) != p["data"]["commitment"]:
        raise VerificationError("the data are not those committed to.", remedy="Check --data and --salt.")
    wanted = {a["reference"]["digest"] for a in rows} - {None}
    if wanted and (reference is None or {sha256(read_bytes(reference))} != wanted):
        raise ConfigError("the audits used a retrained network.", remedy="Give that very file by --reference.")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        file.write_bytes(target)
        found = assess.assess(
            assess.from_file(base),
            assess.from_file(file),
            assess.from_file(reference) if reference is not None and wanted else None,
            splits=splits,
            task_name="classification",
            seed=seed,
            kinds=list(dict.fromkeys(a["kind"] for a in rows)),
            audits=assess.parse_audits(",".join(dict.fromkeys(a["audit"] for a in rows))),
            inputs=artefact.parity_inputs(asked.dataset, 256),
        )
    again = [_compare(a, found) for a in rows]
    bad = [r["problem"] for r in again if r["problem"]]
    if bad:
        raise VerificationError(f"recomputed audits differ: {'; '.join(bad)}.", remedy="Do not believe this bundle.")
    checks = ["the commitments are those of this request and these data"]
    return again, [*checks, f"{len(again)} recomputed audits lie in the intervals of the manifest"]


def _compare(a: dict[str, Any], found: Any) -> dict[str, Any]:
    result = next(r for r in found.audits.results[a["kind"]] if r.audit == a["audit"])
    where = f"{a['audit']} on {a['kind']}"
    problem = ""
    if m.VERDICTS.index(result.verdict) > m.VERDICTS.index(a["verdict"]):
        problem = f"{where} is {result.verdict}, the manifest says {a['verdict']}"
    if (
        a["value"] is not None
        and result.value is not None
        and not a["interval"]["lo"] <= result.value <= a["interval"]["hi"]
    ):
        low, high = a["interval"]["lo"], a["interval"]["hi"]
        problem = f"{where} gives {result.value:.4g}, outside [{low:.4g}, {high:.4g}]"
    value = None if a["value"] is None else result.value
    text = "value withheld" if value is None else f"{a['metric']} {value:.4g}, reference: {a['reference']['kind']}"
    return {
        "audit": a["audit"],
        "kind": a["kind"],
        "verdict": result.verdict,
        "value": value,
        "text": text,
        "problem": problem,
    }
