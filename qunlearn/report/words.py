"""Codes of verdicts, reasons and warnings in words for a reader who has never seen this project."""

from __future__ import annotations

VERDICTS = {
    "pass": ("\u2714", "Forgotten, and still useful"),
    "fail": ("\u2718", "Not acceptable"),
    "inconclusive": ("?", "Cannot be decided"),
}

METRICS = {
    "forget": ("Accuracy on the forgotten samples", "as the retrained model; higher remembers, lower over-forgets"),
    "retain": ("Accuracy on the kept training samples", "as before"),
    "heldout": ("Accuracy on held-out samples", "as before"),
    "test": ("Accuracy on test samples (kept groups or classes)", "as before"),
    "mia": ("Forgotten samples called non-members by the attack", "as the retrained model"),
}


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent, a dash for None."""
    return "\u2013" if value is None else f"{100 * value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference of fractions in points, with its sign."""
    return "\u2013" if value is None else f"{100 * value:+.1f}".replace("-", "\u2212")
