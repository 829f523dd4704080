"""Reference networks: sizes, shapes, tracing, seeds, names with a width, entry points of the user."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qunlearn import models
from qunlearn.errors import ConfigError
from qunlearn.models.mobilenetv2 import scaled

SHAPES = {
    "dscnn": (1, 49, 10),
    "resnet8": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "mobilenetv2": (3, 32, 32),
}
KINDS = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.Linear,
    nn.AdaptiveAvgPool2d,
    nn.Identity,
    nn.Dropout,
)


def build(name: str, seed: int = 0, num_classes: int = 10) -> nn.Module:
    return models.build(name, in_shape=SHAPES[name.partition("@")[0]], num_classes=num_classes, seed=seed)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def basic_block(c_in: int, c_out: int, *, projected: bool) -> int:
    shortcut = c_in * c_out + 2 * c_out if projected else 0
    return 9 * c_in * c_out + 9 * c_out * c_out + 4 * c_out + shortcut


def test_registry_holds_the_four_networks() -> None:
    assert set(models.MODELS) == set(SHAPES)


def test_parameters_of_dscnn() -> None:
    separable = 9 * 64 + 2 * 64 + 64 * 64 + 2 * 64
    assert count(build("dscnn")) == 10 * 4 * 64 + 2 * 64 + 4 * separable + 64 * 10 + 10 == 23_050


def test_parameters_of_resnet8() -> None:
    blocks = basic_block(16, 16, projected=False) + basic_block(16, 32, projected=True)
    blocks += basic_block(32, 64, projected=True)
    assert count(build("resnet8")) == 27 * 16 + 2 * 16 + blocks + 64 * 10 + 10 == 78_042


def test_parameters_of_resnet18() -> None:
    blocks = 2 * basic_block(64, 64, projected=False)
    for c in (64, 128, 256):
        blocks += basic_block(c, 2 * c, projected=True) + basic_block(2 * c, 2 * c, projected=False)
    assert count(build("resnet18")) == 27 * 64 + 2 * 64 + blocks + 512 * 10 + 10 == 11_173_962


def test_parameters_of_mobilenetv2() -> None:
    total, c_in = 27 * 32 + 2 * 32, 32
    for expansion, c, n in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(n):
            hidden = expansion * c_in
            total += (c_in * hidden + 2 * hidden) * (expansion > 1) + 9 * hidden + 2 * hidden + hidden * c + 2 * c
            c_in = c
    total += 320 * 1280 + 2 * 1280 + 1280 * 10 + 10
    assert count(build("mobilenetv2")) == total == 2_236_682


def test_scaled_channels_are_multiples_of_eight() -> None:
    assert [scaled(c, 0.35) for c in (16, 24, 32, 64, 96, 160, 320)] == [8, 8, 16, 24, 32, 56, 112]
    assert [scaled(c, 1.0) for c in (16, 24, 320)] == [16, 24, 320]
    assert all(scaled(c, w) >= 0.9 * c * w for c in range(8, 400, 8) for w in (0.1, 0.35, 0.5, 0.75, 1.4))


@pytest.mark.parametrize("name", ["dscnn@16", "resnet8", "resnet18@8", "mobilenetv2@0.35"])
@pytest.mark.parametrize("classes", [2, 7])
def test_logits_and_gradients(name: str, classes: int) -> None:
    model = build(name, num_classes=classes).train()
    out = model(torch.randn(3, *SHAPES[name.partition("@")[0]], generator=torch.Generator().manual_seed(0)))
    assert out.shape == (3, classes)
    assert out.dtype == torch.float32
    out.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not without


@pytest.mark.parametrize("name", ["dscnn@16", "resnet8", "resnet18@8", "mobilenetv2@0.35"])
def test_networks_can_be_traced_and_hold_exportable_layers_only(name: str) -> None:
    model = build(name).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, *SHAPES[name.partition("@")[0]], generator=torch.Generator().manual_seed(1))
    assert torch.equal(traced(x), model(x))
    leaves = [m for m in model.modules() if not list(m.children())]
    assert leaves
    assert all(isinstance(m, KINDS) for m in leaves)
    assert all(m.bias is None for m in leaves if isinstance(m, nn.Conv2d))


def test_other_input_sizes() -> None:
    model = models.build("dscnn", in_shape=(1, 49, 32), num_classes=10, seed=0).eval()
    assert model(torch.zeros(2, 1, 49, 32)).shape == (2, 10)
    tiny = models.build("resnet8@4", in_shape=(1, 8, 8), num_classes=10, seed=0).eval()
    assert tiny(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_same_seed_same_network() -> None:
    one, two, other = (build("resnet8@8", seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert not torch.equal(one["stem.0.weight"], other["stem.0.weight"])


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    build("dscnn@8", seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    again = build("dscnn@8", seed=5).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(t, again[n]) for n, t in build("dscnn@8", seed=5).state_dict().items())


def test_width_in_the_name() -> None:
    assert build("dscnn@32").head.in_features == 32
    assert build("resnet18@8").head.in_features == 64
    assert build("mobilenetv2@0.35").stem[0].out_channels == 16
    direct = models.build("dscnn", in_shape=SHAPES["dscnn"], num_classes=10, seed=0, width=32)
    assert count(direct) == count(build("dscnn@32"))


@pytest.mark.parametrize(
    "name", ["dscnn@wide", "dscnn@0", "resnet8@-4", "dscnn@0.5", "mobilenetv2@5000", "resnet8@8@8"]
)
def test_wrong_widths(name: str) -> None:
    with pytest.raises(ConfigError, match="width") as caught:
        build(name)
    assert "Write" in caught.value.remedy


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="unknown model") as caught:
        models.build("resnet9", in_shape=(3, 32, 32), num_classes=10, seed=0)
    assert "'resnet8'" in caught.value.remedy
    with pytest.raises(ConfigError, match="cannot be built"):
        models.build("dscnn", in_shape=(1, 49, 10), num_classes=10, seed=0, depth=3)
    with pytest.raises(ConfigError, match=r"not \(C, H, W\)"):
        models.build("dscnn", in_shape=(49, 10), num_classes=10, seed=0)


def test_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_own_net.py").write_text(
        "import torch\n"
        "def net(in_shape, num_classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_shape[1] * in_shape[2], num_classes))\n"
        "def wrong(in_shape, num_classes):\n"
        "    return 3\n"
        "def needy(in_shape, num_classes, more):\n"
        "    return None\n"
        "value = 3\n"
    )
    monkeypatch.chdir(tmp_path)

    def make(name: str, seed: int = 0) -> nn.Module:
        return models.build(f"users_own_net:{name}", in_shape=(1, 2, 3), num_classes=4, seed=seed)

    assert make("net")(torch.zeros(5, 1, 2, 3)).shape == (5, 4)
    assert torch.equal(make("net", 7)[1].weight, make("net", 7)[1].weight)
    assert not torch.equal(make("net", 7)[1].weight, make("net", 8)[1].weight)
    for name, word in (("wrong", "not a torch module"), ("needy", "more"), ("value", "callable"), ("gone", "gone")):
        with pytest.raises(ConfigError, match=word):
            make(name)
    with pytest.raises(ConfigError, match="cannot be imported"):
        models.build("no_such_module:net", in_shape=(1, 2, 3), num_classes=4, seed=0)
