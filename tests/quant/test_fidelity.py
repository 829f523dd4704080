"""Fidelity and cosine of the change table on constructed updates, and its warnings."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qunlearn import quant
from qunlearn.errors import ConfigError

X = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def linear(*rows: list[float]) -> quant.QuantModel:
    """One linear layer of which every scale is 1 / 127: a row's largest magnitude must be 1."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, len(rows)))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor(rows))
    return quant.prepare(net, quant.QuantSpec(), X).eval()


def moved(model: quant.QuantModel, *steps: tuple[int, int, float]) -> quant.QuantModel:
    """The same with weights shifted by so many code steps."""
    out = copy.deepcopy(model)
    weight = out.get_submodule("1").weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        for k, d, lsb in steps:
            weight[k, d] += lsb / 127
    return out


@pytest.fixture
def model() -> quant.QuantModel:
    return linear([1.0, 0.0, 10 / 127, -20 / 127], [0.0, 1.0, 0.0, 0.0])


def test_fidelity_and_cosine_by_hand(model: quant.QuantModel) -> None:
    table = quant.code_changes(model, moved(model, (0, 1, 2.0), (0, 2, 0.4), (1, 3, -0.7)))
    (row,) = table.rows
    dw, dq = [2.0, 0.4, -0.7], [2.0, 0.0, -1.0]
    dot = sum(a * b for a, b in zip(dw, dq, strict=True))
    ww, qq = sum(a * a for a in dw), sum(b * b for b in dq)
    assert (row.codes, row.latent_changed, row.codes_changed, row.lost) == (8, 3, 2, 1)
    assert row.fidelity == pytest.approx(dot / ww, rel=1e-4)
    assert row.cosine == pytest.approx(dot / (ww * qq) ** 0.5, rel=1e-4)
    assert row.lsb_step == pytest.approx(0.7, rel=1e-4)
    assert row.histogram == (1, 1, 0, 0)
    assert table.warnings == ()
    assert (row.grid_changed, row.update_changed, row.scales_changed) == (0, 2, 0)


def test_large_steps_share_the_last_bin(model: quant.QuantModel) -> None:
    (row,) = quant.code_changes(model, moved(model, (0, 1, 9.0), (0, 2, 4.0), (1, 2, 3.0))).rows
    assert (row.histogram, row.max_step) == ((0, 0, 1, 2), 9)


def test_all_updates_lost(model: quant.QuantModel) -> None:
    table = quant.code_changes(model, moved(model, (0, 1, 0.3), (1, 0, -0.2)))
    assert (table.lost, table.codes_changed, table.cosine) == (2, 0, None)
    assert table.warnings == ("W-NOTHING-CHANGED", "W-LOST-TO-ROUNDING")


def test_a_bias_alone_is_a_change(model: quant.QuantModel) -> None:
    after = copy.deepcopy(model)
    bias = after.get_submodule("1").bias
    assert isinstance(bias, torch.Tensor)
    with torch.no_grad():
        bias += 1.0
    table = quant.code_changes(model, after)
    assert (table.codes_changed, table.bias_changed, table.warnings) == (0, 2, ())


def test_codes_that_point_elsewhere_are_a_warning() -> None:
    rows = [[1.0, *[(i + 0.45) / 127 for i in range(3)]] for _ in range(40)]
    model = linear(*rows)
    after = moved(model, *[(k, d, -3.4) for k in range(40) for d in (1,)], *[(k, 2, 0.1) for k in range(40)])
    table = quant.code_changes(model, after)
    assert table.cosine is not None
    assert table.cosine > 0.9
    small = quant.code_changes(model, moved(model, *[(k, d, -0.04) for k in range(40) for d in (1, 2, 3)], (0, 1, 0.1)))
    assert small.codes_changed == 1
    assert small.cosine is not None
    assert small.cosine < 0.2
    assert small.warnings == ("W-LOST-TO-ROUNDING",)


def test_grid_and_update_are_counted_apart(model: quant.QuantModel) -> None:
    after = moved(model, (1, 3, 5.0))
    after.weight_quantizer_of(after.steps[1]).scale.data[0] *= 1.25
    (row,) = quant.code_changes(model, after).rows
    assert row.grid_changed == 3, "codes 127, 10 and -20 of the first row"
    assert row.update_changed == 1
    assert (row.codes_changed, row.scales_changed) == (4, 1)


def test_a_flipped_batchnorm_is_seen_as_itself() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([-1.0, 1.0]))
    before = quant.prepare(net, quant.QuantSpec(), X).eval()
    after = copy.deepcopy(before)
    conv = after.get_submodule("0").weight
    assert isinstance(conv, torch.Tensor)
    with torch.no_grad():
        conv *= 0.9
    row = quant.code_changes(before, after).rows[0]
    assert row.cosine is not None
    assert row.cosine > 0.99, "codes are stored with the sign of gamma, updates are not"


def test_other_widths_and_bits_are_refused(model: quant.QuantModel) -> None:
    for other in (linear([1.0, 0.0, 0.0, 0.0]), None):
        if other is None:
            net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
            other = quant.prepare(net, quant.QuantSpec.parse("w4a8"), X)
        with pytest.raises(ConfigError, match="structure or bit widths"):
            quant.code_changes(model, other)
