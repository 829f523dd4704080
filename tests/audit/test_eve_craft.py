"""Crafting on quantized networks: gradients that exist and are right, what is refused, what stays as it was."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from eve_nets import conv
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qunlearn import quant
from qunlearn.audit import EveConfig
from qunlearn.audit.eve_align import (
    boundary_direction,
    cosine,
    craft_loss,
    flat,
    negative_ce,
    perturb,
    similarity,
    soft_sign,
    uniform_noise,
)
from qunlearn.audit.eve_arms import answers
from qunlearn.audit.eve_calibrate import confidences, rest_of
from qunlearn.audit.eve_craft import EveCraft
from qunlearn.audit.eve_grid import InputGrid
from qunlearn.bench import gaussians
from qunlearn.data.dataset import Dataset, Samples
from qunlearn.data.eve import EveSplit, split_eve
from qunlearn.errors import ConfigError, DataError
from qunlearn.quant.freeze import freeze_quant, latent_parameters

QUICK = EveConfig(steps=25)


@pytest.fixture(scope="module")
def toy() -> tuple[quant.QuantModel, Dataset, EveSplit]:
    data = gaussians.data(3)
    model = gaussians.trained(data, seed=3)
    return model, data, split_eve(data, 30, 1, 20, 3, confidence=confidences(model, data))


def crafter(cfg: EveConfig = QUICK, **kw: Any) -> EveCraft:
    return EveCraft(config=cfg, forget_loss=negative_ce, unlearner="u" * 64, **kw)


def made(toy: Any, cfg: EveConfig = QUICK, *, seed: int = 0, split: EveSplit | None = None, **kw: Any) -> Any:
    model, data, own = toy
    chosen = own if split is None else split
    return crafter(cfg)(model, chosen, heldout=rest_of(data.samples("heldout"), chosen), seed=seed, **kw)


def aimed(model: Any, x: Any, y: Any, cfg: EveConfig = EveConfig()) -> Any:  # noqa: B008
    """(direction of the first sample to its runner-up, the others' inputs, their labels)."""
    runner_up = model(x[:1]).argsort(1)[0][-2:-1]
    return boundary_direction(model, x[:1], runner_up, cfg), x[1:17], y[1:17]


def test_t1_the_alignment_term_has_a_gradient_and_the_released_objective_ignores_it(toy: Any) -> None:
    model, _, split = toy
    x = torch.from_numpy(split.erase.inputs()).requires_grad_()
    y = torch.from_numpy(split.erase.targets())
    with freeze_quant(model):
        aim = crafter().aim(model, split)
        g_bd = crafter().direction(model, split, aim)
        (g,) = torch.autograd.grad(craft_loss(model, x, y, g_bd, negative_ce, QUICK), [x])
        assert bool(g.isfinite().all())
        assert float((g != 0).float().mean()) > 0.9
        ours = crafter().craft(model, split, aim, seed=0)
        theirs = crafter().craft(model, split, aim, seed=0, aligned=False)
        start = cosine(model, x, y, g_bd, negative_ce, QUICK)
    assert ours.cos_after > max(0.5, start + 0.3)
    assert theirs.cos_after < 0.3
    assert ours.losses[-1] < ours.losses[0] - 0.3


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_t10_directional_derivative_of_the_craft_loss(bits: str, seed: int) -> None:
    """Step length 0.3; means over 32 starting points, since single differences of a rounded function are noisy."""
    model, heldout = conv(bits, seed)
    x, y = torch.from_numpy(heldout.inputs()), torch.from_numpy(heldout.targets())
    cfg, step, slope, rise, seen = EveConfig(), 0.3, 0.0, 0.0, []
    draw = torch.Generator().manual_seed(seed)
    with freeze_quant(model):
        g_bd, x_e, y_e = aimed(model, x, y)

        def loss(at: torch.Tensor) -> torch.Tensor:
            return craft_loss(model, at, y_e, g_bd, negative_ce, cfg)

        for _ in range(32):
            at = (x_e + 0.3 * (2 * torch.rand(x_e.shape, generator=draw) - 1)).requires_grad_()
            (g,) = torch.autograd.grad(loss(at), [at])
            seen.append(float((g != 0).float().mean()))
            move = step * g / g.norm()
            slope += float(g.norm())
            rise += float((loss(at.detach() + move) - loss(at.detach() - move)).detach()) / (2 * step)
    assert min(seen) >= 0.99
    assert abs(rise / slope - 1) <= 0.10


def test_t9_the_network_is_bit_for_bit_what_it_was_in_either_mode(toy: Any) -> None:
    model, heldout = conv("w8a8", 1)
    data = heldout.dataset
    split = split_eve(data, 20, 1, 10, 1, confidence=confidences(model, data))
    needs = {n: p.requires_grad for n, p in model.named_parameters()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    for training in (False, True):
        model.train(training)
        before = quant.state_digest(model)
        made((model, data, split))
        assert quant.state_digest(model) == before
        assert all(m.training == training for m in model.modules())
        assert {n: p.requires_grad for n, p in model.named_parameters()} == needs
        now = [p.grad for p in model.parameters()]
        assert all(a is b or torch.equal(a, b) for a, b in zip(grads, now, strict=True))  # type: ignore[arg-type]
    model.eval()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(toy: Any) -> None:
    cfg = dataclasses.replace(QUICK, restarts=2)
    a, b, c = made(toy, cfg), made(toy, cfg), made(toy, cfg, seed=1)
    assert a.to_bytes() == b.to_bytes()
    assert a.submission() == b.submission()
    assert a.to_bytes() != c.to_bytes()


def test_t3_t6_the_request_is_in_the_ball_on_the_grid_and_keeps_its_cosine(toy: Any) -> None:
    model, _, split = toy
    request = made(toy)
    grid = InputGrid.of(request.facts["scale"], request.facts["zero_point"])
    assert np.abs(request.x - grid.inside(split.erase.inputs())).max() <= request.facts["eps"] + 1e-6
    assert np.array_equal(grid.snap(request.x, request.x, 1.0), request.codes)
    assert request.facts["cos_after"] >= 0.9 * request.facts["cos_before"] > 0.4
    assert request.facts["warnings"] == []
    with torch.no_grad():
        seen = model.input_quant(torch.from_numpy(request.x)).numpy()
    assert seen.tobytes() == request.x.tobytes()  # the network reads exactly what was stored


def test_t6_a_radius_below_one_input_step_is_refused(toy: Any) -> None:
    with pytest.raises(ConfigError, match="less than one step"):
        made(toy, dataclasses.replace(QUICK, eps=0.001))


def test_t2_a_target_in_the_erased_batch_is_refused(toy: Any) -> None:
    model, data, split = toy
    erase = Samples(data, np.concatenate([split.erase.index, split.targets.index]))
    with pytest.raises(ConfigError, match="overlap"):
        dataclasses.replace(split, erase=erase)
    forged = object.__new__(EveSplit)
    for name in ("other", "retain", "targets", "bystanders"):
        object.__setattr__(forged, name, getattr(split, name))
    object.__setattr__(forged, "erase", erase)
    with pytest.raises(ConfigError, match="targets and erase share"):
        crafter().aim(model, forged)


def test_a_target_that_an_artefact_answers_wrongly_is_refused(toy: Any) -> None:
    model, data, split = toy
    z = answers(model, "torch-fq").on(data.samples("heldout"))
    heldout = data.samples("heldout")
    wrong = heldout.take(np.flatnonzero(z.argmax(1) != heldout.targets())[:1])
    with pytest.raises(ConfigError, match="not answered rightly, with a margin, on torch-fq"):
        crafter().aim(model, dataclasses.replace(split, targets=wrong))
    other = gaussians.trained(gaussians.data(4), seed=4)
    with pytest.raises(ConfigError, match="on onnx-all"):
        crafter().aim(model, split, read=[answers(other, "onnx-all")])


def test_t12_several_targets_warn_with_the_measured_rates(toy: Any) -> None:
    model, data, _ = toy
    split = split_eve(data, 30, 4, 20, 3, confidence=confidences(model, data))
    (line,) = made(toy, dataclasses.replace(QUICK, n_targets=4), split=split).facts["warnings"]
    assert line.startswith("W-EVE-TARGETS")
    assert ".56" in line
    assert ".22" in line


@pytest.mark.parametrize(
    "change",
    [{"align": "soft_sign"}, {"boundary": "finetune"}, {"params": "classifier"}, {"kappa": 0.1}, {"batch_size": 8}],
)
def test_every_option_raises_its_own_cosine(change: dict[str, Any], toy: Any) -> None:
    model, _, split = toy
    cfg = dataclasses.replace(QUICK, **change)
    aim = crafter(cfg).aim(model, split)
    with freeze_quant(model):
        g_bd = crafter(cfg).direction(model, split, aim)
        x, y = torch.from_numpy(split.erase.inputs()), torch.from_numpy(split.erase.targets())
        start = cosine(model, x, y, g_bd, negative_ce, cfg)
        parameters = latent_parameters(model, part=cfg.params)
        assert len(parameters) == (2 if cfg.params == "classifier" else 4)
        assert g_bd.numel() == sum(p.numel() for p in parameters.values())
    assert crafter(cfg).craft(model, split, aim, seed=0).cos_after > start + 0.2


def test_the_direction_lowers_the_targets_loss_to_the_wanted_class(toy: Any) -> None:
    """The operator moves by -eta g_un; with cos = 1 that is -eta' g_bd, and CE(x_t, y_adv) must fall."""
    model, _, split = toy
    for boundary in ("grad", "finetune"):
        cfg = dataclasses.replace(QUICK, boundary=boundary)
        aim = crafter(cfg).aim(model, split)
        x, y = torch.from_numpy(split.targets.inputs()), torch.from_numpy(aim.y_adv)
        with freeze_quant(model):
            g = crafter(cfg).direction(model, split, aim)
            before = F.cross_entropy(model(x), y)
            slope = flat(before, list(latent_parameters(model).values()))
        assert float(similarity(g, slope, "cos")) > 0.3, boundary


def test_soft_sign_is_bounded_odd_and_differentiable() -> None:
    g = torch.tensor([-3.0, 0.0, 1e-3, 2.0], requires_grad=True)
    out = soft_sign(g)
    assert torch.equal(soft_sign(-g), -out)
    assert float(out.detach().abs().max()) <= 1
    (slope,) = torch.autograd.grad(out.sum(), [g])
    assert bool((slope > 0).all())
    assert torch.equal(soft_sign(torch.zeros(3)), torch.zeros(3))


def test_random_noise_stays_in_the_ball_and_depends_on_the_seed(toy: Any) -> None:
    x = toy[2].erase.inputs()
    grid = InputGrid.of(0.03, 0)
    a, b = (grid.values(uniform_noise(x, eps=0.5, grid=grid, seed=s)) for s in (0, 1))
    assert np.abs(a - grid.inside(x)).max() <= 0.5 + 1e-6
    assert np.abs(a - grid.inside(x)).mean() > 0.2
    assert not np.array_equal(a, b)


def test_too_few_samples_are_an_error(toy: Any) -> None:
    model, data, _ = toy
    with pytest.raises(DataError, match="too few"):
        split_eve(data, 30, 1, 400, 0, confidence=confidences(model, data))


class Peak(TorchDispatchMode):
    """Bytes of live storages made inside, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key = storage._cdata
                if key not in self.known:
                    size = storage.nbytes()
                    self.known[key] = weakref.finalize(storage, self._gone, key, size)
                    self.live += size
                    self.peak = max(self.peak, self.live)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.live -= size
        self.known.pop(key, None)


def peak(step: Callable[[], object]) -> int:
    with Peak() as found:
        step()
    return found.peak


def test_crafting_takes_at_most_four_times_the_memory_of_a_training_step() -> None:
    model, heldout = conv("w8a8", 1)
    rows = np.arange(96)
    x, y = torch.from_numpy(heldout.inputs(rows)), torch.from_numpy(heldout.targets(rows))
    kept = 1 << 20
    held = []
    assert peak(lambda: held.append(torch.zeros(kept, dtype=torch.uint8))) == kept  # the meter reads what it should

    def training() -> None:
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]

    with freeze_quant(model):
        g_bd, _, _ = aimed(model, x, y)
        at = x.clone().requires_grad_()
        crafting = peak(lambda: torch.autograd.grad(craft_loss(model, at, y, g_bd, negative_ce, EveConfig()), [at]))
        plain = peak(training)
    for p in model.parameters():
        p.grad = None
    print(f"peak memory: crafting {crafting}, training step {plain}, ratio {crafting / plain:.2f}")
    assert crafting <= 4 * plain
    assert crafting > plain


def test_perturb_takes_the_best_restart(toy: Any) -> None:
    model, _, split = toy
    aim = crafter().aim(model, split)
    with freeze_quant(model):
        g_bd = crafter().direction(model, split, aim)
        args = (model, split.erase.inputs(), split.erase.targets(), g_bd, negative_ce)
        one = perturb(*args, QUICK, eps=aim.eps, grid=aim.grid, seed=0)
        three = perturb(*args, dataclasses.replace(QUICK, restarts=3), eps=aim.eps, grid=aim.grid, seed=0)
    assert three.cos_after >= one.cos_after
