"""The C applier of deltas, compiled for this computer: the second opinion that every bundle is built with."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from qunlearn_export import codegen
from qunlearn_export.errors import ArtefactError, VerificationError
from qunlearn_export.graph import Graph
from qunlearn_export.hostlib import FLAGS, compile_c, find_compiler
from qunlearn_export.layout import Layout
from qunlearn_export.oracle import Oracle, quantize
from qunlearn_export.parity_c import PAIR, c_column, c_reasons

SOURCES = ("qul_delta.h", "qul_delta.c")
PAGE = 4096

HARNESS = """\
#include "qul_delta.h"

typedef struct {
    uint8_t *out;
    uint32_t total;
} memory;

int qul_host_delta(const uint32_t *sizes, const uint32_t *folds, uint32_t n_folds, const uint8_t *old,
                   const uint8_t *body, uint32_t n, uint8_t *page, uint32_t page_bytes, uint8_t *out, int32_t *scratch);

static int keep(void *ctx, uint32_t offset, const uint8_t *page, uint32_t n)
{
    memory *m = ctx;
    uint32_t i;
    if (offset > m->total || n > m->total - offset) {
        return 99;
    }
    for (i = 0; i < n; i++) {
        m->out[offset + i] = page[i];
    }
    return 0;
}

int qul_host_delta(const uint32_t *sizes, const uint32_t *folds, uint32_t n_folds, const uint8_t *old,
                   const uint8_t *body, uint32_t n, uint8_t *page, uint32_t page_bytes, uint8_t *out, int32_t *scratch)
{
    qul_layout_t layout = {{0, 0, 0, 0}, 0, 0, {0}};
    qul_sink_t sink = {0, 0, 0, 0, 0};
    memory m;
    uint32_t i;
    for (i = 0; i < 4; i++) {
        layout.sizes[i] = sizes[i];
    }
    layout.n_folds = n_folds;
    layout.folds = (const qul_fold_t *)folds;
    m.out = out;
    m.total = qul_layout_bytes(&layout);
    sink.page = page;
    sink.page_bytes = page_bytes;
    sink.emit = keep;
    sink.ctx = &m;
    return qul_delta_apply(&layout, old, body, n, &sink, scratch);
}
"""


class CApplier:
    """Callable like ``delta.decode``, answered by ``qul_delta.c``. MissingDependencyError without a C compiler."""

    def __init__(self) -> None:
        self._compiler = find_compiler()
        self._call: Any = None

    def _compile(self) -> Any:
        """The entry point; compiled on the first call."""
        folder = Path(tempfile.mkdtemp(prefix="qunlearn-"))
        weakref.finalize(self, shutil.rmtree, folder, True)
        for name in SOURCES:
            (folder / name).write_bytes((codegen.runtime() / name).read_bytes())
        (folder / "harness.c").write_text(HARNESS)
        command = [*self._compiler, *FLAGS, "-shared", "-o", "delta.so", "qul_delta.c", "harness.c"]
        compile_c(command, folder=folder)
        return ctypes.CDLL(str(folder / "delta.so")).qul_host_delta

    def __call__(self, old: bytes, body: bytes, layout: Layout) -> bytes:
        """The new blob; ArtefactError where the C refuses."""
        rows = [(f.weight, f.count, f.channels, f.inner, f.bias, f.zero) for f in layout.folds]
        folds = np.array(rows, dtype=np.uint32).reshape(-1, 6)
        out = np.zeros(max(layout.blob_bytes, 1), dtype=np.uint8)
        page, scratch = np.zeros(PAGE, np.uint8), np.zeros(max(layout.scratch_bytes // 4, 1), np.int32)
        sizes = np.array(layout.sizes, dtype=np.uint32)
        if len(old) != layout.blob_bytes:
            raise ArtefactError("the old blob has another length than the layout.", remedy="Give the right base.")
        self._call = self._call or self._compile()
        code = self._call(
            ctypes.c_void_p(sizes.ctypes.data),
            ctypes.c_void_p(folds.ctypes.data),
            ctypes.c_uint32(len(rows)),
            old,
            body,
            ctypes.c_uint32(len(body)),
            ctypes.c_void_p(page.ctypes.data),
            ctypes.c_uint32(PAGE),
            ctypes.c_void_p(out.ctypes.data),
            ctypes.c_void_p(scratch.ctypes.data),
        )
        if code != 0:
            raise ArtefactError(f"the C applier refuses the delta (code {code}).", remedy="Fetch the update again.")
        return out[: layout.blob_bytes].tobytes()


def compare_c(graph: Graph, inputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> dict[str, int]:
    """``{"c-host vs oracle": 0}`` after comparing generated C with the oracle on ``inputs`` [N, ...], every layer.

    VerificationError where they differ, or where there is no C column: bundles are not built without one.
    """
    codes = quantize(inputs, graph.activations[graph.input])
    column = c_column(graph, codes)
    if column.absent:
        raise VerificationError(
            f"generated C could not be compared with the oracle: {column.absent}.",
            remedy="Install a C compiler: apt-get install gcc.",
        )
    bad = c_reasons(graph, column, Oracle(graph).run_all(inputs))
    if bad:
        raise VerificationError(f"generated C differs from the oracle: {'; '.join(bad[:4])}.", remedy="Report this.")
    return {PAIR: 0}
