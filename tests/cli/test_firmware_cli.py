"""``qunlearn firmware`` and ``audit --on c`` as a user calls them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qunlearn_export import keys

Call = Callable[..., Any]
FLASH = dict.fromkeys(("blob", "code", "selftest", "update", "total"), "int")
STACK = dict.fromkeys(("static", "measured", "counted"), "int")
RAM = {**dict.fromkeys(("arena", "arena_bound", "data_bss", "total"), "int"), "stack": STACK}
BUILD = dict.fromkeys(("compiler", "flags", "board"), "str")
FIT = {
    **dict.fromkeys(("profile", "verdict"), "str"),
    **dict.fromkeys(("need_flash", "need_ram", "have_flash", "have_ram", "missing_flash", "missing_ram"), "int"),
}
EQUAL = {"inputs": "int", "mismatches": "int"}
REPORT: dict[str, Any] = {
    "format": "str",
    "model": dict.fromkeys(("codes_digest", "layout_digest", "onnx_digest"), "str"),
    "flash": FLASH,
    "ram": RAM,
    "macs": "int",
    "layers": [{"name": "str", "op": "str", "shape": ["int"], "macs": "int", "weights": "int", "insn": "int"}],
    "build": BUILD,
    "parity": {**EQUAL, "compiler": "str"},
    "fits": [FIT],
    "insn_note": "str",
    "bit_exact": "bool",
    "update": "str",
    "boards": {
        "mps2-an386": {
            "flash": FLASH,
            "ram": RAM,
            "build": BUILD,
            "insn": {"layers": ["int"], "total": "int"},
            "parity": EQUAL,
            "fits": [FIT],
        }
    },
}
"""Every field of report.json of one emulated board, with its type; a list has one entry for all of its items."""
needs_c = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def outline(value: Any) -> Any:
    """Names and types of plain data; items of a list must be alike."""
    if isinstance(value, dict):
        return {k: outline(v) for k, v in value.items()}
    if isinstance(value, list):
        kinds = [outline(v) for v in value]
        assert all(kind == kinds[0] for kind in kinds)
        return kinds[:1]
    return type(value).__name__


@needs_c
def test_host_only(call: Call, home: Path, tmp_path: Path) -> None:
    done = call("firmware", home / "model.onnx", "-o", tmp_path / "fw", "--board", "host", "--json")
    assert done.code == 0, done.err
    assert done.json["parity"]["mismatches"] == 0
    assert done.json["boards"] == {}
    assert done.json["folder"] == str(tmp_path / "fw")
    names = {p.name for p in (tmp_path / "fw").iterdir()}
    assert {"model.h", "model.c", "weights.c", "weights.bin", "selftest.c", "Makefile", "CMakeLists.txt"} <= names
    assert {"qul_rt.c", "qul_kernels.h", "report.json", "report.md", "SHA256SUMS", "main.c"} <= names
    again = call("firmware", home / "model.onnx", "-o", tmp_path / "again", "--board", "host")
    assert again.code == 0
    assert "0 mismatches on" in again.out
    sums = [(tmp_path / d / "SHA256SUMS").read_bytes() for d in ("fw", "again")]
    assert sums[0] == sums[1]


@pytest.mark.cross
def test_an_emulated_board(call: Call, home: Path, tmp_path: Path) -> None:
    args = ["--board", "mps2-an386", "--check", "qemu", "--ota", "ab", "--vectors", "5"]
    done = call("firmware", home / "model.onnx", "-o", tmp_path / "fw", *args, "--json")
    assert done.code == 0, done.err
    value = done.json
    board = value["boards"]["mps2-an386"]
    assert board["parity"] == {"inputs": 16, "mismatches": 0}
    assert value["flash"]["update"] > 10_000  # all of it: signature, digest, delta, slots
    assert value["flash"]["total"] == sum(value["flash"][k] for k in ("blob", "code", "selftest", "update"))
    assert board["insn"]["total"] == sum(one["insn"] for one in value["layers"])
    stack = value["ram"]["stack"]
    assert 2000 < stack["static"] <= 4096  # the signature check is in it; the network alone takes at most 1024
    assert 0 < stack["measured"] <= 1024
    assert {f["verdict"] for f in value["fits"]} <= {"FITS", "TIGHT", "TOO BIG"}
    text = (tmp_path / "fw" / "report.md").read_text()
    assert "QEMU instructions, not cycles, not time" in text
    assert outline(json.loads((tmp_path / "fw" / "report.json").read_text())) == REPORT
    # no count of instructions stands beside a unit of time
    assert not [line for line in text.splitlines() if "insn" in line and (" ms" in line or " s " in line)]


def test_update_options(call: Call, home: Path, tmp_path: Path) -> None:
    """The key and the class that the update program gets; without them it says that it accepts nothing."""
    args = ["firmware", home / "model.onnx", "--check", "none", "--board", "mps2-an386"]
    identity = ["--trust", "TEST", "--device-class", "7d8c1a52-95a4-4a3e-8ad1-0e5f6f5f9a10"]
    done = call(*args, "-o", tmp_path / "a", "--ota", "ab", *identity, "--allow-test-key")
    assert done.code == 0, done.err
    text = (tmp_path / "a" / "update_main.c").read_text()
    assert ", ".join(map(str, bytes.fromhex("7d8c1a5295a44a3e8ad10e5f6f5f9a10"))) in text
    assert ", ".join(map(str, keys.test_signer().public)) in text
    assert "accepts no update" not in done.err
    done = call(*args, "-o", tmp_path / "b", "--ota", "inplace")
    assert "without --trust and --device-class the generated update program accepts no update" in done.err
    done = call(*args, "-o", tmp_path / "c", "--ota", "ab", *identity)
    assert done.code == 2
    done = call(*args, "-o", tmp_path / "c", *identity, "--allow-test-key")
    assert (done.code, "Add --ota" in done.err) == (2, True)
    assert not (tmp_path / "c").exists()


def test_tools_asked_for_by_name(call: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    file = home / "model.onnx"
    done = call("firmware", file, "-o", tmp_path / "fw")
    assert (done.code, "apt-get install gcc" in done.err) == (5, True)
    monkeypatch.setenv("CC", shutil.which("true", path="/bin:/usr/bin") or "")
    for more in (["--check", "qemu"], ["--board", "mps2-an386"]):
        done = call("firmware", file, "-o", tmp_path / "fw", *more)
        assert done.code == 5
        assert "gcc-arm-none-eabi" in done.err
    assert not (tmp_path / "fw").exists()
    done = call("firmware", file, "-o", tmp_path / "fw", "--check", "none", "--json")
    assert done.code == 0
    assert done.json["parity"] == "not run"


def test_wrong_use(call: Call, home: Path, tmp_path: Path) -> None:
    file = home / "model.onnx"
    for args, code, what in (
        (["--board", "teapot", "--check", "none"], 2, "'teapot' is none of host"),
        (["--board", "host", "--check", "qemu"], 2, "needs an emulated board"),
        (["--vectors", "3"], 2, "3 is not in the range"),
        (["--ota", "usb"], 2, "usb"),
        (["--profiles", tmp_path / "none.toml", "--board", "host"], 2, "none.toml"),
    ):
        done = call("firmware", file, "-o", tmp_path / "fw", *args)
        assert done.code == code, done.err
        assert what in done.err
    done = call("firmware", tmp_path / "absent.onnx", "-o", tmp_path / "fw", "--board", "host")
    assert done.code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    done = call("firmware", file, "-o", tmp_path / "full", "--board", "host")
    assert (done.code, "not empty" in done.err) == (2, True)
    assert not (tmp_path / "fw").exists()


@needs_c
def test_audit_on_all_three(call: Call, home: Path, tmp_path: Path) -> None:
    """Verdicts side by side; the C answers like the file, or the verdicts would be of something else."""
    args = ["--before", home / "base", "--reference", home / "without", "--forget", "class=7"]
    done = call("audit", home / "oeu", *args, "--on", "torch,onnx,c", "-o", tmp_path / "audit", "--json")
    assert done.code in (0, 3, 4), done.err
    value = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert set(value["results"]) == {"torch-fq", "onnx-all", "c-host"}
    assert value["shipping"] == ["torch-fq", "onnx-all", "c-host"]
    onnx, c = value["results"]["onnx-all"], value["results"]["c-host"]
    for a, b in zip(onnx, c, strict=True):
        assert (a["audit"], a["value"], a["verdict"]) == (b["audit"], b["value"], b["verdict"])
        assert a["artefact"]["codes_digest"] == b["artefact"]["codes_digest"]
    assert "c-host vs oracle" in value["tables"]["parity"]["logits"]
    assert value["tables"]["parity"]["logits"]["c-host vs oracle"]["max_abs"] == 0


@needs_c
def test_audit_takes_c_by_itself(call: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --on the generated C is audited too where there is a compiler; what was chosen is said."""
    args = ["audit", home / "model.onnx", "--before", home / "base", "--forget", "class=7", "--audit", "accuracy"]
    done = call(*args, "-o", tmp_path / "with")
    assert done.code in (0, 3, 4), done.err
    assert "auditing onnx and c; --on chooses" in done.err
    value = json.loads((tmp_path / "with" / "audit.json").read_text())
    assert value["shipping"] == ["onnx-all", "c-host"]
    monkeypatch.setenv("CC", "no-such-compiler")
    again = call(*args, "-o", tmp_path / "without")
    assert again.code == done.code
    assert "auditing onnx, without c: CC names 'no-such-compiler'" in again.err
    assert json.loads((tmp_path / "without" / "audit.json").read_text())["shipping"] == ["onnx-all"]
