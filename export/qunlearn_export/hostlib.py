"""The generated C, compiled for this computer and called from Python: the fast reference of audits (firmware.md 3).

Codes go in and come out in the firmware's order (channel last); :func:`to_stored` and :func:`from_stored` change
between it and the graph's. One library copy a thread: the arena inside is not re-entrant.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import codegen
from qunlearn_export import graph as g
from qunlearn_export.errors import ConfigError, DataError, MissingDependencyError, VerificationError
from qunlearn_export.layout import Layout, pack
from qunlearn_export.order import from_stored, to_stored

Codes = NDArray[np.int8]
FLAGS = ("-O2", "-std=c99", "-fPIC", "-ffp-contract=off", "-fno-fast-math")
HOST_SOURCES = ("qul_rt.c", "qul_kernels_ref.c")
CANDIDATES = ("cc", "gcc", "clang")
TIME_LIMIT = 600.0
PREFIX = "net"

HOST_C = """\
#include "model.h"
#include "qul_rt.h"

static int8_t *tap_at;
static uint32_t poison;

void qul_tap(uint32_t node, const int8_t *y, uint32_t bytes);
int qul_host_bind(const void *blob);
void qul_host_poison(uint32_t on);
void qul_host_run(const int8_t *x, int8_t *y, uint32_t n, int8_t *taps);
void qul_host_quantize(const float *x, int8_t *q);

void qul_tap(uint32_t node, const int8_t *y, uint32_t bytes)
{
    (void)node;
    if (tap_at != 0) {
        uint32_t i;
        for (i = 0; i < bytes; i++) {
            tap_at[i] = y[i];
        }
        tap_at += bytes;
    }
}

int qul_host_bind(const void *blob)
{
    return net_bind(blob);
}

void qul_host_poison(uint32_t on)
{
    poison = on;
}

void qul_host_run(const int8_t *x, int8_t *y, uint32_t n, int8_t *taps)
{
    uint32_t i, j;
    tap_at = taps;
    for (i = 0; i < n; i++) {
        int8_t *in;
        const int8_t *out;
#ifdef QUL_DEBUG
        if (poison != 0) {
            net_poison();
        }
#endif
        in = net_input();
        for (j = 0; j < NET_INPUT_BYTES; j++) {
            in[j] = x[j];
        }
        net_run();
        out = net_output();
        for (j = 0; j < NET_OUTPUT_BYTES; j++) {
            y[j] = out[j];
        }
        x += NET_INPUT_BYTES;
        y += NET_OUTPUT_BYTES;
    }
}

void qul_host_quantize(const float *x, int8_t *q)
{
    net_quantize(x, q);
}
"""


class HostLibrary:
    """One network in one private copy of a shared library.

    MissingDependencyError without a C compiler; UnsupportedError for a network without kernels; VerificationError
    where the compiler does not evaluate float32 as such. ``taps`` keeps every node's output readable (:meth:`run_all`).
    ``like`` is another library whose compiled code is used again: all of it for the same layout and taps, the kernels
    otherwise; it brings compiler and flags.
    """

    def __init__(
        self,
        graph: g.Graph,
        *,
        taps: bool = False,
        like: HostLibrary | None = None,
        compiler: Sequence[str] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self.graph = graph
        self.site = codegen.site(graph)
        codegen.check_limit(self.site, codegen.HOST_LIMIT)
        self.taps = taps
        self.compiler: tuple[str, ...] = like.compiler if like is not None else tuple(compiler or find_compiler())
        self.flags: tuple[str, ...] = like.flags if like is not None else tuple(flags)
        self._folder = tempfile.mkdtemp(prefix="qunlearn-")
        weakref.finalize(self, shutil.rmtree, self._folder, True)
        folder = Path(self._folder)
        self.objects: dict[str, bytes]
        self.image: bytes
        if like is not None and like.layout.digest() == self.layout.digest() and like.taps == taps:
            self.objects, self.image = like.objects, like.image
        else:
            self.objects = like.objects if like is not None else _runtime_objects(self, folder)
            self.image = _link(self, folder)
        file = folder / "bound.so"
        file.write_bytes(self.image)
        self._lib = ctypes.CDLL(str(file))
        blob = pack(graph, self.layout)
        self._memory = np.empty(len(blob) + 16, dtype=np.uint8)
        start = -self._memory.ctypes.data % 16
        self._blob = self._memory[start : start + len(blob)]
        self._blob[:] = np.frombuffer(blob, dtype=np.uint8)
        if self._lib.qul_host_bind(ctypes.c_void_p(self._blob.ctypes.data)) != 0:
            raise VerificationError("the compiled network refuses its blob.", remedy="Report this with the file.")

    @property
    def layout(self) -> Layout:
        """Where each tensor lies in the blob."""
        return self.site.layout

    @property
    def blob(self) -> bytes:
        """The bytes that are bound."""
        return self._blob.tobytes()

    def run_batch(self, codes: Codes) -> Codes:
        """Output codes int8 [n, K] of input codes int8 [n, ...] in the firmware's order, looped in C."""
        return self._run(codes, None)

    def run(self, codes: Codes) -> Codes:
        """Output codes, in the graph's order, of input codes [n, ...] in the graph's order."""
        out = self.graph.activations[self.graph.output].shape
        return from_stored(self.run_batch(to_stored(codes)), out)

    def run_all(self, codes: Codes) -> dict[str, Codes]:
        """Codes of every activation that a node computes, in the graph's order; needs ``taps``."""
        if not self.taps:
            raise ConfigError("this library has no taps.", remedy="Make it with taps=True.")
        prog = self.site.program
        sizes = [prog.size(node.output) for node in prog.nodes]
        stored = np.empty((len(codes), sum(sizes)), dtype=np.int8)
        self._run(to_stored(codes), stored)
        out, start = {self.graph.input: codes}, 0
        for node, size in zip(prog.nodes, sizes, strict=True):
            part = stored[:, start : start + size]
            start += size
            if node.activation is not None:
                shape = self.graph.activations[node.activation].shape
                if node.op == "requant" and node.columns is not None:
                    part = part.reshape(len(codes), node.columns[1], node.columns[0]).transpose(0, 2, 1)
                    out[node.activation] = np.ascontiguousarray(part).reshape(len(codes), *shape)
                else:
                    out[node.activation] = from_stored(part, shape)
        return out

    def quantize(self, x: NDArray[np.float32]) -> Codes:
        """Input codes by the generated ``quantize``: float32 [...] of one input, in the firmware's order."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        self._check(x.size, 1)
        out = np.empty(x.shape, dtype=np.int8)
        self._lib.qul_host_quantize(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data))
        return out

    def poison(self, on: bool = True) -> None:
        """Overwrite the arena before every run (debug builds, ``flags=["-DQUL_DEBUG"]``)."""
        self._lib.qul_host_poison(ctypes.c_uint32(on))

    def _run(self, codes: Codes, taps: Codes | None) -> Codes:
        codes = np.ascontiguousarray(codes)
        if codes.dtype != np.int8 or codes.ndim < 2:
            raise DataError("input codes must be int8 [n, ...].", remedy="Quantize the input.")
        self._check(codes.size, len(codes))
        out = np.empty((len(codes), self.site.program.size(self.site.program.output)), dtype=np.int8)
        self._lib.qul_host_run(
            ctypes.c_void_p(codes.ctypes.data),
            ctypes.c_void_p(out.ctypes.data),
            ctypes.c_uint32(len(codes)),
            ctypes.c_void_p(None if taps is None else taps.ctypes.data),
        )
        return out

    def _check(self, size: int, n: int) -> None:
        want = self.site.program.size(self.site.program.input)
        if size != n * want:
            raise DataError(f"{size} values are not {n} inputs of {want}.", remedy="Give inputs of the right shape.")


def find_compiler() -> tuple[str, ...]:
    """The C compiler: the command in ``CC``, else cc, gcc or clang; MissingDependencyError where there is none."""
    named = os.environ.get("CC", "").strip()
    if named:
        words = shlex.split(named)
        if shutil.which(words[0]) is None:
            raise MissingDependencyError(f"CC names {words[0]!r}, which is not there.", remedy="Unset CC or mend it.")
        return tuple(words)
    for name in CANDIDATES:
        if shutil.which(name):
            return (name,)
    raise MissingDependencyError("no C compiler was found.", remedy="Install one: apt-get install gcc.")


def compile_c(command: Sequence[str], *, folder: Path) -> None:
    """Run a compiler in ``folder``; VerificationError with its first error line."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIME_LIMIT)
    if done.returncode == 0:
        return
    text = f"{done.stderr}\n{done.stdout}"
    if "float_evaluation_method" in text:
        raise VerificationError(
            "this compiler evaluates float32 with excess precision or fast-math; its results would differ.",
            remedy="Use a 64-bit compiler with SSE, without -ffast-math.",
        )
    line = next((one for one in text.splitlines() if "error" in one), text.strip()[:200] or "no message")
    raise VerificationError(f"the C compiler failed: {line.strip()}", remedy="Check the compiler named by CC.")


def _runtime_objects(library: HostLibrary, folder: Path) -> dict[str, bytes]:
    """Kernels and runtime as object files, which serve every network."""
    _copy_runtime(folder)
    names = [n for n in HOST_SOURCES if (folder / n).is_file()]
    compile_c([*library.compiler, *FLAGS, *library.flags, "-c", *names], folder=folder)
    return {f"{Path(n).stem}.o": (folder / f"{Path(n).stem}.o").read_bytes() for n in names}


def _link(library: HostLibrary, folder: Path) -> bytes:
    made = codegen.model_sources(library.site, PREFIX)
    _copy_runtime(folder)
    for name, data in library.objects.items():
        (folder / name).write_bytes(data)
    for name, text in {**made, "host.c": HOST_C}.items():
        (folder / name).write_text(text)
    defines = ["-DQUL_EXTERNAL_BLOB", *(["-DQUL_TAPS"] if library.taps else [])]
    command = [*library.compiler, *FLAGS, *library.flags, *defines, "-shared", "-o", "net.so", "model.c", "host.c"]
    compile_c([*command, *library.objects], folder=folder)
    return (folder / "net.so").read_bytes()


def _copy_runtime(folder: Path) -> None:
    for name in (*codegen.RUNTIME_HEADERS, *HOST_SOURCES):
        if not (folder / name).exists():
            (folder / name).write_bytes((codegen.runtime() / name).read_bytes())
