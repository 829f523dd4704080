"""Ties: the written table of shares, and its repair (acceptance 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qunlearn_export import graph as g
from qunlearn_export import oracle, ties


def add_graph(nets: Any, a: float, b: float, out: float, zeros: tuple[int, int, int] = (0, 0, 0)) -> g.Graph:
    one = {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 0, 0, 0)}
    left = (g.AveragePool(name="a", inputs=("input",), output="a.out", **one), a, zeros[0])
    right = (g.AveragePool(name="b", inputs=("input",), output="b.out", **one), b, zeros[1])
    total = (g.Add(name="add", inputs=("a.out", "b.out"), output="add.out"), out, zeros[2])
    return nets.graph(nets.act("input", (1, 2, 2), 0.02, 0), left, right, total)


def average_graph(nets: Any, size: int, kernel: int | None, s_x: float, s_y: float) -> g.Graph:
    common = {"name": "avg", "inputs": ("input",), "output": "avg.out"}
    window = {"kernel": (kernel, kernel), "strides": (kernel, kernel), "pads": (0, 0, 0, 0)}
    layer = g.GlobalAveragePool(**common) if kernel is None else g.AveragePool(**common, **window)
    return nets.graph(nets.act("input", (1, size, size), s_x, 0), (layer, s_y, 0))


def share(graph: g.Graph) -> float:
    return ties.tie_share(graph.layers[-1], graph)


def test_add_of_ratio_one_half(nets: Any) -> None:
    assert share(add_graph(nets, 0.02, 0.02, 0.04)) == pytest.approx(0.101, abs=5e-4)


def test_add_of_powers_of_two_and_the_repair(nets: Any) -> None:
    assert share(add_graph(nets, 2.0**-6, 2.0**-6, 2.0**-5)) == 0
    assert share(add_graph(nets, 0.02, 0.02, 0.04 * 1.0007)) == 0


def test_add_of_random_scales(nets: Any) -> None:
    """Measured once: 0 in 46 of 60, at most 3.1e-5; other draws stay of that order."""
    rng = np.random.default_rng(0)
    found = [share(add_graph(nets, *rng.uniform(0.005, 0.05, 3))) for _ in range(60)]
    assert sum(s == 0 for s in found) >= 40
    assert max(found) < 1e-3


def test_average_two_by_two(nets: Any) -> None:
    """Equal scales: about 2 % of all possible sums, the share of halves that the scale's float32 value decides."""
    assert share(average_graph(nets, 4, 2, 0.02, 0.02)) == pytest.approx(0.021, abs=2e-3)
    assert share(average_graph(nets, 4, 2, 2.0**-6, 2.0**-6)) == 0


def test_average_without_simple_fractions(nets: Any) -> None:
    for s in np.random.default_rng(2).uniform(0.005, 0.05, 10):
        assert share(average_graph(nets, 6, 3, s, s)) == 0
        assert share(average_graph(nets, 7, None, s, s)) == 0
    rng = np.random.default_rng(3)
    assert max(share(average_graph(nets, 4, 2, *rng.uniform(0.005, 0.05, 2))) for _ in range(20)) == 0


def test_the_share_is_what_enumeration_by_hand_gives(nets: Any) -> None:
    graph = add_graph(nets, 0.02, 0.02, 0.04, (3, -7, 11))
    acts = graph.activations
    codes = np.arange(-128, 128, dtype=np.int8)
    a, b = np.repeat(codes, 256), np.tile(codes, 256)
    whole = oracle.add(a, b, acts["a.out"], acts["b.out"], acts["add.out"], -128, 127)
    real = (a.astype(np.float32) - 3) * acts["a.out"].scale + (b.astype(np.float32) + 7) * acts["b.out"].scale
    standard = np.clip(np.rint(real / acts["add.out"].scale) + 11, -128, 127)
    assert share(graph) == pytest.approx((standard != whole).mean())
    assert share(graph) > 0


def test_detie_moves_the_output_scale_until_nothing_ties(nets: Any) -> None:
    graph = add_graph(nets, 0.02, 0.02, 0.04)
    scale = ties.detie_scale(graph.layers[-1], graph)
    assert 1 < float(scale) / float(np.float32(0.04)) <= 1.0007**8 + 1e-6
    assert share(nets.with_scale(graph, "add.out", scale)) == 0
    clean = add_graph(nets, 2.0**-6, 2.0**-6, 2.0**-5)
    assert ties.detie_scale(clean.layers[-1], clean) == np.float32(2.0**-5)


def test_ties_lists_every_enumerated_node(nets: Any) -> None:
    found = ties.ties(nets.tiny())
    assert [(t.layer, t.op) for t in found] == [
        ("add", "Add"),
        ("cat", "Concat"),
        ("avg", "AveragePool"),
        ("gap", "GlobalAveragePool"),
    ]
    assert all(t.share == 0 for t in found)
    assert ties.tie_share(nets.tiny().layers[0], nets.tiny()) == 0


def test_ragged_windows_count_every_size(nets: Any) -> None:
    window = {"kernel": (3, 2), "strides": (2, 2), "pads": (1, 0, 1, 1)}
    layer = g.AveragePool(name="avg", inputs=("input",), output="avg.out", **window)
    assert ties.window_counts(layer, (1, 5, 5)) == [2, 3, 4, 6]
    whole = g.AveragePool(name="avg", inputs=("input",), output="avg.out", count_include_pad=True, **window)
    assert ties.window_counts(whole, (1, 5, 5)) == [6]


def test_sessions_agree_on_add_and_pools_after_detie(nets: Any) -> None:
    from qunlearn_export import extract
    from qunlearn_export.writer import to_model

    graph = nets.tiny()
    codes = oracle.Oracle(graph).run_all(nets.inputs(graph, 64))
    for layer in graph.layers:
        if isinstance(layer, g.Add | g.AveragePool | g.GlobalAveragePool | g.MaxPool):
            settings: list[dict[str, object]] = [{"level": "off"}, {"level": "all"}]
            off, full = extract.run_layer(to_model(graph), graph, layer, codes, settings=settings)
            np.testing.assert_array_equal(off, full)
            np.testing.assert_array_equal(full, codes[layer.output])


def every_pair(graph: g.Graph) -> tuple[list[Any], Any]:
    """All 65,536 pairs of codes through the Add of both sessions, and the oracle's answer."""
    from qunlearn_export import extract
    from qunlearn_export.writer import to_model

    codes = np.arange(-128, 128, dtype=np.int8)
    pairs = {"a.out": np.repeat(codes, 256).reshape(-1, 1, 2, 2), "b.out": np.tile(codes, 256).reshape(-1, 1, 2, 2)}
    settings: list[dict[str, object]] = [{"level": "off"}, {"level": "all"}]
    found = extract.run_layer(to_model(graph), graph, graph.layers[-1], pairs, settings=settings)
    return found, oracle.run_layer(graph, graph.layers[-1], pairs["a.out"], pairs["b.out"])


def test_detie_makes_the_optimised_add_exact_on_every_pair(nets: Any) -> None:
    """Scales from practice are off by chance in a few pairs; the shares of the float reading alone do not show it."""
    rng, hidden = np.random.default_rng(5), 0
    for i in range(12):
        zeros = tuple(int(z) for z in rng.integers(-100, 100, 3))
        scales = rng.uniform(0.005, 0.05, 3)
        scales = np.array([scales[0], scales[0], 2 * scales[0]]) if i % 4 == 0 else scales
        graph = add_graph(nets, *scales, zeros)
        hidden += ties.reading_share(graph.layers[-1], graph) > 0 == share(graph)
        moved = nets.with_scale(graph, "add.out", ties.detie_scale(graph.layers[-1], graph))
        assert ties.reading_share(moved.layers[-1], moved) == 0
        (off, full), want = every_pair(moved)
        np.testing.assert_array_equal(off, want)
        np.testing.assert_array_equal(full, want)
    assert hidden >= 2


def test_the_kernel_reading_is_what_the_runtime_does(nets: Any) -> None:
    """Where the optimised session differs from the rule, the share is not 0: the kernel is not unknown to us."""
    rng = np.random.default_rng(6)
    for _ in range(12):
        graph = add_graph(nets, *rng.uniform(0.005, 0.05, 3), tuple(int(z) for z in rng.integers(-100, 100, 3)))
        (_, full), want = every_pair(graph)
        assert float((full != want).mean()) <= ties.reading_share(graph.layers[-1], graph)
