"""R1 to R21 of the artefact rules, each proven under its number; what needs a whole room is pointed to by name.

``PROOFS`` names further tests per requirement. A pointer to a test that is gone fails, and so does a number without
a test here.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_cases
import numpy as np
import onnx
import pytest
import torch

from qunlearn import errors, models, quant
from qunlearn.audit import AUDITS, GLOSSARY
from qunlearn.audit.run import kinds_of
from qunlearn.cli import journey
from qunlearn_export import (
    boards,
    check,
    codegen,
    degenerate,
    keys,
    oracle,
    package,
    parity,
    probe,
    reader,
    runtime,
    verify,
    writer,
)
from qunlearn_export import graph as g
from qunlearn_export import inspect as inspection
from qunlearn_export.parity_c import CColumn

HERE = Path(__file__).parent
PROOFS: dict[int, tuple[str, ...]] = {
    1: (
        "export/test_parity.py::test_one_weight_code_is_found_and_named",
        "export/test_trained.py::test_full_parity_table",
    ),
    2: ("export/test_check.py::test_mutation_is_caught_by_its_check",),
    3: ("export/test_degenerate.py::test_repair_of_dead_channels",),
    4: ("export/test_probe.py::test_control_an_unprepared_session_saturates",),
    5: ("export/test_runtime.py::test_everything_imports_without_torch", "export/test_goldens.py::test_golden_digest"),
    6: (
        "quant/test_state.py::test_all_problems_of_a_config_at_once",
        "test_house.py::test_no_pickle_and_no_torch_load",
    ),
    7: ("export/test_trained.py::test_files_are_hardly_larger_than_their_codes",),
    8: ("cli/test_inspect.py::test_label_and_exit_codes",),
    9: ("export/test_oracle.py::test_oracle_equals_brute_force",),
    10: (
        "firmware/test_emulator.py::test_symbols",
        "firmware/test_matrix.py::test_stack",
        "export/test_codegen.py::test_everything_compiles_without_a_warning",
    ),
    11: ("quant/test_state.py::test_partial_loads_are_refused",),
    12: ("audit/test_contract.py::test_r12_every_metric_has_a_glossary_entry",),
    13: ("audit/test_contract.py::test_r13_collapse_never_passes",),
    14: (
        "audit/test_contract.py::test_r14_same_seed_same_json",
        "audit/test_gates.py::test_r14_two_processes_give_the_same_json",
        "audit/test_run.py::test_same_results_names_both_methods",
        "test_docs.py::test_a_stale_page_and_a_broken_marker_are_found",
    ),
    15: (
        "audit/test_contract.py::test_r15_peak_memory_is_that_of_one_chunk_of_inputs",
        "audit/test_gates.py::test_r15_model_calls_are_bounded",
        "test_house.py::test_help_is_light",
        "kernels/test_backends.py::test_without_triton_the_message_has_the_install_line",
    ),
    16: ("export/test_goldens.py::test_bytes_do_not_depend_on_the_hash_seed",),
    17: (
        "cli/test_bundle.py::test_level_three_finds_a_forged_audit",
        "export/test_manifest.py::test_the_limits_are_in_every_manifest_and_say_what_a_signature_is_not",
    ),
    18: ("kernels/test_backends.py::test_a_named_backend_never_falls_back",),
    19: ("audit/test_contract.py::test_r21_unknown_field_refused_and_r19_all_problems_at_once",),
    20: ("audit/test_contract.py::test_r20_mixed_artefact_kinds_are_refused",),
    21: (
        "audit/test_contract.py::test_r21_every_audit_has_fixtures",
        "audit/test_contract.py::test_r21_both_sides_of_the_verdict_are_reachable",
        "audit/test_contract.py::test_r21_inputs_are_not_modified",
    ),
}


def functions(path: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}


def test_every_requirement_has_its_test_and_every_pointer_its_target() -> None:
    mine = {int(m[1]) for name in functions(Path(__file__)) if (m := re.match(r"test_r(\d\d)_", name))}
    assert mine == set(range(1, 22))
    for number, pointers in PROOFS.items():
        for pointer in pointers:
            file, _, name = pointer.partition("::")
            assert name in functions(HERE / file), f"R{number} points to {pointer}"


@pytest.fixture(scope="module")
def graph() -> g.Graph:
    return probe.probe_graph()


@pytest.fixture(scope="module")
def shipped() -> quant.QuantModel:
    return quant.load_run(journey.ASSETS / "base")[0].eval()


def samples(graph: g.Graph, n: int = 64) -> Any:
    a = graph.activations[graph.input]
    return oracle.dequantize(np.random.default_rng(0).integers(-128, 128, (n, *a.shape)).astype(np.int8), a)


def mutated(graph: g.Graph, tensor: str, edit: Callable[[Any], Any], *, form: str = "qdq") -> bytes:
    model = writer.to_model(graph, form=form)
    t = next(t for t in model.graph.initializer if t.name == tensor)
    kind = {onnx.TensorProto.INT8: np.int8, onnx.TensorProto.FLOAT: np.float32}[t.data_type]
    t.raw_data = edit(np.frombuffer(t.raw_data, kind).copy()).astype(kind).tobytes()
    return bytes(model.SerializeToString())


def off_by_one(v: Any) -> Any:
    return np.concatenate([v[:1] - np.sign(v[:1]), v[1:]])


@pytest.mark.parametrize("form", ["qdq", "qop"])
def test_r01_one_weight_code_fails_the_export_and_names_the_layer(graph: g.Graph, form: str) -> None:
    report = parity.parity(graph, mutated(graph, "conv.weight", off_by_one, form=form), samples(graph))
    assert report.verdict == "fail"
    assert any(r.startswith("layer conv: weight") for r in report.reasons)


def test_r02_bias_scale_one_ulp_is_refused_and_both_levels_are_in_every_table(graph: g.Graph) -> None:
    data = mutated(graph, "conv.bias_scale", lambda v: np.nextafter(v, np.float32(9)))
    assert "S6" in {f.code for f in check.static_check(data)}
    with pytest.raises(errors.VerificationError, match="S6 conv"):
        reader.read(data)
    found = parity.parity(graph, writer.serialize(graph), samples(graph))
    assert {"onnx-off vs oracle", "onnx-all vs onnx-off"} <= {r.pair for r in found.logits}


@pytest.mark.parametrize("scale", [1e-12, 2.0**-24])
def test_r03_pruned_channels_stop_the_export_until_repaired(
    scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "c_column", lambda *_: CColumn(absent="not what is asked here"))
    model = quant.load_run(journey.ASSETS / "base")[0].eval()
    step = [s for s in model.steps if s.kind == "conv"][3]
    with torch.no_grad():
        model.get_submodule(str(step.module)).weight[[1, 4]] = 0
        model.weight_quantizer_of(step).scale[[1, 4]] = scale
    if scale < 1e-9:
        with pytest.raises(errors.VerificationError, match=rf"D1.*{re.escape(step.name)}\[1\]"):
            quant.lower(model)
    else:
        assert "D4" in {f.code for f in degenerate.degenerate(quant.lower(model)) if f.where == step.name}
    fixed = writer.repaired(quant.lower(model, repair_dead=True))
    writer.export(fixed, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(64, *model.in_shape)).astype(np.float32)
    column = quant.TorchColumn(model).run_all(x)[fixed.output].astype(int)
    report = parity.parity(fixed, tmp_path / "m.onnx", x, torch_column=quant.TorchColumn(model))
    assert report.verdict == "pass", report.reasons
    assert np.abs(column - oracle.Oracle(fixed).run(x)).max() <= 1


def test_r04_the_static_rule_and_the_seven_bit_option(graph: g.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = graph.layers[0]
    assert isinstance(conv, g.Conv)
    small = dataclasses.replace(graph, layers=(dataclasses.replace(conv, weight=(conv.weight // 2).astype(np.int8)),))
    monkeypatch.setattr(inspection, "is_x86", lambda: True)
    for flags, expected in ((("avx2",), True), (("avx2", "avx_vnni"), False)):
        monkeypatch.setattr(inspection, "cpu_flags", lambda flags=flags: flags)
        assert inspection.inspect(writer.serialize(graph)).may_saturate is expected
        assert inspection.inspect(writer.serialize(small)).may_saturate is False
    raw = runtime.run(runtime.make_session(writer.serialize(small), raw=True), samples(small))["logits"]
    np.testing.assert_array_equal(raw, oracle.Oracle(small).logits(samples(small)))
    report = parity.parity(graph, writer.serialize(graph), samples(graph)).to_json()
    assert "saturates" in report["host"]
    assert report["runtime"]["cpu"] == list(runtime.cpu_flags())


def test_r05_only_our_operators_are_written_and_no_exporter_of_others_is_called() -> None:
    called = re.compile(r"torch\.onnx|export_onnx|brevitas\.export|torch\.export")
    sources = [p for room in ("qunlearn", "export") for p in (HERE.parent / room).rglob("*.py")]
    assert not [p.name for p in sources if called.search(p.read_text())]
    for form in ("qdq", "qop"):
        model = writer.to_model(probe.probe_graph(), form=form)
        allowed = check.SUBSETS[form]
        assert all(n.op_type in allowed[n.domain] for n in model.graph.node)


def test_r06_a_checkpoint_of_schema_1_loads_and_a_future_one_is_one_line(
    shipped: quant.QuantModel, tmp_path: Path
) -> None:
    config = json.loads((journey.ASSETS / "base" / "config.json").read_text())
    assert config["version"] == 1
    assert len(quant.codes(shipped)) > 20
    (tmp_path / "config.json").write_text(json.dumps({**config, "version": 2}))
    with pytest.raises(errors.ArtefactError, match="version") as caught:
        quant.read_config(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_r07_files_are_small_and_run_in_integer_kernels(shipped: quant.QuantModel, tmp_path: Path) -> None:
    graph = quant.lower(shipped)
    codes = sum(layer.weight.size for layer in graph.weighted())
    for form in ("qdq", "qop"):
        report = writer.export(graph, tmp_path / "m.onnx", form=form)
        found = inspection.inspect(tmp_path / "m.onnx")
        assert report.n_bytes <= 1.3 * codes + 16_384
        assert found.dtypes["int8"] >= codes
        assert found.coverage is not None
        assert found.coverage.integer > 0
        assert re.match(r"\d+ of 10 nodes, \d+ % of MACs, by onnxruntime", found.coverage.render())


def test_r08_a_float_file_is_not_called_int8() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["N", k]) for n, k in (("input", 4), ("logits", 3))]
    nodes = [onnx.helper.make_node("MatMul", ["input", "w"], ["logits"])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]))
    found = inspection.inspect(model.SerializeToString())
    assert (found.label, found.is_int8) == ("float", False)
    assert {"dtypes", "n_bytes", "ops", "opsets", "loads"} <= set(found.to_json())


def test_r09_the_rounding_rule_on_a_million_sums_and_every_half() -> None:
    """Product and rounding in float64 are exact here, so one rounding to float32 is what the rule says."""
    rng = np.random.default_rng(0)
    for m in rng.uniform(1e-5, 0.1, 3).astype(np.float32):
        halves = np.rint((np.arange(-300, 300) + 0.5) / float(m)).astype(np.int64)
        acc = np.concatenate([rng.integers(-(2**20), 2**20, 1_000_000), halves, halves - 1, halves + 1])
        want = np.rint((acc.astype(np.float32).astype(np.float64) * float(m)).astype(np.float32)) + 3
        got = oracle._scaled(acc[:, None], np.array([m]), 3, -128, 127)[:, 0]
        np.testing.assert_array_equal(got, np.clip(want, -128, 127))
    exact = np.array([[1], [3], [5], [-1], [-3], [-5]])
    assert oracle._scaled(exact, np.array([0.5], np.float32), 0, -128, 127)[:, 0].tolist() == [0, 2, 2, 0, -2, -2]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_r10_generated_c_is_freestanding_and_states_its_sizes(graph: g.Graph, tmp_path: Path) -> None:
    found = codegen.site(graph)
    package.fill(tmp_path, codegen.generate(found, codegen.Options(boards=("host",), vectors=4)))
    sources = sorted({*(p.name for p in tmp_path.glob("*.c"))} - {"main.c"})
    assert {"model.c", "weights.c", "selftest.c", "qul_rt.c", "qul_kernels_ref.c"} <= set(sources)
    flags = [*boards.COMMON, *boards.BARE, "-O2", "-I.", "-c"]
    subprocess.run(["cc", *flags, *sources], cwd=tmp_path, check=True)
    rows = subprocess.run(["nm", *(p.name for p in tmp_path.glob("*.o"))], cwd=tmp_path, capture_output=True, text=True)
    symbols = [line.split() for line in rows.stdout.splitlines() if line and not line.endswith(":")]
    defined = {row[2] for row in symbols if len(row) == 3}
    from_outside = {row[1] for row in symbols if len(row) == 2 and row[0] == "U"} - defined
    assert len(defined) > 20
    assert not from_outside - {"_GLOBAL_OFFSET_TABLE_"}
    stacks = [line.split("\t") for p in tmp_path.glob("*.su") for line in p.read_text().splitlines()]
    assert len(stacks) > 10
    assert {kind for _, _, kind in stacks} == {"static"}
    assert f"#define MODEL_ARENA_BYTES {found.arena.size}" in (tmp_path / "model.h").read_text()


def test_r11_a_missing_scale_is_named_and_a_reload_is_bit_equal(shipped: quant.QuantModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = journey.ASSETS / "base"
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(8, *shipped.in_shape)).astype(np.float32))
    again = quant.load_run(source)[0].eval()
    with torch.no_grad():
        assert torch.equal(shipped(x), again(x))
    tensors = load_file(str(source / "model.safetensors"))
    gone = next(n for n in sorted(tensors) if n.endswith(".scale"))
    del tensors[gone]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    from safetensors import safe_open

    with safe_open(str(source / "model.safetensors"), "pt") as f:
        facts = f.metadata()
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata=facts)
    with pytest.raises(errors.ArtefactError, match=re.escape(gone)) as caught:
        quant.load_run(tmp_path)
    assert caught.value.remedy


def test_r12_every_audit_names_a_metric_of_the_glossary() -> None:
    assert {audit.metric for audit in AUDITS.values()} <= set(GLOSSARY)
    assert sum(audit.headline for audit in AUDITS.values()) == 1


def test_r13_every_audit_has_a_utility_floor() -> None:
    assert all(0 < audit().utility_floor <= 0.03 for audit in AUDITS.values())


def test_r14_an_unchanged_network_is_never_called_forgotten(shipped: quant.QuantModel) -> None:
    table = quant.code_changes(shipped, shipped)
    assert table.warnings == ("W-NOTHING-CHANGED",)
    assert quant.codes_digest(shipped) == quant.codes_digest(quant.load_run(journey.ASSETS / "base")[0])


def test_r15_nothing_heavy_is_imported_for_help_or_for_the_device() -> None:
    code = (
        "import sys; from qunlearn_export import runtime; print(sorted({'onnx', 'torch', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_r16_two_exports_are_equal_and_carry_no_trace_of_the_host(graph: g.Graph) -> None:
    import platform
    import time

    for form in ("qdq", "qop"):
        first = writer.serialize(graph, form=form)
        assert first == writer.serialize(probe.probe_graph(), form=form)
        for word in (platform.node(), str(Path.home()), time.strftime("%Y-%m"), str(HERE)):
            assert not word or word == "/" or word.encode() not in first


def test_r17_a_signature_over_a_false_claim_is_valid_and_the_claim_can_be_run_again(graph: g.Graph) -> None:
    """Who signed is level 1; whether it is true is level 3, for which the manifest names command, seed and inputs."""
    world = bundle_cases.make(graph, bundle_cases.unlearned(graph))
    built = world.build()
    trust = {keys.key_digest(bundle_cases.SIGNER.public)[:8]: bundle_cases.SIGNER.public}
    predicate = built.manifest["predicate"]
    again = {row["audit"]: row for row in predicate["rerun"]}
    assert {a["audit"] for a in predicate["audits"]} == set(again) == {"accuracy", "mia"}
    for name, row in again.items():
        assert row["command"].startswith("qunlearn verify")
        assert f"--audit {name}" in row["command"]
        assert {predicate["base"]["onnx"], predicate["target"]["onnx"]} <= set(row["inputs"].values())
    lie = world.build(audit=world.audited("results/onnx-all/0/value", 0.65))
    assert {a["value"] for a in lie.manifest["predicate"]["audits"]} == {0.65, 0.7}
    for data in (built.data, lie.data):
        verify.open_bundle(data, trust)
    assert any("signature over a false claim is still valid" in text for text in predicate["limits"])


def test_r18_what_is_named_runs_or_fails(graph: g.Graph) -> None:
    with pytest.raises(errors.ConfigError, match="artefact kind"):
        kinds_of(["gpu"])
    with pytest.raises(errors.UnsupportedError, match="CUDAExecutionProvider"):
        runtime.make_session(writer.serialize(graph), provider="CUDAExecutionProvider")
    with pytest.raises(errors.ConfigError, match="form"):
        writer.serialize(graph, form="best")
    net = models.build("resnet8@8", in_shape=(1, 8, 8), num_classes=10, seed=0)
    with pytest.raises(errors.QunlearnError, match="w3a3"):
        quant.prepare(net, quant.QuantSpec.parse("w3a3"), torch.zeros(2, 1, 8, 8))


EXITS = {
    "ConfigError": 2,
    "DataError": 2,
    "ArtefactError": 2,
    "VerificationError": 3,
    "InvariantError": 3,
    "UnsupportedError": 5,
    "NotYetError": 5,
    "MissingDependencyError": 5,
    "DivergedError": 6,
}


def test_r19_every_error_has_its_exit_code_and_says_what_to_do() -> None:
    family = {n: c for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.QunlearnError)}
    direct = {n: c.exit_code for n, c in family.items() if c.__mro__[1] is errors.QunlearnError}
    assert direct == EXITS
    for cls in family.values():
        err = cls("It is wrong.", remedy="Do this.")
        assert (str(err), err.message, err.remedy) == ("It is wrong. Do this.", "It is wrong.", "Do this.")
    raised = re.compile(r"raise (\w+Error)\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", re.DOTALL)
    for path in [p for room in ("qunlearn", "export") for p in (HERE.parent / room).rglob("*.py")]:
        for name, body in raised.findall(path.read_text()):
            assert name not in EXITS or "remedy=" in body, f"{path.name}: {name} without a remedy"


def test_r20_a_report_of_another_file_is_refused(graph: g.Graph, shipped: quant.QuantModel) -> None:
    with pytest.raises(errors.VerificationError, match="does not hold this network"):
        parity.parity(graph, writer.serialize(quant.lower(shipped)), samples(graph))


def test_r21_every_audit_declares_what_its_sides_mean() -> None:
    for audit in AUDITS.values():
        assert audit.higher_side in ("under", "over")
        assert audit.direction.strip()
        with pytest.raises(errors.ConfigError, match="speed"):
            audit.from_config({"speed": "1"})
