"""Tensors on disk: optimizers come back to the bit, digests see everything, no pickle, all problems at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from qunlearn import quant
from qunlearn.errors import ArtefactError, ConfigError
from qunlearn.quant.checkpoint import load_state
from qunlearn.quant.state import load_tensors, optimizer_tensors, restore_optimizer, save_tensors, state_digest


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_optimizer_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        return torch.optim.Adam(model.parameters(), lr=0.01)

    whole, part, again = net(), net(), net()
    steps(whole, make(whole), 5)
    first = make(part)
    steps(part, first, 3)
    tensors = {f"model.{n}": t for n, t in part.state_dict().items()} | optimizer_tensors(first)
    loaded, facts = load_tensors(save_tensors(tmp_path / "state", tensors, {"epoch": 3}))
    assert facts == {"epoch": 3}
    again.load_state_dict({n.removeprefix("model."): t for n, t in loaded.items() if n.startswith("model.")})
    second = make(again)
    restore_optimizer(second, loaded)
    steps(again, second, 2)
    assert state_digest(again) == state_digest(whole)


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    class Holder(nn.Module):
        def __init__(self, name: str, value: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer(name, value)

    values = [
        Holder("a", torch.zeros(4)),
        Holder("b", torch.zeros(4)),
        Holder("a", torch.zeros(2, 2)),
        Holder("a", torch.zeros(4, dtype=torch.int32)),
        Holder("a", torch.zeros(4, dtype=torch.bfloat16)),
        Holder("a", torch.tensor([0.0, 0.0, 0.0, -0.0])),
    ]
    assert len({state_digest(v) for v in values}) == len(values)
    assert state_digest(Holder("a", torch.zeros(()))) == state_digest(Holder("a", torch.zeros(())))


def test_the_digest_by_hand() -> None:
    import hashlib

    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.fill_(0.5)
    text = b"bias\0torch.float32\0(1,)\0" + bytes.fromhex("0000003f")
    text += b"weight\0torch.float32\0(1, 2)\0" + bytes.fromhex("0000803f000000c0")
    assert state_digest(model) == hashlib.sha256(text).hexdigest()


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ArtefactError, match="not a readable safetensors"):
        load_tensors(tmp_path / "model.safetensors")
    with pytest.raises(ArtefactError, match="cannot read"):
        load_tensors(tmp_path / "absent")


def test_no_room_uses_pickle() -> None:
    folder = Path(quant.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text, path
        assert " torch.load(" not in text, path
        assert " torch.save(" not in text, path


def test_all_problems_of_a_state_at_once(trained: quant.QuantModel) -> None:
    state = {n: t.clone() for n, t in trained.state_dict().items()}
    del state["head.weight"]
    state["more"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(3)
    state["stem.0.weight"].fill_(float("nan"))
    state["stem.1.bias"] = state["stem.1.bias"].double()
    before = quant.state_digest(trained)
    with pytest.raises(ArtefactError) as caught:
        load_state(trained, state, where="here")
    for word in ("missing head.weight", "unknown more", "head.bias is", "stem.0.weight is not finite", "stem.1.bias"):
        assert word in str(caught.value)
    assert quant.state_digest(trained) == before, "nothing is loaded"


def test_all_problems_of_a_config_at_once(trained: quant.QuantModel) -> None:
    good = quant.RunConfig(
        model="dscnn", in_shape=(1, 8, 8), num_classes=10, spec=trained.spec, data="digits", task="classification"
    ).to_json()
    bad = {**good, "num_classes": True, "in_shape": [1, 8], "spec": {"weight_bits": "8"}, "extra": 1}
    del bad["data"]
    with pytest.raises(ArtefactError) as caught:
        quant.RunConfig.from_json(bad)
    for word in ("num_classes", "in_shape", "whole numbers", "unknown extra", "missing data"):
        assert word in str(caught.value)
    for version in (True, 1.0, None, 99):
        with pytest.raises(ArtefactError, match="version"):
            quant.RunConfig.from_json({**good, "version": version})
    assert quant.RunConfig.from_json(json.loads(json.dumps(good))).to_json() == good


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ufeff{}", '{"version": 1' + "0" * 5000 + "}"])
def test_configs_that_are_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtefactError):
        quant.read_config(tmp_path)


def test_partial_loads_are_refused(trained: quant.QuantModel) -> None:
    with pytest.raises(ConfigError, match="names"):
        trained.load_state_dict({}, strict=False)
