"""The integer-code change table (artefact_audit 3.4)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from qunlearn import quant, tasks
from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError


def weight(model: quant.QuantModel, step: str) -> torch.Tensor:
    w = model.get_submodule(step).weight
    assert isinstance(w, torch.Tensor)
    return w


def first(model: quant.QuantModel) -> str:
    return str(model.steps[0].module)


def test_nothing_changed(trained: quant.QuantModel) -> None:
    table = quant.code_changes(trained, copy.deepcopy(trained))
    assert table.codes_changed == table.latent_changed == table.lost == 0
    assert table.warnings == ("W-NOTHING-CHANGED",)


def test_one_code_by_hand(trained: quant.QuantModel) -> None:
    after = copy.deepcopy(trained)
    scale = after.weight_quantizer_of(after.steps[0]).scale.flatten()[3].item()
    with torch.no_grad():
        w = weight(after, first(after))
        w[3, 0, 1, 1] = (torch.round(w[3, 0, 1, 1] / scale) - 2) * scale
        w[0, 0, 0, 0] += 1e-7
    table = quant.code_changes(trained, after)
    row = table.rows[0]
    assert (row.codes_changed, row.max_step, row.lost, row.latent_changed) == (1, 2, 1, 2)
    assert row.histogram == (0, 1, 0, 0)
    assert row.update_changed == 1
    assert row.grid_changed == 0
    assert row.cosine is not None
    assert row.cosine > 0.9
    assert table.share == 1 / table.codes


def test_lost_to_rounding(trained: quant.QuantModel) -> None:
    after = copy.deepcopy(trained)
    with torch.no_grad():
        for step in after.steps:
            if step.kind in ("conv", "linear"):
                weight(after, str(step.module)).mul_(1 + 1e-6)
    table = quant.code_changes(trained, after)
    assert "W-LOST-TO-ROUNDING" in table.warnings
    assert table.lost > 0.9 * table.latent_changed


def test_moved_scales_are_counted_apart(trained: quant.QuantModel) -> None:
    after = copy.deepcopy(trained)
    after.weight_quantizer_of(after.steps[0]).scale.data.mul_(1.1)
    row = quant.code_changes(trained, after).rows[0]
    assert row.latent_changed == row.update_changed == 0
    assert row.grid_changed == row.codes_changed > 0
    assert row.scales_changed > 0


def test_codes_changed_rises_with_the_learning_rate(
    trained: quant.QuantModel, digits: Samples, task: tasks.Task
) -> None:
    shares = []
    for lr in (1e-5, 1e-3, 1e-1):
        after = copy.deepcopy(trained)
        batch = task.batch(digits, np.arange(64))
        for _ in range(3):
            after.zero_grad()
            (-task.loss(task.logits(after, batch), batch)).backward()
            with torch.no_grad():
                for n, p in after.named_parameters():
                    if p.grad is not None and not n.endswith(".scale"):
                        p -= lr * p.grad
        table = quant.code_changes(trained, after)
        shares.append(table.share)
        assert ("W-LOST-TO-ROUNDING" in table.warnings) == (lr == 1e-5), lr
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_other_structures_are_refused(trained: quant.QuantModel, tiny: torch.nn.Module, example: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="structure"):
        quant.code_changes(trained, quant.prepare(tiny, quant.QuantSpec(), example))


def test_json_is_plain(trained: quant.QuantModel) -> None:
    import json

    value = quant.code_changes(trained, trained).to_json()
    assert json.loads(json.dumps(value)) == value
    row = value["layers"][0]
    assert row["layer"] == trained.steps[0].name
    fields = {"codes", "latent_changed", "codes_changed", "share", "max_step", "histogram", "lost", "bias_changed"}
    fields |= {"scales_changed", "grid_changed", "update_changed", "fidelity", "cosine", "lsb_step", "layer"}
    assert set(row) == fields
    assert row["share"] == 0.0
