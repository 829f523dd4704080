"""What the compilers make of the kernels, per target and without a GPU: registers, spills, widths of loads.

Triton kernels are compiled by triton, the CUDA file by nvcc, each to a cubin; NVIDIA's ``cuobjdump`` and ``nvdisasm``
(on PATH, or those that triton brings) read it. This is evidence on the code, never on its speed.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qunlearn_export.errors import InvariantError, MissingDependencyError
from qunlearn_kernels import cuda_backend, triton_backend
from qunlearn_kernels.arena import ALIGN
from qunlearn_kernels.tiles import CHUNK
from qunlearn_kernels.two_launch import ROWS

TARGETS = cuda_backend.ARCHITECTURES
_FLOATS, _DOUBLES = "*fp32", "*fp64"
_LOAD = re.compile(r"\bLDG((?:\.\w+)*)")
_LOCAL = re.compile(r"\b(?:LDL|STL)\b")


@dataclass(frozen=True, kw_only=True)
class KernelReport:
    """One kernel on one target: ``registers`` a thread, ``local_bytes`` of stack and local memory a thread,
    ``spills`` = local loads and stores in the machine code, ``wide_loads`` = global loads of 16 bytes,
    ``narrow_loads`` = global loads of less (tables and float64 sums)."""

    backend: str
    kernel: str
    target: str
    registers: int
    local_bytes: int
    spills: int
    wide_loads: int
    narrow_loads: int


def tool(name: str) -> str:
    """Path of ``cuobjdump`` or ``nvdisasm``; MissingDependencyError when neither PATH nor triton has it."""
    spec = importlib.util.find_spec("triton")
    places = [Path(p) / "backends" / "nvidia" / "bin" for p in (spec.submodule_search_locations or [])] if spec else []
    found = shutil.which(name) or next((w for p in places if (w := shutil.which(name, path=str(p)))), None)
    if found is None:
        raise MissingDependencyError(f"{name} is not found.", remedy="Install the CUDA toolkit or qunlearn[gpu].")
    return found


def triton_variants(*, every: bool = True) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    """The kernels that the triton backend launches: name, signature, compile-time constants.

    All variants, or those that differ most.
    """
    rows = {"f": _FLOATS, "r": _FLOATS, "metric": _FLOATS, "table": "*i32"}
    dots = {**rows, "sums": _DOUBLES, "tiles": "i32"}
    update = {**rows, "first": "*i32", "sums": _DOUBLES, "after": _DOUBLES, "given": _DOUBLES, "where": "*i64"}
    update |= {"tiles": "i32", "units": "i32"}
    update |= dict.fromkeys(("eps", "lr", "lam", "share_r", "share_old"), "fp32")
    size: dict[str, Any] = {"CHUNK": CHUNK, "ALIGN": ALIGN}
    out: list[tuple[str, dict[str, str], dict[str, Any]]] = []
    for metric in (False, True):
        out.append(("dot_partials", dots, {"METRIC": metric, **size}))
        for conflict, given, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)):
            if every or (conflict, given, step) == ((1, 0, 1) if metric else (0, 0, 0)):
                flags = {"METRIC": metric, "CONFLICT": bool(conflict), "GIVEN": bool(given), "STEP": bool(step)}
                constants = {**flags, "ALIGNED": bool(step), **size, "WIDTH": triton_backend.WIDTH}
                out.append(("project_update", update, constants))
    if every:
        out.append(("project_update", update, {**out[1][2], "tiles": 1, "units": 1}))
    basis = {"f": _FLOATS, "q": _FLOATS, "stride": "i64", "table": "*i32"}
    ends = {"tiles": "i32", "rows": "i32"}
    for width in (2, 4, 8, ROWS) if every else (ROWS,):
        wide = {"ROWS": width, "CHUNK": triton_backend.BASIS_CHUNK, "ALIGN": ALIGN}
        out.append(("basis_partials", {**basis, "sums": _DOUBLES, **ends}, wide))
        signature = {**basis, "first": "*i32", "sums": _DOUBLES, "after": _DOUBLES, **ends}
        out.append(("basis_update", signature, {**wide, "WIDTH": triton_backend.BASIS_WIDTH}))
    return out


def triton_report(capability: int, *, every: bool = True) -> list[KernelReport]:
    """:func:`triton_variants` compiled for one compute capability (90 for sm_90); a second or so each.

    MissingDependencyError without triton, without NVIDIA's tools, or under the interpreter.
    """
    if importlib.util.find_spec("triton") is None:
        raise MissingDependencyError("triton is not installed.", remedy="pip install 'qunlearn[gpu]'")
    if triton_backend.interpreted():
        raise MissingDependencyError("the interpreter compiles nothing.", remedy="Unset TRITON_INTERPRET.")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qunlearn_kernels import triton_kernels

    out = []
    for name, signature, constants in triton_variants(every=every):
        function = getattr(triton_kernels, name)
        order = list(function.arg_names)
        types = {n: "constexpr" if n in constants else signature[n] for n in order}
        wide = [i for i, n in enumerate(order) if types[n].startswith("*") or n == "stride"]
        source = ASTSource(
            fn=function,
            signature=types,
            constexprs={(order.index(n),): v for n, v in constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i in wide},
        )
        options = {"num_warps": triton_backend.WARPS, "enable_fp_fusion": True}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        shown = " ".join(f"{n}={int(v)}" for n, v in constants.items() if n not in ("CHUNK", "ALIGN", "WIDTH"))
        (report,) = read_cubin(made.asm["cubin"], "triton", f"sm_{capability}")
        out.append(KernelReport(**{**vars(report), "kernel": f"{name} {shown}"}))
    return out


def cuda_report(capability: int) -> list[KernelReport]:
    """All kernels of ``csrc/projection.cu`` for one compute capability, built by nvcc; some seconds.

    MissingDependencyError without nvcc; InvariantError with nvcc's words when it refuses the source.
    """
    compiler = cuda_backend.nvcc()
    if compiler is None:
        raise MissingDependencyError("nvcc is not found.", remedy="Install the CUDA toolkit, or set CUDA_HOME.")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "projection.cubin"
        command = [compiler, *cuda_backend.FLAGS, f"-arch=sm_{capability}", "-cubin", "-o", str(target)]
        done = subprocess.run([*command, str(cuda_backend.SOURCE)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise InvariantError(f"nvcc refused the source: {done.stderr[-2000:]}", remedy="Report it.")
        return read_cubin(target.read_bytes(), "cuda", f"sm_{capability}")


def read_cubin(cubin: bytes, backend: str, target: str) -> list[KernelReport]:
    """Resources and machine code of every kernel in a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        usage = _output([tool("cuobjdump"), "-res-usage", str(path)])
        code = _output([tool("nvdisasm"), "-c", str(path)])
    sections = dict(re.findall(r"^\.text\.([\w$]+):\n(.*?)(?=^\.text\.|\Z)", code, re.M | re.S))
    out = []
    for symbol, text in re.findall(r"Function (\S+):\n(.*)", usage):
        counts = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
        body = sections[symbol]
        loads = _LOAD.findall(body)
        wide = sum(".128" in load for load in loads)
        out.append(
            KernelReport(
                backend=backend,
                kernel=_plain(symbol),
                target=target,
                registers=counts["REG"],
                local_bytes=counts["STACK"] + counts["LOCAL"],
                spills=len(_LOCAL.findall(body)),
                wide_loads=wide,
                narrow_loads=len(loads) - wide,
            )
        )
    return sorted(out, key=lambda report: report.kernel)


def _plain(symbol: str) -> str:
    """``dot_partials<true>`` from a C++ symbol, or the symbol."""
    found = re.search(r"\d+((?:dot|project|basis)_[a-z]+?)IL([bi])(\d+)E", symbol)
    if found is None:
        return symbol
    value = str(bool(int(found[3]))).lower() if found[2] == "b" else found[3]
    return f"{found[1]}<{value}>"


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
