"""From the results of `qunlearn audit` to what a bundle may say about them: aggregates, each tied to the files.

Every result must have been measured on the files that the bundle carries: file digests before and after (the ONNX file
stands for the C that is generated from it), the codes digest for the torch network. What leaves here has passed an
allow-list of scalar aggregates; sets of fewer than ten forget samples lose their values, per-class tables and counts
never get in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qunlearn_export import manifest as m
from qunlearn_export import schema as s
from qunlearn_export.errors import ArtefactError, VerificationError
from qunlearn_export.files import canonical_json

MAX_BYTES = 64 * 2**20
SMALL_SETS = ("forget", "forget_heldout", "forget_test")
_VALUE = s.nullable(s.record({"value": s.number(), "lo": s.nullable(s.number()), "hi": s.nullable(s.number())}))
_ROW = s.record(
    {
        "metric": s.text(60, r"[A-Za-z0-9_.\-]+"),
        "set": s.text(40, r"[a-z_]+(, [a-z_]+)*"),
        "before": _VALUE,
        "after": _VALUE,
        "reference": _VALUE,
        "delta": _VALUE,
    }
)
_COMPARED = s.record(
    {
        "layer": s.text(200, r"[A-Za-z0-9_.\-/]*"),
        "pair": s.text(60, r"[a-z\-]+ vs [a-z\-]+"),
        "mode": s.text(20, r"[a-z\-]+"),
        "maxAbs": s.whole(0, 255),
        "share": s.number(0, 1),
    }
)
REPORT = s.record(
    {
        "format": s.one_of(1),
        "audits": s.listing(s.record({"result": s.sha256(), "metrics": s.listing(_ROW, most=128)}), least=1, most=256),
        "parity": s.record(
            {
                "logits": s.listing(
                    s.record(
                        {
                            "pair": s.text(60, r"[a-z\-]+ vs [a-z\-]+"),
                            "maxAbs": s.whole(0, 255),
                            "share": s.number(0, 1),
                            "argmax": s.number(0, 1),
                        }
                    ),
                    most=16,
                ),
                "layers": s.listing(_COMPARED, most=65536),
            }
        ),
        "change": s.nullable(s.listing(m.LAYER_CHANGE, most=4096)),
        "degenerate": s.listing(
            s.record({"code": s.text(8, r"[A-Z0-9]+"), "where": s.text(200, r"[A-Za-z0-9_.\-/ \[\],]*")}), most=4096
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Digests of the files in the bundle: base and target ONNX, and the target's codes."""

    base: str
    target: str
    codes: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a bundle may say: manifest rows, parity summary, report; and what must not be said: the split's digest."""

    verdict: str
    audits: list[dict[str, Any]]
    parity: dict[str, Any]
    lost: float | None
    report: bytes
    environment: dict[str, Any]
    code: str
    split: str
    seed: int
    codes_changed: int | None


def load(path: Path) -> dict[str, Any]:
    """The object in ``audit.json``; ArtefactError when there is none."""
    remedy = "Give the folder that `qunlearn audit` wrote."
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path} is too large.", remedy=remedy)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ArtefactError(f"cannot read audit results from {path}.", remedy=remedy) from err
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} does not hold audit results.", remedy=remedy)
    return value


def gather(found: Mapping[str, Any], files: Files, *, few: int = m.FEW) -> Evidence:
    """Check every result against ``files`` and keep the aggregates.

    VerificationError when one was measured on other files, when parity is missing or failed, or when an error of the
    degenerate-scale check stands; ArtefactError when ``found`` is not what `qunlearn audit` writes.
    """
    try:
        return _gather(found, files, few)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as err:
        raise ArtefactError(
            f"the audit results are not complete ({type(err).__name__}: {err}).", remedy="Run `qunlearn audit` anew."
        ) from err


def _gather(found: Mapping[str, Any], files: Files, few: int) -> Evidence:
    results = [(kind, r) for kind, rs in found["results"].items() for r in rs]
    shipped = [kind for kind in found["shipping"] if kind in found["results"]]
    if found["verdict"] not in m.VERDICTS:
        raise ValueError("no verdict")
    if not results or shipped != list(found["shipping"]) or not shipped:
        raise ValueError("no results")
    bad = [text for kind, r in results for text in _strangers(kind, r, files)]
    parity = found["tables"]["parity"]
    if parity is None:
        bad.append("there is no parity table")
    else:
        if parity["file_digest"] != files.target:
            bad.append("parity was measured on another file")
        if parity["verdict"] != "pass":
            bad.append(f"parity is {parity['verdict']}")
    bad += [
        f"degenerate scales: {f['code']} at {f['where']}"
        for f in found["tables"]["degenerate"]
        if f["level"] == "error"
    ]
    splits = {r["digests"]["data_split"] for _, r in results}
    if len(splits) != 1:
        bad.append("the results were measured on different data")
    if bad:
        raise VerificationError(
            f"the audit results do not belong to these files: {'; '.join(bad[:6])}.",
            remedy="Audit the files that the bundle carries: `qunlearn audit model.onnx --before RUN ...`.",
        )
    change = found["tables"]["change"]
    report = {
        "format": 1,
        "audits": [{"result": result_digest(r), "metrics": list(_metrics(r, few))} for _, r in results],
        "parity": {
            "logits": [
                {"pair": pair, "maxAbs": v["max_abs"], "share": v["share"], "argmax": v["argmax"]}
                for pair, v in sorted(parity["logits"].items())
            ],
            "layers": [
                {
                    "layer": v["name"],
                    "pair": v["pair"],
                    "mode": v["mode"],
                    "maxAbs": v["max_abs"],
                    "share": v["share"],
                }
                for v in (*parity["layers"], *parity["saturation"])
            ],
        },
        "change": None if change is None else [_layer(v) for v in change["layers"]],
        "degenerate": [{"code": f["code"], "where": f["where"]} for f in found["tables"]["degenerate"]],
    }
    s.require(report, REPORT, "report.json")
    worst: dict[str, int] = {}
    for pair, v in parity["logits"].items():
        worst[pair] = max(worst.get(pair, 0), v["max_abs"])
    rows = [_row(kind, r, few) for kind, r in results]
    for row in rows:
        s.require(row, m.AUDIT, f"the result of {row['audit']}")
    env = found["environment"]
    return Evidence(
        verdict=max((r["verdict"] for kind, r in results if kind in shipped), key=m.VERDICTS.index)
        if found["verdict"] == "pass"
        else found["verdict"],
        audits=rows,
        parity={
            "verdict": parity["verdict"],
            "worst": worst,
            "ties": max((t["share"] for t in parity["ties"]), default=0.0),
            "integerMacs": parity["coverage"]["macs"],
            "saturates": parity["host"]["saturates"],
            "entries": dict(parity["runtime"]["entries"]),
        },
        lost=None if change is None else change["lost"] / max(1, change["latent_changed"]),
        report=s.canonical(report),
        environment={
            "python": env["python"],
            "torch": env["packages"]["torch"],
            "onnxruntime": env["packages"]["onnxruntime"],
            "cpuFlags": list(env["cpu_flags"]),
        },
        code=found["digests"]["code"],
        split=splits.pop(),
        seed=seed_of(found),
        codes_changed=None if change is None else change["codes_changed"],
    )


def seed_of(found: Mapping[str, Any]) -> int:
    """The seed that the audits divided the data by; ArtefactError when the results do not say."""
    try:
        return int(next(r for rs in found["results"].values() for r in rs)["seeds"]["audit"])
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError) as err:
        raise ArtefactError("the audit results name no seed.", remedy="Run `qunlearn audit` anew.") from err


def result_digest(result: Mapping[str, Any]) -> str:
    """SHA-256 of a result's canonical JSON without its timings."""
    plain = {k: v for k, v in result.items() if k != "timings"}
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def _strangers(kind: str, r: Mapping[str, Any], files: Files) -> list[str]:
    name = f"{r['audit']} on {kind}"
    bad = []
    if r["artefact"]["kind"] != kind:
        bad.append(f"{name} is labelled {r['artefact']['kind']}")
    if r["artefact"]["codes_digest"] != files.codes:
        bad.append(f"{name} was measured on other codes")
    if not kind.startswith("torch"):
        if r["artefact"]["file_digest"] != files.target or r["digests"]["model_after"] != files.target:
            bad.append(f"{name} was measured on another file")
        if r["digests"]["model_before"] != files.base:
            bad.append(f"{name} compares with another base")
    return bad


def _row(kind: str, r: Mapping[str, Any], few: int) -> dict[str, Any]:
    small = r["n"].get("forget", few) < few
    interval = r["interval"]
    return {
        "audit": r["audit"],
        "version": r["version"],
        "kind": kind,
        "file": r["artefact"]["file_digest"],
        "codes": r["artefact"]["codes_digest"],
        "before": r["digests"]["model_before"],
        "metric": r["metric"],
        "value": None if small else r["value"],
        "interval": None if small or interval is None else {k: interval[k] for k in ("lo", "hi", "level", "method")},
        "reference": {
            "kind": r["reference"]["kind"],
            "value": None if small else r["reference"]["value"],
            "digest": r["reference"]["digest"],
        },
        "direction": r["direction"],
        "verdict": r["verdict"],
        "failureSide": r["failure_side"],
        "reasons": list(r["reasons"]),
        "warnings": list(r["warnings"]),
        "result": result_digest(r),
    }


def _metrics(r: Mapping[str, Any], few: int) -> Iterator[dict[str, Any]]:
    """Rows of aggregates; no value where a set of the forgotten kind holds too few samples."""

    def cell(value: Mapping[str, Any] | float | None, small: bool) -> dict[str, float | None] | None:
        if value is None or small or (isinstance(value, Mapping) and value.get("n", few) < few):
            return None
        if not isinstance(value, Mapping):
            return {"value": float(value), "lo": None, "hi": None}
        return {k: float(value[k]) for k in ("value", "lo", "hi")}

    for metric, sets in r["tables"]["metrics"].items():
        for which, cells in sets.items():
            small = any(r["n"].get(name, 0) < few for name in SMALL_SETS if name in which.split(", "))
            yield {"metric": metric, "set": which} | {
                c: cell(cells.get(c), small) for c in ("before", "after", "reference", "delta")
            }


def _layer(v: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "layer": v["layer"],
        "codes": v["codes"],
        "codesChanged": v["codes_changed"],
        "maxAbs": v["max_step"],
        "biasChanged": v["bias_changed"],
        "scalesChanged": v["scales_changed"],
        "lost": v["lost"] / v["latent_changed"] if v["latent_changed"] else 0.0,
    }
