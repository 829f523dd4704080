"""Verification of a bundle by whoever received it: what a signature and recomputation can show.

Level 1 reads the bundle alone: archive, signatures, schema, digests, header against manifest, report and bill of
materials against the manifest. Level 2 recomputes what follows from the files: the delta on the base, the target from
model.onnx, codes, self-test, parity on synthetic inputs. Level 3 (audits) is the command's, since it needs data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from qunlearn_export import archive, bom, bundle, container, evidence, keys, selftest
from qunlearn_export import manifest as m
from qunlearn_export import schema as s
from qunlearn_export.bundle import Applier, Model, sha256
from qunlearn_export.errors import ArtefactError, ConfigError, VerificationError
from qunlearn_export.graph import Graph
from qunlearn_export.layout import DTYPES, SECTIONS, Layout
from qunlearn_export.oracle import dequantize
from qunlearn_export.parity import parity
from qunlearn_export.runtime import read_bytes

PARITY_INPUTS = 64


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A bundle that passed level 1; ``checks`` are sentences on what held."""

    entries: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    update: container.Update
    public: bytes
    checks: tuple[str, ...]

    @property
    def predicate(self) -> Mapping[str, Any]:
        """The manifest's own part."""
        value: Mapping[str, Any] = self.manifest["predicate"]
        return value

    def model(self) -> Model | None:
        """The target's ONNX file, read and laid out; None where the bundle carries none."""
        data = self.entries.get("model.onnx")
        return None if data is None else Model.read(data)


def open_bundle(file: str | Path | bytes, trust: Mapping[bytes, bytes]) -> Opened:
    """Level 1. ``trust`` maps key ids to raw public keys; nothing is believed before its signature held.

    ArtefactError for what cannot be read, VerificationError for what does not hold together.
    """
    data = read_bytes(file, max_bytes=bundle.MAX_BYTES)
    entries = archive.read(data, bundle.NAMES)
    lacking = {"manifest.json", "manifest.sig", "update.bin", "report.json", "bom.cdx.json"} - set(entries)
    if lacking or len(entries["manifest.sig"]) != 96:
        raise ArtefactError(
            f"the bundle lacks {', '.join(sorted(lacking)) or 'a signature of 96 bytes'}.",
            remedy="Fetch the bundle again from its maker.",
        )
    text, signature = entries["manifest.json"], entries["manifest.sig"]
    public = trust.get(signature[:8])
    if public is None or keys.key_digest(public) != signature[:32]:
        raise _failed(f"it is signed by a key that is not trusted (key id {signature[:8].hex()})")
    if not keys.verify(public, signature[32:], m.signed_bytes(text)):
        raise _failed("the manifest's signature does not hold")
    manifest = m.parse(text)
    update = container.read(entries["update.bin"])
    container.authenticate(update, {signature[:8]: public})
    container.check_payload(update)
    _subjects(manifest, entries, update)
    _header(manifest["predicate"], update, text)
    _documents(manifest["predicate"], entries)
    test = selftest.SelfTest.from_bytes(update.selftest)
    checks = (
        "archive, both signatures, schema and all digests hold",
        "update.bin says what the manifest says",
        "report and bill of materials say what the manifest says",
        f"self-test block with {len(test.seeds)} vectors is well formed",
    )
    return Opened(entries=entries, manifest=manifest, update=update, public=public, checks=checks)


def recompute(opened: Opened, base: Model | None, *, applier: Applier | None = None) -> tuple[str, ...]:
    """Level 2: sentences on what held; VerificationError names the first thing that does not.

    ``base`` is needed for a delta; ``applier`` is a second implementation of the delta (the C applier).
    """
    p, update, checks = opened.predicate, opened.update, []
    target = opened.model()
    layout = target.layout if target is not None else base.layout if base is not None else None
    if layout is None or (base is None and update.header.kind == container.DELTA):
        raise ConfigError("level 2 needs the base's ONNX file.", remedy="Give it by --base.")
    if layout.digest() != p["device"]["layout"]:
        raise _failed("the layout is not the manifest's")
    if base is not None:
        for name, digest in base.digests().items():
            if digest != p["base"][name]:
                raise _failed(f"the base given is not the manifest's (its {name} digest differs)")
        checks.append("the base is the one named")
    blob = container.apply(update, None if base is None else base.blob, layout)
    checks.append("update.bin gives the announced target")
    if applier is not None and base is not None and update.header.kind == container.DELTA:
        if applier(base.blob, update.body, layout) != blob:
            raise _failed("the C applier gives another target")
        checks.append("the C applier gives the same target")
    if target is not None:
        if target.blob != blob:
            raise _failed(f"model.onnx is not the target of update.bin: {difference(target.blob, blob, layout)}")
        if target.digests() != p["target"]:
            raise _failed("model.onnx has another codes digest than the manifest")
        if base is not None and bundle.change(base.graph, target.graph) != _moved(p):
            raise _failed("the change table is not what the files differ in")
        bundle.stop_on_degenerate(target.graph, None if base is None else base.graph)
        checks += ["model.onnx holds the target, code by code; the change table is right", *_behaves(opened, target)]
    return tuple(checks)


def _moved(p: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in p["change"].items() if k != "lost"}


def _behaves(opened: Opened, target: Model) -> list[str]:
    """Self-test by the oracle, parity (generated C included) on its vectors and synthetic inputs, model card."""
    test = selftest.SelfTest.from_bytes(opened.update.selftest)
    good = selftest.passed(test, target.graph)
    if good != len(test.seeds):
        raise _failed(f"the oracle answers {good} of {len(test.seeds)} self-test vectors")
    vectors = dequantize(selftest.vectors(target.graph, test.seeds), target.graph.activations[target.graph.input])
    inputs = np.concatenate([vectors, synthetic(target.graph, PARITY_INPUTS)])
    found = parity(target.graph, target.file, inputs)
    if found.verdict != "pass":
        raise _failed(f"parity on this host: {'; '.join(found.reasons[:3])}")
    document = json.loads(opened.entries["bom.cdx.json"])
    if bom.model_facts(document) != bundle.model_facts(target.graph):
        raise _failed("the bill of materials describes another network")
    absent = [f"not compared: {n}, {why}" for n, why in found.absent.items() if not n.startswith("torch")]
    return [
        f"the oracle answers all {good} self-test vectors",
        f"parity holds on this host, on these and {PARITY_INPUTS} synthetic inputs: "
        + ", ".join(f"{r.pair} {r.max_abs} LSB" for r in found.logits if "raw" not in r.pair),
        *absent,
    ]


def synthetic(graph: Graph, n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """``n`` random inputs on the network's own grid; from a fixed seed, of no data set."""
    a = graph.activations[graph.input]
    codes = np.random.default_rng(20260101).integers(-128, 128, (n, *a.shape)).astype(np.int8)
    return dequantize(codes, a)


def difference(a: bytes, b: bytes, layout: Layout) -> str:
    """Where two blobs of one layout differ first: tensor and element."""
    if len(a) != len(b):
        return f"{len(a)} bytes in place of {len(b)}"
    at = int(np.flatnonzero(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8))[0])
    for section, size in zip(SECTIONS, layout.section_bytes, strict=True):
        if at < size:
            element = at // DTYPES[section].itemsize
            for e in layout.entries:
                if e.section == section and e.offset <= element < e.offset + e.count:
                    return f"{e.role} of {e.node or 'the graph'} differs at element {element - e.offset}"
            return f"padding of section {section} differs"
        at -= size
    return "nothing differs"


def _subjects(manifest: Mapping[str, Any], entries: Mapping[str, bytes], update: container.Update) -> None:
    payload = hashlib.sha256(update.body + update.selftest).hexdigest()
    have = {n: sha256(d) for n, d in entries.items() if n in m.SUBJECTS} | {"update.payload": payload}
    listed = m.subjects(manifest)
    if have.keys() != listed.keys():
        raise _failed(f"entries and subjects differ: {', '.join(sorted(have.keys() ^ listed.keys()))}")
    for name, digest in listed.items():
        if have[name] != digest:
            raise _failed(f"{name} is not the one that was signed")
    p = manifest["predicate"]
    for name, digest in (("weights.bin", p["target"]["blob"]), ("model.onnx", p["target"]["onnx"])):
        if name in have and have[name] != digest:
            raise _failed(f"{name} is not the target")


def _header(p: Mapping[str, Any], update: container.Update, manifest: bytes) -> None:
    h, full = update.header, update.header.kind == container.FULL
    pairs = {
        "manifest digest": (h.manifest, hashlib.sha256(manifest).digest()),
        "sequence": (h.sequence, p["sequence"]),
        "base sequence": (h.base_sequence, 0 if full else p["baseSequence"]),
        "device class": (h.device_class, UUID(p["device"]["class"]).bytes),
        "layout digest": (h.layout.hex(), p["device"]["layout"]),
        "base digest": (h.base.hex(), container.NONE.hex() if full else p["base"]["blob"]),
        "target digest": (h.target.hex(), p["target"]["blob"]),
    }
    for name, (said, signed) in pairs.items():
        if said != signed:
            raise _failed(f"the {name} of update.bin is not the manifest's")


def _documents(p: Mapping[str, Any], entries: Mapping[str, bytes]) -> None:
    report = s.parse(entries["report.json"], evidence.REPORT, "report.json")
    if [a["result"] for a in report["audits"]] != [a["result"] for a in p["audits"]]:
        raise _failed("report.json is about other results than the manifest")
    for a in p["audits"]:
        file = not a["kind"].startswith("torch")
        if a["codes"] != p["target"]["codes"] or (
            file and (a["file"] != p["target"]["onnx"] or a["before"] != p["base"]["onnx"])
        ):
            raise _failed(f"audit {a['audit']} on {a['kind']} was measured on another file than the bundle's")
    try:
        document = json.loads(entries["bom.cdx.json"])
        again = bom.make(p, bom.model_facts(document))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as err:
        raise ArtefactError("bom.cdx.json is malformed.", remedy="Fetch the bundle again.") from err
    if again != entries["bom.cdx.json"]:
        raise _failed("bom.cdx.json is not that of the manifest")


def _failed(text: str) -> VerificationError:
    return VerificationError(f"the bundle does not hold: {text}.", remedy="Do not install it; ask its maker.")
