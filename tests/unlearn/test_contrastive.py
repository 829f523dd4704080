"""Contrastive losses: by hand, gradients, bounds, anchors without partners, small temperatures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qunlearn.unlearn.contrastive import forget_form, retain_form

ANGLES = [0.1, 0.9, 2.0, 3.0]


def unit(angles: list[float]) -> Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)


def by_loops_forget(z: Tensor, y: list[int], tau: float) -> float:
    n, total, anchors = len(z), 0.0, 0
    for i in range(n):
        others = [j for j in range(n) if y[j] != y[i]]
        if not others:
            continue
        anchors += 1
        bottom = math.log(sum(math.exp(float(z[i] @ z[k]) / tau) for k in range(n)))
        total += -sum(float(z[i] @ z[j]) / tau - bottom for j in others) / len(others)
    return total / anchors if anchors else 0.0


def by_loops_retain(z: Tensor, y: list[int], zr: Tensor, yr: list[int], tau: float) -> float:
    total, anchors = 0.0, 0
    for i in range(len(z)):
        negative = [a for a in range(len(zr)) if yr[a] != y[i]]
        positive = [zr[p] for p in range(len(zr)) if yr[p] == y[i]]
        positive = positive or [z[p] for p in range(len(z)) if y[p] == y[i] and p != i]
        if not negative or not positive:
            continue
        anchors += 1
        bottom = math.log(sum(math.exp(float(z[i] @ p) / tau) for p in positive))
        total += -sum(float(z[i] @ zr[a]) / tau - bottom for a in negative) / len(negative)
    return total / anchors if anchors else 0.0


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_values_by_hand(tau: float) -> None:
    z, y = unit(ANGLES), [0, 0, 1, 1]
    value, skipped = forget_form(z, torch.tensor(y), tau)
    assert float(value) == pytest.approx(by_loops_forget(z, y, tau), abs=1e-10)
    assert skipped == 0
    zr, yr = unit([0.3, 1.5, 2.5]), [0, 1, 2]
    value, skipped = retain_form(z, torch.tensor(y), zr, torch.tensor(yr), tau)
    assert float(value) == pytest.approx(by_loops_retain(z, y, zr, yr, tau), abs=1e-10)
    assert skipped == 0
    doubled = torch.cat([z, z]), torch.tensor(y + y)
    again, _ = retain_form(*doubled, zr, torch.tensor(yr), tau)
    assert float(again) == pytest.approx(float(value), abs=1e-10)


def test_whole_class_forgotten_takes_positives_from_the_forget_batch() -> None:
    z, y = unit(ANGLES), [3, 3, 3, 4]
    zr, yr = unit([0.3, 1.5]), [0, 1]
    value, skipped = retain_form(z, torch.tensor(y), zr, torch.tensor(yr), 0.5)
    assert skipped == 1  # the only sample of class 4
    assert float(value) == pytest.approx(by_loops_retain(z, y, zr, yr, 0.5), abs=1e-10)


def test_one_class_has_no_signal_in_the_forget_form() -> None:
    value, skipped = forget_form(unit(ANGLES), torch.tensor([2, 2, 2, 2]), 0.5)
    assert (float(value), skipped) == (0.0, 4)
    _, skipped = forget_form(unit(ANGLES), torch.tensor([2, 2, 2, 1]), 0.5)
    assert skipped == 0


def test_gradients_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    zr = F.normalize(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=1)
    y, yr = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: forget_form(F.normalize(x, dim=1), y, 0.5)[0], (raw,))
    assert torch.autograd.gradcheck(lambda x: retain_form(F.normalize(x, dim=1), y, zr, yr, 0.5)[0], (raw,))


def test_no_gradient_reaches_retain_features() -> None:
    zr = unit([0.3, 1.5]).requires_grad_()
    z = unit(ANGLES).requires_grad_()
    retain_form(z, torch.tensor([0, 0, 1, 1]), zr, torch.tensor([0, 1]), 0.5)[0].backward()
    assert zr.grad is None
    assert z.grad is not None
    assert float(z.grad.abs().max()) > 0


def test_bounds_hold() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(1000):
        n, m, d = (int(torch.randint(2, 9, (), generator=generator)) for _ in range(3))
        z = F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
        zr = F.normalize(torch.randn(m, d, generator=generator, dtype=torch.float64), dim=1)
        y = torch.randint(0, 3, (n,), generator=generator)
        yr = torch.randint(0, 3, (m,), generator=generator)
        tau = 0.1 + float(torch.rand((), generator=generator))
        value, _ = forget_form(z, y, tau)
        assert -1e-9 <= float(value) <= 2 / tau + math.log(n) + 1e-9
        value, _ = retain_form(z, y, zr, yr, tau)
        assert abs(float(value)) <= 2 / tau + math.log(max(n, m)) + 1e-9


def test_finite_at_a_small_temperature_in_float32() -> None:
    z = unit(ANGLES).float().requires_grad_()
    y, zr, yr = torch.tensor([0, 0, 1, 1]), unit([0.3, 1.5]).float(), torch.tensor([0, 1])
    total = forget_form(z, y, 0.01)[0] + retain_form(z, y, zr, yr, 0.01)[0]
    total.backward()
    assert math.isfinite(float(total.detach()))
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
