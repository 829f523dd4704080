"""The one place that opens ONNX Runtime sessions, with the entries under which the answer is right.

Needs numpy, onnxruntime and ``errors.py`` only: a device carries these two files. On x86 processors ONNX Runtime's
default int8 path may saturate 16-bit sums; the session entries set here avoid it (artefact_onnx 2.6). The kind of file
is read from the protobuf bytes, so that the onnx package is not needed.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qunlearn_export.errors import ArtefactError, ConfigError, DataError, UnsupportedError

PRECISION = "session.x64quantprecision"
SIGNED = "session.qdqisint8allowed"
MATMULNBITS = "session.qdq_matmulnbits_accuracy_level"
PREPACKING, FORMAT = "session.disable_prepacking", "session.load_model_format"
MAX_BYTES = 256 * 2**20
LEVELS = ("all", "off", "extended")
_QOPS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger")
_UINT8 = 2
_TYPES = {"tensor(float)": "float32", "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
_FLAGS = (
    "avx",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """Under what a session runs: ``entries`` set, ``level``, ``threads``, onnxruntime ``version``, ``cpu`` flags."""

    entries: Mapping[str, str]
    level: str
    threads: int
    version: str
    cpu: tuple[str, ...]
    machine: str

    def to_json(self) -> dict[str, Any]:
        """Plain mapping."""
        return {**asdict(self), "cpu": list(self.cpu), "entries": dict(self.entries)}


def cpu_flags() -> tuple[str, ...]:
    """Vector extensions of this processor that matter here, sorted; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            words = set(line.partition(":")[2].split())
            return tuple(sorted(words & set(_FLAGS)))
    return ()


def is_x86() -> bool:
    """Whether this machine is x86-64."""
    return platform.machine().lower() in ("x86_64", "amd64")


def read_bytes(file: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file (or the bytes given); its size is checked before it is read. ArtefactError otherwise."""
    if isinstance(file, bytes):
        data = file
        if len(data) > max_bytes:
            raise ArtefactError(
                f"the model has {len(data)} bytes, more than {max_bytes}.", remedy="Give a smaller one."
            )
        return data
    path = Path(file)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ArtefactError(f"{path} is not a regular file.", remedy="Give a file.")
        if size > max_bytes:
            raise ArtefactError(f"{path} has {size} bytes, more than {max_bytes}.", remedy="Give a smaller file.")
        return path.read_bytes()
    except OSError as err:
        raise ArtefactError(f"cannot read {path}: {err.strerror}.", remedy="Check the path.") from err


def file_kind(data: bytes) -> str:
    """``qunlearn.format`` from the file's metadata, or "" for files of others (artefact_onnx 2.6: field 14)."""
    for number, value in proto_fields(data):
        if number == 14 and not isinstance(value, int):
            pair = {n: bytes(v) for n, v in proto_fields(value) if not isinstance(v, int)}
            if pair.get(1) == b"qunlearn.format":
                return pair.get(2, b"").decode("ascii", "replace")
    return ""


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """``form`` is qdq, qop-int8, qop-uint8 or float; ``weight_only``: a MatMul with int8 weights and float input."""

    form: str
    weight_only: bool


def classify(data: bytes) -> FileKind:
    """Read the operators and zero-point types of any ONNX file from its bytes."""
    made: dict[str, tuple[str, list[str]]] = {}
    types: dict[str, int] = {}
    nodes: list[tuple[str, list[str]]] = []
    for part in (v for n, v in proto_fields(data) if n == 7 and not isinstance(v, int)):
        for number, value in proto_fields(part):
            if isinstance(value, int) or number not in (1, 5):
                continue
            fields = proto_fields(value)
            if number == 1:
                words = {k: [_text(v) for n, v in fields if n == k] for k in (1, 2, 4)}
                nodes.append((words[4][0] if words[4] else "", words[1]))
                made.update(dict.fromkeys(words[2], nodes[-1]))
                if nodes[-1][0] == "Constant":
                    types.update(dict.fromkeys(words[2], _constant_type(fields)))
            else:
                name = next((_text(v) for n, v in fields if n == 8), "")
                types[name] = _tensor_type(fields)
    ops = {op for op, _ in nodes}
    if ops & set(_QOPS):
        unsigned = any(op in _QOPS and len(i) > 2 and types.get(i[2]) == _UINT8 for op, i in nodes)
        form = "qop-uint8" if unsigned or "DynamicQuantizeLinear" in ops else "qop-int8"
    else:
        form = "qdq" if "DequantizeLinear" in ops else "float"
    return FileKind(form=form, weight_only=any(op == "MatMul" and _weight_only(i, made) for op, i in nodes))


def _tensor_type(tensor: Sequence[tuple[int, memoryview | int]]) -> int:
    return next((v for n, v in tensor if n == 2 and isinstance(v, int)), 0)


def _constant_type(node: Sequence[tuple[int, memoryview | int]]) -> int:
    attributes = [proto_fields(v) for n, v in node if n == 5 and not isinstance(v, int)]
    tensors = [v for a in attributes for n, v in a if n == 5 and not isinstance(v, int)]
    return _tensor_type(proto_fields(tensors[0])) if tensors else 0


def _weight_only(inputs: list[str], made: Mapping[str, tuple[str, list[str]]]) -> bool:
    if len(inputs) < 2 or made.get(inputs[0], ("", []))[0] == "DequantizeLinear":
        return False
    op, sources = made.get(inputs[1], ("", []))
    for _ in range(4):
        if op not in ("Reshape", "Transpose") or not sources:
            break
        op, sources = made.get(sources[0], ("", []))
    return op == "DequantizeLinear"


def _text(value: memoryview | int) -> str:
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def entries_for(kind: FileKind) -> dict[str, str]:
    """Session entries for such a file on this machine; int8 QOperator files and other processors need none."""
    if not is_x86() or kind.form in ("qop-int8", "float"):
        return {}
    return {PRECISION: "1", **({MATMULNBITS: "1"} if kind.weight_only else {})}


def make_session(
    file: str | os.PathLike[str] | bytes,
    *,
    level: str = "all",
    threads: int = 1,
    raw: bool = False,
    entries: Mapping[str, str] | None = None,
    optimized_path: str | os.PathLike[str] | None = None,
    lean: bool = False,
    provider: str = "CPUExecutionProvider",
) -> ort.InferenceSession:
    """Open ``file`` at optimisation ``level`` (all, extended, off) on the CPU.

    ``raw=True`` sets no entry (what an unprepared user gets); ``entries`` adds some. ``optimized_path`` receives the
    optimised graph. ``lean=True`` is for a look at the graph: slower to run, without copies of the weights that this
    function can spare. ArtefactError when the file does not load, ConfigError for a forbidden combination of entries.
    """
    if level not in LEVELS:
        raise ConfigError(f"optimisation level {level!r} is unknown.", remedy=f"Use one of {', '.join(LEVELS)}.")
    if provider != "CPUExecutionProvider":
        raise UnsupportedError(f"execution provider {provider!r} is not supported.", remedy="Use the CPU provider.")
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise ConfigError(f"{threads!r} threads are not possible.", remedy="Give a whole number from 1 to 1024.")
    data = read_bytes(file)
    kind = classify(data)
    if kind.form == "qop-uint8" and level == "off" and is_x86() and not raw:
        raise UnsupportedError(
            "a QOperator file with uint8 activations is not valid at level off: its kernels may saturate.",
            remedy="Use level all or extended.",
        )
    chosen = {} if raw else entries_for(kind)
    chosen.update(entries or {})
    if chosen.get(PRECISION) == "1" and chosen.get(SIGNED) == "1":
        raise ConfigError(
            f"{PRECISION} and {SIGNED} exclude each other: ONNX Runtime has no kernel for both.",
            remedy=f"Set {PRECISION} alone.",
        )
    if chosen.get(PRECISION) == "1" and kind.form == "qop-int8":
        raise ConfigError(f"{PRECISION} must not be set on a QOperator file with int8.", remedy="Set no entry.")
    options = ort.SessionOptions()
    options.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[level]
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    for key, value in chosen.items():
        options.add_session_config_entry(key, value)
    source: str | bytes = data
    if lean:
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry(PREPACKING, "1")
        options.add_session_config_entry(FORMAT, "ONNX")  # whatever the path ends in
        source = data if isinstance(file, bytes) else str(file)
        del data
    try:
        # onnxruntime prints to stdout when it retries, which would spoil machine-readable output
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return ort.InferenceSession(source, sess_options=options, providers=[provider])
    except Exception as err:  # onnxruntime raises many types of its own
        name = "the given bytes" if isinstance(file, bytes) else str(file)
        raise ArtefactError(
            f"ONNX Runtime {ort.__version__} does not load {name}: {' '.join(str(err).split())[:200]}.",
            remedy="See `qunlearn inspect`.",
        ) from err


def session_info(
    file: str | os.PathLike[str] | bytes, *, level: str = "all", threads: int = 1, raw: bool = False
) -> SessionInfo:
    """What :func:`make_session` uses for these arguments, for reports."""
    entries = {} if raw else entries_for(classify(read_bytes(file)))
    return SessionInfo(
        entries=entries,
        level=level,
        threads=threads,
        version=str(ort.__version__),
        cpu=cpu_flags(),
        machine=platform.machine(),
    )


def run(
    session: ort.InferenceSession, x: NDArray[Any], *, outputs: Sequence[str] | None = None, batch: int = 256
) -> dict[str, NDArray[Any]]:
    """Outputs by name for input [N, ...], ``batch`` rows at a time; DataError when the input does not fit."""
    return run_many(session, {session.get_inputs()[0].name: x}, outputs=outputs, batch=batch)


def run_many(
    session: ort.InferenceSession,
    feeds: Mapping[str, NDArray[Any]],
    *,
    outputs: Sequence[str] | None = None,
    batch: int = 256,
) -> dict[str, NDArray[Any]]:
    """:func:`run` for several inputs by name, all with the same number of rows; ConfigError for ``batch`` < 1."""
    for spec in session.get_inputs():
        x = feeds[spec.name]
        if x.ndim != len(spec.shape) or any(
            isinstance(d, int) and d != n for d, n in zip(spec.shape[1:], x.shape[1:], strict=True)
        ):
            raise DataError(
                f"input has shape {x.shape}, the model reads {spec.shape}.", remedy="Give input of that shape."
            )
        if _TYPES.get(spec.type, x.dtype.name) != x.dtype.name:
            raise DataError(f"input is {x.dtype.name}, the model reads {spec.type}.", remedy="Convert it.")
        if x.dtype == np.float32 and not np.isfinite(x).all():
            raise DataError("the input holds NaN or infinity.", remedy="Clean the data.")
    if not isinstance(batch, int) or batch < 1:
        raise ConfigError(f"a batch of {batch!r} rows is not possible.", remedy="Give 1 or more.")
    names = list(outputs) if outputs is not None else [o.name for o in session.get_outputs()]
    rows = len(next(iter(feeds.values())))
    parts = []
    for i in range(0, max(1, rows), batch):
        try:
            parts.append(session.run(names, {name: x[i : i + batch] for name, x in feeds.items()}))
        except Exception as err:  # onnxruntime raises many types of its own
            raise ArtefactError(
                f"ONNX Runtime {ort.__version__} cannot run the model: {' '.join(str(err).split())[:200]}.",
                remedy="See `qunlearn inspect`.",
            ) from err
    return {name: np.concatenate([p[i] for p in parts]) for i, name in enumerate(names)}


def proto_fields(data: bytes | memoryview) -> list[tuple[int, memoryview | int]]:
    """Top-level protobuf fields (number, value); stops at the first malformed byte."""
    out: list[tuple[int, memoryview | int]] = []
    view = memoryview(data)
    i, n = 0, len(view)

    def varint(i: int) -> tuple[int, int]:
        value = shift = 0
        while i < n and shift < 70:
            byte = view[i]
            value |= (byte & 0x7F) << shift
            i += 1
            if byte < 0x80:
                return value, i
            shift += 7
        return -1, n + 1

    while i < n:
        key, i = varint(i)
        wire = key & 7
        if key < 0:
            break
        if wire == 0:
            number, i = varint(i)
            if number < 0:
                break
            out.append((key >> 3, number))
        elif wire == 2:
            size, i = varint(i)
            if size < 0 or i + size > n:
                break
            out.append((key >> 3, view[i : i + size]))
            i += size
        elif wire in (1, 5):
            i += 8 if wire == 1 else 4
        else:
            break
    return out
