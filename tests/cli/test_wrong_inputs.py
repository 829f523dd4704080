"""Wrong inputs at the command line: the exit code of the error table, one clear line, no traceback, nothing left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

Case = tuple[str, int, str, Callable[[Path, Path], list[Any]]]


def train(*extra: Any) -> Callable[[Path, Path], list[Any]]:
    return lambda home, tmp: [
        "train",
        *("--model", "resnet8@8", "--data", "digits", "--epochs", "1", "-o", tmp / "out"),
        *(tmp / e[1:] if isinstance(e, str) and e.startswith("@") else e for e in extra),
    ]


def unlearn(
    *extra: Any, forget: str = "class=7", run: str = "base", method: str = "ft"
) -> Callable[[Path, Path], list[Any]]:
    return lambda home, tmp: [
        "unlearn",
        home / run,
        *("--forget", forget.replace("TMP", str(tmp)), "--method", method, "-o", tmp / "out", *extra),
    ]


def broken_run(home: Path, tmp: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(home / "base", tmp / "broken")
    change(tmp / "broken")
    return tmp / "broken"


def truncate(run: Path) -> None:
    data = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(data[: len(data) // 2])


def future(run: Path) -> None:
    value = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**value, "version": 99}))


def no_json(run: Path) -> None:
    (run / "config.json").write_text("{")


def other_bits(run: Path) -> None:
    value = json.loads((run / "config.json").read_text())
    value["model"] = "dscnn@8"
    (run / "config.json").write_text(json.dumps(value))


def on_broken(change: Callable[[Path], None]) -> Callable[[Path, Path], list[Any]]:
    return lambda home, tmp: ["export", broken_run(home, tmp, change), "-o", tmp / "m.onnx"]


def npz(**arrays: Any) -> Callable[[Path, Path], list[Any]]:
    def make(home: Path, tmp: Path) -> list[Any]:
        np.savez(tmp / "data.npz", **arrays)
        return ["train", "--data", tmp / "data.npz", "--model", "resnet8@8", "--epochs", "1", "-o", tmp / "out"]

    return make


def nan_data() -> np.ndarray[Any, Any]:
    x = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    x[3, 0, 0, 0] = np.nan
    return x


def float_onnx(home: Path, tmp: Path) -> list[Any]:
    node = helper.make_node("Relu", ["x"], ["y"])
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1, 8, 8]) for n in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "g", [info[0]], [info[1]]))
    onnx.save(model, str(tmp / "float.onnx"))
    return ["audit", tmp / "float.onnx", "--before", home / "base", "--forget", "class=7", "-o", tmp / "out"]


def garbage_onnx(home: Path, tmp: Path) -> list[Any]:
    (tmp / "bad.onnx").write_bytes(b"\x00garbage" * 50)
    return ["inspect", tmp / "bad.onnx"]


def mutated_onnx(home: Path, tmp: Path) -> list[Any]:
    model = onnx.load(str(home / "model.onnx"))
    t = next(t for t in model.graph.initializer if t.name.endswith(".weight"))
    t.raw_data = bytes([t.raw_data[0] ^ 1]) + t.raw_data[1:]
    onnx.save(model, str(tmp / "changed.onnx"))
    return ["audit", tmp / "changed.onnx", "--before", home / "base", "--forget", "class=7", "-o", tmp / "out"]


def hot_network(home: Path, tmp: Path) -> list[Any]:
    """A user's network whose first logits overflow float32."""
    (tmp / "hot.py").write_text(
        "from torch import nn\n"
        "def net(in_shape, num_classes):\n"
        "    head = nn.Linear(64, num_classes)\n"
        "    nn.init.constant_(head.weight, 1e38)\n"
        "    return nn.Sequential(nn.Flatten(), head)\n"
    )
    return train("--model", "hot:net", "--epochs", "2")(home, tmp)


def file_in_the_way(home: Path, tmp: Path) -> list[Any]:
    (tmp / "out").write_text("")
    return train()(home, tmp)


def full_folder(home: Path, tmp: Path) -> list[Any]:
    (tmp / "out").mkdir()
    (tmp / "out" / "mine.txt").write_text("keep")
    return train()(home, tmp)


def request_file(text: str, name: str = "r.json") -> Callable[[Path, Path], list[Any]]:
    def make(home: Path, tmp: Path) -> list[Any]:
        (tmp / name).write_text(text)
        return ["unlearn", home / "base", "--forget", tmp / name, "--method", "ft", "-o", tmp / "out"]

    return make


CASES: list[Case] = [
    ("unknown data", 2, "data source", train("--data", "mnist9")),
    ("missing npz", 2, "none.npz", train("--data", "@none.npz")),
    ("no parts of cifar10", 2, "cifar10_jpeg", lambda h, t: [*train("--data", "cifar10")(h, t), "--data-dir", t]),
    ("npz without y", 2, "lacks y", npz(x=np.zeros((20, 1, 8, 8), np.uint8))),
    ("npz of wrong shape", 2, "shape", npz(x=np.zeros((20, 8, 8), np.uint8), y=np.zeros(20, np.int64))),
    ("NaN data", 2, "3", npz(x=nan_data(), y=np.arange(40) % 2)),
    ("unknown network", 2, "unknown model", train("--model", "dscn")),
    ("network that cannot be imported", 2, "imported", train("--model", "nowhere:net")),
    ("malformed bits", 2, "malformed", train("--bits", "eight")),
    ("bits not offered", 5, "not offered", train("--bits", "w3a3")),
    ("epochs no number", 2, "--epochs", train("--epochs", "many")),
    ("negative epochs", 2, "--epochs", train("--epochs", "-1")),
    ("unknown weight range", 2, "weight range", train("--weight-range", "6bit")),
    ("unknown grid", 2, "grid", train("--grid", "coarse")),
    ("unknown option", 2, "--bitz", train("--bitz", "w8a8")),
    ("output is a file", 2, "not a folder", file_in_the_way),
    ("output folder holds files", 2, "not empty", full_folder),
    ("unwritable output", 2, "folder", lambda h, t: [*train()(h, t)[:-1], "/proc/qunlearn/out"]),
    ("run missing", 2, "no run directory", unlearn(run="nowhere")),
    ("unknown method", 2, "unknown method", unlearn(method="oeuu")),
    ("unknown hyper-parameter", 2, "speed", unlearn("--set", "speed=3")),
    ("bad number", 2, "lr", unlearn("--set", "lr=fast")),
    ("lr out of range", 2, "lr", unlearn("--set", "lr=-1")),
    ("lr auto unwatched", 2, "stop_rule=true", unlearn("--set", "lr=auto", method="rl")),
    (
        "lr auto, none helps",
        2,
        "no learning rate",
        unlearn("--set", "lr=auto", "--set", "target_accuracy=0.9..1", method="oeu"),
    ),
    ("assignment malformed", 2, "malformed", unlearn("--set", "lr")),
    ("class that does not exist", 2, "exist", unlearn(forget="class=12")),
    ("group of a set without groups", 2, "groups", unlearn(forget="group=theo")),
    ("ids that do not exist", 2, "id_that_is_not", unlearn(forget="ids=id_that_is_not")),
    ("fraction of nothing", 2, "fraction", unlearn(forget="random=0%")),
    ("request missing", 2, "nor a file", unlearn(forget="TMP/none.json")),
    ("empty request", 2, "at least one", request_file('{"ids": []}')),
    ("request no JSON", 2, "JSON", request_file("{")),
    ("request of a future version", 2, "version", request_file('{"version": 9, "class": 7}')),
    ("CSV without header", 2, "header", request_file("3\n4\n", "r.csv")),
    (
        "lr too small to change a code",
        3,
        "no integer code",
        unlearn("--set", "lr=1e-12", "--set", "epochs=1", "--set", "bn=frozen"),
    ),
    ("diverges", 6, "diverged", hot_network),
    ("corrupt checkpoint", 2, "safetensors", on_broken(truncate)),
    ("future checkpoint", 2, "version", on_broken(future)),
    ("config no JSON", 2, "JSON", on_broken(no_json)),
    ("checkpoint of another network", 2, "does not fit", on_broken(other_bits)),
    ("export into no folder", 2, "cannot write", lambda h, t: ["export", h / "base", "-o", t / "no" / "m.onnx"]),
    ("export onto a folder", 2, "folder", lambda h, t: ["export", h / "base", "-o", t]),
    ("unknown form", 2, "--form", lambda h, t: ["export", h / "base", "-o", t / "m.onnx", "--form", "qoperator"]),
    ("inspect garbage", 2, "not", garbage_onnx),
    ("audit a float file", 3, "static check", float_onnx),
    ("audit a changed file", 3, "digest", mutated_onnx),
    ("audit on an unknown kind", 2, "artefact kind", lambda h, t: [*audit(h, t), "--on", "cloud"]),
    ("unknown audit", 2, "unknown audit", lambda h, t: [*audit(h, t), "--audit", "miaa"]),
    ("unknown speaker", 2, "exist", lambda h, t: ["demo", "--group", "nobody", "-o", t / "out"]),
    ("unknown command", 2, "No such command", lambda h, t: ["unlern"]),
]


def audit(home: Path, tmp: Path) -> list[Any]:
    return ["audit", home / "oeu", "--before", home / "base", "--forget", "class=7", "-o", tmp / "out"]


def snapshot(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("name", "code", "word", "make"), CASES, ids=[c[0] for c in CASES])
def test_wrong_input(
    name: str,
    code: int,
    word: str,
    make: Callable[[Path, Path], list[Any]],
    home: Path,
    tmp_path: Path,
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUNLEARN_CACHE", str(tmp_path / "cache"))
    argv = make(home, tmp_path)
    before, runs = snapshot(tmp_path), snapshot(home)
    done = call(*argv)
    assert done.code == code, done.err
    last = done.err.strip().splitlines()[-1]
    assert word in done.err, done.err
    assert last.lower().startswith("error:"), last
    assert "Traceback" not in done.err + done.out
    assert done.out == "", "an error prints nothing on stdout"
    kept = {
        p for p in snapshot(tmp_path) - before if not p.endswith(("last_good.safetensors", "checkpoint.safetensors"))
    }
    assert not kept, "a partial file is left"
    assert snapshot(home) == runs


def test_debug_shows_the_traceback(home: Path, tmp_path: Path) -> None:
    from qunlearn.cli import run
    from qunlearn.errors import QunlearnError

    with pytest.raises(QunlearnError):
        run(["inspect", str(tmp_path / "none.onnx"), "--debug"])


def test_at_least_thirty_cases() -> None:
    assert len({c[0] for c in CASES}) == len(CASES) >= 30
