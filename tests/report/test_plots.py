"""The inline figures: colours that the page can replace, odd names, missing rows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from qunlearn.report import plots

LAYER = {"codes": 100, "codes_changed": 25}


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()).strip("\u200b ") for e in ET.fromstring(svg).iter() if e.tag.endswith("}text")]


def test_colours_are_variables_of_the_page() -> None:
    svg = plots.histogram({"base": [0.1], "unlearned": [0.9], "retrained": [0.5]})
    for i in range(3):
        assert f"stroke: var(--c{i}, {plots.COLOURS[i]})" in svg
    assert "currentColor" in svg
    bare = [c for c in plots.COLOURS if re.search(rf"(?<!, ){c}", svg)]
    assert bare == []
    assert "#000000" not in svg, "black ink would vanish on a dark page"


def test_size_follows_the_page() -> None:
    root = ET.fromstring(plots.changes([{"layer": "a", **LAYER}]))
    assert "width" not in root.attrib
    assert "height" not in root.attrib
    assert root.attrib["viewBox"].startswith("0 0 ")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("conv", "conv"),
        ("_hidden", "_hidden"),
        ("$\\frac$", "$\\frac$"),
        ("<b>&", "<b>&"),
        ("x" * 40, "\u2026" + "x" * 23),
    ],
)
def test_names_are_plain_text(name: str, shown: str) -> None:
    assert shown in texts(plots.changes([{"layer": name, **LAYER}]))
    assert shown in texts(plots.histogram({name: [0.5]}))


def test_more_models_than_colours() -> None:
    assert texts(plots.histogram({f"m{i}": [i / 10] for i in range(7)})).count("m6") == 1


def test_trajectory_leaves_out_what_it_has_not() -> None:
    both = plots.trajectory([{"step": 1, "a_f": 0.9, "a_r": 1.0, "cos_before": -0.5, "cos_after": 0.0}], (0.6, 0.8), 1)
    assert {"forget", "retain", "target band", "step kept", "before projection"} <= set(texts(both))
    plain = texts(plots.trajectory([{"step": 1, "a_f": 0.9, "a_r": 1.0}]))
    assert "accuracy (%)" in plain
    assert not {"cosine", "target band", "step kept"} & set(plain)
    cosines = texts(plots.trajectory([{"step": 1, "cos_before": -0.5, "cos_after": None}]))
    assert "cosine" in cosines
    assert "accuracy (%)" not in cosines
    assert plots.trajectory([]) == plots.trajectory([{"step": 1, "loss": 0.3}]) == ""
