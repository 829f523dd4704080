"""Verifiers over one base class, and the run over all artefacts that ship. Needs no torch to import."""

from __future__ import annotations

from qunlearn.audit.accuracy import Accuracy
from qunlearn.audit.attacks import Lira, Loss, Rmia, ULira
from qunlearn.audit.base import Audit, AuditContext
from qunlearn.audit.cka import Cka
from qunlearn.audit.eve import EveAudit
from qunlearn.audit.eve_calibration import Calibration
from qunlearn.audit.eve_config import EveConfig
from qunlearn.audit.eve_request import CraftedRequest, Submission
from qunlearn.audit.glossary import GLOSSARY, Entry
from qunlearn.audit.mia import Mia
from qunlearn.audit.predictor import FirmwarePredictor, OnnxPredictor, OraclePredictor, Predictor, TorchPredictor
from qunlearn.audit.quant_recovery import QuantRecovery
from qunlearn.audit.recovery import Recovery
from qunlearn.audit.reference import Shadow, ShadowPool, shadow_pool
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
register(EveAudit)
register(Loss)
register(Lira)
register(Rmia)
register(ULira)

__all__ = [
    "AUDITS",
    "GLOSSARY",
    "Artefact",
    "Audit",
    "AuditContext",
    "AuditResult",
    "AuditRun",
    "Calibration",
    "CraftedRequest",
    "Entry",
    "EveAudit",
    "EveConfig",
    "FirmwarePredictor",
    "Judgement",
    "Lira",
    "Loss",
    "Measurement",
    "Mia",
    "OnnxPredictor",
    "OraclePredictor",
    "Predictor",
    "Rmia",
    "Shadow",
    "ShadowPool",
    "Smi",
    "Submission",
    "TorchPredictor",
    "TorchTrainer",
    "ULira",
    "audit_run",
    "gap",
    "register",
    "same_results",
    "shadow_pool",
    "summary",
]
