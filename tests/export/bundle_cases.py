"""A small world for tests of bundles: two networks, results as `qunlearn audit` writes them, forget samples, a key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import archive, bundle, container, guard, keys, schema, writer
from qunlearn_export import graph as g
from qunlearn_export import manifest as m
from qunlearn_export.bundle import Model, Order

DEVICE = UUID("7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10")
SIGNER = keys.test_signer()
TRUST = {keys.key_digest(SIGNER.public)[:8]: SIGNER.public}
EPOCH = 1_767_225_600.0
SALT = bytes(range(7, 39))
REQUEST = b"canonical bytes of the request\n"
IDS = tuple(f"speaker_f_{i:03d}" for i in range(40))


def unlearned(graph: g.Graph, seed: int = 1, share: float = 0.05) -> g.Graph:
    """The network after a step that moves some codes of every layer, a bias code here and there, one scale."""
    rng = np.random.default_rng(seed)
    layers = []
    for layer in graph.layers:
        if isinstance(layer, g.Conv | g.Gemm):
            by = (rng.random(layer.weight.shape) < share) * rng.choice([-1, 1, 2], layer.weight.shape)
            weight = np.clip(layer.weight + by, -127, 127).astype(np.int8)
            bias = layer.bias
            if bias is not None:
                bias = (bias + (rng.random(bias.shape) < 0.2) * rng.integers(-5, 6, bias.shape)).astype(np.int32)
            layer = replace(layer, weight=weight, bias=bias)
        layers.append(layer)
    return replace(graph, layers=tuple(layers))


def samples(graph: g.Graph, n: int = 40, seed: int = 5) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(stored uint8, network input float32) [n, C, H, W] of forget samples."""
    shape = graph.activations[graph.input].shape
    stored = np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)
    return stored, (stored.astype(np.float32) / np.float32(255) - np.float32(0.45)) * np.float32(2.2)


def result(kind: str, name: str, files: Mapping[str, str], **changes: Any) -> dict[str, Any]:
    """One result, complete, with values of a pass."""
    interval = {"lo": 0.6, "hi": 0.8, "level": 0.9, "method": "wilson"}
    cell = {"value": 0.7, "lo": 0.6, "hi": 0.8, "level": 0.9, "method": "wilson", "n": 40}
    file = "5" * 64 if kind.startswith("torch") else files["target"]
    return {
        "artefact": {
            "kind": kind,
            "file_digest": file,
            "codes_digest": files["codes"],
            "runtime": "onnxruntime 1.32.0",
            "optimisation_level": "all",
            "cpu_flags": ["avx2"],
            "threads": 1,
        },
        "audit": name,
        "digests": {
            "code": "0.1.0+" + "c" * 64 + "+dirty",
            "config": "d" * 64,
            "data_split": "e" * 64,
            "model_after": file,
            "model_before": "6" * 64 if kind.startswith("torch") else files["base"],
        },
        "direction": "The retrained model's value is the target.",
        "failure_side": "none",
        "headline": name == "accuracy",
        "interval": interval,
        "metric": "forget_accuracy",
        "n": {"forget": 40, "retain": 100},
        "reasons": [],
        "reference": {"kind": "retrained", "value": 0.71, "interval": interval, "digest": "7" * 64},
        "seeds": {"audit": 0},
        "tables": {
            "metrics": {
                "forget_accuracy": {"forget": {"before": cell, "after": cell, "reference": cell, "delta": cell}},
                "gap_to_retrain": {"forget, retain": {"before": 0.3, "after": 0.1}},
            },
            "parity": None,
            "change": None,
            "per_class": {"forget": {"0": 0.5}},
        },
        "timings": {"audit_s": 0.1},
        "value": 0.7,
        "verdict": "pass",
        "version": "1",
        "warnings": [],
        **changes,
    }


def audit(base: Model, target: Model) -> dict[str, Any]:
    """audit.json of a run that passes."""
    files = {"base": base.digests()["onnx"], "target": target.digests()["onnx"], "codes": target.digests()["codes"]}
    logits = {"max_abs": 1, "share": 0.0005, "argmax": 1.0}
    row = {"name": "conv1", "pair": "onnx-off vs oracle", "mode": "free", "max_abs": 0, "share": 0.0}
    kinds = ("onnx-all", "torch-fq", "c-host")
    return {
        "verdict": "pass",
        "shipping": ["onnx-all"],
        "results": {k: [result(k, a, files) for a in ("accuracy", "mia")] for k in kinds},
        "digests": {"code": "0.1.0+" + "c" * 64 + "+dirty"},
        "tables": {
            "parity": {
                "verdict": "pass",
                "file_digest": files["target"],
                "logits": {"onnx-all vs oracle": logits, "c-host vs oracle": {**logits, "max_abs": 0, "share": 0.0}},
                "layers": [row],
                "saturation": [],
                "ties": [{"layer": "add", "op": "Add", "share": 0.0}],
                "coverage": {"macs": 1.0},
                "host": {"saturates": False},
                "runtime": {"entries": {"session.x64quantprecision": "1"}},
            },
            "change": None,
            "degenerate": [],
        },
        "environment": {
            "python": "3.11.7",
            "packages": {"torch": "2.13.0+cpu", "onnxruntime": "1.32.0"},
            "cpu_flags": ["avx2"],
        },
    }


@dataclass(frozen=True)
class World:
    """Base, target, forget samples, and an order for a bundle that can be built."""

    base: Model
    target: Model
    stored: NDArray[np.uint8]
    inputs: NDArray[np.float32]
    order: Order

    def build(self, **changes: Any) -> bundle.Built:
        """The bundle of the order with fields changed."""
        return bundle.build(replace(self.order, **changes), SIGNER, epoch=EPOCH)

    def audited(self, path: str, value: Any) -> dict[str, Any]:
        """audit.json with one value replaced; ``path`` like ``results.onnx-all.0.verdict``."""
        out = audit(self.base, self.target)
        at: Any = out
        *way, last = path.split("/")
        for step in way:
            at = at[int(step) if isinstance(at, list) else step]
        at[int(last) if isinstance(at, list) else last] = value
        return out


def make(base_graph: g.Graph, target_graph: g.Graph) -> World:
    """A world around two networks."""
    base, target = (Model.read(writer.serialize(x)) for x in (base_graph, target_graph))
    stored, inputs = samples(base.graph)
    activations = [x.graph.activations[x.graph.input] for x in (base, target)]
    forms = guard.sample_forms(stored, inputs, activations)
    plain = [hashlib.sha256(x.tobytes()).hexdigest() for x in stored] + [hashlib.sha256(REQUEST).hexdigest()]
    order = Order(
        base=base,
        target=target,
        audit=audit(base, target),
        method={"name": "oeu", "version": "1", "config": "a" * 64, "seed": 3},
        request=REQUEST,
        samples=len(stored),
        split="e" * 64,
        salt=SALT,
        sequence=7,
        base_sequence=6,
        device=DEVICE,
        guard=guard.Guard({**forms, **guard.digest_forms(plain)}, IDS),
    )
    return World(base, target, stored, inputs, order)


def resign(entries: Mapping[str, bytes], *, update: bool = True) -> bytes:
    """The bundle of changed entries as its maker would sign it: digests of subjects and signatures made anew.

    ``update`` also signs update.bin anew, with the new manifest's digest.
    """
    import json

    out = dict(entries)
    parsed = container.read(out["update.bin"])
    try:
        value = json.loads(out["manifest.json"])
        payload = hashlib.sha256(parsed.body + parsed.selftest).hexdigest()
        for subject in value["subject"]:
            name = subject["name"]
            subject["digest"]["sha256"] = payload if name == "update.payload" else bundle.sha256(out[name])
        out["manifest.json"] = schema.canonical(value)
    except (ValueError, KeyError, TypeError):
        pass
    text = out["manifest.json"]
    out["manifest.sig"] = keys.key_digest(SIGNER.public) + SIGNER.sign(m.signed_bytes(text))
    if update:
        payload_bytes = hashlib.sha256(parsed.body + parsed.selftest).digest()
        header = replace(parsed.header, manifest=hashlib.sha256(text).digest(), payload=payload_bytes)
        out["update.bin"] = container.build(header, parsed.body, parsed.selftest, SIGNER)
    return archive.write(out)
