"""The run over artefacts: overall verdict, gates, disagreement, files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn.audit import AUDITS, Artefact, audit_run, same_results
from qunlearn.audit.run import kinds_of
from qunlearn.errors import ConfigError, VerificationError
from qunlearn_export.files import canonical_json


@dataclass(frozen=True)
class Finding:
    """A degenerate-scale finding."""

    code: str
    where: str
    message: str
    level: str


def artefacts(world: Any, after: Any, kinds: tuple[str, ...] = ("torch-fq", "onnx-all")) -> dict[str, Artefact]:
    return {
        k: Artefact(before=world.original.as_kind(k), after=after.as_kind(k), reference=world.retrained.as_kind(k))
        for k in kinds
    }


@pytest.fixture
def run(world: Any, lab: Any) -> Any:
    def go(found: Any, **kw: Any) -> Any:
        settings = {
            "audits": [AUDITS["accuracy"](), AUDITS["mia"].from_config({"refits": 5})],
            "splits": world.splits,
            "task": lab.FakeTask(),
            "seed": 0,
            **kw,
        }
        settings.setdefault("parity", lab.FakeReport(found["onnx-all"].after.digest))
        return audit_run(found, settings.pop("audits"), **settings)

    return go


def test_pass_over_what_ships(run: Any, world: Any) -> None:
    out = run(artefacts(world, world.near(world.retrained, 3)))
    assert (out.verdict, out.exit_code, out.reasons) == ("pass", 0, ())
    assert out.shipping == ("onnx-all",)
    assert out.not_offered == ()
    assert [r.audit for r in out.results["onnx-all"]] == ["accuracy", "mia"]
    assert out.headline.metric == "forget_accuracy"
    assert out.results["torch-fq"][0].tables["parity"] is None
    assert out.results["onnx-all"][0].tables["parity"]["verdict"] == "pass"
    assert out.digests["artefacts"]["onnx-all"]["after"] == world.near(world.retrained, 3).digest


def test_worst_verdict_wins_and_exit_codes_follow(run: Any, world: Any, lab: Any) -> None:
    under = run(artefacts(world, world.near(world.original, 5)))
    assert (under.verdict, under.exit_code) == ("fail", 3)
    assert "F-UNDER: onnx-all accuracy" in under.reasons
    unsure = run(artefacts(world, world.near(world.retrained, 3)), parity=None)
    assert (unsure.verdict, unsure.exit_code) == ("inconclusive", 4)
    after = world.near(world.retrained, 3)
    broken = run(artefacts(world, after), parity=lab.FakeReport(after.digest, "fail"))
    assert broken.verdict == "fail"
    assert broken.results["torch-fq"][0].verdict == "pass"


def test_disagreement_with_the_trained_model_rules_out_a_pass(run: Any, world: Any) -> None:
    found = artefacts(world, world.near(world.retrained, 3))
    other = world.near(world.original, 5)
    found["torch-fq"] = Artefact(before=world.original, after=other, reference=world.retrained)
    out = run(found)
    assert all(r.verdict == "pass" for r in out.results["onnx-all"])
    assert out.verdict == "inconclusive"
    assert any(w.startswith("W-ARTEFACT-DISAGREES: accuracy is fail on torch-fq") for w in out.warnings)


def test_a_file_alone_is_audited_with_a_warning(run: Any, world: Any) -> None:
    out = run(artefacts(world, world.near(world.retrained, 3), ("onnx-all",)))
    assert out.verdict == "pass"
    assert out.warnings == ("W-TORCH-NOT-RUN",)


def test_nothing_falls_back_in_silence(run: Any, world: Any) -> None:
    found = artefacts(world, world.near(world.retrained, 3))
    with pytest.raises(ConfigError, match="'c-host' was not given"):
        run(found, shipping=("onnx-all", "c-host"))
    assert kinds_of(["torch", "c"]) == ("torch-fq", "c-host")
    assert kinds_of(["torch", "onnx", "onnx-all"]) == ("torch-fq", "onnx-all")
    with pytest.raises(ConfigError, match="unknown artefact kind 'tflite'"):
        kinds_of(["tflite"])
    with pytest.raises(ConfigError, match="'oracle' was not given"):
        run(found, shipping=("oracle",))
    with pytest.raises(ConfigError, match=r"nothing ships.*no audit was named"):
        run(found, shipping=(), audits=[])
    with pytest.raises(ConfigError, match="named twice"):
        run(found, audits=[AUDITS["accuracy"](), AUDITS["accuracy"]()])
    with pytest.raises(ConfigError, match="is of kind 'torch-fq'"):
        run({**found, "onnx-all": found["torch-fq"]})


def test_degenerate_errors_stop_the_run_and_warnings_do_not(run: Any, world: Any) -> None:
    found = artefacts(world, world.near(world.retrained, 3))
    hard = [Finding("D1", "conv1[3]", "bias code leaves int32", "error"), Finding("D6", "fc", "scale is 0", "error")]
    with pytest.raises(VerificationError, match=r"D1 at conv1\[3\].*D6 at fc"):
        run(found, degenerate=hard)
    out = run(found, degenerate=[Finding("D3", "fc", "sum above 2^24", "warning")])
    assert out.verdict == "pass"
    assert out.tables["degenerate"][0]["code"] == "D3"


def test_two_runs_are_equal_but_for_timings_and_content_moves_the_digest(run: Any, world: Any, lab: Any) -> None:
    texts = []
    for _ in range(2):
        out = run(artefacts(world, world.near(world.retrained, 3)))
        texts.append(canonical_json(out.without_timings()))
        assert "timings" not in texts[-1]
    assert texts[0] == texts[1]
    other = lab.make_dataset(per_rest=12)
    assert lab.World(other, None).dataset.digest() != world.dataset.digest()


def test_files_and_table(run: Any, world: Any, tmp_path: Path) -> None:
    out = run(artefacts(world, world.near(world.retrained, 3)))
    json_file, text_file = out.write(tmp_path)
    assert json.loads(json_file.read_text()) == json.loads(canonical_json(out.to_json()))
    text = text_file.read_text()
    assert "verdict: PASS" in text
    assert "not offered" not in text
    assert "torch-fq (for comparison)" in text
    share = f"{100 * float(np.float64(out.headline.value)):.1f}"
    assert f"{share} [" in text
    failing = run(artefacts(world, world.near(world.original, 5))).table()
    assert "F-UNDER: The whole interval" in failing
    assert "(onnx-all accuracy)" in failing


def test_same_results_names_both_methods() -> None:
    tables = {"ft": {"a": 1.0}, "ga": {"a": 2.0}, "rl": {"a": 1.0}}
    assert same_results(tables) == ("W-SAME-RESULT: ft and rl",)
    assert same_results({"ft": {"a": 1.0}, "rl": {"a": 1.0 + 1e-12}}) == ()
