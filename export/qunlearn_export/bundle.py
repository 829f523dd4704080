"""The signed update bundle: build it from two int8 files, their audit results and a key.

Order of making: body, self-test, payload digest, manifest (which cannot list update.bin), signature, container header
with the manifest's digest, second signature, guard, canonical ZIP. Verification: ``verify``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from qunlearn_export import archive, bom, container, delta, evidence, keys, reader, selftest
from qunlearn_export import manifest as m
from qunlearn_export import schema as s
from qunlearn_export.degenerate import degenerate
from qunlearn_export.errors import ConfigError, InvariantError, VerificationError
from qunlearn_export.files import write_atomic
from qunlearn_export.graph import Graph
from qunlearn_export.guard import Guard
from qunlearn_export.layout import Layout, pack, plan
from qunlearn_export.runtime import read_bytes

NAMES = (
    "bom.cdx.json",
    "manifest.json",
    "manifest.sig",
    "model.onnx",
    "report.json",
    "update.bin",
    "weights.bin",
)
MAX_BYTES = 512 * 2**20
MODES = ("auto", "delta", "full")


@dataclass(frozen=True)
class Model:
    """An int8 ONNX file with everything that is derived from it."""

    file: bytes
    graph: Graph
    layout: Layout
    blob: bytes

    @classmethod
    def read(cls, file: str | Path | bytes) -> Model:
        """Read, check (S1 to S13) and lay out; ArtefactError or VerificationError when it is not such a file."""
        data = read_bytes(file)
        graph = reader.read(data)
        layout = plan(graph)
        return cls(file=data, graph=graph, layout=layout, blob=pack(graph, layout))

    def digests(self) -> dict[str, str]:
        """``codes``, ``blob`` and ``onnx``: what base and target are called in a manifest."""
        return {"codes": self.graph.codes_digest(), "blob": sha256(self.blob), "onnx": sha256(self.file)}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a bundle is made from.

    ``audit`` is what audit.json holds; ``method`` has ``name``, ``version``, ``config`` (SHA-256) and ``seed``;
    ``request`` the request's canonical bytes, ``salt`` the 32 random bytes that key its commitment; ``samples`` the
    number of forget samples; ``split`` the digest of the division of the data that the guard's samples come from;
    ``allow`` the worst verdict that may be shipped.
    """

    base: Model
    target: Model
    audit: Mapping[str, Any]
    method: Mapping[str, Any]
    request: bytes
    samples: int
    split: str
    salt: bytes = field(repr=False)
    sequence: int
    base_sequence: int
    device: UUID
    guard: Guard
    mode: str = "auto"
    in_place: bool = False
    delta_only: bool = False
    with_onnx: bool = True
    allow: str = "pass"


Applier = Callable[[bytes, bytes, Layout], bytes]
"""Another implementation of ``delta.decode``: the C applier on the host."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """The bundle's bytes, the manifest in them, sizes of its parts, and what the maker should know."""

    data: bytes
    manifest: Mapping[str, Any]
    kind: str
    sizes: Mapping[str, int]
    warnings: tuple[str, ...]

    def write(self, path: str | Path) -> Path:
        """Write it whole."""
        return write_atomic(path, self.data)


def build(
    order: Order,
    signer: keys.Signer,
    *,
    epoch: float,
    applier: Applier | None = None,
    measure: Callable[[Graph], Mapping[str, int]] | None = None,
) -> Built:
    """Make and sign a bundle; the same order, key and ``epoch`` give the same bytes.

    ``measure`` gives pairs of the parity summary that the maker measures on the target (worst LSB). Raises
    ConfigError for sequences and modes that do not fit, VerificationError when results were measured on other files, a
    verdict is worse than allowed, or the guard finds something, InvariantError when a delta does not give the target.
    """
    if order.mode not in MODES or not 0 <= order.base_sequence < order.sequence < 2**32:
        raise ConfigError(
            f"sequence {order.sequence} over base {order.base_sequence}, mode {order.mode}.",
            remedy="Sequences rise with every update of a device class; modes: " + ", ".join(MODES) + ".",
        )
    base, target = order.base, order.target
    base_is, target_is = base.digests(), target.digests()
    if base_is["codes"] == target_is["codes"]:
        raise VerificationError("base and target have the same codes.", remedy="There is nothing to ship.")
    stop_on_degenerate(target.graph, base.graph)
    files = evidence.Files(base=base_is["onnx"], target=target_is["onnx"], codes=target_is["codes"])
    found = evidence.gather(order.audit, files)
    if found.split != order.split:
        raise VerificationError(
            "the audits were made on other data or for another request.",
            remedy="Give the data and the request of the audit (--data, --forget).",
        )
    _policy(found.verdict, order.allow)
    kind, body = _body(order, applier)
    test = selftest.generate(target.graph, base.graph)
    warnings = []
    if selftest.passed(test, base.graph) == len(test.seeds):
        warnings.append("the self-test passes on the base too: it cannot tell the two networks apart")
    block = test.to_bytes()
    payload = hashlib.sha256(body + block).digest()
    checks = {} if measure is None else measure(target.graph)
    predicate = _predicate(order, found, base_is, target_is, epoch, checks)
    entries = {"report.json": found.report, "bom.cdx.json": bom.make(predicate, model_facts(target.graph))}
    if not order.delta_only:
        entries["weights.bin"] = target.blob
    if order.with_onnx:
        entries["model.onnx"] = target.file
    subjects = {n: sha256(d) for n, d in entries.items()} | {"update.payload": payload.hex()}
    statement = m.statement(subjects, predicate)
    text = s.canonical(statement)
    entries["manifest.json"] = text
    entries["manifest.sig"] = keys.key_digest(signer.public) + signer.sign(m.signed_bytes(text))
    header = container.Header(
        kind=kind,
        in_place=order.in_place,
        sequence=order.sequence,
        base_sequence=order.base_sequence if kind == container.DELTA else 0,
        device_class=order.device.bytes,
        blob_bytes=len(target.blob),
        body_bytes=len(body),
        selftest_bytes=len(block),
        scratch_bytes=target.layout.scratch_bytes if kind == container.DELTA else 0,
        layout=bytes.fromhex(target.layout.digest()),
        base=bytes.fromhex(base_is["blob"]) if kind == container.DELTA else container.NONE,
        target=bytes.fromhex(target_is["blob"]),
        payload=payload,
        manifest=hashlib.sha256(text).digest(),
        key_id=keys.key_digest(signer.public)[:8],
    )
    entries["update.bin"] = container.build(header, body, block, signer)
    order.guard.refuse({**entries, "update.bin (expanded)": target.blob})
    data = archive.write(entries)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the bundle has {len(data)} bytes, the limit is {MAX_BYTES}.", remedy="Leave parts out.")
    return Built(
        data=data,
        manifest=statement,
        kind="delta" if kind == container.DELTA else "full",
        sizes={"body": len(body), "self-test": len(block), **{n: len(d) for n, d in entries.items()}, "all": len(data)},
        warnings=tuple(warnings),
    )


def _policy(verdict: str, allowed: str) -> None:
    """A worse verdict than allowed stops the build: exit 3 for a failure, 4 for an inconclusive one."""
    if m.VERDICTS.index(verdict) > m.VERDICTS.index(allowed):
        error = VerificationError if verdict == "fail" else InconclusiveError
        raise error(
            f"the audits' overall verdict is {verdict}.",
            remedy=f"Unlearn better, or ship it as it is with --allow-verdict {verdict}; the manifest will say so.",
        )


class InconclusiveError(VerificationError):
    """A verdict that is needed is inconclusive."""

    exit_code = 4


def _body(order: Order, applier: Applier | None) -> tuple[int, bytes]:
    """(kind, body): the smaller of delta and blob unless one is forced; a delta is decoded back before it is used."""
    base, target = order.base, order.target
    same = base.layout.digest() == target.layout.digest()
    if not same and order.mode == "delta":
        raise ConfigError("base and target have different layouts.", remedy="Use --mode full.")
    if not same and order.in_place:
        raise ConfigError("a new layout needs new firmware.", remedy="Leave out --ota inplace.")
    if order.delta_only and order.mode == "full":
        raise ConfigError("--delta-only with --mode full leaves no model.", remedy="Leave one of them out.")
    if not same or order.mode == "full":
        return container.FULL, target.blob
    body = delta.encode(base.blob, target.blob, target.layout)
    for apply in (delta.decode, *(() if applier is None else (applier,))):
        if apply(base.blob, body, target.layout) != target.blob:
            raise InvariantError("the delta does not give the target.", remedy="Report this as a defect.")
    if order.mode == "auto" and len(body) >= len(target.blob) and not order.delta_only:
        return container.FULL, target.blob
    return container.DELTA, body


def _predicate(
    order: Order,
    found: evidence.Evidence,
    base: Mapping[str, str],
    target: Mapping[str, str],
    epoch: float,
    checks: Mapping[str, int],
) -> dict[str, Any]:
    version, sources, commit = found.code.split("+", 2)
    changed = change(order.base.graph, order.target.graph)
    if found.codes_changed is not None and found.codes_changed != changed["codesChanged"]:
        raise VerificationError(
            f"the change table says {found.codes_changed} codes, the files differ in {changed['codesChanged']}.",
            remedy="Audit the files that the bundle carries.",
        )
    inputs = {"base": base["onnx"], "target": target["onnx"]}
    return {
        "format": m.FORMAT,
        "issued": m.issued(epoch),
        "sequence": order.sequence,
        "baseSequence": order.base_sequence,
        "device": {"class": str(order.device), "layout": order.target.layout.digest()},
        "base": dict(base),
        "target": dict(target),
        "request": {
            "commitment": m.commitment(order.salt, "request", order.request),
            "samples": m.bucket(order.samples),
        },
        "method": dict(order.method),
        "data": {"commitment": m.commitment(order.salt, "split", found.split.encode())},
        "code": {"version": version, "sources": sources, "commit": commit},
        "environment": found.environment,
        "change": {**changed, "lost": found.lost},
        "verdict": {"overall": found.verdict, "allowed": order.allow},
        "audits": found.audits,
        "parity": {**found.parity, "worst": {**found.parity["worst"], **checks}},
        "rerun": [
            {
                "audit": name,
                "command": f"qunlearn verify BUNDLE --trust KEY --base BASE.onnx --reference REFERENCE.onnx "
                f"--data SOURCE --forget REQUEST --salt SALT --verify-level 3 --audit {name}",
                "inputs": {**inputs, "reference": reference},
                "seed": found.seed,
            }
            for name, reference in dict.fromkeys(
                (a["audit"], a["reference"]["digest"]) for a in found.audits if a["kind"].startswith("onnx")
            )
        ],
        "limits": list(m.LIMITS),
    }


def change(base: Graph, target: Graph) -> dict[str, Any]:
    """What moved between two networks: codes, biases, scales; counted on the files."""
    old, new = base.quantized_tensors(), target.quantized_tensors()
    totals = {"codes": 0, "codesChanged": 0, "maxAbs": 0, "biasChanged": 0, "scalesChanged": 0}
    for name, value in new.items():
        before = old.get(name)
        if before is None or before.shape != value.shape:
            before = np.zeros_like(value)
        moved = int((before != value).sum())
        if name.endswith(".weight"):
            totals["codes"] += value.size
            totals["codesChanged"] += moved
            step = np.abs(value.astype(np.int64) - before.astype(np.int64)).max(initial=0)
            totals["maxAbs"] = max(totals["maxAbs"], int(step))
        elif name.endswith(".bias"):
            totals["biasChanged"] += moved
        elif name.endswith("_scale"):
            totals["scalesChanged"] += moved
    return {**totals, "share": totals["codesChanged"] / max(1, totals["codes"])}


def stop_on_degenerate(target: Graph, base: Graph | None) -> None:
    """VerificationError when an error of the degenerate-scale check (D1 to D8) stands."""
    errors = [f for f in degenerate(target, base) if f.level == "error"]
    if errors:
        raise VerificationError(
            f"the target is degenerate: {'; '.join(f'{f.code} at {f.where}' for f in errors[:6])}.",
            remedy="Unlearn more gently, or repair dead channels.",
        )


def model_facts(graph: Graph) -> dict[str, str]:
    """What the bill of materials says of a network."""
    ends = {"inputs": graph.activations[graph.input], "outputs": graph.activations[graph.output]}
    family = "convolutional network" if any(type(x).__name__ == "Conv" for x in graph.layers) else "network"
    return {
        "task": str(graph.meta.get("task", "classification")),
        "family": f"int8 {family}",
        **{k: f"int8 [N, {', '.join(map(str, a.shape))}]" for k, a in ends.items()},
    }


def sha256(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
