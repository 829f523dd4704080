"""The bill of materials: CycloneDX 1.6 JSON with one machine-learning model and its ancestor.

Written by hand (the Python library has no model card); a function of the manifest's facts alone, so that a verifier
makes it again and compares. Source: ECMA-424, CycloneDX 1.6; the ``qunlearn:`` properties are ours.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from qunlearn_export import schema as s

_WORDS = s.text(100, r"[A-Za-z0-9_,.\[\]\- ]+")
FACTS = s.record({"task": _WORDS, "family": _WORDS, "inputs": _WORDS, "outputs": _WORDS})
_NAMESPACE = uuid.UUID("6f6f1c0e-2c60-5b0f-9d53-7f5a0f4f2f1d")


def make(predicate: Mapping[str, Any], model: Mapping[str, Any]) -> bytes:
    """The document's canonical bytes. ``model``: ``task``, ``family``, ``inputs`` and ``outputs`` (texts)."""
    target, base = predicate["target"], predicate["base"]
    facts = {
        "qunlearn:blob_digest": target["blob"],
        "qunlearn:sequence": str(predicate["sequence"]),
        "qunlearn:codes_digest": target["codes"],
        "qunlearn:method": predicate["method"]["name"],
        "qunlearn:request_commitment": predicate["request"]["commitment"],
    }
    card = {
        "modelParameters": {
            "task": model["task"],
            "architectureFamily": model["family"],
            "inputs": [{"format": model["inputs"]}],
            "outputs": [{"format": model["outputs"]}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": f"{a['metric']} on {a['kind']}",
                    "value": f"{a['value']:.6g}",
                    "confidenceInterval": {
                        "lowerBound": f"{a['interval']['lo']:.6g}",
                        "upperBound": f"{a['interval']['hi']:.6g}",
                    },
                }
                for a in predicate["audits"]
                if a["value"] is not None
            ]
        },
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, target['codes'])}",
        "version": 1,
        "metadata": {
            "timestamp": predicate["issued"],
            "component": _component("target", "model", target, predicate["sequence"])
            | {
                "modelCard": card,
                "pedigree": {"ancestors": [_component("base", "base model", base, predicate["baseSequence"])]},
                "properties": [{"name": k, "value": v} for k, v in sorted(facts.items())],
            },
        },
    }
    return s.canonical(document)


def model_facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`make` was told of the model; ArtefactError or a lookup error for another document."""
    p = document["metadata"]["component"]["modelCard"]["modelParameters"]
    facts = {
        "task": p["task"],
        "family": p["architectureFamily"],
        "inputs": p["inputs"][0]["format"],
        "outputs": p["outputs"][0]["format"],
    }
    s.require(facts, FACTS, "bom.cdx.json")
    return facts


def _component(ref: str, name: str, digests: Mapping[str, str], sequence: int) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": name,
        "version": str(sequence),
        "hashes": [{"alg": "SHA-256", "content": digests["onnx"]}],
        "properties": [{"name": "qunlearn:blob_digest", "value": digests["blob"]}],
    }
