"""What every device backend must do, run by test_cuda.py (the CUDA source on the host) and test_triton.py.

A plain float64 oracle reads the equations segment by segment; ``run`` is the backend's maker of launchers, by grid.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qunlearn.errors import ConfigError, DivergedError
from qunlearn_kernels import fused, projection, two_launch
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import Basis
from qunlearn_kernels.two_launch import Launcher

Maker = Callable[[int], Launcher]
SCOPES = ("global", "layer", "tensor")
MIXES = (0.0, 0.9, -0.9, 1.5, -1.8, 2.5, 50.0)


def arena_of(sizes: list[int], seed: int = 0, mix: float = 0.0) -> GradientArena:
    """Rows of normal numbers; ``mix`` times retain is added to forget. Two tensors a layer, layers interleaved."""
    generator = torch.Generator().manual_seed(seed)
    layers = max(1, len(sizes) // 2)
    params = [
        (f"layer{i % layers}.p{i}", nn.Parameter(torch.randn(n, generator=generator))) for i, n in enumerate(sizes)
    ]
    arena = GradientArena(params)
    for role in arena.roles:
        for view in arena.views(role):
            view.copy_(torch.randn(view.shape, generator=generator))
    arena.row("forget").add_(arena.row("retain"), alpha=mix)
    return arena


def parts(arena: GradientArena, scope: str) -> list[Tensor]:
    """Indices of each unit's entries."""
    groups: dict[str, list[Tensor]] = {}
    for s in arena.segments:
        key = {"global": "", "layer": s.group, "tensor": s.name}[scope]
        groups.setdefault(key, []).append(torch.arange(s.offset, s.offset + s.numel))
    return [torch.cat(g) for g in groups.values()]


def oracle(arena: GradientArena, scope: str, when: str, metric: Tensor | None = None) -> Tensor:
    """f_perp [N_pad] in float64."""
    f, r = arena.row("forget").double(), arena.row("retain").double()
    p = torch.ones_like(r) if metric is None else metric.double()
    for at in parts(arena, scope):
        norm = torch.dot(r[at], p[at] * r[at])
        if norm > 0 and (when == "always" or torch.dot(f[at], r[at]) < 0):
            f[at] = f[at] - torch.dot(r[at], p[at] * f[at]) / (norm + 1e-12) * r[at]
    return f


def close(got: Tensor, want: Tensor, scale: Tensor) -> None:
    """Relative error at most 1e-6."""
    assert float((got.double() - want).norm()) <= 1e-6 * float(scale.double().norm()) + 1e-30


def check_projection(run: Maker, sizes: list[int], seed: int, scope: str, when: str, mix: float, weigh: bool) -> None:
    """One case against the oracle: the vector, its cosine in every unit, the padding, and the statistics."""
    arena = arena_of(sizes, seed, mix)
    metric = None
    if weigh:
        metric = torch.rand(arena.size, generator=torch.Generator().manual_seed(seed)) + 0.1
    want, f, r = oracle(arena, scope, when, metric), arena.row("forget"), arena.row("retain")
    before = f.clone()
    totals = two_launch.project(run(1 + seed % 5), arena, f, r, scope, conflict=when == "conflict", metric=metric)
    close(f, want, before)
    real = torch.cat([torch.arange(s.offset, s.offset + s.numel) for s in arena.segments])
    padding = torch.ones(arena.size, dtype=torch.bool)
    padding[real] = False
    assert not f[padding].any()
    p = torch.ones_like(r) if metric is None else metric
    for i, at in enumerate(parts(arena, scope)):
        a, b, old = f[at].double(), r[at].double(), before[at].double()
        if when == "always" or float(torch.dot(old, b)) < 0:
            weighted = p[at].double() * b
            bound = float(a.norm()) * float(torch.dot(b, weighted)) ** 0.5
            assert abs(float(torch.dot(a, weighted))) <= 1e-6 * bound * (1.0 if metric is None else 1.2)
        sums = torch.stack([torch.dot(old, b), torch.dot(b, b), torch.dot(old, old)])
        size = float(old.norm() * b.norm()) + float(sums[1]) + float(sums[2])
        assert float((totals[0][i, :3] - sums).abs().max()) <= 1e-6 * size
        assert float(totals[1][i, 2]) == pytest.approx(float(torch.dot(a, a)), rel=1e-5, abs=1e-30)


def check_grid(run: Maker, sizes: list[int]) -> None:
    """The same bits for any number of programs: projection, sums and rank k."""
    seen = []
    for programs in (1, 2, 3, 7, 64):
        arena = arena_of(sizes, 1, -0.7)
        f, r = arena.row("forget"), arena.row("retain")
        totals = two_launch.project(run(programs), arena, f, r, "layer", metric=torch.ones(arena.size))
        one = f.clone()
        q = torch.stack([r / r.norm(), torch.zeros_like(r)])
        two_launch.project_k(run(programs), arena, f, q, "global")
        seen.append((one, f.clone(), *totals))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def check_subspace(run: Maker, k: int, scope: str, sizes: list[int]) -> None:
    """Rank k against a least-squares solution in float64 per unit."""
    arena = arena_of(sizes, k, 1.0)
    basis, f = Basis(arena, k, scope=scope), arena.row("forget")
    rows = []
    for i in range(k):
        rows.append(arena_of(sizes, 100 + i).row("retain").clone())
        basis.push(rows[-1])
    before, want = f.clone(), f.double()
    stack = torch.stack(rows).double()
    for at in parts(arena, scope):
        span = torch.linalg.svd(stack[:, at], full_matrices=False)
        kept = span.Vh[span.S.gt(1e-6 * span.S.max())] if len(at) else span.Vh[:0]
        want[at] = want[at] - kept.T @ (kept @ want[at])
    two_launch.project_k(run(3), arena, f, torch.stack(basis.rows()), scope)
    close(f, want, before)


def check_step(run: Maker, monkeypatch: pytest.MonkeyPatch, scope: str, sizes: list[int], mix: float) -> None:
    """The fused step against the oracle; a frozen, a transposed and a bfloat16 parameter; a misaligned one too."""
    arena = arena_of(sizes, 3, mix)
    arena.params[0].requires_grad_(False)
    for i, change in ((1, torch.bfloat16), (2, torch.float32)):
        arena.params[i].data = arena.params[i].data.to(change)
    arena.params[2].data = torch.randn(2 * sizes[2])[::2]
    arena.params[3].data = torch.randn(sizes[3] + 1)[1:]
    monkeypatch.setattr(fused, "choose_backend", lambda name, device: "test")
    monkeypatch.setattr(fused, "launcher", lambda name, device: run(2))
    for _ in range(2):
        perp, r, scale = oracle(arena, scope, "always"), arena.row("retain").double(), arena.row("forget").clone()
        old = [p.detach().double() for p in arena.params]
        version = arena.params[4]._version
        stats = fused.project_and_step(arena, lr=0.1, lam=2.0, scope=scope)
        assert stats.norm_fperp == pytest.approx(float(perp.norm()), rel=1e-4, abs=1e-5 * float(scale.norm()))
        assert arena.params[4]._version > version
        for p, before, change in zip(arena.params, old, arena.split(r + 2.0 * perp), strict=True):
            want = before - 0.1 * change if p.requires_grad else before
            tolerance = 1e-2 if p.dtype == torch.bfloat16 else 1e-6
            size = before.norm() + change.norm() + scale.double().norm()
            assert float((p.detach().double() - want).norm()) <= tolerance * float(size)
        arena = _again(arena, mix)


def _again(arena: GradientArena, mix: float) -> GradientArena:
    arena.row("forget").add_(arena.row("retain"), alpha=-mix or 1.0)
    return arena


def check_refusals(run: Maker) -> None:
    """What is not finite or negative changes nothing, in any unit; zero rows leave f untouched."""
    for role, value in (("forget", float("nan")), ("retain", float("inf")), ("forget", 1e20)):
        arena = arena_of([5, 600, 7])
        f, r = arena.row("forget"), arena.row("retain")
        arena.views(role)[1][2] = value
        before = f.clone()
        totals = two_launch.project(run(2), arena, f, r, "tensor")
        assert torch.equal(f.nan_to_num(), before.nan_to_num())
        with pytest.raises(DivergedError, match="overflow" if value == 1e20 else f"{role}.*p1"):
            projection.statistics(arena, f, r, None, totals)
    arena = arena_of([5, 600, 7])
    f, r, before = arena.row("forget"), arena.row("retain"), arena.row("forget").clone()
    metric = torch.ones(arena.size)
    metric[arena.segments[1].offset : arena.segments[2].offset] = -1.0
    with pytest.raises(ConfigError, match="negative"):
        two_launch.project(run(2), arena, f, r, "tensor", metric=metric)
    assert torch.equal(f, before), "not even in the units whose metric is positive"
    r.zero_()
    first, last = two_launch.project(run(2), arena, f, r, "layer")
    assert torch.equal(f, before)
    assert float(last[:, 2].sum()) == pytest.approx(float(before.double().norm()) ** 2, rel=1e-6)
    assert not first[:, :2].any()


def check_partly_negative_metric(run: Maker) -> None:
    """A metric negative in one tile but positive over the unit is used, as the torch backend uses it."""
    arena = arena_of([3000, 40], 5, 1.0)
    metric = torch.ones(arena.size)
    metric[arena.segments[1].offset :] = -0.5
    want, before = oracle(arena, "global", "always", metric), arena.row("forget").clone()
    two_launch.project(run(2), arena, arena.row("forget"), arena.row("retain"), "global", metric=metric)
    close(arena.row("forget"), want, before)


def check_views_at_odd_addresses(run: Maker) -> None:
    """Vectors that do not start at a multiple of 16 bytes give the bits of those that do."""
    arena = arena_of([700, 30], 2, 1.0)
    size = arena.size
    f, r = torch.zeros(size + 1)[1:], torch.zeros(size + 3)[3:]
    f.copy_(arena.row("forget"))
    r.copy_(arena.row("retain"))
    two_launch.project(run(2), arena, f, r, "layer")
    two_launch.project(run(2), arena, arena.row("forget"), arena.row("retain"), "layer")
    assert torch.equal(f, arena.row("forget"))


def check_parallel(run: Maker) -> None:
    """What is left after nearly parallel vectors is orthogonal in every unit; a tensor of one element becomes zero."""
    for mix in (1e2, 1e4, 1e6):
        arena = arena_of([300, 1, 7, 1], 4, mix)
        f, r = arena.row("forget"), arena.row("retain")
        two_launch.project(run(2), arena, f, r, "tensor")
        for a, b in zip(arena.split(f), arena.split(r), strict=True):
            assert abs(float(torch.dot(a.double(), b.double()))) <= 1e-6 * float(a.double().norm() * b.double().norm())
        assert not arena.views("forget")[1].any()
        assert not arena.views("forget")[3].any()


def check_many(run: Maker, scope: str) -> None:
    """2,000 tensors, two thirds of them empty."""
    check_projection(run, [0 if i % 3 else 1 + i % 2 for i in range(2000)], 0, scope, "always", 0.8, False)
