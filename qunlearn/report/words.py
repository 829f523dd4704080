"""Codes of verdicts, artefacts, facts and keys in words for a reader who has never seen this project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DASH = "\u2013"
_PC = "\u00a0%"

VERDICTS = {
    "pass": (
        "\u2714",
        "Forgotten, and still useful",
        "In every audit the shipped file behaves, within the margin, like a model that never saw these samples, "
        "and what it should keep it has kept.",
    ),
    "fail": (
        "\u2718",
        "Not acceptable",
        "At least one audit of the shipped file lies clearly outside what is allowed.",
    ),
    "inconclusive": (
        "?",
        "Cannot be decided",
        "Nothing failed, but at least one audit could not be decided. This is not a pass.",
    ),
}

METRICS = {
    "forget": (
        "Forgotten samples",
        "accuracy",
        "Share of the samples to forget that are still classified correctly. Aim: the retrained model's value. "
        "Higher means still remembered, lower means forgotten too much.",
    ),
    "retain": (
        "Kept training samples",
        "accuracy",
        "Share of the other training samples that are classified correctly. Aim: as before.",
    ),
    "heldout": (
        "Held-out samples",
        "accuracy",
        "The same on samples never trained on, without the forgotten groups or classes. Aim: as before.",
    ),
    "test": (
        "Test samples",
        "accuracy",
        "The same on the test set, without the forgotten groups or classes. Aim: as before.",
    ),
    "mia": (
        "Taken for unseen",
        "by an attack",
        "A membership attack guesses from the model's confidence whether a sample was trained on: share of the samples "
        "to forget that it takes for never trained on. Aim: the retrained model's value. This line sets the attack up "
        "with test samples, the membership audit below with held-out ones: their values differ.",
    ),
}

AUDITS = {
    "accuracy": "Accuracy on the forgotten samples",
    "mia": "Membership attack on the forgotten samples",
    "smi": "Share of the forgotten samples that looks never trained",
    "loss": "The same by the loss attack",
    "lira": "The same by LiRA",
    "rmia": "The same by RMIA",
    "u_lira": "The same by LiRA on unlearned shadow models",
    "cka": "Similarity of the features to the base model's",
    "recovery": "Recovery by a new last layer",
    "relearn": "Relearning by a little training",
    "quant_recovery": "Recovery on fewer bits",
    "eve": "Erasure check by a private target",
}

CAPTIONS = {
    "eve": "How far the true class leads, before and after the update: left of the line the answer has flipped, inside "
    "the band it cannot be told. The bars, where there is a calibration, show how often a target flipped on a copy of "
    "the network, under the crafted request and under controls in which it did not drive the update.",
}

KINDS = {
    "onnx-all": "int8 file in ONNX Runtime",
    "onnx-off": "int8 file in ONNX Runtime, unoptimised",
    "onnx-raw": "int8 file in ONNX Runtime, default settings",
    "oracle": "exact integer reference",
    "torch-fq": "training network in PyTorch",
    "torch-reloaded": "training network, reloaded",
    "c-host": "generated C code on this computer",
    "c-target": "generated C code on the device",
}

SIDES = {
    "under": "not forgotten enough",
    "over": "forgotten too much",
    "utility": "lost usefulness",
    "parity": "the file computes something else",
}

METHODS = {
    "oeu": "orthogonal entropy unlearning (oeu)",
    "ft": "fine-tuning on the kept samples (ft)",
    "ga": "gradient ascent (ga)",
    "graddiff": "gradient difference (graddiff)",
    "neggrad_plus": "NegGrad+ (neggrad_plus)",
    "rl": "random labels (rl)",
    "l1_sparse": "fine-tuning with a fading L1 penalty (l1_sparse)",
    "salun": "random labels on salient weights (salun)",
    "scrub": "SCRUB (scrub)",
    "bad_teacher": "imitating an incompetent teacher (bad_teacher)",
    "boundary_shrink": "moving samples over the nearest boundary (boundary_shrink)",
    "ssd": "selective synaptic dampening (ssd)",
    "qmul": "similar labels and balanced gradients (qmul)",
    "ec": "erasing at every stage (ec)",
}

LABELS = {
    "guarantee": "Guarantee of the method",
    "stop_reason": "Why it stopped",
    "stop_verdict": "Its own check of the kept step",
    "chosen_step": "Step that was kept",
    "samples_seen": "Samples processed",
    "band": "Target band",
    "python": "Python",
    "cpu_model": "Processor",
    "cpu_flags": "Processor features",
    "threads": "Processor threads",
    "system": "System",
    "data_split": "Data split",
    "config": "Audit settings",
    "code": "Code of the toolkit",
    "file": "ONNX file (SHA-256)",
    "codes": "Integer codes",
}

STOPS = {
    "target_reached": "the target band was reached and confirmed",
    "over_forgot": "forget accuracy stayed below the target band; the best earlier step was restored",
    "utility_floor": "usefulness stayed too low; the best earlier step was restored",
    "max_steps": "the number of steps allowed was used up",
    "no_reference": "all steps were made: nothing told where a retrained model would stand",
}

GUARANTEES = {
    "first-order": "to first order, the forgetting part of a step leaves the loss on the kept samples as it is",
    "one-sided: conflict": "the forgetting part of a step is corrected only where it goes against the kept samples",
}

SOURCES = {
    "heldout": "held-out samples of the same classes",
    "unseen groups": "groups that were never trained on",
    "card (own)": "the reference card: networks trained without just this group",
    "card (all)": "the reference card: networks trained without some other group",
    "class": "the rule for a whole class",
    "declared": "what the user declared",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent, a dash for None."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference of fractions in points, with its sign; a value that rounds to nought has none."""
    if value is None:
        return DASH
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\u2212")


def label(key: str) -> str:
    """A key of facts, environment or digests as a heading."""
    return LABELS.get(key) or (key[:1].upper() + key[1:]).replace("_", " ")


def audit(name: str) -> str:
    """The name of an audit in words."""
    return AUDITS.get(name, name)


def kind(name: str) -> str:
    """An artefact kind in words."""
    return KINDS.get(name, name)


def method(name: str) -> str:
    """A method's name in words."""
    return METHODS.get(name, name)


def pair(text: str) -> str:
    """``p vs q`` with both artefact kinds in words."""
    return " against ".join(kind(part) for part in text.split(" vs "))


def pretty(value: Any) -> str:
    """A plain value on one line: lists by commas, mappings as ``key value`` by commas, floats in four digits."""
    if isinstance(value, str):
        return value
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {pretty(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(pretty(v) for v in value) or "none"
    return json.dumps(value, ensure_ascii=False, default=str)


def fact(key: str, value: Any) -> str:
    """The value of a method's fact in words, by its key; anything unknown as :func:`pretty` gives it."""
    if key == "stop_reason":
        return STOPS.get(value, pretty(value))
    if key == "guarantee":
        return GUARANTEES.get(value, pretty(value))
    if key == "band" and isinstance(value, Mapping) and value.get("accuracy"):
        return _band(value)
    return pretty(value)


def _band(value: Mapping[str, Any]) -> str:
    parts = []
    for name, title in (("accuracy", "forget accuracy"), ("confidence", "mean confidence")):
        if value.get(name):
            lo, hi = value[name]
            parts.append(f"{title} {percent(lo)} to {percent(hi)}{_PC}")
    source = f"; from {SOURCES.get(value['source'], value['source'])}" if value.get("source") else ""
    return ", ".join(parts) + source


def change(before: float | None, after: float | None, reference: float | None) -> str:
    """One sentence on the forget accuracy (fractions); empty without a value after."""
    if after is None:
        return ""
    start = "" if before is None else f"from {percent(before)}{_PC} "
    text = f"Accuracy on the forgotten samples went {start}to {percent(after)}{_PC}"
    if reference is None:
        return f"{text}."
    return f"{text}; a model retrained without them reaches {percent(reference)}{_PC}."
