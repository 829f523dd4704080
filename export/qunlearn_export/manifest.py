"""The manifest: a signed statement of what was done and measured (in-toto Statement v1, own predicate).

The schema is an allow-list. No sample, no id, no name of a class, group or person, no plain digest of the request or of
the split can stand in it; commitments are keyed, so that nobody can guess their content (:func:`commitment`).
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any

from qunlearn_export import schema as s
from qunlearn_export.errors import ArtefactError

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:qunlearn:predicate:unlearning:1"
PAYLOAD = "application/vnd.in-toto+json"
FORMAT = 1
SUBJECTS = ("bom.cdx.json", "model.onnx", "report.json", "update.payload", "weights.bin")
BUCKETS = ("1-9", "10-99", "100-999", "1000+")
VERDICTS = ("pass", "inconclusive", "fail")
FEW = 10
"""Below this number of forget samples a metric is a statement about single samples: verdict only, no value."""

LIMITS = (
    "It shows that the holder of this key issued exactly these bytes; it does not show that the audits are true, well "
    "chosen, or were run at all: a signature over a false claim is still valid. Recompute them.",
    "It shows that the update fits this base and yields this target; it does not show that the base held the data, or "
    "that the request was legitimate.",
    "A device that reports success, with a valid authentication code, runs the target and erased its old slot through "
    "its flash driver; it does not show that no other copy exists: backups, bootloader images, worn-out or remapped "
    "blocks, devices that never updated.",
    "Devices that follow the rules refuse older signed updates; nothing protects against someone who can write flash, "
    "debug ports or the counter.",
    "The guard found no forget sample in the bundle; base and delta together can still reveal something about the "
    "forgotten data. Encrypt in transit, and keep base and delta to the fleet.",
)

_NAME = r"[A-Za-z0-9_.+\- ]+"
_KIND = r"[a-z0-9\-]+"
_LAYER = r"[A-Za-z0-9_.\-/]*"
_CODE = r"[A-Z][A-Z0-9\-]*(: [A-Za-z0-9_.,+\-() ]+)?"
_U32 = s.whole(0, 2**32 - 1)
_COUNT = s.whole(0, 2**53)
_SHARE = s.number(0, 1)
INTERVAL = s.record({"lo": s.number(), "hi": s.number(), "level": _SHARE, "method": s.text(80, _NAME)})
AUDIT = s.record(
    {
        "audit": s.text(60, _NAME),
        "version": s.text(20, _NAME),
        "kind": s.text(20, _KIND),
        "file": s.sha256(),
        "codes": s.sha256(),
        "before": s.sha256(),
        "metric": s.text(60, _NAME),
        "value": s.nullable(s.number()),
        "interval": s.nullable(INTERVAL),
        "reference": s.record(
            {
                "kind": s.one_of("retrained", "none", "calibration"),
                "value": s.nullable(s.number()),
                "digest": s.nullable(s.sha256()),
            }
        ),
        "direction": s.text(600),
        "verdict": s.one_of(*VERDICTS),
        "failureSide": s.one_of("under", "over", "utility", "parity", "none"),
        "reasons": s.listing(s.text(120, _CODE)),
        "warnings": s.listing(s.text(120, _CODE)),
        "result": s.sha256(),
    }
)
LAYER_CHANGE = s.record(
    {
        "layer": s.text(200, _LAYER),
        "codes": _COUNT,
        "codesChanged": _COUNT,
        "maxAbs": s.whole(0, 255),
        "biasChanged": _COUNT,
        "scalesChanged": _COUNT,
        "lost": s.nullable(_SHARE),
    }
)
_PREDICATE = s.record(
    {
        "format": s.one_of(FORMAT),
        "issued": s.text(20, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
        "sequence": s.whole(1, 2**32 - 1),
        "baseSequence": _U32,
        "device": s.record({"class": s.text(36, r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "layout": s.sha256()}),
        "base": s.record({"codes": s.sha256(), "blob": s.sha256(), "onnx": s.sha256()}),
        "target": s.record({"codes": s.sha256(), "blob": s.sha256(), "onnx": s.sha256()}),
        "request": s.record({"commitment": s.sha256(), "samples": s.one_of(*BUCKETS)}),
        "method": s.record(
            {
                "name": s.text(60, _NAME),
                "version": s.text(20, _NAME),
                "config": s.sha256(),
                "seed": s.whole(0, 2**63 - 1),
            }
        ),
        "data": s.record({"commitment": s.sha256()}),
        "code": s.record(
            {
                "version": s.text(40, _NAME),
                "sources": s.sha256(),
                "commit": s.text(40, r"[0-9a-f]{40}|dirty|no-tree"),
            }
        ),
        "environment": s.record(
            {
                "python": s.text(40, _NAME),
                "torch": s.text(40, _NAME),
                "onnxruntime": s.text(40, _NAME),
                "cpuFlags": s.listing(s.text(40, r"[a-z0-9_]+")),
            }
        ),
        "change": s.record(
            {
                "codes": _COUNT,
                "codesChanged": _COUNT,
                "share": _SHARE,
                "maxAbs": s.whole(0, 255),
                "biasChanged": _COUNT,
                "scalesChanged": _COUNT,
                "lost": s.nullable(_SHARE),
            }
        ),
        "verdict": s.record({"overall": s.one_of(*VERDICTS), "allowed": s.one_of(*VERDICTS)}),
        "audits": s.listing(AUDIT, least=1, most=256),
        "parity": s.record(
            {
                "verdict": s.one_of(*VERDICTS),
                "worst": s.table(r"[a-z\-]+ vs [a-z\-]+", s.whole(0, 255), most=16),
                "ties": _SHARE,
                "integerMacs": s.nullable(_SHARE),
                "saturates": s.one_of(True, False),
                "entries": s.table(r"[a-z0-9_.]+", s.text(20, _NAME), most=8),
            }
        ),
        "rerun": s.listing(
            s.record(
                {
                    "audit": s.text(60, _NAME),
                    "command": s.text(400),
                    "inputs": s.table(r"[a-z_]+", s.nullable(s.sha256()), most=8),
                    "seed": s.whole(0, 2**63 - 1),
                }
            ),
            least=1,
            most=64,
        ),
        "limits": s.fixed(list(LIMITS)),
    }
)
STATEMENT = s.record(
    {
        "_type": s.one_of(TYPE),
        "predicateType": s.one_of(PREDICATE),
        "subject": s.listing(
            s.record({"name": s.one_of(*SUBJECTS), "digest": s.record({"sha256": s.sha256()})}), least=3, most=5
        ),
        "predicate": _PREDICATE,
    }
)


def statement(subjects: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The whole manifest; ``subjects`` maps names to SHA-256. ArtefactError when it does not fit the schema."""
    value = {
        "_type": TYPE,
        "predicateType": PREDICATE,
        "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(subjects.items())],
        "predicate": dict(predicate),
    }
    check(value)
    return value


def parse(data: bytes) -> dict[str, Any]:
    """The manifest of canonical ``data``; ArtefactError for anything else."""
    value: dict[str, Any] = s.parse(data, STATEMENT, "manifest.json")
    check(value)
    return value


def check(value: Any) -> None:
    """The schema, and what lies between fields: sequences, subjects, numbers of codes."""
    s.require(value, STATEMENT, "manifest.json")
    p, names = value["predicate"], [x["name"] for x in value["subject"]]
    bad = []
    if p["sequence"] <= p["baseSequence"]:
        bad.append("the sequence is not greater than the base's")
    if names != sorted(set(names)) or not {"report.json", "bom.cdx.json", "update.payload"} <= set(names):
        bad.append("the subjects are not sorted, not unique, or incomplete")
    if p["change"]["codesChanged"] > p["change"]["codes"]:
        bad.append("more codes changed than there are")
    for a in p["audits"]:
        if (a["value"] is None) != (a["interval"] is None):
            bad.append(f"audit {a['audit']} has a value without an interval")
        elif a["value"] is not None and not a["interval"]["lo"] <= a["value"] <= a["interval"]["hi"]:
            bad.append(f"the value of audit {a['audit']} lies outside its interval")
        if (a["verdict"] == "fail") != (a["failureSide"] != "none"):
            bad.append(f"audit {a['audit']} has a failure side that does not fit its verdict")
    if bad:
        raise ArtefactError(f"manifest.json is malformed: {'; '.join(bad)}.", remedy="Make it with qunlearn.")


def subjects(value: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by subject name."""
    return {x["name"]: x["digest"]["sha256"] for x in value["subject"]}


def signed_bytes(body: bytes) -> bytes:
    """The pre-authentication encoding of the manifest's bytes: what the signature is over (DSSE v1)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(body), body)


def commitment(key: bytes, label: str, content: bytes) -> str:
    """HMAC-SHA-256 over the label, a zero byte and the content; nobody without ``key`` can try contents."""
    return hmac.new(key, label.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def bucket(samples: int) -> str:
    """The order of magnitude of the number of forget samples."""
    return BUCKETS[min(max(len(str(samples)) - 1, 0), 3)]


def issued(epoch: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
