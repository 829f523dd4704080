"""Projection against a plain float64 oracle, over random segment tables, scopes, conditions and ranks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qunlearn.errors import ConfigError, DivergedError, InvariantError
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import Basis, dots, project, project_k, step

SIZES = st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 33, 64, 100, 1025]), min_size=1, max_size=9)


def arena_of(sizes: list[int], roles: tuple[str, ...] = ("forget", "retain")) -> GradientArena:
    params = [(f"layer{i // 2}.p{i}", nn.Parameter(torch.zeros(n))) for i, n in enumerate(sizes)]
    return GradientArena(params, roles=roles)


def fill(arena: GradientArena, role: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for view in arena.views(role):
        view.copy_(torch.randn(view.shape, generator=generator))


def oracle(
    arena: GradientArena, f: torch.Tensor, r: torch.Tensor, scope: str, when: str, p: torch.Tensor | None = None
) -> torch.Tensor:
    """Segment by segment in float64, as the equations read."""
    out = f.double().clone()
    groups: dict[str, list[slice]] = {}
    for s in arena.segments:
        key = {"global": "all", "layer": s.group, "tensor": s.name}[scope]
        groups.setdefault(key, []).append(slice(s.offset, s.offset + s.numel))
    for parts in groups.values():
        ff = torch.cat([f[s] for s in parts]).double()
        rr = torch.cat([r[s] for s in parts]).double()
        pp = torch.ones_like(rr) if p is None else torch.cat([p[s] for s in parts]).double()
        conflict = torch.dot(ff, rr) < 0
        norm = torch.dot(rr, pp * rr)
        if (when == "always" or conflict) and norm > 0:
            factor = torch.dot(rr, pp * ff) / (norm + 1e-12)
            for s in parts:
                out[s] -= factor * r[s].double()
    return out


def close(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> None:
    assert float((a.double() - b).norm()) <= 1e-6 * float(scale.double().norm()) + 1e-30


@settings(max_examples=120, deadline=None)
@given(
    sizes=SIZES,
    seed=st.integers(0, 10_000),
    scope=st.sampled_from(["global", "layer", "tensor"]),
    when=st.sampled_from(["always", "conflict"]),
    mix=st.sampled_from([0.0, 0.9, -0.9, 1.5, -1.8, 2.5, 50.0]),
)
def test_equals_the_oracle(sizes: list[int], seed: int, scope: str, when: str, mix: float) -> None:
    arena = arena_of(sizes)
    fill(arena, "forget", seed)
    fill(arena, "retain", seed + 1)
    f, r = arena.row("forget"), arena.row("retain")
    f.add_(r, alpha=mix)
    want, before = oracle(arena, f, r, scope, when), f.clone()
    stats = project(arena, scope=scope, when=when)
    close(f, want, before)
    if when == "always":
        assert abs(stats.cos_after) <= 1e-6 or stats.norm_fperp <= 1e-6 * stats.norm_f
    padding = torch.ones(arena.size, dtype=torch.bool)
    for s in arena.segments:
        padding[s.offset : s.offset + s.numel] = False
    assert not f[padding].any()


@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
def test_metric(scope: str) -> None:
    arena = arena_of([40, 3, 1000, 77])
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    metric = torch.rand(arena.size, generator=torch.Generator().manual_seed(2)) + 0.1
    f, r = arena.row("forget"), arena.row("retain")
    want, before = oracle(arena, f, r, scope, "always", metric), f.clone()
    project(arena, scope=scope, metric=metric)
    close(f, want, before)
    assert abs(float(torch.dot((metric * r).double(), f.double()))) <= 1e-6 * float((metric * r).norm() * f.norm())


@pytest.mark.parametrize("k", [1, 2, 5, 16])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_subspace(k: int, scope: str) -> None:
    arena = arena_of([300, 20, 500])
    basis = Basis(arena, k, scope=scope)
    rows = []
    for i in range(k + 2):
        fill(arena, "retain", 10 + i)
        rows.append(arena.row("retain").clone())
        basis.push(rows[-1])
    fill(arena, "forget", 0)
    f = arena.row("forget")
    stack = torch.stack(rows[-k:]).double()
    want = f.double().clone()
    if scope == "global":
        coefficients = torch.linalg.lstsq(stack.T, want[:, None]).solution
        want -= (stack.T @ coefficients)[:, 0]
    before = f.clone()
    stats = project_k(arena, basis)
    if scope == "global":
        close(f, want, before)
    for row in rows[-k:]:
        assert abs(float(torch.dot(row.double(), f.double()))) <= 2e-6 * float(row.norm() * before.norm())
    assert abs(stats.cos_after) <= 1e-6


def test_a_repeated_row_is_dropped() -> None:
    arena = arena_of([100])
    fill(arena, "retain", 1)
    basis = Basis(arena, 4)
    basis.push(arena.row("retain"))
    basis.push(2 * arena.row("retain"))
    assert len(basis.rows()) == 1


def test_zero_retain_leaves_forget_untouched() -> None:
    arena = arena_of([50, 7])
    fill(arena, "forget", 3)
    before = arena.row("forget").clone()
    stats = project(arena)
    assert torch.equal(arena.row("forget"), before)
    assert stats.removed == 0.0


def test_scope_none_measures_only() -> None:
    arena = arena_of([50])
    fill(arena, "forget", 3)
    fill(arena, "retain", 4)
    before = arena.row("forget").clone()
    stats = project(arena, scope="none")
    assert torch.equal(arena.row("forget"), before)
    assert stats.cos_before == stats.cos_after != 0


@pytest.mark.parametrize(("role", "word"), [("forget", "forget"), ("retain", "retain")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_names_the_tensor(role: str, word: str, value: float) -> None:
    arena = arena_of([5, 6, 7])
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    arena.views(role)[1][2] = value
    with pytest.raises(DivergedError, match=f"{word}.*p1"):
        project(arena)


def test_step() -> None:
    arena = arena_of([5, 6])
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    want = [-0.1 * (r + 2 * f) for f, r in zip(arena.views("forget"), arena.views("retain"), strict=True)]
    step(arena, lr=0.1, lam=2.0)
    for p, w in zip(arena.params, want, strict=True):
        assert torch.allclose(p.detach(), w, atol=1e-7)


def test_vectors_of_another_layout_are_refused() -> None:
    arena = arena_of([5])
    with pytest.raises(ConfigError, match="laid out"):
        project(arena, forget=torch.zeros(5))
    with pytest.raises(ConfigError, match="scope"):
        project(arena, scope="model")
    with pytest.raises(ConfigError, match="row"):
        project(arena, forget="elsewhere")


CHILD = """
import hashlib, torch
from torch import nn
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import project
torch.set_num_threads(THREADS)
g = torch.Generator().manual_seed(0)
sizes = [200_000, 7, 33_333, 1, 64]
arena = GradientArena([(f"l{i}.w", nn.Parameter(torch.zeros(n))) for i, n in enumerate(sizes)])
for scope in ("global", "layer", "tensor"):
    for role in ("forget", "retain"):
        for v in arena.views(role):
            v.copy_(torch.randn(v.shape, generator=g))
    s = project(arena, scope=scope)
    print(hashlib.sha256(arena.row("forget").numpy().tobytes()).hexdigest(), s.cos_before, s.norm_f)
"""


def test_same_bits_for_any_number_of_threads() -> None:
    seen = set()
    for threads in (1, 2, 4):
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = CHILD.replace("THREADS", str(threads))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        seen.add(done.stdout)
    assert len(seen) == 1


WORKER = """
import json, sys, torch
from torch import nn
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.fused import project_and_step
rank, port, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
arena = GradientArena([("a.w", nn.Parameter(torch.zeros(64))), ("b.w", nn.Parameter(torch.zeros(100)))])
out = []
for mix, scope in ((0.0, "global"), (0.0, "layer"), (3.0, "global"), (3.0, "tensor")):
    for role, seed in (("forget", 0), ("retain", 1)):
        generator = torch.Generator().manual_seed(seed)
        for mine, n in zip(arena.views(role), (128, 200)):
            mine.copy_(torch.randn(n, generator=generator).chunk(2)[rank])
    arena.views("forget")[1].add_(arena.views("retain")[1], alpha=mix)
    for p in arena.params:
        p.data.zero_()
    project_and_step(arena, lr=0.1, lam=2.0, scope=scope, process_group=torch.distributed.group.WORLD)
    out.append([v.tolist() for v in (*arena.views("forget"), *arena.params)])
json.dump(out, open(file, "w"))
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    files = [tmp_path / f"{rank}.json" for rank in range(2)]
    running = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), port, str(file)], env=env)
        for rank, file in enumerate(files)
    ]
    try:
        assert [process.wait(timeout=120) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    parts = [json.loads(file.read_text()) for file in files]
    whole = GradientArena([("a.w", nn.Parameter(torch.zeros(128))), ("b.w", nn.Parameter(torch.zeros(200)))])
    for case, (mix, scope) in enumerate(((0.0, "global"), (0.0, "layer"), (3.0, "global"), (3.0, "tensor"))):
        fill(whole, "forget", 0)
        fill(whole, "retain", 1)
        whole.views("forget")[1].add_(whole.views("retain")[1], alpha=mix)
        for p in whole.params:
            p.data.zero_()
        project(whole, scope=scope)
        step(whole, lr=0.1, lam=2.0)
        for i, view in enumerate((*whole.views("forget"), *whole.params)):
            both = torch.tensor([*parts[0][case][i], *parts[1][case][i]])
            assert torch.allclose(both, view, rtol=1e-6, atol=1e-6)


LENGTHS = """
import hashlib, sys, torch
from torch import nn
from qunlearn_kernels.arena import GradientArena
from qunlearn_kernels.projection import Basis, project, project_k
torch.set_num_threads(int(sys.argv[1]))
g = torch.Generator().manual_seed(0)
for n in (1, 511, 4097, 8192, 32_769, 131_073, 262_144, 1_048_577, 1_500_001):
    arena = GradientArena([("a.w", nn.Parameter(torch.zeros(n)))])
    a, b = torch.randn(2, n, generator=g)
    for mix in (0.0, 3.0):
        for metric in (None, torch.ones(arena.size)):
            arena.views("retain")[0].copy_(b)
            arena.views("forget")[0].copy_(a).add_(b, alpha=mix)
            print(n, project(arena, metric=metric), hashlib.sha256(arena.row("forget").numpy().tobytes()).hexdigest())
    basis = Basis(arena, 2)
    for row in (b, b.cos()):
        basis.push(arena.flatten([row]))
    arena.views("forget")[0].copy_(a.sin())
    print(n, project_k(arena, basis), hashlib.sha256(arena.row("forget").numpy().tobytes()).hexdigest())
"""


def test_same_bits_for_any_number_of_threads_at_any_length() -> None:
    """Around the lengths at which BLAS, torch's operations and the sums of this package begin to share their work."""
    seen = set()
    for threads in ("1", "2", "4"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_DYNAMIC": "FALSE", "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            [sys.executable, "-c", LENGTHS, threads], capture_output=True, text=True, check=False, env=env
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


def test_dots_by_hand() -> None:
    arena = arena_of([3, 20])
    for view in arena.views("forget"):
        view.fill_(1.0)
    for view in arena.views("retain"):
        view.fill_(2.0)
    f, r = arena.row("forget"), arena.row("retain")
    assert dots(arena, f, r, scope="tensor").fr.tolist() == [6.0, 40.0]
    assert dots(arena, f, r, scope="layer").rr.tolist() == [92.0]
    assert dots(arena, f, r, scope="global").ff.tolist() == [23.0]


def test_squares_that_overflow_are_an_error_and_change_nothing() -> None:
    arena = arena_of([100])
    arena.views("forget")[0].fill_(1e20)
    arena.views("retain")[0].fill_(1e19)
    with pytest.raises(DivergedError, match="overflow"):
        project(arena)
    assert bool((arena.views("forget")[0] == 1e20).all())


def test_a_metric_must_be_finite_and_positive() -> None:
    arena = arena_of([100])
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    metric = torch.ones(arena.size)
    metric[3] = float("nan")
    with pytest.raises(DivergedError, match=r"metric.*p0"):
        project(arena, metric=metric)
    with pytest.raises(ConfigError, match="negative"):
        project(arena, metric=-torch.ones(arena.size))


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6])
def test_a_small_retain_gradient_still_gives_an_orthogonal_result(size: float) -> None:
    arena = arena_of([100, 100])
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    f, r = arena.row("forget"), arena.row("retain")
    f.add_(r)
    r.mul_(size)
    assert project(arena).cos_before > 0.5
    cosine = float(torch.dot(f.double(), r.double()) / (f.double().norm() * r.double().norm()))
    assert abs(cosine) <= 1e-6


@pytest.mark.parametrize("mix", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("scope", ["layer", "tensor"])
def test_every_unit_is_orthogonal_even_where_the_two_are_nearly_parallel(scope: str, mix: float) -> None:
    arena = arena_of([300, 50, 7, 1000])
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    arena.row("forget").add_(arena.row("retain"), alpha=mix)
    project(arena, scope=scope)
    units: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for s, f, r in zip(arena.segments, arena.views("forget"), arena.views("retain"), strict=True):
        units.setdefault(s.group if scope == "layer" else s.name, []).append((f.double(), r.double()))
    for pairs in units.values():
        f, r = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        assert abs(float(torch.dot(f, r))) <= 1e-6 * float(f.norm() * r.norm())


def test_one_element_tensors_become_exactly_zero_under_scope_tensor() -> None:
    arena = arena_of([1] * 50)
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    assert project(arena, scope="tensor").norm_fperp == 0.0
    assert not arena.row("forget").any()


def test_vectors_outside_the_arena_give_the_same_bits_as_its_rows() -> None:
    arena = arena_of([1000, 7, 300_000])
    fill(arena, "forget", 0)
    fill(arena, "retain", 1)
    f, r = arena.row("forget").clone(), arena.row("retain").clone()
    one, two = project(arena, forget=f, retain=r, scope="layer"), project(arena, scope="layer")
    assert one == two
    assert torch.equal(f, arena.row("forget"))
    with pytest.raises(ConfigError, match="one vector"):
        project(arena, forget="retain")
    with pytest.raises(ConfigError, match="float64"):
        project(arena, forget=f.double())


def test_a_row_that_lost_its_views_is_never_projected() -> None:
    model = nn.Linear(3, 2)
    arena = GradientArena(model.named_parameters())
    arena.bind("forget")
    model(torch.ones(4, 3)).sum().backward()
    model.zero_grad(set_to_none=True)
    fill(arena, "retain", 1)
    with pytest.raises(InvariantError, match="left the arena"):
        project(arena)
