"""Every reason and warning code of a result, with its sentence. A result with another code cannot be made."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "F-UTILITY-RETAIN": "Retain accuracy fell by more than the utility floor.",
    "F-UTILITY-HELDOUT": "Held-out accuracy fell by more than the utility floor.",
    "F-COLLAPSE-CLASS": "One class is predicted far more often than before unlearning.",
    "F-COLLAPSE-ENTROPY": "The mean predictive entropy left the band around its value before unlearning.",
    "F-NONFINITE": "The artefact gives logits that are not finite; nothing else was measured.",
    "F-PARITY": "The artefact is outside its parity bound: it does not compute what the trained model computes.",
    "F-UNDER": "The whole interval of the difference lies on the remembered side of the margin.",
    "F-OVER": "The whole interval of the difference lies on the over-forgotten side of the margin.",
    "F-NOT-FORGOTTEN": "Before any attack the forget set is still answered better than by the retrained model.",
    "F-QUANT-SAME": "On fewer bits the weights are the original's: quantizing undoes the unlearning.",
    "I-INTERVAL": "The interval of the difference crosses the margin; more samples would decide.",
    "I-NO-REFERENCE": "No reference was given, and this audit has no rule of its own that passes without one.",
    "I-NO-SIGNAL": "The untouched model itself lies within the margin of the reference: a pass would tell nothing.",
    "I-PARITY": "The parity report is inconclusive.",
    "I-PARITY-MISSING": "No parity report was given for a file that ships.",
    "I-SAME-BYTES": "The file or tensor digest before and after is the same.",
    "I-SAME-CODES": "The integer codes before and after are the same: the shipped model did not change.",
    "I-SAME-LOGITS": "The logits before and after are equal bit for bit.",
    "I-LOST-TO-ROUNDING": "Most of the update was lost when weights were rounded to integer codes.",
    "I-NOTHING-CHANGED": "No integer code changed.",
    "I-MIA-DEGENERATE": "The attack cannot tell members from non-members at all; its share is an accident.",
    "I-SMI-NO-SIGNAL": "Members and non-members cannot be told apart on these features: nothing can be estimated.",
    "I-SMI-FEW": "Too few samples remain in a set after matching classes.",
    "I-SMI-CLASSES": "More than a tenth of the forget set is of classes that members or non-members lack.",
    "I-SMI-WIDE": "The interval of the forgetting rate is wider than one half.",
    "I-SMI-SELF-CHECK": "A set of known forgetting rate was not estimated rightly on these features.",
    "I-SMI-OFF-MIXTURE": "The forget set looks like neither members nor non-members nor a mixture of both.",
    "I-SMI-COV": "The covariance form decides nothing and has no interval, only a reference range.",
    "I-SMI-EXPLORATORY": "Members were read from the model before unlearning: this explores, it decides nothing.",
    "I-CKA-FEW": "The forget set has fewer than 50 samples: the similarity of features is not estimated well enough.",
    "I-CKA-UNDEFINED": "The deciding layer's features are constant: their similarity is undefined.",
    "I-RECOVERY-FEW": "Fewer than 20 samples of the forgotten kind are left to judge the probe on.",
    "I-NOT-TRAINABLE": "There is no network with this artefact's integer codes to train: the attack was not run.",
    "I-RELEARN-ARMS": "The arms cannot be matched: fewer than 8 samples of each, or to score.",
    "I-QUANT-NONE": "At every width the original itself breaks: nothing can be said.",
    "I-ATTACK-NO-POWER": "The attack can hardly tell members from non-members: its share is an accident.",
    "F-EVE-NOT-FLIPPED": "The private target kept its answer, although a faithful update would have changed it.",
    "F-EVE-BYSTANDERS": "Bystanders flip more often than under clean erasure: the update changed far more than asked.",
    "I-EVE-NO-REQUEST": "No crafted request was given to verify.",
    "I-EVE-NO-CALIBRATION": "No calibration was given: what a flip is worth is not known.",
    "I-EVE-CALIBRATION": "The calibration is not valid.",
    "I-EVE-FOREIGN": "Request, calibration and model before do not belong together.",
    "I-EVE-TARGET": "The private target was answered wrongly before unlearning already.",
    "I-EVE-UNRESOLVED": "The private target's margin is within the parity bound on one side: no flip can be told.",
    "I-EVE-FALSE-POSITIVES": "The target flipped, but the calibration does not bound false positives tightly enough.",
    "I-EVE-WEAK": "The target kept its answer, but the calibration does not bound detection tightly enough to fail.",
    "I-EVE-MIXED": "Some private targets flipped, some did not.",
    "I-DISAGREE": "The trained model and a shipping artefact got different verdicts.",
}

WARNINGS: Mapping[str, str] = {
    "W-SAME-BYTES": "The file or tensor digest before and after is the same.",
    "W-SAME-CODES": "The checkpoint changed, its integer codes did not.",
    "W-SAME-LOGITS": "The logits before and after are equal bit for bit.",
    "W-SAME-RESULT": "Two methods of one run gave identical metric tables.",
    "W-ARTEFACT-DISAGREES": "The trained model and a shipping artefact got different verdicts.",
    "W-TORCH-NOT-RUN": "The trained model was not audited beside the file.",
    "W-NO-FEATURES": "The artefact shows no features: the audit read its logits.",
    "W-NO-PARITY": "No parity report was given for this artefact.",
    "W-EVE-TARGETS": "Several targets in one request dilute each other.",
    "W-EVE-SNAP": "Snapping to the input grid cost more than a tenth of the cosine.",
    "W-EVE-SURROGATE": "The method has no differentiable forget loss; a stand-in was used and the calibration decides.",
    "W-EVE-KIND": "The calibration was read from another artefact kind.",
    "W-SMI-LOGITS": "The artefact shows no features; its logits were read instead.",
    "W-MIA-DEGENERATE": "The attack cannot tell members from non-members at all.",
}


def text(code: str) -> str:
    """The sentence of a code; a suffix after a colon (a name, a layer) is kept. Unknown codes give themselves."""
    head, _, tail = code.partition(":")
    sentence = REASONS.get(head) or WARNINGS.get(head) or head
    return f"{sentence} ({tail.strip()})" if tail else sentence


def known_reason(code: str) -> bool:
    """Whether ``code`` (up to a colon) is a reason."""
    return code.partition(":")[0] in REASONS


def known_warning(code: str) -> bool:
    """Whether ``code`` (up to a colon) is a warning."""
    return code.partition(":")[0] in WARNINGS
