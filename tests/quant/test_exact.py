"""The exact grid: scales of the written form, one answer from network, oracle and runtime, gradients, checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qunlearn import models, quant, tasks
from qunlearn.data.dataset import Samples
from qunlearn.errors import ConfigError
from qunlearn.quant.exact import CLIP, MANTISSA, affine_grid, bn_affine, power_of_two, run_weighted, short, weight_grid
from qunlearn.quant.model import WEIGHTED, clamp_scales
from qunlearn_export import writer
from qunlearn_export.extract import recover
from qunlearn_export.oracle import Oracle
from qunlearn_export.runtime import make_session, run
from qunlearn_export.ties import reading_share


@pytest.fixture(scope="module", params=["w8a8", "w4a4"])
def exact(request: pytest.FixtureRequest, digits: Samples, example: torch.Tensor) -> quant.QuantModel:
    net = models.build("resnet8@8", in_shape=(1, 8, 8), num_classes=10, seed=0)
    model = quant.prepare(net, quant.QuantSpec.parse(request.param, grid="exact"), example)
    return quant.train(model, tasks.get("classification"), digits, quant.Recipe(epochs=4, float_share=0.5), seed=0)


def is_power_of_two(x: float) -> bool:
    return float(np.frexp(x)[0]) == 0.5


def test_every_scale_has_its_form(exact: quant.QuantModel) -> None:
    graph = quant.lower(exact)
    assert all(is_power_of_two(float(a.scale)) for a in graph.activations.values())
    assert all(a.zero_point % 2 == 0 for a in graph.activations.values())
    for layer in graph.weighted():
        mantissa = np.ldexp(np.frexp(layer.weight_scale.astype(np.float64))[0], MANTISSA)
        np.testing.assert_array_equal(mantissa, np.rint(mantissa))


def test_one_answer_everywhere(exact: quant.QuantModel, digits: Samples, tmp_path: Path) -> None:
    graph = quant.lower(exact)
    file = tmp_path / "a.onnx"
    writer.export(graph, file)
    x = digits.inputs()
    codes = Oracle(graph).run_all(x)
    assert len(np.unique(codes[graph.output])) > 50, "a network that says something"
    for name, got in quant.TorchColumn(exact).run_all(x).items():
        np.testing.assert_array_equal(got, codes[name], err_msg=name)
    for level in ("off", "all"):
        logits = run(make_session(file, level=level), x)["logits"]
        np.testing.assert_array_equal(recover(logits, graph.activations[graph.output]), codes[graph.output])
    assert not [layer.name for layer in graph.layers if reading_share(layer, graph)]


def test_unlearning_steps_stay_on_the_grid(exact: quant.QuantModel, digits: Samples) -> None:
    """BatchNorm frozen, every parameter moved, scales among them: still one answer, and other codes than before."""
    model = copy.deepcopy(exact).eval()
    for p in model.parameters():
        p.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.from_numpy(digits.inputs(np.arange(64))), torch.from_numpy(digits.targets()[:64])
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clamp_scales(model)
    graph = quant.lower(model)
    assert all(is_power_of_two(float(a.scale)) for a in graph.activations.values())
    assert quant.code_changes(exact, model).codes_changed > 0
    codes = Oracle(graph).run_all(digits.inputs())
    for name, got in quant.TorchColumn(model).run_all(digits.inputs()).items():
        np.testing.assert_array_equal(got, codes[name], err_msg=name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_gradients_are_those_of_the_unfolded_layer(bias: bool, norm: bool) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.Flatten(), nn.Linear(4 * 36, 2)]
    if norm:
        layers.insert(1, nn.BatchNorm2d(4))
    x = torch.randn(5, 3, 6, 6)
    model = quant.prepare(nn.Sequential(*layers), quant.QuantSpec(grid="exact"), x).eval()
    step = model.steps[0]
    conv, q = model.get_submodule("0"), model.weight_quantizer_of(step)
    bn = model.get_submodule("1") if norm else None
    assert bn is None or isinstance(bn, nn.BatchNorm2d)
    if bn is not None:
        with torch.no_grad():
            bn.weight.copy_(torch.tensor([0.7, -1.3, 2.0, 0.4]))
            bn.bias.normal_()
            bn.running_mean.normal_()  # type: ignore[union-attr]
            bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    scale = model.quantizer_of("input").scale
    got = run_weighted(conv, bn, q, scale, x)
    grid, _ = weight_grid(q, None if bn is None else bn_affine(bn)[0])
    want = F.conv2d(x, q.quantize(conv.weight, scale=grid), conv.bias, padding=1)  # type: ignore[arg-type]
    want = want if bn is None else bn(want)
    assert torch.allclose(got, want, atol=float(scale.detach()) * float(grid.detach().max()) * 4 + 1e-5)
    leaves = [conv.weight, q.scale, *([conv.bias] if bias else []), *([] if bn is None else [bn.weight, bn.bias])]
    g = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, leaves, g), torch.autograd.grad(want, leaves, g), strict=True):  # type: ignore[arg-type]
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_short_and_powers() -> None:
    assert short(np.array([1.0, 1 + 1 / 32, 1 + 1 / 64, 1 + 3 / 64, 0.0])).tolist() == [
        1.0,
        1 + 1 / 32,
        1.0,
        1 + 1 / 16,
        0.0,
    ]
    x = np.random.default_rng(0).uniform(1e-6, 1, 1000)
    assert (np.abs(short(x) / x - 1) <= 2.0**-MANTISSA).all()
    scales = torch.tensor([1.0, 1.1, 1.3, 2.0, 0.001])
    assert power_of_two(scales).tolist() == [1.0, 1.0, 2.0, 2.0, 2.0**-10]
    assert power_of_two(torch.tensor([1.1, 1.5]), clip=0.5).tolist() == [1.0, 2.0]


def test_an_affine_grid_holds_its_range() -> None:
    for lo, hi in np.random.default_rng(1).uniform(0, 5, (200, 2)):
        scale, zero = affine_grid(torch.tensor(-lo), torch.tensor(hi))
        s = float(scale)
        assert is_power_of_two(s)
        assert zero % 2 == 0
        room = (1 - 2**-CLIP) * (lo + hi) + 1.5 * s  # what may be cut, and the way to an even zero point
        assert (-128 - zero) * s <= -lo + room
        assert (127 - zero) * s >= hi - room
        assert s < 2 * (lo + hi) / 255, "no code is wasted"


def test_a_dead_channel_is_finite(tiny: nn.Module, example: torch.Tensor) -> None:
    model = quant.prepare(tiny, quant.QuantSpec(grid="exact"), example).eval()
    with torch.no_grad():
        model.get_submodule("bn").weight[1] = 0  # type: ignore[index, operator]
        assert bool(model(example).isfinite().all())
    layer = next(quant.lower(model, repair_dead=True).weighted())
    assert np.isfinite(layer.weight_scale).all()


def test_training_leaves_activation_scales(exact: quant.QuantModel) -> None:
    frozen = {n for n, p in exact.named_parameters() if not p.requires_grad}
    acts = {"input_quant", *(s.act for s in exact.steps if s.act is not None)}
    assert len(frozen) == len(acts)
    assert all(any(n.startswith(a) for a in acts) for n in frozen)
    assert sum(s.kind in WEIGHTED for s in exact.steps) > 5


def test_the_grid_is_kept_in_the_config(exact: quant.QuantModel, tmp_path: Path, digits: Samples) -> None:
    config = quant.RunConfig(
        model="resnet8@8",
        in_shape=(1, 8, 8),
        num_classes=10,
        spec=exact.spec,
        data="digits",
        task="classification",
    )
    quant.save_run(tmp_path, exact, config)
    again, read = quant.load_run(tmp_path)
    assert read.spec.grid == "exact"
    assert quant.codes_digest(again) == quant.codes_digest(exact)
    old = {n: v for n, v in quant.QuantSpec().to_json().items() if n != "grid"}
    assert quant.QuantSpec.from_json(old).grid == "free", "runs written before grids had names are of a free one"
    for spec in (quant.QuantSpec(), quant.QuantSpec(grid="free", weight_bits=4)):
        assert quant.QuantSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ConfigError, match="grid"):
        quant.QuantSpec(grid="coarse")
