"""The file runs where only numpy and onnxruntime are installed, with three files of this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn_export import errors, oracle, runtime, writer

PACKAGE = Path(runtime.__file__).parent
CARRIED = ("__init__.py", "errors.py", "runtime.py")
ABSENT = ("onnx", "torch", "brevitas", "sklearn", "qunlearn")
PROGRAM = """
import importlib.util, json, sys
import numpy as np
from qunlearn_export import runtime

found = [n for n in sys.argv[4].split(",") if importlib.util.find_spec(n) is not None]
x = np.load(sys.argv[2])
out = {}
for level in ("off", "all"):
    session = runtime.make_session(sys.argv[1], level=level)
    out[level] = runtime.run(session, x)["logits"]
np.savez(sys.argv[3], **out)
try:
    runtime.run(session, x[:, :, :2])
    refused = ""
except runtime.DataError as err:
    refused = str(err)
facts = {"found": found, "where": runtime.__file__, "loaded": sorted({"onnx", "torch"} & set(sys.modules))}
facts["entries"] = dict(runtime.session_info(sys.argv[1]).entries)
print(json.dumps({**facts, "refused": refused}))
"""


def quiet(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run without what this process has on its paths; a script finds modules in ``cwd`` too."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=kept, timeout=300)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with numpy and onnxruntime, and the files that a device carries; its Python."""
    folder = tmp_path_factory.mktemp("device")
    made = quiet([sys.executable, "-m", "venv", str(folder / "venv")])
    if made.returncode:
        pytest.skip(f"no virtual environment: {made.stderr.strip()[-300:]}")
    python = folder / "venv" / "bin" / "python"
    versions = [f"numpy=={np.__version__}", f"onnxruntime=={runtime.ort.__version__}"]
    done = quiet([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *versions])
    if done.returncode:
        pytest.skip(f"pip cannot install {', '.join(versions)}: {done.stderr.strip()[-300:]}")
    (folder / "qunlearn_export").mkdir()
    for name in CARRIED:
        shutil.copy(PACKAGE / name, folder / "qunlearn_export" / name)
    return python


def test_the_file_runs_without_onnx_and_torch(device: Path, nets: Any, tmp_path: Path) -> None:
    graph = nets.tiny(seed=1)
    file, inputs, outputs = tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "out.npz"
    writer.export(graph, file)
    x = nets.inputs(graph, 40)
    np.save(inputs, x)
    folder = device.parents[2]
    done = quiet([str(device), "-c", PROGRAM, str(file), str(inputs), str(outputs), ",".join(ABSENT)], folder)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["found"] == [], "the environment must not have these"
    assert facts["loaded"] == []
    assert Path(facts["where"]) == folder / "qunlearn_export" / "runtime.py"
    assert facts["entries"] == dict(runtime.session_info(file).entries)
    assert "shape" in facts["refused"]
    with np.load(outputs) as found:
        for level in ("off", "all"):
            here = runtime.run(runtime.make_session(file, level=level), x)["logits"]
            assert np.array_equal(found[level], here), level
        assert len(np.unique(found["all"])) > 2
        assert (
            np.abs(found["all"] - oracle.Oracle(graph).logits(x)).max() <= graph.activations[graph.output].scale * 1.01
        )


def test_errors_on_the_device_are_the_projects_own(device: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    code = (
        "import sys; from qunlearn_export import errors, runtime\n"
        "try:\n    runtime.make_session(sys.argv[1])\n"
        "except errors.QunlearnError as err:\n    print(type(err).__name__, err.exit_code)\n"
    )
    done = quiet([str(device), "-c", code, str(tmp_path / "bad.onnx")], device.parents[2])
    assert done.stdout.split() == ["ArtefactError", str(errors.ArtefactError.exit_code)], done.stderr
