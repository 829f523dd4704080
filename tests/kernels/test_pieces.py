"""Long rows: the same bits for any number of threads, the oracle's result, statistics that are true."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from qunlearn.errors import InvariantError
from qunlearn_kernels import torch_backend
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import Basis, ProjectionStats, project, project_k, step

SIZES = (600_001, 7, 33_333, 0, 1, 65_536, *[777] * 60)
SCOPES = ("global", "layer", "tensor")


@pytest.fixture
def arena() -> GradientArena:
    return GradientArena([(f"l{i // 2}.w{i}", nn.Parameter(torch.zeros(n))) for i, n in enumerate(SIZES)])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def fill(arena: GradientArena, mix: float = 0.0) -> None:
    generator = torch.Generator().manual_seed(0)
    for role in arena.roles:
        for view in arena.views(role):
            view.copy_(torch.randn(view.shape, generator=generator))
    arena.row("forget").add_(arena.row("retain"), alpha=mix)


def bits(vector: torch.Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("scope", SCOPES)
def test_same_bits_for_any_number_of_threads(arena: GradientArena, scope: str, threads: None) -> None:
    seen = set()
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        result: list[str | ProjectionStats] = []
        for mix in (0.5, 5.0):
            fill(arena, mix)
            apart = arena.row("forget").clone()
            one, two = project(arena, scope=scope), project(arena, forget=apart, scope=scope)
            assert one == two
            assert torch.equal(apart, arena.row("forget")), "a vector outside the arena gives the bits of its rows"
            basis = Basis(arena, 2, scope=scope)
            basis.push(arena.row("retain"))
            basis.push(apart)
            other = arena.row("retain") * 0.5 + 1.0
            result += [one, bits(apart), project_k(arena, basis, forget=other), bits(other)]
        seen.add(tuple(result))
    assert len(seen) == 1


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", [0.0, -0.4, 1.7, 2.0, 30.0])
def test_orthogonal_in_float64(arena: GradientArena, scope: str, mix: float) -> None:
    fill(arena, mix)
    before = arena.row("forget").double()
    stats = project(arena, scope=scope)
    units: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for s, f, r in zip(arena.segments, arena.views("forget"), arena.views("retain"), strict=True):
        key = {"global": "", "layer": s.group, "tensor": s.name}[scope]
        units.setdefault(key, []).append((f.double().flatten(), r.double().flatten()))
    for pairs in units.values():
        f, r = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        assert abs(float(torch.dot(f, r))) <= 1e-6 * float(f.norm() * r.norm())
    f, r = arena.row("forget").double(), arena.row("retain").double()
    assert stats.norm_fperp == pytest.approx(float(f.norm()), rel=1e-5)
    assert stats.cos_after == pytest.approx(float(torch.dot(f, r) / (f.norm() * r.norm())), abs=3e-7)
    assert stats.cos_before == pytest.approx(float(torch.dot(before, r) / (before.norm() * r.norm())), abs=1e-7)
    assert stats.removed == pytest.approx(1 - float(f.norm() / before.norm()) ** 2, abs=1e-5)


def test_a_metric_on_a_long_row(arena: GradientArena) -> None:
    fill(arena, 1.0)
    metric = torch.rand(arena.size, generator=torch.Generator().manual_seed(5)) + 0.1
    f, r = arena.row("forget"), arena.row("retain")
    f64, w = f.double(), metric.double() * r.double()
    want = f64 - torch.dot(f64, w) / torch.dot(r.double(), w) * r.double()
    project(arena, metric=metric)
    assert float((f.double() - want).norm() / f64.norm()) <= 1e-6


def test_conflict_moves_only_the_units_that_conflict(arena: GradientArena) -> None:
    fill(arena)
    f, r = arena.views("forget"), arena.views("retain")
    for i, (a, b) in enumerate(zip(f, r, strict=True)):
        a.add_(b, alpha=0.8 if i % 2 else -0.8)
    old = [v.clone() for v in f]
    signs = [float(torch.dot(a.double(), b.double())) < 0 for a, b in zip(f, r, strict=True)]
    assert 10 < sum(signs) < len(signs) - 10
    assert project(arena, scope="tensor", when="conflict").conflicting_segments == sum(signs)
    for a, before, conflict in zip(f, old, signs, strict=True):
        assert torch.equal(a, before) is not conflict


@pytest.mark.parametrize("scope", [*SCOPES, "none"])
def test_empty_tensors_only(scope: str) -> None:
    arena = GradientArena([("a.w", nn.Parameter(torch.zeros(0))), ("b.w", nn.Parameter(torch.zeros(0, 3)))])
    assert project(arena, scope=scope).norm_f == 0.0


def test_bfloat16_gradients_against_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(700, generator=generator).bfloat16())
    q = nn.Parameter(torch.randn(300, generator=generator))
    arena = GradientArena([("p", p), ("q", q)])
    x = torch.randn(1000, generator=generator)
    rows = {}
    for role, power in (("forget", 2), ("retain", 3)):
        arena.bind(role)
        (torch.cat([p.float(), q]) * x).pow(power).sum().backward()
        arena.collect()
        rows[role] = torch.cat([v.double() for v in arena.views(role)])
    f, r = rows["forget"], rows["retain"]
    want = f - torch.dot(f, r) / torch.dot(r, r) * r
    project(arena)
    got = torch.cat([v.double() for v in arena.views("forget")])
    assert float((got - want).norm() / f.norm()) <= 1e-6


def test_a_gradient_that_is_not_accumulated_in_place_is_detected() -> None:
    p = nn.Parameter(torch.ones(5))
    arena = GradientArena([("p", p)])
    arena.bind("forget")
    (3 * p).sum().backward()
    p.grad = p.grad + 0 if p.grad is not None else None
    with pytest.raises(InvariantError, match=r"gradient of p left"):
        arena.collect()


def test_a_step_leaves_frozen_parameters() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2), requires_grad=False)
    arena = GradientArena([("a", a), ("b", b)])
    fill(arena)
    step(arena, lr=1.0, lam=0.5)
    assert torch.equal(b, torch.ones(2))
    assert not torch.equal(a, torch.ones(3))


def worst_cosine(arena: GradientArena, scope: str) -> float:
    """The largest |cos| of any unit, in float64."""
    units: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for s, f, r in zip(arena.segments, arena.views("forget"), arena.views("retain"), strict=True):
        key = {"global": "", "layer": s.group, "tensor": s.name}[scope]
        units.setdefault(key, []).append((f.double().flatten(), r.double().flatten()))
    out = [0.0]
    for pairs in units.values():
        f, r = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        if f.any() and r.any():
            out.append(abs(float(torch.dot(f, r) / (f.norm() * r.norm()))))
    return max(out)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("slope", [0.1, 0.3, 0.49, 0.51, 2.0, 1e3])
def test_orthogonal_where_roundings_add_up(scope: str, slope: float) -> None:
    """Equal entries are the worst case for a float32 sum: every addition of a block rounds to the same side."""
    sizes = (262_144, 9, 70_001)
    arena = GradientArena([(f"l{i // 2}.w{i}", nn.Parameter(torch.zeros(n))) for i, n in enumerate(sizes)])
    generator = torch.Generator().manual_seed(0)
    for value in (0.1, 0.3, 1.0, 1.1, 1.35, 1.7, 1.9, 3e-5):
        for f, r in zip(arena.views("forget"), arena.views("retain"), strict=True):
            r.fill_(value)
            f.copy_(value * (slope + torch.randn(f.shape, generator=generator)))
        stats = project(arena, scope=scope)
        assert worst_cosine(arena, scope) <= 1e-6
        assert abs(stats.cos_after) <= 1e-6


@pytest.mark.parametrize("scope", SCOPES)
def test_autocast_and_matrix_precision_change_nothing_that_matters(arena: GradientArena, scope: str) -> None:
    fill(arena, 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = project(arena, scope=scope)
    assert worst_cosine(arena, scope) <= 1e-6
    assert stats.norm_fperp == pytest.approx(float(arena.row("forget").double().norm()), rel=1e-6)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        fill(arena, 0.3)
        project(arena, scope=scope)
    finally:
        torch.set_float32_matmul_precision(before)
    assert worst_cosine(arena, scope) <= 1e-6


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("count", [1, 2000])
def test_one_tensor_and_two_thousand(scope: str, count: int) -> None:
    """Lengths 0 to 6 and layers whose tensors lie apart: every unit is orthogonal, and what r does not touch stays."""
    names = [f"w{i}" for i in range(count)]
    params = [(n, nn.Parameter(torch.zeros(37 if count == 1 else i % 7))) for i, n in enumerate(names)]
    arena = GradientArena(params, groups={n: f"g{i % 11}" for i, n in enumerate(names)})
    fill(arena, 0.7)
    arena.views("retain")[-1].zero_()
    before = arena.views("forget")[-1].clone()
    assert project(arena, scope=scope).segments == {"global": 1, "layer": min(count, 11), "tensor": count}[scope]
    assert worst_cosine(arena, scope) <= 1e-6
    assert torch.equal(arena.views("forget")[-1], before)


def test_layers_apart_equal_layers_in_a_row() -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {n: torch.randn(2, k, generator=generator) for n, k in (("a", 700), ("b", 3), ("c", 300), ("d", 900))}
    groups = {"a": "x", "b": "y", "c": "x", "d": "y"}
    found = []
    for order in ("abcd", "acbd"):
        arena = GradientArena([(n, nn.Parameter(torch.zeros(tensors[n].shape[1]))) for n in order], groups=groups)
        for role, i in (("forget", 0), ("retain", 1)):
            for n, view in zip(order, arena.views(role), strict=True):
                view.copy_(tensors[n][i] + (3 * tensors[n][1] if n in "ac" and i == 0 else 0))
        project(arena, scope="layer")
        assert worst_cosine(arena, "layer") <= 1e-6
        found.append(dict(zip(order, arena.views("forget"), strict=True)))
    for n in "abcd":
        assert torch.allclose(found[0][n], found[1][n], rtol=1e-6, atol=1e-6)


def test_only_the_steep_units_are_measured_again(arena: GradientArena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few units are steep, the others are read and written once."""
    fill(arena)
    arena.views("forget")[1].add_(arena.views("retain")[1], alpha=9.0)
    seen = []
    real = torch_backend.unit_sums
    monkeypatch.setattr(
        torch_backend, "unit_sums", lambda t, x, y, **k: (seen.append(x.numel()), real(t, x, y, **k))[1]
    )
    project(arena, scope="tensor")
    assert seen[0] == arena.size
    assert seen[1:]
    assert max(seen[1:]) < arena.size / 4
    assert worst_cosine(arena, "tensor") <= 1e-6


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", [0.3, 3.0])
def test_rows_are_read_once_or_in_pieces_with_the_same_bits(
    arena: GradientArena, scope: str, mix: float, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole rows in one go, piece by piece, and pieces shared by threads; the arena's rows and vectors elsewhere."""
    seen = set()
    for count, piece, shared in ((1, 1 << 30, 1 << 30), (1, 4096, 1 << 30), (1, 4096, 8192), (3, 4096, 8192)):
        torch.set_num_threads(count)
        monkeypatch.setattr(torch_backend, "PIECE", piece)
        monkeypatch.setattr(torch_backend, "SHARED", shared)
        fill(arena, mix)
        later, apart = arena.row("retain").clone(), arena.row("forget").clone()
        stats = project(arena, scope=scope)
        assert project(arena, forget=apart, retain=later, scope=scope) == stats
        assert torch.equal(apart, arena.row("forget"))
        seen.add((stats, bits(apart)))
    assert len(seen) == 1
    assert worst_cosine(arena, scope) <= 1e-6


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mix", [0.3, 3.0])
def test_the_form_for_other_devices_agrees(
    arena: GradientArena, scope: str, mix: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's products and sums of blocks, which devices without numpy use, run here on the CPU."""
    metric = torch.rand(arena.size, generator=torch.Generator().manual_seed(5)) + 0.1
    found: list[list[torch.Tensor | float]] = []
    for numpy in (True, False):
        monkeypatch.setattr(torch_backend, "_by_numpy", lambda row, numpy=numpy: numpy)
        fill(arena, mix)
        basis = Basis(arena, 2, scope=scope)
        basis.push(arena.row("retain"))
        basis.push(arena.row("retain").cos())
        out = [arena.row("forget").clone() for _ in range(3)]
        stats = [project(arena, forget=out[0], scope=scope), project(arena, forget=out[1], scope=scope, metric=metric)]
        stats.append(project_k(arena, basis, forget=out[2]))
        found.append([*out, *(s.norm_fperp for s in stats), *(s.cos_before for s in stats)])
    for a, b in zip(*found, strict=True):
        if isinstance(a, torch.Tensor):
            assert float((a - b).norm()) <= 1e-6 * float(arena.row("forget").norm())
        else:
            assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_tied_parameters_are_projected_once(scope: str) -> None:
    shared = nn.Parameter(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))
    arena = GradientArena([("embed", shared), ("head", shared)])
    for role, power in (("forget", 2), ("retain", 3)):
        arena.bind(role)
        x = torch.nn.functional.embedding(torch.arange(9), shared)
        (x @ shared.T).pow(power).mean().backward()
        arena.collect()
    f, r = arena.views("forget")[0].double(), arena.views("retain")[0].double()
    want = f - (f * r).sum() / (r * r).sum() * r
    project(arena, scope=scope)
    assert float((arena.views("forget")[0].double() - want).norm() / f.norm()) <= 1e-6


@pytest.mark.parametrize("scope", SCOPES)
def test_a_frozen_layer_takes_no_part(scope: str) -> None:
    """Frozen between two steps: its rows are zero, whatever the last step left there, and it does not move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    arena = GradientArena(model.named_parameters())
    x = torch.randn(20, 7)
    for frozen in (False, True):
        model[0].requires_grad_(not frozen)
        before = model[0].weight.clone()
        for role, power in (("forget", 2), ("retain", 3)):
            arena.bind(role)
            model(x).pow(power).mean().backward()
            arena.collect()
        project(arena, scope=scope)
        step(arena, lr=0.1, lam=1.0)
        assert torch.equal(before, model[0].weight) is frozen
        assert worst_cosine(arena, scope) <= 1e-6
    assert not arena.views("forget")[0].any()


def test_an_optimizers_update_can_be_projected() -> None:
    """Adam's update of the forget loss is a vector like any other."""
    torch.manual_seed(0)
    model = nn.Linear(30, 4)
    arena = GradientArena(model.named_parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(20, 30)
    arena.bind("retain")
    model(x).pow(2).mean().backward()
    arena.collect()
    old = arena.flatten([p.detach() for p in arena.params])
    arena.bind("forget")
    model(x).exp().mean().backward()
    optimizer.step()
    update = arena.flatten([p.detach() for p in arena.params]) - old
    assert project(arena, forget=update).cos_before != 0.0
    r = arena.row("retain").double()
    assert abs(float(torch.dot(update.double(), r) / (update.double().norm() * r.norm()))) <= 1e-6


def test_a_step_equals_its_formula(arena: GradientArena) -> None:
    fill(arena)
    want = [p - 0.1 * (r + 2 * f) for p, f, r in zip(arena.params, *map(arena.views, arena.roles), strict=True)]
    step(arena, lr=0.1, lam=2.0)
    for p, w in zip(arena.params, want, strict=True):
        assert torch.allclose(p, w, rtol=1e-6, atol=1e-7)
