"""What an update did to the integer codes, layer by layer (artefact_audit 3.4)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qunlearn.errors import ConfigError
from qunlearn.quant.lower import lower
from qunlearn.quant.model import WEIGHTED, QuantModel
from qunlearn_export.graph import Graph

LOST_SHARE = 0.99
MIN_COSINE = 0.2
HISTOGRAM_TOP = 4


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """Counts of one weighted layer. ``histogram[d]`` = codes that moved by d steps, the last entry by that or more.

    ``grid_changed`` = codes that the new grid alone would move (old weights, new scales); ``update_changed`` = codes
    that the weight update alone moves (new weights, old scales). ``fidelity`` = <dq s_w, dw> / |dw|^2 and ``cosine`` =
    cos(dq s_w, dw), dw the latent update, dq the code update; both None where dw = 0. ``lsb_step`` = median |dw| / s_w
    over changed latents.
    """

    layer: str
    codes: int
    latent_changed: int
    codes_changed: int
    max_step: int
    histogram: tuple[int, ...]
    lost: int
    bias_changed: int
    scales_changed: int
    grid_changed: int
    update_changed: int
    fidelity: float | None
    cosine: float | None
    lsb_step: float | None

    @property
    def share(self) -> float:
        """Changed codes as a fraction of the layer's."""
        return self.codes_changed / max(1, self.codes)


@dataclass(frozen=True, kw_only=True)
class ChangeTable:
    """One row per weighted layer and the sums over them; ``warnings`` holds the codes of artefact_audit 3.4."""

    rows: tuple[LayerChange, ...]
    activation_scales_changed: int
    cosine: float | None
    warnings: tuple[str, ...]

    @property
    def codes(self) -> int:
        """Number of weight codes."""
        return sum(r.codes for r in self.rows)

    @property
    def codes_changed(self) -> int:
        """Number of weight codes that differ."""
        return sum(r.codes_changed for r in self.rows)

    @property
    def bias_changed(self) -> int:
        """Number of bias codes that differ."""
        return sum(r.bias_changed for r in self.rows)

    @property
    def latent_changed(self) -> int:
        """Number of latent weights that differ."""
        return sum(r.latent_changed for r in self.rows)

    @property
    def lost(self) -> int:
        """Latent weights that moved while their code did not."""
        return sum(r.lost for r in self.rows)

    @property
    def share(self) -> float:
        """Changed weight codes as a fraction of all."""
        return self.codes_changed / max(1, self.codes)

    def to_json(self) -> dict[str, Any]:
        """Plain mapping with totals and rows."""
        return {
            "codes": self.codes,
            "codes_changed": self.codes_changed,
            "share": self.share,
            "latent_changed": self.latent_changed,
            "lost": self.lost,
            "bias_changed": self.bias_changed,
            "activation_scales_changed": self.activation_scales_changed,
            "cosine": self.cosine,
            "warnings": list(self.warnings),
            "layers": [asdict(r) | {"histogram": list(r.histogram), "share": r.share} for r in self.rows],
        }


@torch.no_grad()
def code_changes(before: QuantModel, after: QuantModel) -> ChangeTable:
    """Compare the codes that would ship before and after; both must come from the same network and spec."""
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (before, after)]
    if before.steps != after.steps or before.spec != after.spec or shapes[0] != shapes[1]:
        raise ConfigError(
            "the two networks differ in structure or bit widths.", remedy="Compare a network with its own update."
        )
    old, new = lower(before, repair_dead=True), lower(after, repair_dead=True)
    rows, dots, dq_norms, dw_norms = [], 0.0, 0.0, 0.0
    old_layers = {layer.name: layer for layer in old.weighted()}
    for layer in new.weighted():
        row, dot, dq2, dw2 = _row(before, after, layer.name, old_layers[layer.name], layer)
        rows.append(row)
        dots, dq_norms, dw_norms = dots + dot, dq_norms + dq2, dw_norms + dw2
    cosine = dots / (dq_norms * dw_norms) ** 0.5 if dq_norms > 0 and dw_norms > 0 else None
    table = ChangeTable(rows=tuple(rows), activation_scales_changed=_moved_scales(old, new), cosine=cosine, warnings=())
    warnings = []
    if table.codes_changed == 0 and table.bias_changed == 0:
        warnings.append("W-NOTHING-CHANGED")
    if table.latent_changed and (
        table.lost > LOST_SHARE * table.latent_changed or (cosine if cosine is not None else 0.0) < MIN_COSINE
    ):
        warnings.append("W-LOST-TO-ROUNDING")
    return ChangeTable(
        rows=table.rows,
        activation_scales_changed=table.activation_scales_changed,
        cosine=cosine,
        warnings=tuple(warnings),
    )


def _row(
    before: QuantModel, after: QuantModel, name: str, old: Any, new: Any
) -> tuple[LayerChange, float, float, float]:
    step = next(s for s in before.steps if s.name == name and s.kind in WEIGHTED)
    q_old, q_new = before.weight_quantizer_of(step), after.weight_quantizer_of(step)
    w_old, w_new = _weight(before, str(step.module)), _weight(after, str(step.module))
    dw = (w_new - w_old).double()
    moved = (dw != 0).cpu().numpy()
    delta = new.weight.astype(np.int64) - old.weight.astype(np.int64)
    sign = np.sign(
        (old.weight.astype(np.int64) * q_old.codes(w_old).cpu().numpy().astype(np.int64)).sum(
            axis=tuple(range(1, delta.ndim)), keepdims=True
        )
    )
    changed = delta != 0
    dq = torch.from_numpy(delta * np.where(sign < 0, -1, 1)).double() * q_old.scale.detach().double()
    dot, dq2, dw2 = float((dq * dw).sum()), float((dq * dq).sum()), float((dw * dw).sum())
    lsb = (dw.abs() / q_old.scale.detach().double())[torch.from_numpy(moved)]
    steps = np.minimum(np.abs(delta[changed]), HISTOGRAM_TOP)
    return (
        LayerChange(
            layer=name,
            codes=int(delta.size),
            latent_changed=int(moved.sum()),
            codes_changed=int(changed.sum()),
            max_step=int(np.abs(delta).max(initial=0)),
            histogram=tuple(int((steps == d).sum()) for d in range(1, HISTOGRAM_TOP + 1)),
            lost=int((moved & ~changed).sum()),
            bias_changed=_differ(old.bias, new.bias),
            scales_changed=_differ(old.weight_scale, new.weight_scale),
            grid_changed=int((q_new.codes(w_old) != q_old.codes(w_old)).sum()),
            update_changed=int((q_old.codes(w_new) != q_old.codes(w_old)).sum()),
            fidelity=dot / dw2 if dw2 > 0 else None,
            cosine=dot / (dq2 * dw2) ** 0.5 if dq2 > 0 and dw2 > 0 else None,
            lsb_step=float(lsb.median()) if lsb.numel() else None,
        ),
        dot,
        dq2,
        dw2,
    )


def _weight(model: QuantModel, module: str) -> Tensor:
    weight = model.get_submodule(module).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _differ(a: NDArray[Any] | None, b: NDArray[Any] | None) -> int:
    return 0 if a is None or b is None else int((a != b).sum())


def _moved_scales(old: Graph, new: Graph) -> int:
    return sum(
        (a.scale, a.zero_point) != (new.activations[n].scale, new.activations[n].zero_point)
        for n, a in old.activations.items()
    )
