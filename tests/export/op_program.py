"""Many small networks as one C program that compares its outputs with expected ones: the oracle's, read from a file.

One program a kind of operator, so that 200 graphs compile in seconds and sanitizers need no preloading.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qunlearn_export import codegen
from qunlearn_export import graph as g
from qunlearn_export.hostlib import FLAGS, HOST_SOURCES
from qunlearn_export.layout import pack
from qunlearn_export.oracle import Oracle, dequantize
from qunlearn_export.order import to_stored

PER_FILE = 50
STATICS = ("arena", "W", "B", "M", "P", "ready", "transpose", "TAP")
INCLUDES = '#include "qul_kernels.h"\n#include "qul_rt.h"\n'
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")

MAIN = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>

typedef struct {
    int (*bind)(const void *);
    int8_t *(*input)(void);
    void (*run)(void);
    const int8_t *(*output)(void);
} net_t;

@DECLARATIONS@
static const net_t nets[] = {
@TABLE@
};

static uint32_t number(FILE *f)
{
    uint32_t v;
    if (fread(&v, 4, 1, f) != 1) {
        exit(9);
    }
    return v;
}

int main(int argc, char **argv)
{
    FILE *f = fopen(argv[argc - 1], "rb");
    uint32_t i, bad = 0, count;
    if (f == NULL) {
        return 9;
    }
    count = number(f);
    for (i = 0; i < count; i++) {
        const uint32_t blob = number(f), n = number(f), in = number(f), out = number(f);
        /* aligned_alloc is not C99 */
        char *raw = malloc(blob + 16u), *at = raw + (16u - (uintptr_t)raw % 16u) % 16u;
        int8_t *x = malloc(in), *want = malloc(out);
        uint32_t v, differ = 0;
        if (fread(at, 1, blob, f) != blob || nets[i].bind(at) != 0) {
            return 8;
        }
        for (v = 0; v < n; v++) {
            if (fread(x, 1, in, f) != in || fread(want, 1, out, f) != out) {
                return 9;
            }
            memcpy(nets[i].input(), x, in);
            nets[i].run();
            differ += memcmp(nets[i].output(), want, out) != 0;
        }
        if (differ != 0) {
            printf("net %u: %u of %u inputs differ\\n", i, differ, n);
            bad = 1;
        }
        free(raw);
        free(x);
        free(want);
    }
    printf("%u networks\\n", count);
    fclose(f);
    return (int)bad;
}
"""


@dataclass(frozen=True)
class Work:
    """A network and int8 input codes [n, ...] for it, in the graph's order."""

    graph: g.Graph
    codes: NDArray[np.int8]


def run(
    folder: Path, work: Sequence[Work], *, flags: Sequence[str] = (), spoil: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Compile and run; ``spoil`` changes one expected code of that network, so that the comparison must see it."""
    for name in (*codegen.RUNTIME_HEADERS, *HOST_SOURCES):
        (folder / name).write_bytes((codegen.runtime() / name).read_bytes())
    data = [struct.pack("<I", len(work))]
    declarations, table, texts = [], [], []
    for i, one in enumerate(work):
        site = codegen.site(one.graph)
        made = codegen.model_sources(site, f"n{i}")
        (folder / f"n{i}.h").write_text(made["model.h"])
        text = made["model.c"].replace('#include "model.h"', f'#include "n{i}.h"')
        defines = "".join(f"#undef {s}\n" + ("" if s == "TAP" else f"#define {s} {s}_{i}\n") for s in STATICS)
        texts.append(INCLUDES + defines + text)
        declarations.append(
            f"int n{i}_bind(const void *);\nint8_t *n{i}_input(void);\nvoid n{i}_run(void);\n"
            f"const int8_t *n{i}_output(void);"
        )
        table.append(f"    {{n{i}_bind, n{i}_input, n{i}_run, n{i}_output}},")
        data.append(_record(one, site.layout, spoil=spoil == i))
    names = ["main.c", *HOST_SOURCES]
    (folder / "main.c").write_text(
        MAIN.replace("@DECLARATIONS@", "\n".join(declarations)).replace("@TABLE@", "\n".join(table))
    )
    for start in range(0, len(texts), PER_FILE):
        names.append(f"nets{start}.c")
        (folder / names[-1]).write_text("\n".join(texts[start : start + PER_FILE]))
    (folder / "cases.bin").write_bytes(b"".join(data))
    options = [f for f in FLAGS if f not in ("-fPIC", "-O2")]
    command = ["cc", *options, "-O1", *WARNINGS, "-DQUL_EXTERNAL_BLOB", *flags, "-o", "ops", *names]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[:2000]
    return subprocess.run([str(folder / "ops"), "cases.bin"], cwd=folder, capture_output=True, text=True, check=False)


def _record(one: Work, layout: Any, *, spoil: bool) -> bytes:
    start = one.graph.activations[one.graph.input]
    x = to_stored(one.codes).reshape(len(one.codes), -1)
    y = to_stored(Oracle(one.graph).run(dequantize(one.codes, start))).reshape(len(x), -1).copy()
    if spoil:
        y[-1, -1] ^= 1
    blob = pack(one.graph, layout)
    rows = b"".join(a.tobytes() + b.tobytes() for a, b in zip(x, y, strict=True))
    return struct.pack("<4I", len(blob), len(x), x.shape[1], y.shape[1]) + blob + rows


def networks(text: str) -> int:
    """How many networks a run compared."""
    found = re.search(r"(\d+) networks", text)
    return int(found[1]) if found else 0
