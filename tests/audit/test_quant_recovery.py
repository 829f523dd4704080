"""Fewer bits and back: forgetting that rounding undoes is found, robust forgetting passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qunlearn.audit.quant_recovery import QuantRecovery
from qunlearn.audit.trainer import Coarse
from qunlearn.errors import ConfigError


def trainer(lab: Any, world: Any, after: Any, *, same: bool, width: int) -> Any:
    """At ``width`` bits the unlearned network turns into the original (with its codes, if ``same``)."""

    class Undoing(lab.FakeTrainer):  # type: ignore[misc,name-defined]
        """Gives the original back."""

        def coarse(self, predictor: Any, bits: int) -> Coarse:
            found = super().coarse(predictor, bits)
            if predictor is not after or bits != width:
                return found
            back = super().coarse(world.original, bits)
            return back if same else Coarse(predictor=back.predictor, codes=found.codes)

    return {"trainer": Undoing()}


@pytest.mark.parametrize("same", [True, False])
def test_forgetting_inside_the_rounding_cells_is_found(world: Any, lab: Any, same: bool) -> None:
    after = world.near(world.retrained, 3)
    inputs = trainer(lab, world, after, same=same, width=5)
    result = QuantRecovery()(world.context(world.original, after, world.retrained, inputs=inputs))
    assert (result.verdict, result.failure_side) == ("fail", "under")
    assert result.reasons == (("F-QUANT-SAME: 5 bits",) if same else ("F-UNDER",))
    row = result.tables["widths"]["5 bits"]
    assert row["rho"] > 0.9
    assert (row["overlap"] == 1) == same
    assert result.value > 0.2


def test_the_same_gain_of_the_retrained_network_is_no_failure(world: Any, lab: Any) -> None:
    """The reference left out would read what any network gains as leakage."""

    class Both(lab.FakeTrainer):  # type: ignore[misc,name-defined]
        """Coarse networks are right more often, whatever they were."""

        def coarse(self, predictor: Any, bits: int) -> Coarse:
            found = super().coarse(predictor, bits)
            z = predictor.table.copy()
            z[np.arange(len(z)), world.dataset.y] += 3.0
            return Coarse(predictor=lab.TableModel(z), codes=found.codes)

    after = world.near(world.retrained, 3)
    result = QuantRecovery()(world.context(world.original, after, world.retrained, inputs={"trainer": Both()}))
    assert result.value > 0.01
    assert result.verdict == "pass"


def test_no_width_that_the_original_survives(world: Any, lab: Any) -> None:
    class Broken(lab.FakeTrainer):  # type: ignore[misc,name-defined]
        """Every coarse network answers nothing."""

        def coarse(self, predictor: Any, bits: int) -> Coarse:
            found = super().coarse(predictor, bits)
            return Coarse(predictor=lab.TableModel(0 * predictor.table), codes=found.codes)

    after = world.near(world.retrained, 3)
    result = QuantRecovery()(world.context(world.original, after, world.retrained, inputs={"trainer": Broken()}))
    assert (result.verdict, result.reasons) == ("inconclusive", ("I-QUANT-NONE",))


def test_widths_are_checked() -> None:
    assert QuantRecovery(bits="7, 4,4").widths() == (7, 4)
    with pytest.raises(ConfigError, match=r"widths in 2\.\.7"):
        QuantRecovery(bits="8")
    with pytest.raises(ConfigError, match="many"):
        QuantRecovery(bits="many")
