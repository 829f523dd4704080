"""Fill the generated tables of the documentation: ``python docs/generate.py [--check]``.

They come from the registries and from benchmarks/results. A table stands between ``<!-- generated:NAME:begin -->`` and
``<!-- generated:NAME:end -->`` in README.md, CONTRIBUTING.md or a page under docs/. ``--check`` writes nothing and
exits with 1 when a page is out of date.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from qunlearn import errors
from qunlearn.audit import AUDITS, GLOSSARY, EveConfig
from qunlearn.audit.codes import REASONS, WARNINGS
from qunlearn.bench.recipes import RECIPES
from qunlearn.cli import COMMANDS
from qunlearn.models import MODELS
from qunlearn.quant import Recipe
from qunlearn.report.grid import setting
from qunlearn.unlearn import METHODS, hypers

ROOT = Path(__file__).resolve().parent.parent


def script(path: Path) -> ModuleType:
    """A file of this repository that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = script(Path(__file__).with_name("results.py"))
table = results.table
_BLOCK = re.compile(
    r"(<!-- generated:(?P<name>[^:\s]+):begin -->\n)(?P<text>.*?)(<!-- generated:(?P=name):end -->)", re.S
)
_MARK = re.compile(r"<!-- generated:(?P<name>[^:\s]+):(?:begin|end) -->")


def pages(root: Path = ROOT) -> list[Path]:
    """Every file that may hold generated tables, sorted."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def page_of(cls: type) -> str:
    """The page of a method or audit, which has the name of its module: ``graddiff`` is on ``neggrad_plus.md``."""
    return f"{cls.__module__.rsplit('.', 1)[-1]}.md"


def cell(value: object) -> str:
    """A value as the text of a table cell."""
    text = " ".join(str(value).replace("``", "`").split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def code(value: object) -> str:
    """A value in code font; empty text stays empty."""
    text = setting(value)
    return f"`{text}`" if text else "empty"


def about(item: object) -> str:
    """The first sentence of a docstring, as a cell."""
    return cell((item.__doc__ or "").strip().split("\n\n")[0])


def _parameters(rows: Iterable[tuple[str, object, str, str, str]]) -> str:
    shown = [
        [code(name), code(default), cell(span) or "text", cell(unit) or "-", cell(doc)]
        for name, default, span, unit, doc in rows
    ]
    return table(("name", "default", "values", "unit", "what it is"), shown)


def _method(name: str) -> str:
    cls = METHODS[name]
    text = _parameters((h.name, h.default, h.range, h.unit, h.doc) for h in hypers(cls).values())
    for preset, values in cls.presets.items():
        settings = ", ".join(f"`{k}={v}`" for k, v in values.items())
        text += f"\nPreset `{preset}` (`--set preset={preset}`): {settings}.\n"
    return text


def _audit(name: str) -> str:
    return _parameters((r["name"], r["default"], r["range"], r["unit"], r["doc"]) for r in AUDITS[name].describe())


def _eve_config() -> str:
    return _parameters((h.name, h.default, h.range, h.unit, h.doc) for h in hypers(EveConfig).values())


def _methods() -> str:
    rows = [[f"[`{n}`](docs/{page_of(c)})", about(c), ", ".join(c.tasks)] for n, c in METHODS.items()]
    return table(("method", "what it does", "declares"), rows)


CALIBRATION_KIND = "onnx-all"


def apart_groups(rows: Sequence[Mapping[str, Any]], audit: str) -> dict[str, list[tuple[list[str], list[str]]]]:
    """By request: networks of known truth that got the same verdicts from an audit in all seeds, and these verdicts."""
    out: dict[str, list[tuple[list[str], list[str]]]] = {}
    own = [r for r in rows if r["audit"] == audit and r["kind"] == CALIBRATION_KIND]
    for request in dict.fromkeys(r["request"] for r in own):
        found: dict[tuple[str, ...], list[str]] = {}
        here = [r for r in own if r["request"] == request]
        for model in dict.fromkeys(r["model"] for r in here):
            by_seed = {r["seed"]: r["verdict"] for r in here if r["model"] == model}
            found.setdefault(tuple(by_seed[s] for s in sorted(by_seed)), []).append(model)
        out[request] = [(models, list(verdicts)) for verdicts, models in found.items() if len(models) > 1]
    return out


def _apart(audit: str) -> str:
    """Which networks of known truth an audit did not tell apart, from the rows of ``bench_audits.py``."""
    rows = [r for r in _figures("audits") if r["audit"] == audit]
    if not rows:
        return f"`python benchmarks/bench_audits.py` has no verdicts of `{audit}` yet.\n"
    seeds = len({r["seed"] for r in rows})
    lines = [
        f"Networks of known truth that got the same verdicts from `{audit}` in all {seeds} seeds of "
        "`python benchmarks/bench_audits.py` (int8 file): it did not tell them apart there.\n"
    ]
    for request, groups in apart_groups(rows, audit).items():
        shown = []
        for models, verdicts in groups:
            counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
            shown.append(f"{', '.join(models)} ({counts})")
        lines.append(f"- `{request}`: {'; '.join(shown) or 'none'}")
    return "\n".join(lines) + "\n"


def _audits() -> str:
    rows = [[f"[`{n}`](docs/{page_of(c)})", about(c), code(c.metric)] for n, c in AUDITS.items()]
    return table(("audit", "what it measures", "metric"), rows)


def _glossary() -> str:
    rows = [
        [code(k), cell(e.title), cell(e.formula), cell(e.target), cell(e.reference), e.range, cell(e.interval), e.unit]
        for k, e in GLOSSARY.items()
    ]
    head = ("metric", "title", "formula", "target", "reference", "range", "interval", "unit")
    return table(head, [[cell(c) if i == 5 else c for i, c in enumerate(row)] for row in rows])


def _errors() -> str:
    rows = []
    for name in sorted(errors.__all__, key=lambda n: (getattr(errors, n).exit_code, n)):
        cls = getattr(errors, name)
        rows.append([code(name), about(cls), str(cls.exit_code)])
    return table(("class", "raised for", "exit code"), rows)


def _codes(codes: Mapping[str, str]) -> str:
    return table(("code", "meaning"), [[code(k), cell(v)] for k, v in codes.items()])


def _recipes() -> str:
    rows = []
    for source, settings in RECIPES.items():
        recipe = Recipe(**settings)
        rows.append([code(source), *map(str, (recipe.epochs, recipe.float_epochs, recipe.batch_size, recipe.lr))])
    other = Recipe()
    rows.append(["any other", *map(str, (other.epochs, other.float_epochs, other.batch_size, other.lr))])
    return table(("source", "epochs", "of them float", "batch size", "peak learning rate"), rows)


def _models() -> str:
    return table(("name", "network"), [[code(n), about(item)] for n, item in MODELS.items()])


def _commands() -> str:
    return table(("command", "what it does"), [[code(f"qunlearn {n}"), cell(text)] for n, text in COMMANDS.items()])


def _result(name: str) -> str:
    return (ROOT / "benchmarks" / "results" / f"{name}.md").read_text(encoding="utf-8")


def _codes_changed() -> str:
    """Codes changed, updates lost to rounding and dead channels, over all grids of methods."""
    module = script(ROOT / "benchmarks" / "codes_table.py")
    found: str = module.text(module.sections([results.RESULTS / n for n in results.of_methods()]))
    return found


def _once_run(name: str) -> str:
    """The result of a long script, or that it was not run."""
    path = ROOT / "benchmarks" / "results" / f"{name}.md"
    return _result(name) if path.exists() else f"Not run yet: `python benchmarks/bench_{name}.py`.\n"


def _figures(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def _projection() -> str:
    """One table per number of threads: times, and the two ratios that have bars, bold where a bar is missed."""
    found, forms = _figures("projection"), ("concatenate", "per tensor", "in place", "arena", "steep", "layer")
    bars, text = found["bars"], ""
    for run in found["runs"]:
        rows = []
        for r in run["rows"]:
            large, ratio = r["parameters"] >= bars["large"], f"{r['ratio_papers']:.1f}"
            floors = [r["arena_over_floor"], r["steep_over_floor"]]
            marked = [f"**{v:.2f}**" if v > bars["floors"] else f"{v:.2f}" for v in floors]
            rows.append(
                [
                    *(code(r["network"]), f"{r['parameters']:,}", str(r["tensors"])),
                    *(_milliseconds(r["seconds"][form]) for form in forms),
                    ratio if r["ratio_papers"] >= bars["ratio_papers"] else f"**{ratio}**",
                    f"{r['ratio_papers_at_limit']:.1f}",
                    *(marked if large else ["in the cache"] * 2),
                ]
            )
        head = ("network", "parameters", "tensors", *forms, "papers' / arena", "at the limit")
        threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
        text += f"\n{threads}, {run['clock']}; load of the machine at the start {run['load']:.1f}:\n\n"
        text += table((*head, "arena / floor", "steep / floor"), rows)
    return text.lstrip("\n")


def _subspace() -> str:
    found, forms = _figures("subspace"), ("arena", "basis", "Gram-Schmidt", "QR")
    rows = [[code(r["network"]), *(_milliseconds(r["seconds"][form]) for form in forms)] for r in found["rows"]]
    return table((f"k = {found['k']}", "arena", "of it the basis", "Gram-Schmidt", "QR"), rows)


def _step() -> str:
    rows = []
    for net in _figures("step")["nets"]:
        r = net["ratios"]
        shares = [f"{r[k]:.2f}" for k in ("QAT / float", "QAT / float, channels last", "OEU / one pass")]
        rows.append([code(net["net"]), *shares, f"{100 * r['projection / one pass']:.1f} %"])
    head = (
        "network",
        "QAT step / float step",
        "/ float step, channels last",
        "OEU step / one pass",
        "projection / one pass",
    )
    return table(head, rows)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "methods": _methods,
    "audits": _audits,
    "glossary": _glossary,
    "errors": _errors,
    "reasons": lambda: _codes(REASONS),
    "warnings": lambda: _codes(WARNINGS),
    "recipes": _recipes,
    "models": _models,
    "commands": _commands,
    "result-step": _step,
    "result-forms": partial(_result, "forms"),
    "result-size": partial(_result, "size"),
    "result-delta": partial(_result, "delta"),
    "result-firmware": partial(_result, "firmware"),
    "result-ec": partial(_result, "ec"),
    "result-ec_cnn": partial(_once_run, "ec_cnn"),
    "result-eve": partial(_result, "eve"),
    "eve-config": _eve_config,
    "result-projection": _projection,
    "result-subspace": _subspace,
    "result-demo": partial(_result, "demo"),
    "result-quant_after": partial(_result, "quant_after"),
    "codes": _codes_changed,
    **dict(results.blocks()),
    "result-agreement": partial(_result, "agreement"),
    "result-smi": partial(_result, "smi"),
    "result-smi_cost": partial(_result, "smi_cost"),
    "result-smi_patterns": partial(_result, "smi_patterns"),
    "result-smi_patterns_cost": partial(_result, "smi_patterns_cost"),
    "result-verdicts": partial(_result, "verdicts"),
    "result-device-update": partial(_result, "device_update"),
    **{f"method-{name}": partial(_method, name) for name in METHODS},
    **{f"audit-{name}": partial(_audit, name) for name in AUDITS},
    **{f"apart-{name}": partial(_apart, name) for name in AUDITS},
}
"""Name of a table to the function that makes it."""


def filled(page: Path, root: Path = ROOT) -> str:
    """The text of ``page`` with its tables made anew; ValueError for an unknown or broken marker."""
    text = page.read_text(encoding="utf-8")
    marks = [m["name"] for m in _MARK.finditer(text)]
    blocks = [m["name"] for m in _BLOCK.finditer(text)]
    bad = sorted(set(marks) - set(BLOCKS))
    if bad:
        raise ValueError(f"{page.name}: unknown table {', '.join(bad)}; known: {', '.join(BLOCKS)}")
    if len(marks) != 2 * len(blocks):
        raise ValueError(f"{page.name}: a marker of {', '.join(sorted(set(marks)))} lacks its begin or end")

    def put(match: re.Match[str]) -> str:
        made = BLOCKS[match["name"]]()
        if page.parent != root:
            made = made.replace("](docs/", "](")
        return f"{match[1]}{made}{match[4]}"

    return _BLOCK.sub(put, text)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all pages are (now) up to date, 1 when ``--check`` found one that is not, 2 for a broken marker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is out of date")
    args = parser.parse_args(argv)
    stale = []
    for page in pages():
        try:
            new = filled(page)
        except ValueError as err:
            print(f"error: {err}", file=sys.stderr)
            return 2
        if new != page.read_text(encoding="utf-8"):
            stale.append(page)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{'out of date' if args.check else 'written'}: {page.relative_to(ROOT)}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
