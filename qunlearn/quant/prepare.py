"""From a float network to a fake-quantized one: trace, match operators, put quantizers between them."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qunlearn.errors import ConfigError, QunlearnError, UnsupportedError
from qunlearn.quant.calibrate import calibrate
from qunlearn.quant.layers import quant_conv, quant_identity, quant_linear, quant_relu
from qunlearn.quant.model import INPUT, WEIGHTED, QuantModel, Step
from qunlearn.quant.spec import QuantSpec

_RELU6 = 6.0


def prepare(
    model: nn.Module, spec: QuantSpec, example: Tensor, calibration: Iterable[Tensor] | None = None
) -> QuantModel:
    """A trainable fake-quantized copy of ``model``; the given module is not changed.

    ``example`` is one batch [N, C, H, W] float32 that fixes the input shape; activation ranges come from
    ``calibration`` (batches) or, without it, from ``example``. Operators that the artefact does not offer raise
    UnsupportedError with the whole list.
    """
    if example.ndim != 4 or not example.is_floating_point():
        raise ConfigError(
            f"the example has shape {tuple(example.shape)} and type {example.dtype}.",
            remedy="Give one float32 batch [N, C, H, W].",
        )
    model = copy.deepcopy(model)
    try:
        graph = fx.Tracer().trace(model)
    except QunlearnError:
        raise
    except Exception as err:  # whatever the user's forward raises under tracing
        raise UnsupportedError(
            f"the network cannot be traced: {err}.",
            remedy="Its forward must not branch on values; use torch.nn modules in a fixed order.",
        ) from err
    graph = fx.GraphModule(model, graph).graph
    graph.eliminate_dead_code()
    planner = _Planner(model, graph)
    steps = planner.plan()
    out = QuantModel(spec, tuple(example.shape[1:]), steps)
    _fill(out, model, planner.relus)
    was_training = model.training
    try:
        calibrate(out, calibration if calibration is not None else [example])
        _check_shapes(out, example[:1])
    except RuntimeError as err:
        raise ConfigError(
            f"the network does not accept input of shape {tuple(example.shape)}: {err}.",
            remedy="Check the network against the shape of the data.",
        ) from err
    out.train(was_training)
    return out


@torch.no_grad()
def _check_shapes(model: QuantModel, example: Tensor) -> None:
    """Linear layers must read [N, D] and the network must return [N, K]."""
    model.eval()
    shapes = {name: tuple(value.shape) for name, value in model.activations(example).items()}
    problems = [
        f"{s.name} reads a tensor of shape {shapes[s.inputs[0]]} (flatten before it, so that it reads [N, D])"
        for s in model.steps
        if s.kind == "linear" and len(shapes[s.inputs[0]]) != 2
    ]
    last = shapes[model.steps[-1].name]
    if len(last) != 2:
        problems.append(f"the result has shape {last}, not [N, K]")
    if problems:
        raise UnsupportedError("; ".join(problems) + ".", remedy="Put a flatten before the linear layers.")


class _Planner:
    """Walks an fx graph once and writes steps; collects every unsupported node before it raises."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model = model
        self.nodes = list(graph.nodes)
        self.steps: list[Step] = []
        self.source: dict[fx.Node, str] = {}
        self.relus: dict[str, float | None] = {}
        self.problems: list[str] = []
        self.taken: set[fx.Node] = set()
        self.used_modules: set[str] = set()
        self.step_names = {INPUT}
        self.placed = {
            str(n.target)
            for n in self.nodes
            if isinstance(self._module(n), nn.BatchNorm2d) or self._kind(n)[0] in (*WEIGHTED, "dropout")
        }
        self.problems += [
            f"{path}: the name is taken by the quantized network" for path in sorted(self.placed) if _reserved(path)
        ]

    def plan(self) -> tuple[Step, ...]:
        for node in self.nodes:
            if node in self.taken:
                continue
            if node.op == "placeholder":
                if self.source:
                    self.problems.append(f"{node.name}: a second input")
                self.source[node] = INPUT
            elif node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node) or self.source.get(result) != (
                    self.steps[-1].name if self.steps else None
                ):
                    self.problems.append("output: the network must return one tensor, the logits, computed last")
            else:
                self._node(node)
        if not any(s.kind in WEIGHTED for s in self.steps):
            self.problems.append("no convolution or linear layer found")
        if self.problems:
            raise UnsupportedError(
                "the network has operators outside the int8 subset: " + "; ".join(self.problems) + ".",
                remedy="Use Conv2d, BatchNorm2d right after a Conv2d, ReLU, ReLU6, Linear, MaxPool2d, AvgPool2d, "
                "AdaptiveAvgPool2d(1), flatten, + and torch.cat.",
            )
        return tuple(self.steps)

    def _node(self, node: fx.Node) -> None:
        kind, attrs = self._kind(node)
        if kind is None:
            self.problems.append(f"{node.name}: {self._describe(node)} {attrs.get('why', '')}".rstrip())
            self.source[node] = INPUT
            return
        inputs = self._inputs(node, kind)
        if kind == "identity":
            self.source[node] = inputs[0]
            return
        name = self._step_name(node)
        module = self._own(node) if kind in (*WEIGHTED, "dropout") else None
        if kind == "relu":
            self._add(node, name, "requant", inputs, None, None, relu=attrs["ceiling"], attrs={})
            return
        last, bn = node, None
        if kind == "conv":
            follower = self._single_user(last)
            if follower is not None and _foldable(self._module(follower)):
                bn, last = self._own(follower), follower
                self.taken.add(follower)
        relu: Any = False
        if kind not in ("maxpool", "flatten", "dropout"):
            follower = self._single_user(last)
            if follower is not None:
                follow_kind, follow_attrs = self._kind(follower)
                if follow_kind == "relu":
                    relu, last = follow_attrs["ceiling"], follower
        self._add(last, name, kind, inputs, module, bn, relu=relu, attrs=attrs)
        if last is not node:
            self.taken.add(last)

    def _step_name(self, node: fx.Node) -> str:
        """Module path or node name, made unique: a pool or ReLU may run several times."""
        base = name = str(node.target) if node.op == "call_module" else node.name
        count = 0
        while name in self.step_names:
            count += 1
            name = f"{base}_{count}"
        self.step_names.add(name)
        return name

    def _own(self, node: fx.Node) -> str:
        """Path of a module that has a state and so may run once only."""
        path = str(node.target)
        if path in self.used_modules:
            self.problems.append(f"{path}: one module used twice")
        self.used_modules.add(path)
        return path

    def _act_path(self, name: str) -> str:
        path = f"{name}_act"
        while any(p == path or p.startswith(f"{path}.") for p in self.placed) or _reserved(path):
            path += "_"
        self.placed.add(path)
        return path

    def _add(
        self,
        node: fx.Node,
        name: str,
        kind: str,
        inputs: tuple[str, ...],
        module: str | None,
        bn: str | None,
        *,
        relu: Any,
        attrs: dict[str, Any],
    ) -> None:
        act = None if kind in ("maxpool", "flatten", "dropout") else self._act_path(name)
        if act is not None and relu is not False:
            self.relus[act] = relu
        self.steps.append(Step(name=name, kind=kind, inputs=inputs, module=module, bn=bn, act=act, attrs=attrs))
        self.source[node] = name

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _single_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _inputs(self, node: fx.Node, kind: str) -> tuple[str, ...]:
        args: Any = node.args[0] if kind == "concat" else node.args[: 2 if kind == "add" else 1]
        names = []
        for arg in args:
            if not isinstance(arg, fx.Node) or arg not in self.source:
                self.problems.append(f"{node.name}: an operand is not a tensor computed before")
                names.append(INPUT)
            else:
                names.append(self.source[arg])
        return tuple(names)

    def _describe(self, node: fx.Node) -> str:
        module = self._module(node)
        return type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))

    def _kind(self, node: fx.Node) -> tuple[str | None, dict[str, Any]]:
        module = self._module(node)
        if module is not None:
            return _module_kind(module)
        target, args, kwargs = node.target, node.args, node.kwargs
        if node.op in ("call_function", "call_method"):
            if target in (operator.add, operator.iadd, torch.add, "add") and len(args) == 2 and not kwargs:
                return "add", {}
            if target in (F.relu, torch.relu, "relu"):
                return "relu", {"ceiling": None}
            if target is F.relu6:
                return "relu", {"ceiling": _RELU6}
            if target in (torch.flatten, "flatten"):
                given = _arguments(args, kwargs, "start_dim", "end_dim")
                if given.pop("start_dim", 0) == 1 and given.pop("end_dim", -1) == -1 and not given:
                    return "flatten", {}
            if target in (torch.cat, torch.concat) and args and _arguments(args, kwargs, "dim") == {"dim": 1}:
                return "concat", {}
            if target is F.adaptive_avg_pool2d and _arguments(args, kwargs, "output_size")["output_size"] in (
                1,
                (1, 1),
            ):
                return "gap", {}
            if target is F.dropout:
                return None, {"why": "(use the module nn.Dropout)"}
        return None, {}


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    """Arguments after the first by name."""
    return {**dict(zip(names, args[1:], strict=False)), **kwargs}


def _reserved(path: str) -> bool:
    first = path.partition(".")[0]
    return hasattr(QuantModel, first) or first in ("spec", "in_shape", "steps", "input_quant", "_free_after")


def _foldable(m: nn.Module | None) -> bool:
    return isinstance(m, nn.BatchNorm2d) and m.running_mean is not None


def _module_kind(m: nn.Module) -> tuple[str | None, dict[str, Any]]:
    if isinstance(m, nn.Conv2d):
        if m.padding_mode != "zeros" or isinstance(m.padding, str):
            return None, {"why": "(padding must be numbers, filled with zeros)"}
        return "conv", {}
    if isinstance(m, nn.Linear):
        return "linear", {}
    if isinstance(m, nn.ReLU6):
        return "relu", {"ceiling": _RELU6}
    if isinstance(m, nn.ReLU):
        return "relu", {"ceiling": None}
    if isinstance(m, nn.Identity):
        return "identity", {}
    if isinstance(m, nn.Dropout):
        return "dropout", {}
    if isinstance(m, nn.Flatten) and (m.start_dim, m.end_dim) == (1, -1):
        return "flatten", {}
    if isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size in (1, (1, 1)):
        return "gap", {}
    if isinstance(m, nn.MaxPool2d) and not m.ceil_mode and not m.return_indices and _pair(m.dilation) == (1, 1):
        return "maxpool", {"kernel": _pair(m.kernel_size), "strides": _pair(m.stride), "padding": _pair(m.padding)}
    if isinstance(m, nn.AvgPool2d) and not m.ceil_mode and m.divisor_override is None:
        return "avgpool", {
            "kernel": _pair(m.kernel_size),
            "strides": _pair(m.stride),
            "padding": _pair(m.padding),
            "count_include_pad": m.count_include_pad,
        }
    if isinstance(m, nn.BatchNorm2d):
        return None, {"why": "(it must keep running statistics and follow a Conv2d whose result nothing else reads)"}
    return None, {}


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _fill(out: QuantModel, source: nn.Module, relus: dict[str, float | None]) -> None:
    weighted = [s for s in out.steps if s.kind in WEIGHTED]
    edges = {weighted[0].name, weighted[-1].name}
    spec = out.spec
    for step in out.steps:
        edge = step.name in edges
        if step.module is not None:
            module = source.get_submodule(step.module)
            bits = 8 if edge else spec.weight_bits
            if isinstance(module, nn.Conv2d):
                module = quant_conv(module, qmax=spec.weight_qmax(edge=edge), bits=bits)
            elif isinstance(module, nn.Linear):
                module = quant_linear(module, qmax=spec.weight_qmax(edge=edge), bits=bits)
            _set_submodule(out, step.module, module)
        if step.bn is not None:
            _set_submodule(out, step.bn, source.get_submodule(step.bn))
        if step.act is not None:
            exact = spec.grid == "exact"
            act = (
                quant_relu(bits=spec.act_bits, ceiling=relus[step.act], power_of_two=exact)
                if step.act in relus
                else quant_identity(power_of_two=exact)
            )
            _set_submodule(out, step.act, act)


def _set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, leaf = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(leaf, module)
