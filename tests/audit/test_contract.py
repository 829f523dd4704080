"""What every registered audit must do; a new audit without fixtures for pass, under and over fails here."""

from __future__ import annotations

import copy
import dataclasses
import tracemalloc
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from qunlearn.audit import AUDITS, GLOSSARY, Audit, AuditContext, AuditResult, Measurement, register
from qunlearn.audit.codes import REASONS, WARNINGS
from qunlearn.audit.predictor_base import CHUNK
from qunlearn.data.request import Request
from qunlearn.data.splits import make_splits
from qunlearn.errors import ConfigError, InvariantError, UnsupportedError
from qunlearn.hyper import hyper
from qunlearn_export.files import canonical_json

GOOD = (1.0, 7.0, 1.0)
REST = (0.95, 5.0, 1.5)


def _over(world: Any) -> Any:
    return world.model(4, forget=(0.2, 4, 1), retain=GOOD, rest=REST, gone=(0.2, 4, 1))


def _pass(world: Any) -> Any:
    return world.near(world.retrained, 3)


# audit name -> expected side of the verdict -> the model after unlearning
FIXTURES: dict[str, dict[str, Callable[[Any], Any]]] = {
    name: {"pass": _pass, "under": lambda w: w.near(w.original, 5), "over": _over}
    for name in (
        "accuracy",
        "mia",
        "smi",
        "loss",
        "lira",
        "rmia",
        "u_lira",
        "cka",
        "recovery",
        "relearn",
        "quant_recovery",
        "eve",
    )
}


def _noisy(world: Any) -> Any:
    """Like a retrained model, but what the erasure check takes for bystanders is answered anew."""
    after = _pass(world)
    rows = world.eve()["eve_request"].role("bystander").raw()[:, 0, 0, 0].astype(int)
    after.table[rows] = np.roll(after.table[rows], 1, axis=1)
    return after


FIXTURES["eve"]["over"] = _noisy
FIXTURES["smi"]["over"] = lambda w: w.model(4, forget=(0.2, 2, 0.3), retain=GOOD, rest=REST)
SHARES = {"smi", "loss", "lira", "rmia", "u_lira"}
"""Audits that estimate a share of the forget set: of few samples it has a wide interval."""
OWN_RULE = {"smi"}
"""Audits with a rule that needs no reference."""
CALIBRATED = {"eve"}
"""Audits whose yardstick is a calibration in place of the retrained model."""
NAMES = sorted(AUDITS)


def flat(result: AuditResult) -> str:
    return canonical_json(result.without_timings())


def test_r21_every_audit_has_fixtures() -> None:
    assert sorted(FIXTURES) == NAMES
    assert all(set(f) == {"pass", "under", "over"} for f in FIXTURES.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["pass", "under", "over"])
def test_r21_both_sides_of_the_verdict_are_reachable(name: str, side: str, world: Any, roomy: Any) -> None:
    world = roomy if name in SHARES else world
    after = FIXTURES[name][side](world)
    result = AUDITS[name]()(world.context(world.original, after, world.retrained))
    expected = ("pass", "none") if side == "pass" else ("fail", side)
    assert (result.verdict, result.failure_side) == expected


@pytest.mark.parametrize("name", NAMES)
def test_controls_constant_original_retrained(name: str, world: Any, lab: Any, roomy: Any) -> None:
    world = roomy if name in SHARES else world
    audit, original, retrained = AUDITS[name](), world.original, world.retrained
    constant = lab.TableModel(np.zeros_like(original.table))
    assert audit(world.context(original, constant, retrained)).failure_side == audit.utility_side
    same = audit(world.context(original, original, retrained))
    assert same.verdict == "inconclusive"
    assert {"W-SAME-BYTES", "W-SAME-LOGITS"} <= set(same.warnings)
    baseline = audit(world.context(original, original, retrained, subject="baseline"))
    assert (baseline.verdict, baseline.failure_side) == ("fail", "under")
    assert audit(world.context(original, retrained, retrained)).verdict == "pass"
    assert audit(world.context(original, world.near(retrained, 8), retrained)).verdict == "pass"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("collapse", ["constant", "one class", "head permuted", "noise", "nan"])
def test_r13_collapse_never_passes(name: str, collapse: str, world: Any, lab: Any) -> None:
    z = world.retrained.table.copy()
    if collapse == "constant":
        z[:] = 1.0
    elif collapse == "one class":
        z[:, 2] += 50
    elif collapse == "head permuted":
        z = np.roll(z, 1, axis=1)
    elif collapse == "noise":
        z += np.random.default_rng(0).normal(0, 4.0, z.shape)
    else:
        z[world.splits.forget.index[0], 0] = np.nan
    result = AUDITS[name]()(world.context(world.original, lab.TableModel(z), world.retrained))
    assert (result.verdict, result.failure_side) == ("fail", "over" if name == "eve" else "utility")
    nothing = collapse == "nan" or (name in ("smi", "loss") and collapse == "constant")  # equal values rank nothing
    assert (result.value is None) == nothing


@pytest.mark.parametrize("name", [n for n in NAMES if n not in CALIBRATED])
def test_no_audit_passes_without_a_reference_unless_it_says_so(name: str, world: Any) -> None:
    result = AUDITS[name]()(world.context(world.original, _pass(world), None))
    assert result.verdict != "pass"
    assert name in OWN_RULE or (result.verdict == "inconclusive" and "I-NO-REFERENCE" in result.reasons)
    assert result.to_json()["reference"] == {"kind": "none", "value": None, "interval": None, "digest": None}


def test_an_undeclared_absence_of_the_reference_is_refused(world: Any) -> None:
    with pytest.raises(ConfigError, match="not declared"):
        world.context(world.original, world.retrained, None, reference_kind="retrained")
    with pytest.raises(ConfigError, match="although"):
        world.context(world.original, world.retrained, world.retrained, reference_kind="none")


@pytest.mark.parametrize("name", NAMES)
def test_r14_same_seed_same_json(name: str, world: Any) -> None:
    texts = []
    for _ in range(2):
        result = AUDITS[name]()(world.context(world.original, _pass(world), world.retrained, seed=7))
        texts.append(flat(result))
        assert canonical_json(AuditResult.from_json(result.to_json()).to_json()) == canonical_json(result.to_json())
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def wide(lab: Any) -> Any:
    """The same world whose inputs have 16 KiB each, 22 MiB in all; they share their memory until they are read."""
    dataset = lab.make_dataset()
    x = np.broadcast_to(dataset.x, (len(dataset.x), 1, 64, 64))
    dataset = dataclasses.replace(dataset, x=x)
    return lab.World(dataset, make_splits(dataset, Request.parse("group=s0"), seed=0))


@pytest.mark.parametrize("name", NAMES)
def test_r15_peak_memory_is_that_of_one_chunk_of_inputs(name: str, world: Any, wide: Any) -> None:
    """Four copies of a chunk, and 16 MiB for what an audit keeps of all samples (logits, features, kernel rows)."""
    models = (world.original, _pass(world), world.retrained)
    AUDITS[name]()(world.context(*models))  # what is imported on the way does not count
    ctx = wide.context(*models)
    tracemalloc.start()
    try:
        AUDITS[name]()(ctx)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    chunk = CHUNK * 64 * 64 * 4
    assert chunk < peak <= 4.25 * chunk + 2**24


@pytest.mark.parametrize("name", NAMES)
def test_r21_inputs_are_not_modified(name: str, world: Any) -> None:
    models = [world.original, _pass(world), world.retrained]
    tables = [m.table.copy() for m in models]
    x = world.dataset.x.copy()
    AUDITS[name]()(world.context(*models))
    assert all(np.array_equal(m.table, t) for m, t in zip(models, tables, strict=True))
    assert np.array_equal(world.dataset.x, x)


@pytest.mark.parametrize("name", NAMES)
def test_r12_every_metric_has_a_glossary_entry(name: str, world: Any) -> None:
    result = AUDITS[name]()(world.context(world.original, _pass(world), world.retrained))
    seen = {result.metric, *result.tables["metrics"]}
    assert len(seen) > 3
    for metric in seen:
        entry = GLOSSARY[metric]
        assert all(str(getattr(entry, f.name)).strip() for f in dataclasses.fields(entry))
    with pytest.raises(InvariantError, match="glossary"):
        AuditResult.from_json({**result.to_json(), "metric": "no_such_metric"})


@pytest.mark.parametrize("name", NAMES)
def test_fields_document_themselves(name: str) -> None:
    rows = AUDITS[name].describe()
    assert {"tol", "utility_floor"} <= {r["name"] for r in rows}
    assert all(r["doc"] and (r["range"] or isinstance(r["default"], str)) for r in rows)


@pytest.mark.parametrize("name", NAMES)
def test_r21_unknown_field_refused_and_r19_all_problems_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match=r"'tolerance'.*Known: tol"):
        AUDITS[name].from_config({"tolerance": 1})
    with pytest.raises(ConfigError, match=r"tol -1 is outside.*utility_floor must be a number, not 'x'"):
        AUDITS[name](tol=-1.0, utility_floor="x")  # type: ignore[arg-type]


def test_config_text_is_parsed_by_the_type_of_the_default() -> None:
    audit = AUDITS["mia"].from_config({"tol": ".05", "refits": "7", "nonmembers": "test"})
    assert (audit.tol, audit.refits, audit.nonmembers) == (0.05, 7, "test")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="refits"):
        AUDITS["mia"].from_config({"refits": "many"})
    with pytest.raises(ConfigError, match="tol = nan"):
        AUDITS["mia"].from_config({"tol": "nan"})
    with pytest.raises(ConfigError, match="nonmembers"):
        AUDITS["mia"].from_config({"nonmembers": "retain"})


def test_r20_mixed_artefact_kinds_are_refused(world: Any) -> None:
    with pytest.raises(ConfigError, match="onnx-all, torch-fq"):
        world.context(world.original, world.retrained.as_kind("onnx-all"), world.retrained)
    with pytest.raises(ConfigError, match="mixed"):
        world.context(world.original, world.retrained, world.retrained.as_kind("oracle"))


def test_mixed_settings_are_refused(world: Any, lab: Any) -> None:
    class Other(lab.TableModel):  # type: ignore[misc]
        @property
        def meta(self) -> Any:
            return {**super().meta, "threads": 2}

    other = Other(world.retrained.table)
    with pytest.raises(ConfigError, match="different settings"):
        world.context(world.original, world.retrained, other)
    with pytest.raises(ConfigError, match="different settings"):
        world.context(world.original, other, None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("code", ["LOST-TO-ROUNDING", "NOTHING-CHANGED"])
def test_an_update_lost_to_rounding_cannot_pass(name: str, code: str, world: Any, roomy: Any) -> None:
    world = roomy if name in SHARES else world

    class Change:
        def __init__(self, *warnings: str) -> None:
            self.warnings = list(warnings)

        def to_json(self) -> Any:
            return {"warnings": self.warnings}

    models = (world.original, _pass(world), world.retrained)
    assert AUDITS[name]()(world.context(*models, change=Change("W-OTHER"))).verdict == "pass"
    result = AUDITS[name]()(world.context(*models, change=Change(f"W-{code}")))
    assert (result.verdict, result.reasons) == ("inconclusive", (f"I-{code}",))
    worse = world.context(world.original, FIXTURES[name]["under"](world), world.retrained, change=Change(f"W-{code}"))
    assert AUDITS[name]()(worse).verdict == "fail"


def test_context_names_every_problem_at_once(world: Any) -> None:
    with pytest.raises(ConfigError, match=r"mixed.*subject.*seed"):
        world.context(world.original, world.retrained.as_kind("oracle"), world.retrained, subject="x", seed=-1)


@pytest.mark.parametrize("name", NAMES)
def test_other_tasks_are_refused(name: str, world: Any, lab: Any) -> None:
    with pytest.raises(UnsupportedError, match="lm"):
        AUDITS[name]()(world.context(world.original, _pass(world), world.retrained, task=lab.FakeTask("lm")))


@pytest.mark.parametrize(
    ("parity", "verdict", "side", "reason"),
    [
        ("pass", "pass", "none", None),
        ("fail", "fail", "parity", "F-PARITY"),
        ("inconclusive", "inconclusive", "none", "I-PARITY"),
        (None, "inconclusive", "none", "I-PARITY-MISSING"),
    ],
)
def test_parity_gate_on_a_file(
    parity: str | None, verdict: str, side: str, reason: str | None, world: Any, lab: Any
) -> None:
    models = [m.as_kind("onnx-all") for m in (world.original, _pass(world), world.retrained)]
    report = None if parity is None else lab.FakeReport(models[1].digest, parity)
    result = AUDITS["accuracy"]()(world.context(*models, parity=report))
    assert (result.verdict, result.failure_side) == (verdict, side)
    assert result.reasons == (() if reason is None else (reason,))
    assert ("W-NO-PARITY" in result.warnings) == (parity is None)


def test_utility_comes_before_parity(world: Any, lab: Any) -> None:
    constant = lab.TableModel(np.zeros_like(world.original.table), kind="onnx-all")
    report = lab.FakeReport(constant.digest, "fail")
    models = (world.original.as_kind("onnx-all"), constant, world.retrained.as_kind("onnx-all"))
    assert AUDITS["accuracy"]()(world.context(*models, parity=report)).failure_side == "utility"


def test_a_parity_report_of_another_file_is_refused(world: Any, lab: Any) -> None:
    models = [m.as_kind("onnx-all") for m in (world.original, _pass(world), world.retrained)]
    with pytest.raises(ConfigError, match="parity report is of file"):
        world.context(*models, parity=lab.FakeReport(models[0].digest))


def test_same_codes_is_found_when_the_checkpoint_changed(world: Any, lab: Any) -> None:
    z = world.original.table
    moved = lab.TableModel(z + np.float32(1e-5))
    assert moved.codes_digest() == world.original.codes_digest()
    assert moved.digest != world.original.digest
    result = AUDITS["accuracy"]()(world.context(world.original, moved, world.retrained))
    assert (result.verdict, result.reasons) == ("inconclusive", ("I-SAME-CODES",))


def test_utility_floor_is_a_floor_on_each_set(world: Any) -> None:
    before, reference = world.original, world.retrained
    hurt = world.model(2, forget=(0.7, 4, 1.5), retain=(0.96, 7, 1), rest=REST, gone=(0.7, 4, 1.5))
    result = AUDITS["accuracy"]()(world.context(before, hurt, reference))
    assert result.reasons == ("F-UTILITY-RETAIN",)
    assert AUDITS["accuracy"](utility_floor=0.05)(world.context(before, hurt, reference)).verdict == "pass"
    hurt = world.model(2, forget=(0.7, 4, 1.5), retain=GOOD, rest=(0.9, 5, 1.5), gone=(0.7, 4, 1.5))
    assert AUDITS["accuracy"]()(world.context(before, hurt, reference)).reasons == ("F-UTILITY-HELDOUT",)


def test_an_audit_that_changes_a_model_is_caught(world: Any) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Meddler(AUDITS["accuracy"]):  # type: ignore[misc,valid-type]
        """Writes into the model that it reads."""

        def run(self, ctx: AuditContext) -> Measurement:
            ctx.after.table[0, 0] += 1  # type: ignore[attr-defined]
            return super().run(ctx)  # type: ignore[no-any-return]

    with pytest.raises(InvariantError, match="changed the model 'after'"):
        Meddler()(world.context(world.original, copy.deepcopy(_pass(world)), world.retrained))


def test_call_is_final() -> None:
    with pytest.raises(InvariantError, match="__call__"):

        class Rogue(Audit):
            """Judges itself."""

            def __call__(self, ctx: AuditContext) -> AuditResult:  # type: ignore[misc]
                raise RuntimeError


def test_registration_lists_what_is_missing() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bare(Audit):
        """Declares little."""

        name: ClassVar[str] = "bare"
        version: ClassVar[str] = "1"
        metric: ClassVar[str] = "unheard_of"
        direction: ClassVar[str] = "none"
        cannot: ClassVar[str] = "much"
        higher_side: ClassVar[str] = "up"
        extra: int = 3

        def run(self, ctx: AuditContext) -> Measurement:
            raise RuntimeError

    with pytest.raises(ConfigError, match=r"unheard_of.*higher_side 'up'.*'extra'"):
        register(Bare)
    with pytest.raises(ConfigError, match="twice"):
        register(AUDITS["mia"])
    assert "bare" not in AUDITS


def test_codes_have_sentences_and_param_has_ranges() -> None:
    assert all(v.endswith(".") for v in (*REASONS.values(), *WARNINGS.values()))
    field = hyper(1.0, doc="x", low=0.0, low_open=True)
    assert field.metadata["hyper"].range == "> 0"
