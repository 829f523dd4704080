"""The HTML report: self-contained, escaped, deterministic, complete with and without its pieces."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import qunlearn.report
from qunlearn.report import ReportData, build, write

VOID = {"meta", "br", "link", "img", "hr", "input", "path", "use", "rect", "line", "circle"}
APART = {"td", "th", "p", "li", "dt", "dd", "span", "h1", "h2"}
EVIL = "<script>alert('x')</script>&\"' onload=\"x\" {{ d }} $\\frac$ _"
EMPTY = dict.fromkeys(("forget", "retain", "heldout", "test", "mia"))


class Page(HTMLParser):
    """Checks that tags are balanced and gathers elements, ids, attributes and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attrs: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attrs += attrs
        if tag in APART:
            self.text.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attrs += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [v for k, v in self.attrs if k == name]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).replace("\u00ad", "").split())


def read(data: ReportData) -> Page:
    return Page(build(data))


def test_parses_with_balanced_tags_and_one_heading(full: ReportData) -> None:
    page = read(full)
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 3


def test_is_self_contained(full: ReportData) -> None:
    html = build(full)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not page.values("src")
    assert all(v.startswith("#") for v in page.values("href"))
    assert not re.findall(r"url\((?!#)|@import", html)
    outside = [v for k, v in page.attrs if k != "xmlns" and re.search(r"https?:|^//", v or "")]
    assert outside == []
    assert len(re.findall(r"https?://", html)) == page.tags.count("svg"), "name spaces only"


def test_ids_are_unique_and_every_reference_has_its_target(full: ReportData) -> None:
    html = build(full)
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = {v[1:] for v in page.values("href")} | set(re.findall(r"url\(#([^)]+)\)", html))
    used |= set(page.values("aria-labelledby")) | set(page.values("aria-describedby"))
    assert used
    assert used <= set(ids)


def test_equal_data_give_equal_bytes(full: ReportData, tmp_path: Path) -> None:
    path = write(full, tmp_path)
    first = path.read_bytes()
    assert path.name == "report.html"
    assert write(full, tmp_path).read_bytes() == first == build(full).encode()
    assert build(replace(full, chosen=3)).encode() != first


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("pass", "PASS: Forgotten, and still useful"),
        ("fail", "FAIL: Not acceptable"),
        ("inconclusive", "INCONCLUSIVE: Cannot be decided"),
    ],
)
def test_verdict_comes_first_in_words(full: ReportData, verdict: str, words: str) -> None:
    html = build(replace(full, verdict=verdict, reasons=("Because of that.",)))
    text = Page(html).words
    assert text.index(words) < text.index("Because of that.") < text.index("Before, after, retrained")
    assert f'<section class="verdict {verdict}"' in html
    others = {"PASS", "FAIL", "INCONCLUSIVE"} - {verdict.upper()}
    assert not [w for w in others if w in text]


def test_the_first_box_says_what_happened_to_the_forget_accuracy(full: ReportData) -> None:
    text = read(full).words
    assert "went from 100.0 % to 75.8 %; a model retrained without them reaches 73.6 %." in text
    assert "Request: forget 1 group. Method: orthogonal entropy unlearning (oeu)." in text


def test_numbers_are_per_cent_with_differences(full: ReportData) -> None:
    text = read(full).words
    row = text[text.index("Forgotten samples accuracy") :]
    assert row.startswith("Forgotten samples accuracy 100.0 75.8 73.6 +2.2")
    row = text[text.index("Taken for unseen by an attack") :]
    assert row.startswith("Taken for unseen by an attack 69.2 69.2 \u2013 \u2013"), "a missing number is a dash"
    assert "500 of 2,000 integer weights (25.0 %)" in text


def test_audits_show_interval_difference_margin_and_the_reason_in_words(full: ReportData) -> None:
    text = read(full).words
    audits = text[text.index("Audits Per cent") :]
    ships = audits.index("int8 file in ONNX Runtime (ships)")
    assert ships < audits.index("training network in PyTorch (for comparison)"), "what ships comes first"
    assert "75.8 72.0\u201379.0 73.6 \u22122.2 \u221211.0 to +6.6 \u00b110.0" in audits
    assert "The interval crosses the margin. I-INTERVAL" in audits
    assert audits.count("how to read mia") == 1


@pytest.mark.parametrize(
    ("side", "words"), [("under", "Not forgotten enough."), ("over", "Forgotten too much."), ("utility", "Lost useful")]
)
def test_a_failure_names_its_side(full: ReportData, side: str, words: str) -> None:
    assert full.audit is not None
    failed = {**full.audit["results"]["onnx-all"][0], "verdict": "fail", "failure_side": side, "reasons": ["F-X"]}
    audit = {"shipping": ["onnx-all"], "results": {"onnx-all": [failed]}}
    text = read(replace(full, verdict="fail", audit=audit)).words
    assert words in text
    assert "F-X" in text, "a code without a sentence is shown as it is"


def test_hostile_text_is_escaped_everywhere(full: ReportData) -> None:
    assert full.changes is not None
    assert full.parity is not None
    assert full.audit is not None
    layer = {**full.changes["layers"][0], "layer": EVIL}
    bad = {**full.audit["results"]["onnx-all"][0], "audit": EVIL, "direction": EVIL, "reasons": [EVIL]}
    column = full.columns["base"]
    data = replace(
        full,
        title=EVIL,
        request=EVIL,
        method=EVIL,
        source=EVIL,
        reasons=(EVIL,),
        warnings=(EVIL,),
        limits=(EVIL,),
        fields={EVIL: EVIL, "band": {EVIL: [EVIL]}},
        environment={EVIL: {EVIL: [EVIL]}},
        digests={EVIL: EVIL},
        seconds={EVIL: 1.0},
        columns={EVIL: column, "unlearned": column, "retrained": column},
        confidences={EVIL: [0.5]},
        changes={**full.changes, "layers": [layer]},
        parity={**full.parity, "reasons": [EVIL], "absent": {EVIL: EVIL}},
        audit={"shipping": [], "results": {EVIL: [bad]}},
    )
    page = read(data)
    assert "script" not in page.tags
    assert not page.values("onload")
    assert page.words.count("<script>alert('x')</script>") >= 20, "shown as text"
    assert "{{ d }}" in page.words, "text is never a template"


def test_every_piece_may_be_missing() -> None:
    bare = ReportData(title="t", verdict="inconclusive", columns={"unlearned": EMPTY})
    page = read(bare)
    assert "Reference: none" in page.words
    assert "svg" not in page.tags
    for heading in (
        "How it forgot",
        "Audits",
        "Is the file the same model",
        "What changed",
        "Warnings",
        "Fingerprints",
    ):
        assert heading not in page.words


PIECES: dict[str, Any] = {
    "reference": None,
    "confidences": {},
    "trajectory": (),
    "band": None,
    "chosen": None,
    "changes": None,
    "parity": None,
    "audit": None,
    "fields": {},
    "seconds": {},
    "environment": {},
    "digests": {},
    "limits": (),
    "method": "",
    "request": "",
}


@pytest.mark.parametrize("name", PIECES)
def test_one_piece_may_be_missing(full: ReportData, name: str) -> None:
    assert "PASS" in read(replace(full, **{name: PIECES[name]})).words


def test_missing_numbers_inside_the_pieces(full: ReportData) -> None:
    assert full.parity is not None
    assert full.changes is not None
    assert full.audit is not None
    first = full.audit["results"]["onnx-all"][0]
    poor = {**first, "value": None, "interval": None, "reference": {"kind": "none", "value": None}, "tables": {}}
    data = replace(
        full,
        columns=dict.fromkeys(full.columns, EMPTY),
        trajectory=[{"step": 1, "a_f": None}, {"step": 2, "a_f": 0.5, "a_r": None}],
        changes={**full.changes, "layers": [{**full.changes["layers"][0], "codes": 0, "codes_changed": 0}]},
        parity={**full.parity, "coverage": {"integer": 0, "total": 0, "macs": None}},
        audit={"shipping": ["onnx-all"], "results": {"onnx-all": [poor]}},
    )
    text = read(data).words
    assert "Accuracy on the forgotten samples went" not in text
    assert "(ships) pass \u2013 \u2013 \u2013 \u2013" in text
    assert "None" not in text
    assert "nan" not in text


def test_light_dark_print_and_phone_are_styled(full: ReportData) -> None:
    html = build(full)
    for rule in (
        "screen and (prefers-color-scheme: dark)",
        "@media print",
        "max-width: 34rem",
        'content="width=device-width',
    ):
        assert rule in html
    assert html.count('role="img"') == 3
    assert html.count("<table") == html.count('class="scroll"') == 4, "a wide table scrolls in its own box"


def test_template_lies_in_the_package() -> None:
    folder = Path(qunlearn.report.__file__).parent / "templates"
    assert sorted(p.name for p in folder.iterdir()) == ["grid.html.j2", qunlearn.report.TEMPLATE, "style.css"]
