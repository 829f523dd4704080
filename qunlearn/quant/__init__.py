"""The shared quantized backend: prepare, train, integer codes, lowering. Everything above is library-agnostic."""

from qunlearn.quant.calibrate import calibrate
from qunlearn.quant.change import ChangeTable, code_changes
from qunlearn.quant.checkpoint import RunConfig, load_run, read_config, save_run
from qunlearn.quant.column import TorchColumn
from qunlearn.quant.freeze import DoubleBackward, freeze_quant, supports_double_backward
from qunlearn.quant.lower import codes, codes_digest, lower
from qunlearn.quant.model import QuantModel, layer_of, scale_parameter_names
from qunlearn.quant.prepare import prepare
from qunlearn.quant.spec import QuantSpec
from qunlearn.quant.state import state_digest
from qunlearn.quant.train import Recipe, train

__all__ = [
    "ChangeTable",
    "DoubleBackward",
    "QuantModel",
    "QuantSpec",
    "Recipe",
    "RunConfig",
    "TorchColumn",
    "calibrate",
    "code_changes",
    "codes",
    "codes_digest",
    "freeze_quant",
    "layer_of",
    "load_run",
    "lower",
    "prepare",
    "read_config",
    "save_run",
    "scale_parameter_names",
    "state_digest",
    "supports_double_backward",
    "train",
]
