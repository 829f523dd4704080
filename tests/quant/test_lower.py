"""Lowering: the integer graph equals the fake-quantized network; BatchNorm folding, D1, digests, ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qunlearn import quant
from qunlearn.data.dataset import Samples
from qunlearn.errors import VerificationError
from qunlearn.quant.detie import detie
from qunlearn_export import reader, writer
from qunlearn_export.oracle import Oracle
from qunlearn_export.ties import ties


def logits_of(model: quant.QuantModel, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def test_oracle_equals_the_network(either: quant.QuantModel, digits: Samples) -> None:
    x = digits.inputs(np.arange(200))
    graph = quant.lower(either)
    want, got = logits_of(either, x), Oracle(graph).logits(x)
    lsb = np.abs(want - got) / graph.activations[graph.output].scale
    assert lsb.max() <= 2.01
    assert (want.argmax(1) == got.argmax(1)).mean() >= 0.995


def test_every_layer_teacher_forced(either: quant.QuantModel, digits: Samples) -> None:
    graph, column, oracle = quant.lower(either), quant.TorchColumn(either), None
    oracle = Oracle(graph)
    codes = oracle.run_all(digits.inputs(np.arange(32)))
    for layer in graph.layers:
        got = column.run_layer(layer.name, *(codes[n] for n in layer.inputs))
        assert np.abs(got.astype(int) - codes[layer.output].astype(int)).max() <= 1, layer.name


def test_free_running_column_has_every_activation(trained: quant.QuantModel, digits: Samples) -> None:
    graph = quant.lower(trained)
    assert set(quant.TorchColumn(trained).run_all(digits.inputs(np.arange(2)))) == set(graph.activations)


def test_digest_is_the_same_in_checkpoint_and_file(trained: quant.QuantModel) -> None:
    graph = quant.lower(trained)
    again = reader.read(writer.serialize(graph))
    assert quant.codes_digest(trained) == graph.codes_digest() == again.codes_digest()
    assert set(quant.codes(trained)) == set(again.quantized_tensors())


def test_negative_gamma_flips_codes(tiny: nn.Module, example: torch.Tensor) -> None:
    model = quant.prepare(tiny, quant.QuantSpec(), example).eval()
    before = quant.lower(model)
    with torch.no_grad():
        model.get_submodule("bn").weight[2] *= -1
    after = quant.lower(model)
    a, b = next(before.weighted()), next(after.weighted())
    assert np.array_equal(b.weight[2], -a.weight[2])
    assert np.array_equal(np.delete(b.weight, 2, 0), np.delete(a.weight, 2, 0))
    assert np.array_equal(a.weight_scale, b.weight_scale)


def test_folded_bias_by_hand(tiny: nn.Module, example: torch.Tensor) -> None:
    model = quant.prepare(tiny, quant.QuantSpec(), example).eval()
    bn, conv = model.get_submodule("bn"), model.get_submodule("conv")
    with torch.no_grad():
        bn.running_mean.copy_(torch.arange(6.0) / 7)
        bn.running_var.copy_(1 + torch.arange(6.0))
        bn.bias.copy_(torch.linspace(-1, 1, 6))
    layer = next(quant.lower(model).weighted())
    factor = (bn.weight / torch.sqrt(bn.running_var + bn.eps)).detach().double()
    real = (conv.bias - bn.running_mean) * factor + bn.bias
    grid = layer.weight_scale.astype(np.float64) * float(quant.lower(model).activations["input"].scale)
    assert np.abs(layer.bias - np.rint(real.detach().numpy() / grid)).max() <= 1


def test_dead_channel_overflows_and_can_be_repaired(tiny: nn.Module, example: torch.Tensor) -> None:
    model = quant.prepare(tiny, quant.QuantSpec(), example).eval()
    with torch.no_grad():
        model.get_submodule("bn").weight[1] = 1e-12
        model.get_submodule("bn").bias[1] = 0.5
    with pytest.raises(VerificationError, match=r"D1.*conv\[1\]"):
        quant.lower(model)
    layer = next(quant.lower(model, repair_dead=True).weighted())
    assert not layer.weight[1].any()
    assert np.isfinite(layer.weight_scale).all()


@pytest.mark.parametrize("repair_dead", [False, True])
def test_a_channel_whose_scale_is_beyond_float32_is_refused(
    repair_dead: bool, tiny: nn.Module, example: torch.Tensor
) -> None:
    """It is not dead: nothing repairs it, and no warning of numpy takes the place of the error."""
    model = quant.prepare(tiny, quant.QuantSpec(), example).eval()
    bn = model.get_submodule("bn")
    assert isinstance(bn, nn.BatchNorm2d)
    bn.eps = 1e-14
    with torch.no_grad():
        bn.weight[1] = 3e38
        bn.running_var[1] = 0
    with pytest.raises(VerificationError, match=r"D1.*conv\[1\]"):
        quant.lower(model, repair_dead=repair_dead)


def test_detie_moves_a_scale_off_a_simple_fraction(trained: quant.QuantModel) -> None:
    step = next(s for s in trained.steps if s.kind == "add")
    a, b = (trained.quantizer_of(n) for n in step.inputs)
    out = trained.quantizer_of(step.name)
    for q, scale in ((a, 0.02), (b, 0.02), (out, 0.04)):
        q.set_grid(torch.tensor(scale))
    assert next(t for t in ties(quant.lower(trained)) if t.layer == step.name).share > 0.05
    assert detie(trained) >= 1
    assert all(t.share == 0 for t in ties(quant.lower(trained)))


def test_seven_bit_range(tiny: nn.Module, example: torch.Tensor) -> None:
    model = quant.prepare(tiny, quant.QuantSpec(weight_range="7bit"), example).eval()
    graph = quant.lower(model)
    assert max(int(np.abs(layer.weight.astype(int)).max()) for layer in graph.weighted()) == 63
    assert graph.meta["weight_range"] == "7bit"
    assert reader.read(writer.serialize(graph)).codes_digest() == graph.codes_digest()


def test_copies_share_nothing(trained: quant.QuantModel, digits: Samples) -> None:
    import copy

    twin = copy.deepcopy(trained)
    state = {n: v.clone() * 1.5 if n.endswith(".scale") else v.clone() for n, v in trained.state_dict().items()}
    before = quant.state_digest(trained)
    twin.load_state_dict(state)
    assert quant.state_digest(trained) == before
    assert quant.state_digest(twin) != before
    x = digits.inputs(np.arange(8))
    assert not np.array_equal(logits_of(trained, x), logits_of(twin, x))
