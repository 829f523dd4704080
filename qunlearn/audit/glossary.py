"""What every metric means: formula, target, reference, range, interval. No result can carry a metric without an entry.

p = softmax of the logits, y = true label. Targets follow from the two-sided rule: the yardstick is the retrained model,
so few metrics are 'higher is better' or 'lower is better'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One metric. ``unit`` is ``share`` (printed in per cent), ``nats`` or ``count``; ``range`` its possible values."""

    title: str
    formula: str
    target: str
    reference: str
    range: str
    interval: str
    unit: str = "share"


_RETRAINED = "the retrained model, run as the same artefact kind"
_BEFORE = "the model before unlearning, run as the same artefact kind"
_WILSON = "Wilson, 90 %; difference to the reference: Bonett-Price for paired shares, 90 %"
_NORMAL = "mean +- z s / sqrt(n), 90 %"


def _accuracy(title: str, samples: str) -> Entry:
    return Entry(
        title=title,
        formula=f"mean[argmax = y] over {samples}; the lowest index wins a tie",
        target="the retrained model's value, not 0",
        reference=_RETRAINED,
        range="0..1",
        interval=_WILSON,
    )


GLOSSARY: Mapping[str, Entry] = MappingProxyType(
    {
        "forget_accuracy": _accuracy("forget accuracy", "the forget set"),
        "retain_accuracy": _accuracy("retain accuracy", "the retain set"),
        "heldout_accuracy": _accuracy(
            "held-out accuracy", "heldout.audit without the classes and groups that are forgotten as a whole"
        ),
        "heldout_all_accuracy": _accuracy(
            "held-out accuracy (both parts)", "heldout without the classes and groups that are forgotten as a whole"
        ),
        "heldout_stop_accuracy": _accuracy(
            "held-out accuracy (stop part)",
            "heldout.stop without the classes and groups that are forgotten as a whole",
        ),
        "test_accuracy": _accuracy(
            "test accuracy", "the test set without the classes and groups that are forgotten as a whole"
        ),
        "forget_heldout_accuracy": _accuracy(
            "forgotten group's held-out accuracy", "the held-out samples that belong to what is forgotten"
        ),
        "forget_test_accuracy": _accuracy(
            "forgotten group's test accuracy", "the test samples that belong to what is forgotten"
        ),
        "gap_to_retrain": Entry(
            title="gap to retrain",
            formula="mean over forget, retain and test accuracy of |value - retrained value|",
            target="0, up to what two retrained models differ",
            reference=_RETRAINED,
            range="0..1",
            interval="none: a mean of absolute values is biased upwards; read the single differences",
        ),
        "utility_drop": Entry(
            title="utility drop",
            formula="accuracy before - accuracy after, on retain and on both parts of held-out",
            target="<= utility_floor",
            reference=_BEFORE,
            range="-1..1",
            interval="Bonett-Price for paired shares, 90 %; the gate reads the value",
        ),
        "top_class_share": Entry(
            title="share of the most predicted class",
            formula="max_k mean[argmax = k] over held-out samples",
            target="<= 1.5 x that class's share before + .05",
            reference=_BEFORE,
            range="1/C..1",
            interval="Wilson, 90 %",
        ),
        "entropy": Entry(
            title="entropy",
            formula="mean of -sum_k p_k log p_k",
            target="the retrained model's value; on held-out: within 50 % of the value before",
            reference=_RETRAINED,
            range="0..log C",
            interval=_NORMAL,
            unit="nats",
        ),
        "modified_entropy": Entry(
            title="modified entropy",
            formula="mean of -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k)",
            target="the retrained model's value",
            reference=_RETRAINED,
            range="0..inf",
            interval=_NORMAL,
            unit="nats",
        ),
        "confidence": Entry(
            title="confidence",
            formula="mean of p_y",
            target="the retrained model's value",
            reference=_RETRAINED,
            range="0..1",
            interval=_NORMAL,
        ),
        "correctness": Entry(
            title="correctness",
            formula="mean[argmax = y]",
            target="the retrained model's value",
            reference=_RETRAINED,
            range="0..1",
            interval=_WILSON,
        ),
        "max_probability": Entry(
            title="largest probability",
            formula="mean of max_k p_k",
            target="the retrained model's value",
            reference=_RETRAINED,
            range="1/C..1",
            interval=_NORMAL,
        ),
        "kl_to_reference": Entry(
            title="KL to the reference",
            formula="mean of sum_k p_ref,k log(p_ref,k / p_k)",
            target="0, up to what two retrained models differ",
            reference=_RETRAINED,
            range="0..inf",
            interval=_NORMAL,
            unit="nats",
        ),
        "mia": Entry(
            title="membership attack (confidence)",
            formula=(
                "share of the forget set that a support vector classifier (RBF, C = 3, gamma = 1) on p_y, fitted on "
                "class-balanced retain samples against as many non-members, calls non-member"
            ),
            target="the retrained model's value; neither 0 nor 1",
            reference=_RETRAINED,
            range="0..1",
            interval="Wilson and Bonett-Price, 90 %, widened by the spread over refits of the attack",
        ),
        "attack_auc": Entry(
            title="attack AUC",
            formula="P(p_y of a forget sample > p_y of a non-member) + half of the ties",
            target="the retrained model's value, about .5; below is over-forgotten",
            reference=_RETRAINED,
            range="0..1",
            interval="Hanley-McNeil, 90 %",
        ),
        "attack_power": Entry(
            title="attack AUC on members",
            formula="P(p_y of a member > p_y of a non-member) + half of the ties",
            target="none; context only: at .5 the attack cannot tell anything",
            reference=_RETRAINED,
            range="0..1",
            interval="Hanley-McNeil, 90 %",
        ),
        "tpr_at_fpr": Entry(
            title="TPR at FPR 1 %",
            formula="share of the forget set above the p_y threshold that 1 % of the non-members pass; >= 1000 of them",
            target="0.01",
            reference=_RETRAINED,
            range="0..1",
            interval="Wilson, 90 %, threshold held fixed",
        ),
        "forgetting_rate": Entry(
            title="forgetting rate",
            formula=(
                "share pi of the forget set's features that are distributed like never-trained data: F_u = pi F_n + "
                "(1 - pi) F_m, by kernel mean embeddings with unbiased, class-matched sums; unclipped"
            ),
            target="the retrained model's value, about 1",
            reference=_RETRAINED,
            range="any; 0 = like members, 1 = like never-trained data",
            interval="percentile bootstrap over all three sets, 90 %; difference: the same resamples for both",
        ),
        "cka_to_original": Entry(
            title="similarity to the original (CKA)",
            formula="debiased linear CKA between the features of the model and of the original on the forget set, at "
            "the penultimate layer",
            target="the retrained model's value, not 0",
            reference=_RETRAINED,
            range="about 0..1",
            interval="normal, 90 %, error by the delete-half jackknife; difference: the same halves for both",
        ),
        "recovery_accuracy": Entry(
            title="recovery by a linear probe",
            formula="accuracy, among all classes, of a new linear head on frozen features, trained on few forgotten "
            "and many retained samples, on never-trained samples of the forgotten kind; mean over heads",
            target="the retrained model's value, not 0",
            reference=_RETRAINED,
            range="0..1",
            interval=_NORMAL,
        ),
        "recovery_neighbours": Entry(
            title="recovery by nearest neighbours",
            formula="the same with the 5 nearest of the probe's samples in cosine similarity in place of the head",
            target="the retrained model's value, not 0",
            reference=_RETRAINED,
            range="0..1",
            interval=_NORMAL,
        ),
        "recovery_head": Entry(
            title="recovery by the network's own head",
            formula="the same with the network's last layer drawn anew and retrained, all else frozen, quantized",
            target="the retrained model's value, not 0",
            reference=_RETRAINED,
            range="0..1",
            interval=_NORMAL,
        ),
        "recovery_random": Entry(
            title="recovery from random features",
            formula="the linear probe on the original with the weights of every output channel shuffled: features that "
            "never learnt",
            target="none: it is the lower end of the scale, the original's own value the upper",
            reference="none",
            range="0..1",
            interval=_NORMAL,
        ),
        "recovery_finetune": Entry(
            title="recovery by fine-tuning",
            formula="the same after a few training steps of all parameters on the probe's samples",
            target="the retrained model's value, not 0",
            reference=_RETRAINED,
            range="0..1",
            interval=_NORMAL,
        ),
        "relearn_accuracy": Entry(
            title="relearned accuracy",
            formula="largest accuracy on the scored half of the forget set within a fixed budget of training steps; "
            "mean over seeds",
            target="the retrained model's value under the same training, not 0",
            reference=_RETRAINED,
            range="0..1",
            interval="hierarchical bootstrap over seeds, then samples, 95 %; difference: the same resamples for both",
        ),
        "quant_recovery": Entry(
            title="recovered by fewer bits",
            formula="mean over the forget set of [right on the coarse network] - [right on the network]",
            target="the retrained model's value, about 0",
            reference=_RETRAINED,
            range="-1..1",
            interval="paired bootstrap over samples, 95 %; where nothing changes, Clopper-Pearson's bound",
        ),
        "attack_share": Entry(
            title="forgetting rate (attack)",
            formula=(
                "(A_mn - A_un) / (A_mn - 1/2), A_ab = AUC of the attack's member score for set a against b; m members, "
                "n never trained, u forgotten; class-matched weights; unclipped"
            ),
            target="the retrained model's value, about 1",
            reference=_RETRAINED,
            range="any; 0 = like members, 1 = like never-trained data",
            interval="percentile bootstrap over all three sets, 90 %; difference: the same resamples for both",
        ),
        "verifiability": Entry(
            title="verifiability",
            formula="share of the private targets that were right before and are wrong after, with a margin of 1 + the "
            "parity bound in output steps on both sides",
            target="1 where the request drove the update, 0 where it did not",
            reference="a calibration: the same request under the known unlearner, beside six controls",
            range="0..1",
            interval="Clopper-Pearson, one-sided 95 %, from the calibration's trials",
        ),
        "verifiability_strict": Entry(
            title="verifiability (strict)",
            formula="the same, counting flips to the wanted class only",
            target="1 where the request drove the update",
            reference="a calibration: the same request under the known unlearner, beside six controls",
            range="0..1",
            interval="none: read beside verifiability",
        ),
        "bystander_flips": Entry(
            title="bystander flips",
            formula="share of bystanders (as confident as the targets, in no batch) whose right answer flipped",
            target="at most the calibration's clean erasure + .10",
            reference=_BEFORE,
            range="0..1",
            interval="Wilson, 90 %",
        ),
        "parity_max": Entry(
            title="parity max",
            formula="max |d| over a layer's outputs, d = difference of integer codes",
            target="0",
            reference="the integer oracle",
            range="0..255",
            interval="none: a maximum over the tested inputs",
            unit="count",
        ),
        "parity_share": Entry(
            title="parity share",
            formula="share of a layer's outputs with d != 0",
            target="0",
            reference="the integer oracle",
            range="0..1",
            interval="none: a count over the tested inputs",
        ),
        "codes_changed": Entry(
            title="codes changed",
            formula="number of integer weight codes that differ before and after",
            target="none; context only, but 0 means that nothing happened",
            reference=_BEFORE,
            range="0..number of codes",
            interval="none: a count",
            unit="count",
        ),
    }
)
"""Glossary key to entry. Verifiers add the entry of a new metric here, in the same change as its code."""
