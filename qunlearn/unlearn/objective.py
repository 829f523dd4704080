"""The stop rule's J of any network: how far it is from the target, without a retrained one."""

from __future__ import annotations

from torch import nn

from qunlearn.data.splits import Splits
from qunlearn.tasks.base import Task
from qunlearn.unlearn.card import ReferenceCard
from qunlearn.unlearn.stopping import Evaluator, StopRule, target_band


class Objective:
    """J and utility of networks that come from ``original``; of the splits forget, retain and held-out stop are read.

    ``probe`` samples of each set at most; ``floor`` the accuracy that may be lost, as a fraction; ``tol`` and the
    declared bands as in :func:`qunlearn.unlearn.stopping.target_band`.
    """

    def __init__(
        self,
        original: nn.Module,
        splits: Splits,
        task: Task,
        *,
        request_kind: str,
        card: ReferenceCard | None = None,
        probe: int = 500,
        floor: float = 0.03,
        tol: float = 0.02,
        declared_accuracy: str = "",
        declared_confidence: str = "",
        seed: int = 0,
    ) -> None:
        self.band = target_band(
            original, task, forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop,
            request_kind=request_kind, card=card, tol=tol, declared_accuracy=declared_accuracy,
            declared_confidence=declared_confidence,
        )  # fmt: skip
        self.watch = Evaluator(
            task, forget=splits.forget, retain=splits.retain, stop=splits.heldout_stop, request_kind=request_kind,
            size=probe, seed=seed,
        )  # fmt: skip
        self.rule = StopRule(band=self.band, start=self.watch(original, 0), utility_floor=floor)

    def __call__(self, model: nn.Module) -> tuple[float | None, bool]:
        """(J, whether utility was kept); J is None where nothing tells where to stop."""
        found = self.watch(model, 0)
        return self.rule.objective(found) if self.band else None, self.rule.utility_ok(found)
