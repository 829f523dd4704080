"""From a run to an int8 ONNX file that was compared with its network before it was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qunlearn import quant
from qunlearn.data.dataset import Dataset, Preprocess
from qunlearn.errors import ConfigError, VerificationError
from qunlearn_export import writer
from qunlearn_export.graph import Graph
from qunlearn_export.parity import ParityReport, parity


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, of which graph, and the parity report unless it was not asked for."""

    report: writer.ExportReport
    graph: Graph
    parity: ParityReport | None


def parity_inputs(dataset: Dataset, n: int, *, seed: int = 0) -> NDArray[np.float32]:
    """``n`` seeded test samples (held-out ones where the test part is smaller), as network input."""
    rows = np.concatenate([dataset.where("test"), dataset.where("heldout")])
    rows = rows[np.random.default_rng([seed, 7]).permutation(len(rows))[:n]]
    return dataset.preprocess.apply(dataset.x[np.sort(rows)])


def export_model(
    model: quant.QuantModel,
    config: quant.RunConfig,
    path: Path,
    *,
    inputs: NDArray[np.float32] | None,
    form: str = "qdq",
    io: str = "float",
    repair_dead: bool = False,
    labels: tuple[str, ...] = (),
    keep_failed: bool = False,
) -> Exported:
    """Lower, check, write and compare. When parity fails the file is removed, or kept as ``*.rejected.onnx``.

    ``repair_dead`` gives dead channels zero codes and the median live scale (check D4); the file is then compared as
    repaired, and its codes digest is not that of the run.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder.", remedy="Give a file name such as model.onnx.")
    meta = {"task": config.task, "preprocess": config.preprocess, "labels": list(labels)}
    graph = quant.lower(model, meta=meta, repair_dead=repair_dead)
    if repair_dead:
        graph = writer.repaired(graph)
    staged = path.with_name(f".{path.stem}.staged.onnx")
    try:
        report = writer.export(graph, staged, form=form, io=io)
        found = None
        if inputs is not None:
            found = parity(graph, staged, inputs, torch_column=quant.TorchColumn(model))
            if found.verdict != "pass":
                if keep_failed:
                    staged.replace(path.with_name(f"{path.stem}.rejected.onnx"))
                raise VerificationError(
                    f"the file does not agree with its network: {'; '.join(found.reasons[:4])}.",
                    remedy="Train with --grid exact, on which all runtimes agree, or look at it with --keep-failed.",
                )
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    return Exported(report=writer.ExportReport(**{**report.__dict__, "path": path}), parity=found, graph=graph)


def open_run(folder: Path) -> tuple[quant.QuantModel, quant.RunConfig]:
    """Model and config of a run folder, with the preprocessing record checked."""
    model, config = quant.load_run(folder)
    Preprocess.from_json(config.preprocess)
    return model, config
