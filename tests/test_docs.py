"""The documentation: generated tables up to date, a page for everything registered, links and commands that exist."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from scripts import generator

from qunlearn.audit import AUDITS
from qunlearn.cli import COMMANDS
from qunlearn.unlearn import METHODS, hypers

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.M)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_generated_tables_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    code = generator().main(["--check"])
    assert code == 0, capsys.readouterr()


def test_a_stale_page_and_a_broken_marker_are_found(tmp_path: Path) -> None:
    g = generator()
    page = tmp_path / "docs" / "x.md"
    page.parent.mkdir()
    page.write_text("a\n<!-- generated:methods:begin -->\nold\n<!-- generated:methods:end -->\nb\n")
    new = g.filled(page, tmp_path)
    assert "old" not in new
    assert "[`oeu`](oeu.md)" in new
    page.write_text(new)
    assert g.filled(page, tmp_path) == new
    for text in ("<!-- generated:nothing:begin -->\n", "<!-- generated:methods:begin -->\n"):
        page.write_text(text)
        with pytest.raises(ValueError, match=r"x\.md"):
            g.filled(page, tmp_path)


@pytest.mark.parametrize("kind", ["method", "audit"])
def test_everything_registered_has_a_page(kind: str) -> None:
    g = generator()
    registry = METHODS if kind == "method" else AUDITS
    index = (ROOT / "docs" / "index.md").read_text()
    for name, cls in registry.items():
        page = ROOT / "docs" / g.page_of(cls)
        assert page.exists(), name
        assert f"<!-- generated:{kind}-{name}:begin -->" in page.read_text(), name
        assert f"]({page.name})" in index, name


def test_an_audit_page_names_the_networks_that_the_audit_did_not_tell_apart() -> None:
    g = generator()
    rows = json.loads((ROOT / "benchmarks" / "results" / "audits.json").read_text())
    audits = dict.fromkeys(r["audit"] for r in rows)
    assert set(audits) == set(AUDITS)
    for name in AUDITS:
        page = ROOT / "docs" / g.page_of(AUDITS[name])
        assert f"<!-- generated:apart-{name}:begin -->" in page.read_text(), name
    for name in AUDITS:
        assert any(g.apart_groups(rows, name).values()), f"{name} tells all apart: its page must not say otherwise"


def test_networks_are_grouped_by_their_verdicts_in_all_seeds() -> None:
    def rows(model: str, *verdicts: str, kind: str = "onnx-all") -> list[dict[str, Any]]:
        common = {"audit": "a", "request": "r", "model": model, "kind": kind}
        return [{**common, "seed": s, "verdict": v} for s, v in enumerate(verdicts)]

    made = rows("one", "pass", "fail") + rows("two", "fail", "pass") + rows("three", "pass", "fail")[::-1]
    made += rows("two", "pass", "fail", kind="c-host") + rows("four", "pass", "pass")
    made += [{**made[0], "audit": "b"}]
    groups = generator().apart_groups
    assert groups(made, "a") == {"r": [(["one", "three"], ["pass", "fail"])]}
    assert groups(made, "b") == {"r": []}
    assert groups(made, "c") == {}


def test_a_method_page_has_all_its_parts() -> None:
    """Idea and equation, when to use it, how it fared, defaults."""
    g = generator()
    for name, cls in METHODS.items():
        text = (ROOT / "docs" / g.page_of(cls)).read_text()
        assert text.startswith("# ")
        assert [body for language, body in FENCE.findall(text) if not language], f"{name}: no equation"
        assert re.search(r"^(\*\*When to use it\.\*\*|## When to use something else)", text, re.M), name
        assert "\n## How it fared here\n" in text, name
        assert f"<!-- generated:fared-{name}:begin -->" in text, name
        assert len(cls.source) > 10, name
    assert "<!-- generated:fared-retrained:begin -->" in (ROOT / "docs" / "retrain.md").read_text()


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text())
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in HEADING.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def command_lines(page: Path) -> list[list[str]]:
    out = []
    for language, body in FENCE.findall(page.read_text()):
        if language not in ("sh", ""):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["qunlearn"]:
                out.append(words)
    return out


def problems(words: list[str]) -> list[str]:
    """What is wrong with ``qunlearn COMMAND ...``, judged by the command's own parser; nothing is run."""
    if words[1].startswith("-"):
        return [] if words[1] in ("--help", "-h", "--version") else [f"unknown option {words[1]}"]
    if words[1] not in COMMANDS:
        return [f"unknown command {words[1]}"]
    command: click.Command = importlib.import_module(f"qunlearn.cli.cmd_{words[1]}").command
    rest = list(words[2:])
    if isinstance(command, click.Group) and rest[:1] not in ([], ["--help"], ["-h"]):
        if rest[0] not in command.commands:
            return [f"unknown command {words[1]} {rest[0]}"]
        command = command.commands[rest.pop(0)]
    context = click.Context(command, info_name=words[1], obj=None)
    try:
        values, _, _ = command.make_parser(context).parse_args(rest)
    except click.ClickException as err:
        return [err.format_message()]
    missing = [p.name for p in command.params if p.required and values.get(str(p.name)) in (None, ())]
    out = [f"missing {name}" for name in missing]
    for name, choices in (("method", METHODS), ("name", METHODS if words[1] == "methods" else AUDITS)):
        if isinstance(value := values.get(name), str) and words[1] in ("unlearn", "methods", "audits"):
            out += [] if value in choices else [f"unknown {name} {value}"]
    if words[1] == "unlearn" and values.get("method") in METHODS:
        known = {*hypers(METHODS[values["method"]]), "preset"}
        out += [f"unknown setting {a}" for a in values.get("assignments") or () if a.split("=")[0] not in known]
    return out


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_exist(page: Path) -> None:
    wrong = {" ".join(words): p for words in command_lines(page) if (p := problems(words))}
    assert not wrong


def test_command_lines_are_really_judged() -> None:
    assert len(command_lines(ROOT / "README.md")) >= 10
    assert problems(["qunlearn", "fly"])
    assert problems(["qunlearn", "bundle", "fly"])
    assert problems(["qunlearn", "bundle", "keygen"])
    assert not problems(["qunlearn", "bundle", "keygen", "release", "-o", "keys"])
    assert problems(["qunlearn", "export", "runs/base"])
    assert problems(["qunlearn", "export", "runs/base", "-o", "x.onnx", "--nothing"])
    unlearn = ["qunlearn", "unlearn", "runs/base", "--forget", "class=7", "-o", "x"]
    assert problems([*unlearn, "--method", "nothing"])
    assert problems([*unlearn, "--method", "oeu", "--set", "nothing=1"])
    assert not problems([*unlearn, "--method", "oeu", "--set", "max_steps=20"])
