"""The three real predictors on one tiny network: same identity, same answers, nothing changed by reading."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qunlearn.audit import AUDITS, Artefact, AuditContext, OnnxPredictor, OraclePredictor, TorchPredictor, audit_run
from qunlearn.audit.layers import chosen
from qunlearn.cli.assess import SUITES
from qunlearn.data.dataset import Dataset, Preprocess
from qunlearn.data.request import Request
from qunlearn.data.splits import Splits, make_splits
from qunlearn.errors import ArtefactError, ConfigError, UnsupportedError
from qunlearn.models import build
from qunlearn.quant import QuantSpec, TorchColumn, code_changes, lower, prepare, state_digest
from qunlearn.quant.detie import detie
from qunlearn.tasks import Classification
from qunlearn_export.degenerate import degenerate
from qunlearn_export.files import canonical_json
from qunlearn_export.parity import parity
from qunlearn_export.writer import serialize

SHAPE = (1, 12, 8)


def blobs() -> Dataset:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 60, (3, *SHAPE))
    n = 360
    y, group = np.arange(n) % 3, np.array([f"g{i // 3 % 4}" for i in range(n)])
    x = np.clip(128 + centres[y] + rng.normal(0, 40, (n, *SHAPE)), 0, 255).astype(np.uint8)
    part = np.array(["train", "train", "heldout", "test"])[np.arange(n) // 12 % 4]
    return Dataset(
        name="blobs", x=x, y=y, ids=np.arange(n), part=part, group=group, class_names=("a", "b", "c"),
        preprocess=Preprocess(mean=(0.5,), std=(0.5,)),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Small:
    """A dataset, its splits, and two quantized networks of different seeds with their files."""

    splits: Splits
    models: tuple[Any, Any]
    files: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def small() -> Small:
    data = blobs()
    splits = make_splits(data, Request.parse("group=g0"), seed=0)
    example = torch.from_numpy(splits.retain.inputs())
    models = tuple(
        prepare(build("dscnn@8", in_shape=SHAPE, num_classes=3, seed=s), QuantSpec(), example).eval() for s in (0, 1)
    )
    for model in models:
        detie(model)
    files = tuple(serialize(lower(m)) for m in models)
    return Small(splits, models, files)  # type: ignore[arg-type]


def test_all_kinds_name_the_same_codes_and_nearly_the_same_answers(small: Small) -> None:
    model, file = small.models[0], small.files[0]
    torch_p, all_p, off_p, oracle_p = (
        TorchPredictor(model), OnnxPredictor(file), OnnxPredictor(file, level="off"), OraclePredictor(file),
    )  # fmt: skip
    assert [p.kind for p in (torch_p, all_p, off_p, oracle_p)] == ["torch-fq", "onnx-all", "onnx-off", "oracle"]
    assert len({p.codes_digest() for p in (torch_p, all_p, off_p, oracle_p)}) == 1
    z = [p.on(small.splits.test) for p in (torch_p, all_p, off_p, oracle_p)]
    assert np.array_equal(z[1], z[3])
    scale = np.diff(np.unique(z[3])).min()
    assert np.abs(z[0] - z[3]).max() <= 2.5 * scale
    assert np.abs(z[2] - z[3]).max() <= 1.5 * scale
    assert len({p.digest for p in (all_p, off_p, oracle_p)}) == 1
    assert "onnxruntime" in all_p.meta["runtime"]
    assert all_p.meta["optimisation_level"] == "all"


def test_reading_changes_neither_state_nor_mode(small: Small) -> None:
    model = small.models[0]
    before = state_digest(model)
    model.train()
    p = TorchPredictor(model)
    first = p.on(small.splits.forget)
    assert model.training
    p.forget_cache()
    assert np.array_equal(p.on(small.splits.forget), first)
    p.features(small.splits.forget.inputs(), ["penultimate"])
    assert model.training
    assert state_digest(model) == p.digest == before
    model.eval()


def test_features_of_the_last_layer(small: Small) -> None:
    p = TorchPredictor(small.models[0])
    x = small.splits.forget.inputs()
    found = p.features(x, ["penultimate", "input"])
    assert found["input"].shape == (len(x), int(np.prod(SHAPE)))
    assert found["penultimate"].shape[0] == len(x)
    assert found["penultimate"].dtype == np.float32
    with pytest.raises(ConfigError, match="no_such_layer"):
        p.features(x, ["no_such_layer"])
    with pytest.raises(UnsupportedError, match="features"):
        OraclePredictor(small.files[0]).features(x, ["penultimate"])


@pytest.mark.parametrize("level", ["all", "off"])
def test_features_of_a_file_are_its_own_internal_tensors(level: str, small: Small) -> None:
    """Within one step of the layer's scale of the network's, and the file's answers stay what they are."""
    x = small.splits.heldout_audit.inputs()
    file, network = OnnxPredictor(small.files[0], level=level), TorchPredictor(small.models[0])
    plain = file.logits(x)
    graph = file.graph
    name = next(layer.name for layer in graph.layers)
    found, want = (p.features(x, ["penultimate", name, "input"]) for p in (file, network))
    outputs = {layer.name: layer.output for layer in graph.layers} | {"input": graph.input}
    outputs["penultimate"] = list(graph.weighted())[-1].inputs[0]
    for key, values in found.items():
        scale = float(graph.activations[outputs[key]].scale)
        assert values.shape == want[key].shape
        assert np.abs(values - want[key]).max() <= 1.001 * scale
        assert np.abs(values / scale - np.rint(values / scale)).max() < 1e-3
        assert np.ptp(values) > 0
    assert np.array_equal(file.logits(x), plain)
    one = file.features_on(small.splits.heldout_audit, "penultimate")
    assert np.array_equal(one, found["penultimate"])
    assert file.features_on(small.splits.heldout_audit, "penultimate") is one
    with pytest.raises(ConfigError, match="no feature named nothing"):
        file.features(x, ["nothing"])


@pytest.mark.parametrize("kind", ["torch", "onnx", "oracle"])
def test_audits_run_on_every_kind(kind: str, small: Small) -> None:
    make: Any = {"torch": TorchPredictor, "onnx": OnnxPredictor, "oracle": OraclePredictor}[kind]
    sources = small.models if kind == "torch" else small.files
    before, after = (make(s) for s in sources)
    ctx = AuditContext(before=before, after=after, reference=after, splits=small.splits, task=Classification(), seed=0)
    for name in SUITES["standard"]:
        result = AUDITS[name]()(ctx)
        assert result.artefact["kind"] == before.kind
        assert result.digests["model_after"] == after.digest != before.digest
        assert result.artefact["codes_digest"] == TorchPredictor(small.models[1]).codes_digest()


def test_features_compared_are_those_of_network_and_file(small: Small) -> None:
    """The same layers by the same rule; CKA of every layer within .01 (EC specification, acceptance 2)."""
    found = []
    for make, sources in ((TorchPredictor, small.models), (OnnxPredictor, small.files)):
        before, after = (make(s) for s in sources)
        assert chosen(before, "")[-1] == "penultimate"
        with pytest.raises(ConfigError, match="no layers named nothing"):
            chosen(before, "nothing")
        ctx = AuditContext(
            before=before, after=after, reference=before, splits=small.splits, task=Classification(), seed=0
        )
        found.append(AUDITS["cka"]()(ctx).tables["layers"])
    assert len(found[0]["forget"]) > 3
    for label, rows in found[0].items():
        assert list(rows) == list(found[1][label])
        for layer, row in rows.items():
            for pair, value in row.items():
                assert found[1][label][layer][pair] == pytest.approx(value, abs=0.01), (label, layer, pair)


def test_unusable_sources_are_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError):
        OnnxPredictor(tmp_path / "missing.onnx")
    with pytest.raises(ArtefactError):
        OraclePredictor(b"not a model")
    with pytest.raises(ConfigError, match="optimisation level"):
        OnnxPredictor(small.files[0], level="basic")
    with pytest.raises(ConfigError, match="onnx-all"):
        TorchPredictor(small.models[0], kind="onnx-all")
    with pytest.raises(UnsupportedError, match="float input"):
        OnnxPredictor(serialize(lower(small.models[0]), io="int8"))
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(SHAPE)), 3))
    with pytest.raises(UnsupportedError, match="no codes"):
        TorchPredictor(plain).codes()
    with pytest.raises(UnsupportedError, match="names its features"):
        TorchPredictor(plain).features(small.splits.forget.inputs(), ["penultimate"])


def test_a_model_for_other_data_is_refused(small: Small) -> None:
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(SHAPE)), 7))
    with pytest.raises(ArtefactError, match="3 classes"):
        TorchPredictor(plain).on(small.splits.forget)


def test_a_whole_run_with_the_real_reports(small: Small) -> None:
    (old, new), (old_file, new_file) = small.models, small.files
    graph = lower(new)
    report = parity(graph, new_file, small.splits.retain.inputs(slice(0, 64)), torch_column=TorchColumn(new))
    out = audit_run(
        {
            "torch-fq": Artefact(before=TorchPredictor(old), after=TorchPredictor(new), reference=TorchPredictor(new)),
            "onnx-all": Artefact(
                before=OnnxPredictor(old_file), after=OnnxPredictor(new_file), reference=OnnxPredictor(new_file)
            ),
        },
        [AUDITS[name]() for name in SUITES["standard"]],
        splits=small.splits,
        task=Classification(),
        seed=0,
        parity=report,
        change=code_changes(old, new),
        degenerate=degenerate(graph),
    )
    assert report.verdict == "pass", report.reasons
    assert all("F-PARITY" not in r.reasons for rs in out.results.values() for r in rs)
    assert out.tables["parity"]["file_digest"] == out.digests["artefacts"]["onnx-all"]["after"]
    assert out.digests["artefacts"]["onnx-all"]["codes"] == out.digests["artefacts"]["torch-fq"]["codes"]
    assert out.tables["change"]["codes_changed"] > 0
    assert canonical_json(out.to_json())
    assert out.table().startswith("verdict: ")
