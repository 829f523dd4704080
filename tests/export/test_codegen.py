"""The generated folder: deterministic, self-testing with every exit code, safe with any names, refused when wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qunlearn_export import codegen, fwbuild, package, reader, selftest, writer
from qunlearn_export import graph as g
from qunlearn_export.cnames import identifier, identifiers
from qunlearn_export.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    MissingDependencyError,
    UnsupportedError,
    VerificationError,
)
from qunlearn_export.hostlib import HostLibrary
from qunlearn_export.layout import pack, plan
from qunlearn_export.oracle import Oracle

HOST = codegen.Options(boards=("host",))
needs_c = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("make") is None, reason="no C compiler or no make"
)


def generated(graph: Any, folder: Path, options: codegen.Options = HOST) -> Path:
    return package.write_folder(folder, codegen.generate(codegen.site(graph), options))


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")}
    return subprocess.run(["make", *args], cwd=folder, capture_output=True, text=True, check=False, env=env)


def selftest_code(folder: Path, **settings: str) -> tuple[int, str]:
    """Build for the host, run, return the program's own exit code."""
    shutil.rmtree(folder / "build", ignore_errors=True)
    built = make(folder, "build/host/selftest", *(f"{k}={v}" for k, v in settings.items()))
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(folder / "build/host/selftest")], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@needs_c
def test_every_code_of_the_self_test_is_seen(nets: Any, tmp_path: Path) -> None:
    graph = nets.tiny()
    good = generated(graph, tmp_path / "good")
    assert selftest_code(good) == (0, "selftest: 8 vectors equal\n")

    weights = (good / "weights.c").read_text()
    found = re.search(r"^    (-?\d+), ", weights, re.M)
    assert found is not None
    spoiled = weights.replace(found[0], f"    {int(found[1]) % 100 - 1}, ", 1)
    assert spoiled != weights
    (good / "weights.c").write_text(spoiled)
    assert selftest_code(good)[0] == 3

    # the same byte with the digest made right: only the outputs can tell
    blob = bytearray(pack(graph, plan(graph)))
    blob[0] = (int(found[1]) % 100 - 1) % 256
    source = (good / "selftest.c").read_text()
    old, new = (_digest_text(b) for b in (pack(graph, plan(graph)), bytes(blob)))
    assert old in source
    (good / "selftest.c").write_text(source.replace(old, new))
    code, text = selftest_code(good)
    assert code == 1
    assert "first node that differs -1" in text
    code, text = selftest_code(good, TAPS="1")
    assert code == 1
    assert "first node that differs 0" in text

    other = generated(nets.with_layer(graph, "avg", count_include_pad=True), tmp_path / "other")
    shutil.copy(other / "weights.c", good / "weights.c")
    assert selftest_code(good)[0] == 2


def _digest_text(blob: bytes) -> str:
    import hashlib

    from qunlearn_export.emit_model import hex_rows

    return hex_rows(hashlib.sha256(blob).digest())


@needs_c
def test_weights_text_is_the_flat_binary(nets: Any, tmp_path: Path) -> None:
    """All four sections, bit for bit, as the compiler reads them."""
    folder = generated(nets.tiny(), tmp_path / "fw")
    main = '#include "model.h"\n#include <stdio.h>\nint main(void) { fwrite(model_static_blob(), 1, '
    (folder / "dump.c").write_text(main + "MODEL_BLOB_BYTES, stdout); return 0; }\n")
    subprocess.run(["cc", "-std=c99", "-o", "dump", "dump.c", "weights.c"], cwd=folder, check=True)
    dumped = subprocess.run([str(folder / "dump")], capture_output=True, check=True).stdout
    assert dumped == (folder / "weights.bin").read_bytes() == pack(nets.tiny(), plan(nets.tiny()))


@needs_c
@pytest.mark.parametrize("ota", ["ab", "inplace"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_everything_compiles_without_a_warning(nets: Any, tmp_path: Path, ota: str, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    graph = nets.tiny()
    samples = Oracle(graph).quantize(nets.inputs(graph, 3))
    options = replace(HOST, ota=ota, vectors=20, samples=samples, name="Two words-é")
    folder = generated(graph, tmp_path / "fw", options)
    done = make(folder, f"CC={compiler}")
    assert done.returncode == 0, done.stderr
    assert "23 vectors equal" in done.stdout
    assert "two_words_run" in (folder / "model.h").read_text()
    table = (folder / "ota.c").read_text()
    for fold in plan(graph).folds:
        assert (
            f"{{{fold.weight}u, {fold.count}u, {fold.channels}u, {fold.inner}u, {fold.bias}u, {fold.zero}u}}" in table
        )


@needs_c
def test_an_arena_of_the_caller(nets: Any, tmp_path: Path) -> None:
    folder = generated(nets.tiny(), tmp_path / "fw")
    (folder / "mine.c").write_text(
        '#include "model.h"\n#include "selftest.h"\n'
        "static int8_t room[MODEL_ARENA_BYTES + 16];\n"
        "int main(void) { int8_t *a = room; while (((uintptr_t)a & 15u) != 0) { a++; }\n"
        "if (model_set_arena(0) != 2 || model_set_arena(a + 1) != 2 || model_set_arena(a) != 0) { return 50; }\n"
        "if (model_bind(0) != 2 || model_bind(a + 4) != 2) { return 51; }\n"
        "return qul_selftest(); }\n"
    )
    sources = [p.name for p in folder.glob("*.c") if p.name != "main.c"]
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-DQUL_EXTERNAL_ARENA"]
    subprocess.run(["cc", *flags, "-o", "mine", *sources], cwd=folder, check=True)
    assert subprocess.run([str(folder / "mine")], check=False).returncode == 0


@needs_c
def test_a_debug_build_spoils_a_forgotten_refill(nets: Any, tmp_path: Path) -> None:
    """Trap 15: the second of two runs without a new input does not look like the first."""
    folder = generated(nets.tiny(), tmp_path / "fw")
    (folder / "twice.c").write_text(
        '#include "model.h"\n#include <string.h>\n'
        "int main(void) { int8_t first[MODEL_OUTPUT_BYTES]; uint32_t i; int8_t *x = model_input();\n"
        "for (i = 0; i < MODEL_INPUT_BYTES; i++) { x[i] = (int8_t)(i * 37u % 251u - 120); }\n"
        "model_run(); memcpy(first, model_output(), sizeof first); model_run();\n"
        "return memcmp(first, model_output(), sizeof first) != 0; }\n"
    )
    sources = [p.name for p in folder.glob("*.c") if p.name != "main.c"]
    subprocess.run(["cc", "-std=c99", "-DQUL_DEBUG", "-o", "twice", *sources], cwd=folder, check=True)
    assert subprocess.run([str(folder / "twice")], check=False).returncode == 1


@needs_c
def test_both_forms_of_the_file_give_one_firmware(nets: Any, tmp_path: Path) -> None:
    graph = nets.tiny()
    made = {}
    for form in ("qdq", "qop"):
        writer.export(graph, tmp_path / f"{form}.onnx", form=form)
        made[form] = codegen.generate(codegen.site(reader.read(tmp_path / f"{form}.onnx")), HOST)
    assert made["qdq"] == made["qop"]


def test_two_processes_give_equal_bytes(
    nets: Any, python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    file = tmp_path / "net.onnx"
    writer.export(nets.tiny(), file)
    code = (
        "import sys, hashlib; from qunlearn_export import codegen, reader\n"
        f"files = codegen.generate(codegen.site(reader.read({str(file)!r})), codegen.Options(ota='ab'))\n"
        "print([(n, hashlib.sha256(b).hexdigest()) for n, b in files.items()])"
    )
    runs = [python(code, PYTHONHASHSEED=seed) for seed in ("0", "1")]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    assert "weights.c" in runs[0].stdout


def test_memory_of_the_text(nets: Any) -> None:
    """The weights as C take five bytes a code; words of its own for every code would take sixty."""
    n = 512
    weight = np.random.default_rng(0).integers(-127, 128, (n, n)).astype(np.int8)
    numbers = {"weight": weight, "weight_scale": np.full(n, 3e-3, np.float32), "bias": np.zeros(n, np.int32)}
    layer = g.Gemm(name="fc", inputs=("input",), output="fc.out", **numbers)
    site = codegen.site(nets.graph(nets.act("input", (n,), 0.02, 3), (layer, 3.0, 0)))
    tracemalloc.start()
    try:
        made = codegen.generate(site, codegen.Options(boards=("host",), vectors=4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4 * n * n < len(made["weights.c"]) < 5.5 * n * n
    assert peak <= 40 * n * n


def test_text_holds_no_decimal_float_no_date_and_no_name(nets: Any) -> None:
    graph = nets.tiny()
    layers = tuple(replace(one, name=f"secret.{one.name}") for one in graph.layers)
    files = codegen.generate(codegen.site(replace(graph, layers=layers)), HOST)
    for name in ("model.c", "model.h", "weights.c", "selftest.c", "main.c"):
        text = files[name].decode()
        assert not re.search(r"\d\.\d+f?\b(?!p)", text.replace("0x1.", "")), name
        assert "secret." not in text
        assert text.isascii()
    assert "secret_conv1" in files["model.c"].decode()
    floats = re.search(r"0x1\.[0-9a-f]+p-\d+f", files["weights.c"].decode())
    assert floats is not None


NASTY = ("*/", "int", "a-b", "a_b", "a/*b", "x" * 60, "#define", '"); system("', "\\", "??/", "%s%n", "main")


def test_identifiers() -> None:
    """Trap 16."""
    made = identifiers((*NASTY, "x" * 300, "ünïcödé", "", "9lives", "QUL_x", "a-b"))
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) for name in made)
    assert made[2:4] == ["a_b", "a_b_2"]
    assert identifier("int") == "m_int"
    assert identifier("") == "m"
    assert identifier("9lives") == "m_9lives"


@needs_c
def test_any_layer_name_compiles_to_the_same_answers(nets: Any, tmp_path: Path) -> None:
    graph = nets.tiny()
    layers = tuple(replace(one, name=n) for one, n in zip(graph.layers, NASTY, strict=False))
    named = replace(graph, layers=(*layers, *graph.layers[len(layers) :]))
    codes = Oracle(graph).quantize(nets.inputs(graph, 10))
    assert np.array_equal(HostLibrary(named).run(codes), HostLibrary(graph).run(codes))
    folder = generated(named, tmp_path / "fw", replace(HOST, name="*/ int main"))
    assert selftest_code(folder)[0] == 0
    for bad in ("x" * 300, "ünïcödé"):
        layers = (replace(graph.layers[0], name=bad), *graph.layers[1:])
        with pytest.raises(VerificationError, match="ASCII"):
            codegen.site(replace(graph, layers=layers))


@needs_c
def test_the_makefile_refuses_flags_that_break_the_firmware(nets: Any, tmp_path: Path) -> None:
    """Traps 1 and 3."""
    folder = generated(nets.tiny(), tmp_path / "fw", codegen.Options())
    for given, what in (
        (["BOARD=mps2-an386", "BARE=-ffreestanding"], "BARE lacks -fno-builtin"),
        (["BOARD=mps2-an386", "COMMON=-std=c99"], "COMMON lacks -ffp-contract=off"),
        (["BOARD=teapot"], "BOARD=teapot is none of mps2-an386"),
    ):
        done = make(folder, *given)
        assert done.returncode != 0
        assert what in done.stderr


def test_wrong_options(nets: Any, tmp_path: Path) -> None:
    site = codegen.site(nets.tiny())
    wrong = codegen.Options(boards=("teapot", "host", "host"), ota="usb", opt="-O3", kernels="fast")
    with pytest.raises(ConfigError, match=r"'teapot'.*--ota 'usb'.*--opt '-O3'.*--kernels 'fast'.*named twice"):
        codegen.generate(site, wrong)
    with pytest.raises(ConfigError, match="no board"):
        codegen.generate(site, codegen.Options(boards=()))
    with pytest.raises(ConfigError, match="3 self-test vectors"):
        codegen.generate(site, codegen.Options(vectors=3))
    with pytest.raises(ConfigError, match="9 self-test samples"):
        codegen.generate(site, codegen.Options(samples=np.zeros((9, 2, 8, 8), np.int8)))
    with pytest.raises(DataError, match="samples of shape"):
        codegen.generate(site, codegen.Options(samples=np.zeros((1, 8, 8, 2), np.int8)))
    with pytest.raises(UnsupportedError, match="more than 1,000"):
        codegen.check_limit(site, 1000)
    codegen.check_limit(site, site.layout.blob_bytes)


def test_corner_vectors_alone(nets: Any) -> None:
    text = codegen.generate(codegen.site(nets.tiny()), replace(HOST, vectors=4))["selftest.c"].decode()
    assert "#define SEEDS 4" in text
    assert "0x00000000u, 0x00000001u, 0x00000002u, 0x00000003u" in text
    assert selftest.CORNERS == (0, 1, 2, 3)


def test_a_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a.c": b"int a;\n", "board/x/b.c": b"int b;\n"}
    out = package.write_folder(tmp_path / "new" / "fw", files)
    done = subprocess.run(["sha256sum", "-c", package.SUMS], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert len((out / package.SUMS).read_text().splitlines()) == 2
    with pytest.raises(ConfigError, match="not empty"):
        package.write_folder(out, files)
    with pytest.raises(ConfigError, match="not a folder"):
        package.write_folder(out / "a.c", files)
    (tmp_path / "empty").mkdir()
    assert package.write_folder(tmp_path / "empty", files).is_dir()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ConfigError, match="No space left"):
        package.write_folder(tmp_path / "full", files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "new"]


@needs_c
def test_firmware_without_a_board(nets: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    writer.export(nets.tiny(), file)
    said: list[str] = []
    made = fwbuild.firmware(file, tmp_path / "fw", HOST, say=said.append)
    report = json.loads((tmp_path / "fw" / "report.json").read_text())
    assert report == json.loads(json.dumps(made.report))
    assert report["parity"]["mismatches"] == 0
    assert report["parity"]["inputs"] == 256
    assert {"model", "flash", "ram", "macs", "layers", "build", "parity", "fits", "insn_note"} <= report.keys()
    assert {"name", "op", "shape", "macs", "weights", "insn"} == report["layers"][0].keys()
    assert report["ram"] == {"arena": 1536, "arena_bound": 1536}
    assert said == ["compiling for this computer and comparing with the integer rule"]
    done = subprocess.run(
        ["sha256sum", "-c", package.SUMS], cwd=made.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    text = (made.folder / "report.md").read_text()
    assert "0 mismatches on 256 inputs" in text
    with pytest.raises(ConfigError, match="not empty"):
        fwbuild.firmware(file, tmp_path / "fw", HOST)


def test_without_a_compiler(nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.onnx"
    writer.export(nets.tiny(), file)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    for options, check, what in (
        (HOST, "host", "no C compiler"),
        (codegen.Options(), "qemu", "C compiler"),
    ):
        with pytest.raises(MissingDependencyError, match=what):
            fwbuild.firmware(file, tmp_path / "fw", options, fwbuild.Settings(check=check))
    made = fwbuild.firmware(file, tmp_path / "fw", codegen.Options(), fwbuild.Settings(check="none"))
    assert made.report["parity"] == "not run"
    assert "parity with the integer rule on this host: not run" in (made.folder / "report.md").read_text()


def test_refused_files_leave_nothing(nets: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    writer.export(nets.tiny(), file)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(file.read_bytes()[:-200])
    with pytest.raises((ArtefactError, VerificationError)):
        fwbuild.firmware(cut, tmp_path / "fw", HOST)
    with pytest.raises(ArtefactError):
        fwbuild.firmware(tmp_path / "absent.onnx", tmp_path / "fw", HOST)
    assert not (tmp_path / "fw").exists()
