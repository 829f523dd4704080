"""Unlearning methods by name. A method joins by one line in ``_ALL``; :func:`register` checks what it declares."""

from __future__ import annotations

import dataclasses
import inspect

from qunlearn.errors import ConfigError
from qunlearn.hyper import Hyper, hypers
from qunlearn.registry import Registry
from qunlearn.tasks import TASKS
from qunlearn.unlearn.auto import Settled, settle_lr
from qunlearn.unlearn.bad_teacher import BadTeacher
from qunlearn.unlearn.base import SHIPS, Unlearner
from qunlearn.unlearn.boundary_shrink import BoundaryShrink
from qunlearn.unlearn.card import GroupValue, ReferenceCard
from qunlearn.unlearn.context import Context, TooCostlyError, UnlearnResult
from qunlearn.unlearn.ec import EC, plug_ec
from qunlearn.unlearn.ft import FT
from qunlearn.unlearn.ga import GA
from qunlearn.unlearn.l1_sparse import L1Sparse
from qunlearn.unlearn.neggrad_plus import GradDiff, NegGradPlus
from qunlearn.unlearn.objective import Objective
from qunlearn.unlearn.oeu import OEU
from qunlearn.unlearn.probe import group_values
from qunlearn.unlearn.qmul import QMUL
from qunlearn.unlearn.rl import RL
from qunlearn.unlearn.salun import SalUn
from qunlearn.unlearn.scrub import SCRUB
from qunlearn.unlearn.ssd import SSD

METHODS: Registry[type[Unlearner]] = Registry("method")
KNOWN_TASKS = frozenset(TASKS) | {"lm", "text_to_image"}


def register(cls: type[Unlearner]) -> type[Unlearner]:
    """Add a method; everything that is wrong with its declaration is listed in one ConfigError."""
    problems = []
    for attribute in ("name", "tasks", "source"):
        if not getattr(cls, attribute, None):
            problems.append(f"{attribute} is not set")
    if inspect.isabstract(cls):
        problems.append("it is abstract")
    params = getattr(cls, "__dataclass_params__", None)
    fields = cls.__dict__.get("__dataclass_fields__", {})
    if params is None or not params.frozen or not fields or not all(f.kw_only for f in dataclasses.fields(cls)):
        problems.append("it is not a frozen, keyword-only dataclass")
    else:
        for h in hypers(cls).values():
            if not h.doc:
                problems.append(f"{h.name} has no doc")
            if h.default is dataclasses.MISSING:
                problems.append(f"{h.name} has no default")
            elif (text := h.problem(h.default)) is not None:
                problems.append(f"default: {text}")
    problems += [f"task {t!r} is unknown" for t in getattr(cls, "tasks", ()) if t not in KNOWN_TASKS]
    if cls.ships not in SHIPS:
        problems.append(f"ships must be one of {', '.join(SHIPS)}")
    if not (cls.__doc__ or "").strip() or (cls.__doc__ or "").startswith(f"{cls.__name__}("):
        problems.append("it has no docstring")
    if problems:
        raise ConfigError(f"method {cls.__name__}: {'; '.join(problems)}.", remedy="Complete its declaration.")
    return METHODS.register(cls.name, cls)


_ALL: tuple[type[Unlearner], ...] = (
    BadTeacher,
    BoundaryShrink,
    EC,
    FT,
    GA,
    GradDiff,
    L1Sparse,
    NegGradPlus,
    OEU,
    QMUL,
    RL,
    SalUn,
    SCRUB,
    SSD,
)
for _cls in _ALL:
    register(_cls)

__all__ = [
    "METHODS",
    "Context",
    "GroupValue",
    "Hyper",
    "Objective",
    "ReferenceCard",
    "Settled",
    "TooCostlyError",
    "UnlearnResult",
    "Unlearner",
    "group_values",
    "hypers",
    "plug_ec",
    "register",
    "settle_lr",
]
