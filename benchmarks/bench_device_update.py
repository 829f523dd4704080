"""What an update costs a Cortex-M4: bytes of code at -Os, stack, and emulated instructions of its parts.

    python benchmarks/bench_device_update.py

Instructions are those of QEMU with ``-icount shift=0``, counted by SysTick (40 of them a tick); they are neither cycles
nor time. The blob is 300,000 random weights (N(0, 30)) in 20 tensors of 50 channels with folded biases; a delta moves
1 % or 10 % of the weights by one, biases follow. Every result is checked: the signature holds, the digest is hashlib's,
the pages are those of the Python decoder. Needs gcc-arm-none-eabi and qemu-system-arm. Writes
results/device_update.{json,md}.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from uuid import UUID

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qunlearn_export import boards, codegen, container, delta, emit_update, layout, qemu
from qunlearn_export import graph as g
from qunlearn_export.crossbuild import Workshop

HERE = Path(__file__).parent
BOARD = boards.BOARDS["mps2-an386"]
N, TENSORS, CHANNELS = 300_000, 20, 50
UPDATE = ("qul_update", "qul_slots", "qul_inplace", "qul_delta", "qul_sha", "qul_ed25519")
MAIN = """
#include "qul_board.h"
#include "qul_crypto.h"
#include "qul_delta.h"
#include "qul_rt.h"
static uint8_t base[BLOB] QUL_ALIGNED(16), body[BLOB], page[4096];
static int32_t scratch[SLOTS];
static uint8_t sig[64], key[32], message[224], digest[32];
static const qul_fold_t folds[] = {FOLDS};
static const qul_layout_t table = {{SIZES}, sizeof folds / sizeof folds[0], folds, {0}};
static int32_t call(int32_t operation, const void *block)
{
    register int32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = block;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
static uint32_t load(const char *name, uint32_t length, uint8_t *to)
{
    uintptr_t block[3] = {(uintptr_t)name, 1, length};
    int32_t file = call(1, block);
    uint32_t n = (uint32_t)call(0xC, &file);
    block[0] = (uintptr_t)file;
    block[1] = (uintptr_t)to;
    block[2] = n;
    (void)call(6, block);
    (void)call(2, &file);
    return n;
}
static uint32_t now(void)
{
    return 0xffffffu - *(volatile uint32_t *)0xE000E018u;
}
static void say(const char *what, uint32_t v)
{
    qul_print(what);
    qul_print(" ");
    qul_print_number(v);
    qul_print("\\n");
}
static int nothing(void *ctx, uint32_t offset, const uint8_t *p, uint32_t n)
{
    (void)ctx;
    (void)offset;
    (void)p;
    (void)n;
    return 0;
}
static int hash(void *ctx, uint32_t offset, const uint8_t *p, uint32_t n)
{
    (void)offset;
    qul_sha256_add(ctx, p, n);
    return 0;
}
static void show(const char *what)
{
    uint32_t i;
    qul_print(what);
    for (i = 0; i < 32; i++) {
        qul_print(" ");
        qul_print_number(digest[i]);
    }
    qul_print("\\n");
}
int main(void)
{
    static const char *const names[3] = {"b0", "b1", "b2"};
    qul_sha256_t sha;
    qul_sink_t sink = {page, sizeof page, 0, nothing, 0};
    uint32_t start, n, i;
    int ok;
    *(volatile uint32_t *)0xE000E014u = 0xffffffu;
    *(volatile uint32_t *)0xE000E018u = 0;
    *(volatile uint32_t *)0xE000E010u = 5;
    (void)load("sig", 3, sig);
    (void)load("key", 3, key);
    (void)load("msg", 3, message);
    (void)load("old", 3, base);
    start = now();
    ok = qul_ed25519_verify(sig, key, message, 0, message, sizeof message);
    say("ed25519", now() - start);
    if (!ok)
        return 1;
    start = now();
    qul_sha256(base, 300000, digest);
    say("sha256", now() - start);
    show("digest");
    for (i = 0; i < 3; i++) {
        n = load(names[i], 2, body);
        sink.emit = nothing;
        start = now();
        ok = qul_delta_apply(&table, base, body, n, &sink, scratch);
        say(names[i], now() - start);
        if (ok)
            return 2;
        sink.emit = hash;
        sink.ctx = &sha;
        qul_sha256_start(&sha);
        (void)qul_delta_apply(&table, base, body, n, &sink, scratch);
        qul_sha256_end(&sha, digest);
        show("page");
    }
    return 0;
}
"""


def blobs() -> tuple[layout.Layout, bytes, list[bytes]]:
    """Layout, old blob, and three targets: nothing, 1 % and 10 % of the weights moved."""
    rng = np.random.default_rng(0)
    inner = N // TENSORS // CHANNELS
    bias = -(-CHANNELS // 4) * 4
    folds = [
        layout.Fold(weight=i * N // TENSORS, count=N // TENSORS, channels=CHANNELS, inner=inner, bias=i * bias, zero=0)
        for i in range(TENSORS)
    ]
    entries = [
        layout.Entry(section="W", offset=f.weight, count=f.count, node=f"n{i}", role="weight")
        for i, f in enumerate(folds)
    ]
    sizes = (N, TENSORS * bias, 0, 16)
    w = np.clip(np.rint(rng.normal(0, 30, N)), -127, 127).astype(np.int64)
    b = rng.integers(-9999, 9999, TENSORS * bias)
    p = np.full(16, -128)
    out = []
    for share in (0, 0.01, 0.1):
        new, shifted = w.copy(), b.copy()
        where = rng.choice(N, round(N * share), replace=False)
        new[where] += rng.choice([-1, 1], where.size)
        for f in folds:
            moved = (new - w)[f.weight : f.weight + f.count].reshape(CHANNELS, inner).sum(1)
            shifted[f.bias : f.bias + CHANNELS] += 128 * moved
        out.append(new.astype("<i1").tobytes() + shifted.astype("<i4").tobytes() + p.astype("<i1").tobytes())
    plan = layout.Layout(sizes=sizes, entries=tuple(entries), folds=tuple(folds), structure="")
    return plan, out[0], out


def cross(folder: Path, opt: str, sources: list[Path], link: bool, *extra: str) -> Path:
    """Compile and link for the board."""
    out = folder / "fw.elf"
    flags = [*BOARD.cpu, *boards.COMMON, *boards.BARE, opt, *extra, f"-I{folder}", f"-I{codegen.runtime()}"]
    if link:
        flags += ["-T", str(folder / "board" / BOARD.name / "link.ld"), *boards.LINK]
    command = [qemu.find(qemu.COMPILER), *flags, *map(str, sources), "-o", str(out)]
    subprocess.run(command, check=True, cwd=folder)
    return out


def measure(opt: str) -> dict[str, int]:
    """Instructions by part."""
    plan, old, targets = blobs()
    bodies = [delta.encode(old, t, plan) for t in targets]
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    message = container.DOMAIN + bytes(206)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in boards.board_files(BOARD).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        files = {"sig": key.sign(message), "key": key.public_key().public_bytes_raw(), "msg": message, "old": old}
        files |= {f"b{i}": b for i, b in enumerate(bodies)}
        for path, data in files.items():
            (folder / path).write_bytes(data)
        rows = ", ".join(f"{{{f.weight}, {f.count}, {f.channels}, {f.inner}, {f.bias}, {f.zero}}}" for f in plan.folds)
        text = MAIN.replace("FOLDS", rows).replace("SIZES", ", ".join(map(str, plan.sizes)))
        text = text.replace("BLOB", str(len(old))).replace("SLOTS", str(plan.scratch_bytes // 4))
        (folder / "main.c").write_text(text)
        runtime = [codegen.runtime() / f"qul_{n}.c" for n in ("rt", "sha", "ed25519", "delta")]
        elf = cross(folder, opt, [folder / "main.c", folder / "board" / BOARD.name / "startup.c", *runtime], True)
        done = qemu.run(elf, BOARD, folder=folder)
    assert done.code == 0, (done.code, done.stdout)
    rows_ = [line.split() for line in done.stdout.splitlines()]
    digests = [bytes(map(int, r[1:])) for r in rows_ if r[0] in ("digest", "page")]
    assert digests == [hashlib.sha256(x).digest() for x in (old[:300_000], *targets)]
    assert BOARD.insn_per_tick is not None
    out = {r[0]: int(int(r[1]) * BOARD.insn_per_tick) for r in rows_ if len(r) == 2}
    assert done.stack is not None
    out["stack"] = done.stack
    return {**out, **{f"bytes b{i}": len(b) for i, b in enumerate(bodies)}}


def sizes() -> dict[str, dict[str, int]]:
    """Text bytes of every part at -Os, before the linker drops what is not used, and largest stack frames."""
    out = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in UPDATE:
            command = [qemu.find(qemu.COMPILER), *BOARD.cpu, *boards.COMMON, *boards.BARE, "-Os", "-c"]
            subprocess.run([*command, str(codegen.runtime() / f"{part}.c"), "-o", f"{part}.o"], check=True, cwd=folder)
            told = subprocess.run(
                ["arm-none-eabi-size", f"{part}.o"], check=True, cwd=folder, capture_output=True, text=True
            )
            frames = [int(line.split("\t")[1]) for line in (folder / f"{part}.su").read_text().splitlines()]
            out[part] = {"text": int(told.stdout.splitlines()[1].split()[0]), "frame": max(frames)}
    return out


def linked() -> dict[str, int]:
    """Bytes of update code in a whole program at -Os, for each scheme; the network is as small as can be."""
    acts = {
        n: g.Activation(name=n, shape=(c,), scale=np.float32(0.02), zero_point=0)
        for n, c in (("input", 16), ("fc.out", 4))
    }
    layer = g.Gemm(
        name="fc",
        inputs=("input",),
        output="fc.out",
        weight=np.ones((4, 16), np.int8),
        weight_scale=np.full(4, 0.01, np.float32),
        bias=np.zeros(4, np.int32),
    )
    meta = {"task": "classification", "preprocess": {}, "weight_bits": 8, "weight_range": "8bit"}
    found = codegen.site(g.Graph(activations=acts, layers=(layer,), input="input", output="fc.out", meta=meta))
    out = {}
    for ota in emit_update.SCHEMES:
        files = codegen.generate(found, codegen.Options(name="net", boards=(BOARD.name,), ota=ota, opt="-Os"))
        main = emit_update.update_main("net", ota=ota, public=bytes(32), device_class=UUID(int=0))
        files, settings = emit_update.program(files, main, BOARD, codegen.runtime())
        image = Workshop(files, BOARD, ota=True).build(defines=emit_update.DEFINES, settings=settings)
        out[ota] = image.size.update
    return out


def main() -> None:
    """Measure, print, write."""
    whole = linked()
    found = {opt: measure(opt) for opt in ("-Os", "-O2")}
    parts = sizes()
    lines = ["| part | -Os | -O2 |", "|---|---|---|"]
    total = len(blobs()[1])
    names = {
        "ed25519": "Ed25519, one signature of 224 bytes",
        "sha256": "SHA-256 of 300,000 bytes",
        "b0": f"delta, nothing changed: {total:,} bytes copied",
        "b1": "delta, 1 % of 300,000 weights changed",
        "b2": "delta, 10 % changed",
    }
    for key, label in names.items():
        lines.append(f"| {label} | {found['-Os'][key] / 1e6:.2f} M | {found['-O2'][key] / 1e6:.2f} M |")
    lines += ["", f"Deepest stack of these at -Os: {found['-Os']['stack']:,} bytes (in the signature check).", ""]
    lines += ["| file, -Os | bytes of code and constants | largest stack frame |", "|---|---|---|"]
    lines += [f"| `{n}.c` | {v['text']:,} | {v['frame']:,} |" for n, v in parts.items()]
    lines += [
        f"| linked program, two slots | {whole['ab']:,} | |",
        f"| linked program, in place | {whole['inplace']:,} | |",
    ]
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "device_update.md").write_text(text)
    value = {"insn": found, "sizes": parts, "linked": whole, "board": BOARD.name}
    (HERE / "results" / "device_update.json").write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    print(text)


if __name__ == "__main__":
    main()
