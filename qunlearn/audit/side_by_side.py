"""SMI and the attacks in one table: what each says, whether it may say anything, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from qunlearn.audit.result import AuditResult
from qunlearn.audit.table import aligned

METRICS = ("forgetting_rate", "attack_share")
HEAD = (
    "audit",
    "pi",
    "interval",
    "reference",
    "gate",
    "verdict",
    "training s",
    "scoring s",
    "models",
    "TPR at FPR 1 %",
)


def comparable(results: Sequence[AuditResult]) -> list[AuditResult]:
    """Those that estimate a share of the forget set."""
    return [r for r in results if r.metric in METRICS]


def rows(results: Sequence[AuditResult]) -> list[tuple[str, ...]]:
    """One row an audit, as text; shares as fractions, unclipped. TPR only where there are 1000 non-members."""
    out: list[tuple[str, ...]] = []
    for r in comparable(results):
        attack = r.tables.get("attack") or {}
        models = int(attack.get("models_trained", 0))
        extra = int(attack.get("models_unlearned", 0))
        tpr = r.tables["metrics"].get("tpr_at_fpr", {}).get("forget, nonmembers", {}).get("after")
        gates = [code for code in r.reasons if code.startswith("I-")]
        out.append(
            (
                r.audit,
                "-" if r.value is None else f"{r.value:.2f}",
                "-" if r.interval is None else f"{r.interval['lo']:.2f} to {r.interval['hi']:.2f}",
                "-" if r.reference["value"] is None else f"{r.reference['value']:.2f}",
                "; ".join(gates) or "met",
                r.verdict if r.failure_side == "none" else f"{r.verdict} ({r.failure_side})",
                f"{r.timings.get('training_s', 0.0):.2f}",
                f"{r.timings['audit_s']:.2f}",
                f"{models}" if not extra else f"{models} + {extra} unlearned",
                "-" if tpr is None else f"{100 * tpr['value']:.1f} %",
            )
        )
    return out


def text(results: Sequence[AuditResult]) -> str:
    """The rows as aligned text; empty for fewer than two audits of this sort."""
    found = rows(results)
    return aligned([HEAD, *found]) if len(found) > 1 else ""
