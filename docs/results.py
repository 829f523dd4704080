"""Markdown tables of the grids under benchmarks/results, for ``generate.py``; a sentence where a grid has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qunlearn.bench import compare, read_grid
from qunlearn.bench import table as tables
from qunlearn.bench.runner import CHOSEN
from qunlearn.bench.scene import ORIGINAL, RETRAINED, ROWS
from qunlearn.bench.store import Store
from qunlearn.report.grid import setting
from qunlearn.unlearn import METHODS

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
GRIDS = tuple(sorted(p.stem for p in (BENCHMARKS / "grids").glob("*.toml")))
SUBJECT = "oeu"
SWITCHED = {"digits": "as the sources do", "digits_stop": "stop rule", "digits_frozen": "frozen statistics"}
"""Grids of one small task that differ in what holds for all methods; they have a table of their own."""
SIDES = ("value", "best_value", "original", "floor")
Part = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are ready-made text."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def done(name: str) -> bool:
    """Whether a grid has committed results."""
    return (RESULTS / name / CHOSEN).exists()


def of_methods() -> list[str]:
    """The grids with results that compare all methods, the keyword spotter first; not those of SWITCHED."""
    able = [n for n in GRIDS if n not in SWITCHED and done(n)]
    found = [n for n in able if set(read_grid(BENCHMARKS / "grids" / f"{n}.toml").methods) == set(METHODS)]
    return sorted(found, key=lambda n: (n != "kws", n))


def unfinished(value: Mapping[str, Any]) -> str:
    """A sentence on the cells that a grid still lacks; empty where it lacks none."""
    g, lacking, of = value["grid"], 0, 0
    rows = len(g["methods"]) + len(g.get("variants", ())) + len(ROWS)
    for part in value["sections"]:
        every = rows * len(part["requests"]) * len(g["seeds"])
        lacking += every - sum(r["cells"] for r in part["rows"])
        of += every
    return f"\nNot finished: {lacking} of {of} cells are still to be run.\n" if lacking else ""


def where_run(make: Callable[[str], str], name: str) -> str:
    """What ``make`` says of a grid, or that there is nothing to say it of."""
    return make(name) if done(name) else f"Not run yet: `python benchmarks/bench_methods.py {name}`.\n"


def grid(name: str) -> str:
    """The tables of a grid's committed cells, one per network, bit width and kind of request."""
    value = tables.tables(RESULTS / name)
    return tables.text(value) + unfinished(value)


def beside(name: str) -> str:
    """Entropies, divergences, rounding and dead channels beside the headline."""
    return _by_part(name, lambda part, cells: tables.details(part["beside"]) + "\n")


def _by_part(name: str, make: Callable[[Part, list[Any]], str]) -> str:
    value, cells = tables.tables(RESULTS / name), tables.sections(tables.load(RESULTS / name)["cells"])
    texts = []
    for part in value["sections"]:
        made = make(part, cells[part["model"], part["bits"], part["kind"]])
        texts.append(f"### {value['grid']['data']}: {part['model']}, {part['bits']}, {part['kind']}\n\n{made}")
    return "\n".join(texts) + unfinished(value)


def _number(value: float | None, scale: int) -> str:
    return "-" if value is None else f"{scale * value:.{1 if scale == 100 else 2}f}"


def standing(name: str) -> str:
    """Measure by measure: OEU, its place, the best other method, nothing done, two retrained networks."""

    def make(part: Part, cells: list[Any]) -> str:
        rows = []
        for r in compare.standing(cells, SUBJECT):
            mine, best, nothing, floor = (_number(r[k], r["scale"]) for k in SIDES)
            place = f"{r['place']} of {r['of']}"
            other = f"{r['best']}, {best}" if r["best"] else "-"
            rows.append([r["measure"], f"**{mine}**" if r["place"] == 1 else mine, place, other, nothing, floor])
        return table(("less is better", SUBJECT, "place", "best other", "nothing done", "second retrained"), rows)

    return _by_part(name, make)


def requests(name: str) -> str:
    """Request by request: OEU's gap, the best other method's, which is nearer."""

    def make(part: Part, cells: list[Any]) -> str:
        rows = []
        for r in compare.by_request(cells, SUBJECT):
            ahead = r["best_value"] - r["value"]
            mine, best, nothing, floor = (_number(r[k], 100) for k in SIDES)
            rows.append([r["request"], mine, f"{r['best']}, {best}", f"{100 * ahead:+.1f}", nothing, floor])
        head = ("request", f"{SUBJECT}, Avg Gap", "best other", "ahead by", "nothing done", "second retrained")
        return table(head, rows)

    return _by_part(name, make)


def differs(variant: Mapping[str, Any]) -> str:
    """In which settings a variant differs from its method."""
    more = [f"`{k}={setting(v)}`" for k, v in variant.get("settings", {}).items()]
    more += [f"its own range of `{k}`" for k in variant.get("search", {})]
    return ", ".join(more)


def parts(name: str) -> str:
    """What every variant of a grid changes against its first method."""
    g = read_grid(BENCHMARKS / "grids" / f"{name}.toml")

    def make(part: Part, cells: list[Any]) -> str:
        rows = []
        for r in compare.parts(cells, g.methods[0], tuple(g.variants)):
            what = "" if r["name"] not in g.variants else differs(g.variants[r["name"]])
            if not r["cells"]:
                rows.append([r["name"], what, *["-"] * 8, f"0 ({r['failed']} failed)"])
                continue
            against = f"{100 * r['ahead']:+.1f} +- {100 * r['spread']:.1f}, {r['nearer']} of {r['cells']}"
            rows.append([
                r["name"], what, _number(r["gap"], 100), against if what else "",
                *(_number(r[k], 100) for k in ("forget_accuracy", "test_accuracy")), _number(r["cka_off"], 1),
                _number(r["codes_changed"], 100), _number(r["passes"], 1), str(r["unuseful"]),
                str(r["cells"]) + (f" ({r['failed']} failed)" if r["failed"] else ""),
            ])  # fmt: skip
        ahead = f"{g.methods[0]} nearer by, in cells"
        head = (
            "variant",
            "settings",
            "Avg Gap",
            ahead,
            "FA",
            "TA",
            "CKA off by",
            "codes changed",
            "passes",
            "fail utility",
            "cells",
        )
        return table(head, rows)

    return _by_part(name, make)


def tuning(name: str) -> str:
    """What the tuning tried, what it cost, and what it chose."""
    value = tables.load(RESULTS / name)
    rows = []
    for c in value["chosen"]:
        note = "none within the cost" if c["failed"] == c["tried"] else "" if c["gate"] else "utility lost"
        rows.append([
            c["method"], f"{c['model']}, {c['bits']}, {c['kind']}", str(c["tried"]), str(c["failed"]),
            f"{c['seconds'] / 60:.1f}", _number(c["score"], 100), note, _settings(c["config"], value["grid"]),
        ])  # fmt: skip
    head = ("method", "for", "configurations", "failed", "minutes, all", "tuning gap", "", "chosen")
    return table(head, rows)


def gate(name: str) -> str:
    """Where the utility gate decided the tuning: the nearest configuration that kept utility, and that lost it."""
    cells: dict[tuple[str, str, str], list[Any]] = tables.sections(c for c in Store(RESULTS / name) if c["tuning"])
    texts = []
    for (model, bits, kind), own in cells.items():
        rows = [
            [r["method"], _number(r["kept"], 100), _number(r["lost"], 100), ", ".join(f"`{x}`" for x in r["reasons"])]
            for r in compare.gated(own)
        ]
        head = ("method", "tuning gap, utility kept", "utility lost", "failed there")
        texts.append(f"### {model}, {bits}, {kind}\n\n{table(head, rows)}")
    return "\n".join(texts)


def _settings(config: Mapping[str, Any], g: Mapping[str, Any]) -> str:
    own = {k: v for k, v in config.items() if k != "stop_rule" and g["shared"].get(k) != v}
    return ", ".join(f"`{k}={setting(v)}`" for k, v in own.items())


def switches() -> str:
    """Every method under each of the settings that hold for all: gap, forget and retain accuracy, remarks."""
    if lacking := [n for n in SWITCHED if not done(n)]:
        return f"Not run yet: `python benchmarks/bench_methods.py {' '.join(lacking)}`.\n"
    found = {n: {r["method"]: r for r in tables.tables(RESULTS / n)["sections"][0]["rows"]} for n in SWITCHED}
    lines = []
    for method in next(iter(found.values())):
        line = [method]
        for rows in found.values():
            r = rows[method]
            figures = (
                [_number(r[k][0], 100) for k in ("gap", "forget_accuracy", "retain_accuracy")] if "gap" in r else []
            )
            name = f"**{figures[0]}**" if r["bold"] else "".join(figures[:1])
            marks = [*r["marks"], *([f"{r['failed']} failed"] if r["failed"] else [])]
            line += [name or "-", *(figures[1:] or ["-", "-"]), ", ".join(marks)]
        lines.append(line)
    head = [f"{what}: Avg Gap | FA | RA | remarks" for what in SWITCHED.values()]
    text = "".join(unfinished(tables.tables(RESULTS / n)) for n in SWITCHED)
    return table(("method", *" | ".join(head).split(" | ")), lines) + text


FARED = ("row", "place", "FA", "RA", "TA", "MIA", "Avg Gap", "CKA", "codes changed", "lost to rounding")
FARED += ("dead channels", "time", "remarks")
LEGEND = """\
Every method with the same budget of configurations, stop rule, cap on cost and seeds; per cent, means over requests and
seeds, read from the int8 files. Place: by Avg Gap to the retrained network. Columns: [bench](docs/bench.md); all rows:
[findings](docs/findings.md).
"""


def _line(row: Part, name: str, place: str) -> list[str]:
    if "gap" not in row:
        return [name, place, *["-"] * (len(FARED) - 3), "all failed"]
    marks = [*row["marks"], *([f"{row['failed']} of {row['cells']} failed"] if row["failed"] else [])]
    values = [_number(row[k][0], 100) for k in (*tables.SHOWN, "gap")]
    values += [_number(row.get("cka"), 1), *(_number(row.get(k), 100) for k in ("codes_changed", "lost_to_rounding"))]
    dead = "-" if "dead" not in row else f"{row['dead']:.1f}"
    return [name, place, *values, dead, f"{100 * row['time_share']:.0f}", ", ".join(marks)]


def fared(method: str) -> str:
    """The rows of one method (or of retraining) in every grid of methods, between nothing done and the target."""
    texts = []
    for value in (tables.tables(RESULTS / n) for n in of_methods()):
        for part in value["sections"]:
            texts.append(_fared(method, value, part))
    return LEGEND + "\n" + "\n".join(texts)


def _fared(method: str, value: Mapping[str, Any], part: Part) -> str:
    found = {r["method"]: r for r in part["rows"]}
    ranked = [r["method"] for r in part["rows"] if r["method"] not in ROWS and "gap" in r]
    names = ROWS if method == RETRAINED else (ORIGINAL, method, RETRAINED)
    place = {m: f"{i} of {len(ranked)}" for i, m in enumerate(ranked, 1)}
    lines = [_line(found[n], f"**{n}**" if n == method else n, place.get(n, "")) for n in names if n in found]
    seeds = f"seeds {', '.join(map(str, part['seeds']))}" if len(part["seeds"]) > 1 else "one seed"
    text = f"{value['grid']['data']}, {part['model']}, {part['bits']}, {part['kind']}, {seeds}"
    for c in value["chosen"]:
        if (c["method"], c["model"], c["bits"], c["kind"]) == (method, part["model"], part["bits"], part["kind"]):
            text += f"; chosen: {_settings(c['config'], value['grid'])}"
    return f"{text}\n\n{table(FARED, lines)}"


def blocks() -> Iterator[tuple[str, Callable[[], str]]]:
    """Name of every table to what makes it."""
    for kind in (grid, beside, standing, requests, parts, tuning, gate):
        for name in GRIDS:
            yield f"{kind.__name__}-{name}", partial(where_run, kind, name)
    yield "switches", switches
    for method in (*METHODS, RETRAINED):
        yield f"fared-{method}", partial(fared, method)
