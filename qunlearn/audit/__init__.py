"""Verifiers over one base class, and the run over all artefacts that ship. Needs no torch to import."""

from __future__ import annotations

from qunlearn.audit.accuracy import Accuracy
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.cka import Cka
from qunlearn.audit.glossary import GLOSSARY, Entry
from qunlearn.audit.mia import Mia
from qunlearn.audit.predictor import FirmwarePredictor, OnnxPredictor, OraclePredictor, Predictor, TorchPredictor
from qunlearn.audit.quant_recovery import QuantRecovery
from qunlearn.audit.recovery import Recovery
from qunlearn.audit.registry import AUDITS, register
from qunlearn.audit.relearn import Relearn
from qunlearn.audit.result import AuditResult
from qunlearn.audit.run import Artefact, AuditRun, audit_run, same_results
from qunlearn.audit.smi import Smi
from qunlearn.audit.summary import gap, summary
from qunlearn.audit.trainer import TorchTrainer
from qunlearn.audit.verdict import Judgement, Measurement

register(Accuracy)
register(Mia)
register(Smi)
register(Cka)
register(Recovery)
register(Relearn)
register(QuantRecovery)

__all__ = [
    "AUDITS",
    "GLOSSARY",
    "Artefact",
    "Audit",
    "AuditContext",
    "AuditResult",
    "AuditRun",
    "Entry",
    "FirmwarePredictor",
    "Judgement",
    "Measurement",
    "OnnxPredictor",
    "OraclePredictor",
    "Predictor",
    "TorchPredictor",
    "TorchTrainer",
    "audit_run",
    "gap",
    "register",
    "same_results",
    "summary",
]
